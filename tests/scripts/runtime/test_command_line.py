# Copyright (c) CDWS-MIL contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A path on the command line means the file of exactly that name, whatever Fire and MONAI's parser make of the text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import fire
import numpy as np
import pytest
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from PIL import Image
from scripts.runtime.command_line import Parser, is_rewritten, keep_typed, refuse_unknown, remember, typed_options
from scripts.runtime.errors import InputError
from scripts.runtime.files import claim
from scripts.runtime.processes import start_alone

PROGRAM = "/anywhere/monai/bundle/__main__.py"
ODD = ["set#2", "case #7", "@home", "@home#1", "$x", "$@output_dir", "2024", "1e3", "+5", "-5", "None", "True", "0x1F"]
ODD += ["[a]", "(1, 2)", "{x}", "a b", "'quoted'", "käse", "\udce9", "a::b", "100%", "x=y", "~/x", "./a@::b", "1_000"]


@pytest.fixture(autouse=True)
def _nothing_remembered():
    yield
    remember({})
    keep_typed({})


def parsed(monkeypatch, *words: str) -> ConfigParser:
    """A config as the bundle's, given to MONAI as Fire gives it what was typed."""
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "inferring", *words])
    parser = ConfigParser(
        {
            "dataset_dir": "images",
            "images": "@dataset_dir",
            "output_dir": "runs",
            "prediction_dir": "$@output_dir + '/predictions'",
            "start": {"_target_": "scripts.runtime.command_line.keep_typed", "resolved": "$__local_refs"},
            "run": ["@start", "@images", "@output_dir", "@prediction_dir"],
        }
    )
    parser.update({name: DefaultParseValue(value) for name, value in typed_options(words).items()})
    return parser


@pytest.mark.parametrize("name", ODD)
def test_a_path_arrives_as_it_was_typed(monkeypatch, name: str) -> None:
    run = parsed(monkeypatch, "--dataset_dir", name, f"--output_dir={name}").get_parsed_content("run")
    assert run[1:] == [name, name, f"{name}/predictions"]


def test_images_may_be_a_list(monkeypatch, tmp_path: Path) -> None:
    run = parsed(monkeypatch, "--images", "['a#1.png', '@b.png']").get_parsed_content("run")
    assert run[1] == ["a#1.png", "@b.png"]
    (tmp_path / "['a']").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parsed(monkeypatch, "--images", "['a']").get_parsed_content("run")[1] == "['a']"


def test_a_list_may_be_longer_than_a_name_of_a_file(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"image_{number:04}.png" for number in range(400)]  # 7,600 letters; a name has 255, a path 4,096
    assert parsed(monkeypatch, "--images", str(names)).get_parsed_content("run")[1] == names


@pytest.mark.parametrize("words", [["--dataset_dir", "-x"], ["--dataset_dir", ""], ["--dataset_dir"]])
def test_no_value_is_refused(monkeypatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "inferring", *words])
    with pytest.raises(InputError, match=r"--dataset_dir has no value; .*'\./-x'"):
        keep_typed({})


@pytest.mark.parametrize(
    "words",
    [
        ["--a", "1", "--b=x=y", "-c", "2", "--dash-ed", "3"],
        ["--a", "-5", "--b", "-x1", "--c"],
        ["--a=", "--a", "last"],
        ["--a", "1", "--", "--trace"],
    ],
)
def test_options_are_told_apart_as_by_fire(words: list[str], capsys) -> None:
    def run(**options):
        return json.dumps(options)

    expected = json.loads(fire.Fire(run, command=words[: words.index("--")] if "--" in words else words))
    capsys.readouterr()
    found = {k: True if v is None else DefaultParseValue(v) for k, v in typed_options(words).items()}
    assert found == expected


@pytest.mark.parametrize(("device", "refused"), [("cpu", False), ("$torch.device('x')", False), ("gpu", True)])
def test_a_device_that_is_none_is_refused(monkeypatch, device: str, refused: bool) -> None:
    monkeypatch.setattr("scripts.runtime.processes.report_input_errors", lambda: None)
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "inferring", "--device", device])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    remedy = r"no device 'gpu' here .*; leave --device out, or give cpu or cuda:0 or cuda:1\."
    with pytest.raises(InputError, match=remedy) if refused else nullcontext():
        start_alone({})


def test_the_options_of_another_program_are_not_taken(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pytest", "--dataset_dir", "x"])
    resolved: dict = {}
    keep_typed(resolved)
    assert resolved == {}
    remember({"dataset_dir": Path("a#b"), "epochs": 3})
    keep_typed(resolved)
    assert resolved == {"dataset_dir": "a#b"}


def test_paths_in_an_args_file_are_as_written_and_references_stay(monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text(
        json.dumps({"dataset_dir": "set #2", "ckpt_path": "@x", "output_dir": "file #1", "split": "a#b"})
    )
    command = [PROGRAM, "run", "inferring", "--args_file", str(tmp_path / "args.json"), "--output_dir", "typed #1"]
    monkeypatch.setattr(sys, "argv", command)
    resolved: dict = {}
    keep_typed(resolved)
    assert resolved == {"dataset_dir": "set #2", "output_dir": "typed #1", "split": "a#b"}


KNOWN = [
    {"spatial_size": "[64,64]", "dataset_dir": "x"},
    {"run_id": "inferring", "logging_file": "False", "tracking": None, "meta_file": "m.json", "+save": "[]"},
    {"network_def#stages": "2", "network_def::stages": "2", "network_def#a_new_argument": "1", "save#0#width": "3"},
    {"tracking": "mlflow", "experiment_name": "x", "run_name": "y"},
    {"tile_size": "256"},  # of the overlay
    {"network": "%other.json", "network#anything": "1"},
]
UNKNOWN = {
    "spatail_size": r"--spatail_size \(did you mean --spatial_size\?\)",
    "displayable_configs#treshold": r"did you mean --displayable_configs#threshold\?",
    "image_list_dir#a": "--image_list_dir#a",
    "zzz": r"--zzz\.",
    "experiment_name": r"--experiment_name",  # nothing is tracked
    "+sav": r"--\+sav \(did you mean --save\?\)",
}


def files_of(configs: Path, *names: str) -> str:
    return str([str(configs / f"{name}.json") for name in names])


@pytest.mark.parametrize("options", KNOWN)
def test_settings_that_there_are_pass(configs, options: dict) -> None:
    refuse_unknown({"config_file": files_of(configs, "inference", "slides")} | options)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_misspelt_setting_is_refused_with_the_nearest(configs, name: str) -> None:
    with pytest.raises(InputError, match=UNKNOWN[name]):
        refuse_unknown({"config_file": files_of(configs, "inference"), name: "1"})


def test_a_setting_that_an_overlay_has_made_useless_is_named(configs, caplog) -> None:
    """CDWS-MIL has stages, the recommended method's network has none."""
    caplog.set_level("INFO")
    options = {
        "stages": "2",
        "max_epochs": "5",
        "encoder": "resnet18",
        "run_id": "training",
        "network_def#encoder": "x",
    }
    refuse_unknown({"config_file": files_of(configs, "train", "recommended")} | options)
    assert caplog.messages == ["Nothing in these configs uses --stages."]
    refuse_unknown({"config_file": files_of(configs, "train"), "stages": "2", "run": "$0"})
    assert len(caplog.messages) == 1


def test_one_of_an_overlay_that_is_not_given_is_refused_and_so_is_one_in_an_args_file(
    configs, monkeypatch, tmp_path: Path
) -> None:
    content = {"config_file": [str(configs / "inference.json")], "tile_size": 64}
    (tmp_path / "args.json").write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "inferring", "--args_file", str(tmp_path / "args.json")])
    with pytest.raises(InputError, match="--tile_size"):
        keep_typed({})


def test_a_path_that_only_the_parser_has_seen_is_refused_where_it_was_rewritten(monkeypatch, tmp_path: Path) -> None:
    """That of an overlay, or of a program: 'case #7' has become 'case ::7'."""
    with pytest.raises(InputError, match=r"'.*case ::7' has '::', which MONAI's parser makes from '#'"):
        claim([tmp_path / "case ::7"], "training")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "x", "--output_dir", "a::b"])
    keep_typed({})
    assert not is_rewritten("a::b/predictions")


def test_many_processes_that_would_each_do_all_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("scripts.runtime.processes.report_input_errors", lambda: None)
    with pytest.raises(InputError, match=r"2 processes.*multi_gpu_train\.json.*multi_gpu_evaluate\.json"):
        start_alone()
    start_alone(dealt=True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    start_alone()


@pytest.mark.parametrize("overlays", [[], ["slices"], ["demo"]])
@pytest.mark.parametrize(("base", "start"), [("train", "training"), ("inference", "inferring")])
def test_every_run_begins_with_it(configs, base: str, start: str, overlays: list[str]) -> None:
    parser = ConfigParser()
    parser.read_config([configs / f"{name}.json" for name in (base, *overlays)])
    assert parser[start][0] == "@start"
    assert parser["start"]["_target_"] == "scripts.runtime.processes.start_alone"
    assert parser["start"]["settings"] == "$__local_refs"
    assert not parser["start"].get("dealt")


def test_the_documented_command_takes_odd_folders(configs, quick_python, red_detector, tmp_path: Path) -> None:
    data = os.fsencode(tmp_path) + b"/@set #2 $x [caf\xe9]"
    try:
        os.mkdir(data)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(os.fsdecode(data) + "/right.png")
    (tmp_path / "decoy").mkdir()
    command = [quick_python, "-m", "monai.bundle", "run", "inferring"]
    command += ["--config_file", str(configs / "inference.json"), "--ckpt_path", str(red_detector)]
    command += ["--dataset_dir", os.path.basename(data), "--output_dir", "20241231", "--spatial_size", "[32,32]"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = sorted(path.name for path in (tmp_path / "20241231" / "predictions").iterdir() if path.suffix)
    assert "right_mask.png" in names


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("label a --shufle", "There is no option --shufle (did you mean --shuffle?); see cdws label -h."),
        ("label a b", "'b' is one word too many; see cdws label -h."),
        ("merge a --shuffle", "There is no option --shuffle; see cdws merge -h."),
    ],
)
def test_an_unknown_option_is_one_of_its_command(typed: str, said: str, capsys) -> None:
    parser = Parser(prog="cdws")
    commands = parser.add_subparsers(required=True)
    for name in ("label", "merge"):
        commands.add_parser(name).add_argument("folder")
    commands.choices["label"].add_argument("--shuffle", action="store_true")
    with pytest.raises(SystemExit):
        parser.parse_args(typed.split())
    assert capsys.readouterr().err == f"error: {said}\n"
