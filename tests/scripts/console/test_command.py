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
"""``cdws``: what it refuses, prints and runs. Its runs themselves are those of the documents' commands."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow, create_workflow
from monai.bundle import run as run_bundle
from scripts.console.command import main
from scripts.console.options import MONAI_OPTIONS
from scripts.demo.dataset import make_demo_dataset
from scripts.review.findings import FindingsWriter
from scripts.runtime.command_line import typed_options
from scripts.runtime.errors import InputError

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


def listed(folder: Path, area: float | None = 0.3) -> dict:
    """A data set of pictures that are there; nobody has looked into them."""
    items = {}
    for split in ("training", "validation"):
        items[split] = [{"image": f"{split}_{label}.png", "label": label} for label in (1, 0)]
        items[split][0] |= {"mask": f"{split}_0.png"} | ({} if area is None else {"area": area})
        for item in items[split]:
            for place in (folder, *folder.glob("*/")):
                (place / item["image"]).touch()
    return items


@pytest.fixture
def started(monkeypatch, tmp_path_factory) -> list[list[str]]:
    """What would be run, instead of running it, in a folder that has some data."""
    here = tmp_path_factory.mktemp("here")
    for name in (
        "DATA/dataset.json",
        "set #2/dataset.json",
        "%set/dataset.json",
        "a.png",
        "it's.png",
        "%a.png",
        "b.png",
    ):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(json.dumps(listed(here)) if name.endswith(".json") else "")
    monkeypatch.chdir(here)
    found: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(runpy, "run_module", lambda module, **_: found.append([module, *sys.argv[1:]]))
    return found


REFUSED = {
    "trian DATA": "no command 'trian' (did you mean cdws train?)",
    "train": "cdws train needs the folder of dataset.json: cdws train DATA",
    "infer": "cdws infer needs the folder of images: cdws infer FOLDER",
    "train DATA MORE": "'MORE' is one word too many",
    "train DATA --dataset_dir OTHER": "'DATA' and --dataset_dir are both given",
    "train DATA --spatail_size [64,64]": "--spatail_size (did you mean --spatial_size?)",
    "train DATA --tile_size 64": "--tile_size",  # of slides
    "evaluate DATA --spilt test": "--spilt (did you mean --split?)",
    "infer a.png --ckpt included": "--ckpt (did you mean --ckpt_path?)",
    "infer a.png --ckpt_path inlcuded": "no checkpoint 'inlcuded' (did you mean included?); give the word included",
    "evaluate DATA --ckpt_path Included": "no checkpoint 'Included' (did you mean included?)",
    "infer a.png --overlay slide": "no overlay 'slide' (did you mean slides?); cdws infer -h lists the overlays",
    "train DATA --split test": "There is no option --split",
    "train DATA --spatial_size 96": "must be height and width, two integers of 4 or more, as [500,500]; got 96 (did",
    "infer a.png --spatial_size 96": "got 96 (did you mean [96,96]?)",
    "infer a.png --spatial_size 96x96": "--spatial_size is height and width, as [224,224]; got '96x96'",
    "demo --spatial_size [2,96]": "two integers of 4 or more",
    "train DATA --methud dws": "--methud (did you mean --method?)",
    "train DATA --round 1": "There is no option --round (did you mean --rounds?)",
    "train DATA --colour 1": "`cdws settings` lists the settings, `cdws train -h` the other options.",
    "train DATA --method": "--method has no value",
    "train DATA --output_dir ''": "--output_dir has no value; name a folder, or leave it out",
    "infer ''": "cdws infer was given an empty name; name FOLDER",
    "train DATA --method cdsw": "no method 'cdsw' (did you mean cdws?)",
    "train DATA --overlay suprepixels": "no overlay 'suprepixels' (did you mean superpixels?)",
    "train DATA --overlay mine.json": "no overlay 'mine.json': no such file",
    "train DATA --overlay slides": "of inference alone: cdws infer FOLDER --overlay slides",
    "train DATA --config_file x.json": "--overlay FILE",
    "train DATA --seed x": "--seed is a whole number; got 'x'",
    "infer a.png --num_workers": "--num_workers is a whole number; got 'nothing'",
    "check --args_file NONE.json": "no file 'NONE.json'; name one with --args_file",
    "check DATA --logging_file NONE.conf": "no file 'NONE.conf'; name one with --logging_file",
    "review DATA": "cdws review RUN DATA",
    "review RUN DATA": "no trained model 'RUN/models/model.pt'",
    "review RUN DATA --prot 9": "--prot",
    "review RUN DATA --output_dir x": "RUN and DATA in the place of --output_dir",
    "train DATA --rounds 0": "--rounds is a whole number of 1 or more, of cdws train by the method 'recommended' alone",
    "train DATA --rounds x": "of cdws train by the method 'recommended' alone; got 'x'",
    "train DATA --rounds 2 --method cdws": "of cdws train by the method 'recommended' alone; got '2'",
    "evaluate DATA --rounds 1": "There is no option --rounds (it is of cdws train alone)",
    "demo --rounds 1": "There is no option --rounds (it is of cdws train alone)",
    "demo DATA": "takes no 'DATA'; for yours: cdws train DATA",
    "demo --sed 1": "--sed (did you mean --seed?)",
    "export": "cdws export needs the file or folder to write: cdws export FILE",
    "export model.pt": "must end in .ts",
    "export a.ts --encodr resnet18": "--encodr (did you mean --encoder?)",
    "export a.ts --export_dir b": "no option --export_dir",
    "export a --wsinfer --bioimageio": "--wsinfer and --bioimageio are two exports",
    "export a.ts --mpp 1": "--mpp is of a folder",
    "export a --wsinfr": "--wsinfr (did you mean --wsinfer?)",
    "export a.ts b.ts": "'b.ts' is one word too many",
    "export a.ts --ckpt_pth x": "no option --ckpt_pth (did you mean --ckpt_path?)",
    "settings treshold": "no setting 'treshold' (did you mean threshold?)",
    "settings --method dsw": "no method 'dsw' (did you mean dws?)",
    "data from-folder": "(did you mean from-folders?)",
    "data from-folders a": "NEGATIVE",
    "data from-masks a b --without_mask negativ": "'negativ' is no without_mask (did you mean negative?)",
}


ABSENT = {
    "train NONE": "no data set at 'NONE'; give DATA, the folder of dataset.json or that file",
    "check --dataset_dir NONE": "no data set at 'NONE'",
    "evaluate EMPTY": "no data set at 'EMPTY'",
    "infer NONE": "no folder or file 'NONE'; give FOLDER",
    "infer a.png NONE": "no folder or file 'NONE'",
    "review RUN NONE": "no data set at 'NONE'",
    "label NONE --shuffle": "no folder or file 'NONE'",
    "merge_masks DATA NONE OUT": "no folder or file 'NONE'",
    "curve NONE": "no data set at 'NONE'",
    "study NONE": "no data set at 'NONE'",
    "evaluate DATA": "trained in 'runs/recommended', but in 'runs/a': name the --output_dir of a training",
    "evaluate DATA --output_dir RNU": "trained in 'RNU' (did you mean RUN?): name the --output_dir of a training",
    "infer a.png --output_dir x/y": "add --ckpt_path included",
    "export a.ts --output_dir RNU": "trained in 'RNU' (did you mean RUN?)",
    "export a --wsinfer --output_dir RNU": "trained in 'RNU' (did you mean RUN?)",
    "export a.ts --ckpt_path NONE": "no checkpoint 'NONE'",
    "export NONE/a.onnx --ckpt_path a.png": "no folder 'NONE' to write 'a.onnx' into",
}


@pytest.mark.parametrize("line", ABSENT)
def test_data_that_is_not_there_is_refused_at_once(line: str, started) -> None:
    for name in ("EMPTY", "RUN/models", "runs/a/models"):
        Path(name).mkdir(parents=True)
    for name in ("RUN", "runs/a"):
        Path(name, "models/model.pt").touch()
    with pytest.raises(InputError, match=re.escape(ABSENT[line])):
        main(line.split())
    assert started == []


def test_what_is_wrong_with_a_data_set_is_seen_before_anything_starts(started) -> None:
    content = listed(Path())
    content["training"][0]["area"] = 30
    content["training"].append({"image": "gone.png", "label": 1, "mask": "none.png"})
    content["validation"][1]["label"] = "no"
    content["validation"].append({"image": "a.png", "label": 0})
    Path("dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="4 problems in") as raised:
        main(["train", "."])
    for problem in (
        "(0.3 for 30 %)",
        "label is 'no', must be 0 or 1",
        "'gone.png': there is no such file",
        "the mask: there is no such file",
    ):
        assert problem in str(raised.value)
    assert started == []
    # masks are of this method alone
    content = listed(Path())
    del content["training"][0]["mask"]
    Path("dataset.json").write_text(json.dumps(content))
    assert main(["train", ".", "--rounds", "1"]) == 0
    with pytest.raises(InputError, match="has no mask, which this method learns from"):
        main(["train", ".", "--method", "unet"])
    assert len(started) == 1
    # evaluation looks for its own split, and needs no masks
    assert main(["evaluate", ".", "--method", "unet", "--ckpt_path", "a.pt"]) == 0
    with pytest.raises(InputError, match="there is no split 'tset'"):
        main(["evaluate", ".", "--ckpt_path", "a.pt", "--split", "tset"])
    Path("validation_0.png").unlink()
    with pytest.raises(InputError, match=r"validation_0\.png': there is no such file"):
        main(["evaluate", ".", "--ckpt_path", "a.pt"])
    assert len(started) == 2


def test_what_the_demo_draws_need_not_be_there(started) -> None:
    assert main(["evaluate", "NONE", "--overlay", "demo", "--ckpt_dir", "c"]) == 0
    assert main(["label", "NONE", "-h"]) == 0


@pytest.mark.parametrize("line", REFUSED)
def test_a_misspelt_word_is_refused_in_one_sentence(line: str, started, capsys) -> None:
    try:
        status = main(shlex.split(line))
    except SystemExit as end:  # of argparse
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2
    assert started == []
    assert errors.startswith("error: ")
    assert len(errors.splitlines()) == 1
    assert REFUSED[line] in errors


def names(words: list[str]) -> list[str]:
    """Of the configs of a command, without folders and suffixes."""
    return [Path(name).stem for name in words[words.index("--config_file") + 1].strip("[]").replace("'", "").split(",")]


CHOSEN = {
    "train DATA --rounds 1": ["train", "recommended"],
    "check DATA --overlay slices": ["train", "recommended", "slices", "check"],
    "train DATA --method recommended_supervised": ["train", "recommended", "recommended_supervised"],
    "evaluate DATA --method cdws --overlay superpixels --ckpt_dir c": ["train", "cdws", "superpixels", "evaluate"],
    "infer DATA --overlay mri --overlay superpixels": ["inference", "recommended", "slices", "mri", "superpixels"],
    "train --method cdws --overlay demo,five_stages": ["train", "cdws", "demo", "five_stages"],
    "train DATA --overlay slices,ct": ["train", "recommended", "slices", "ct"],
    "infer DATA --method dws --overlay slides --mpp 1": ["inference", "dws", "slides"],
}


@pytest.mark.parametrize("line", CHOSEN)
def test_configs_follow_each_other_as_they_must(line: str, started) -> None:
    assert main(line.split()) == 0
    assert names(started[0]) == CHOSEN[line]
    assert ("--dataset_dir DATA" in " ".join(started[0])) == ("DATA" in line)
    assert ("--mpp 1" in " ".join(started[0])) == ("--mpp" in line)


def test_the_recommended_method_trains_in_rounds(started) -> None:
    line = "train DATA --overlay slices --seed 3 --output_dir mine --ckpt_dir c --rounds 3"
    assert main(line.split()) == 0
    assert [names(words) for words in started] == [
        ["train", "recommended", "slices"],
        ["train", "recommended", "slices", "next_round"],
        ["train", "recommended", "slices", "next_round"],
    ]
    lines = [" ".join(words) for words in started]
    assert all("--dataset_dir DATA" in line and "--seed 3" in line for line in lines)
    assert lines[0].endswith("--output_dir mine/round_1")
    assert lines[1].endswith("--ranked_by mine/round_1/models/model.pt --output_dir mine/round_2")
    assert lines[2].endswith("--ckpt_dir c --ranked_by mine/round_2/models/model.pt --output_dir mine")
    assert not any("ckpt_dir" in line for line in lines[:2])


@pytest.mark.parametrize(
    ("rounds", "expected"),
    [("", ["mine/round_1", "mine"]), ("--rounds 2", ["mine/round_1", "mine"]), ("--rounds 1", ["mine"])],
)
def test_the_last_round_is_in_the_folder_itself(rounds: str, expected: list[str], started) -> None:
    assert main(f"train DATA {rounds} --output_dir mine".split()) == 0
    assert [words[words.index("--output_dir") + 1] for words in started] == expected


@pytest.mark.parametrize(("area", "rounds"), [(0.3, 2), (None, 1)])
def test_without_areas_there_is_nothing_to_rank_by(area, rounds, started, tmp_path: Path, capsys) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(listed(tmp_path, area)))
    assert main(["train", str(tmp_path)]) == 0
    assert len(started) == rounds
    shown = capsys.readouterr().out
    assert ("No training image has a rough area" in shown) == (area is None)
    assert [f"Round {n} of 2" in shown for n in (1, 2)] == [rounds == 2] * 2
    with pytest.raises(InputError, match="is empty"):  # the pictures
        main(["check", str(tmp_path)])
    assert ("No training image has a rough area" in capsys.readouterr().out) == (area is None)


def test_a_dataset_that_is_an_option_is_looked_at_and_not_what_lies_around(started, tmp_path: Path, capsys) -> None:
    for folder, area in ((tmp_path, None), (Path(), 0.3)):
        (folder / "dataset.json").write_text(json.dumps(listed(folder, area)))
    assert main(["train", "--dataset_dir", str(tmp_path)]) == 0
    assert len(started) == 1
    assert "No training image has a rough area" in capsys.readouterr().out
    (Path() / "dataset.json").write_text(json.dumps(listed(Path(), None)))
    (tmp_path / "args.json").write_text(json.dumps({"dataset_dir": "DATA"}))
    assert main(["train", "--args_file", str(tmp_path / "args.json")]) == 0
    assert len(started) == 1 + 2


@pytest.mark.parametrize("name", ["steps", "warm_up", "encoder", "artefacts", "tta", "learning_rate", "spatial_size"])
def test_help_has_the_settings_of_the_method(name: str, capsys) -> None:
    main(["train", "-h"])
    assert name in re.split(r"[,\s]+", capsys.readouterr().out.partition("settings, which")[2])


def test_help_has_the_overlays_of_the_run(capsys) -> None:
    listed = {}
    for command in ("train", "infer"):
        main([command, "-h"])
        text = capsys.readouterr().out.partition("overlays (")[2].partition("settings, which")[0]
        listed[command] = set(re.findall(r"^  (\w+)  ", text, re.M))
    assert listed["train"] - listed["infer"] == {"next_round"}
    assert listed["infer"] - listed["train"] == {"slides", "inference_onnx", "inference_trt"}


NEXT = {
    "train DATA": "cdws evaluate DATA",
    "train DATA --steps 2 --spatial_size [64,64] --output_dir runs/mine": "cdws evaluate DATA --output_dir runs/mine",
    "train --dataset_dir DATA --method dws --overlay superpixels --n_segments 9": (
        "cdws evaluate DATA --method dws --overlay superpixels --n_segments 9"
    ),
    "train DATA --overlay next_round --ranked_by a.pt --ckpt_dir c": "cdws evaluate DATA --ckpt_dir c",
    "label DATA --port 0": "cdws train DATA",
    "evaluate DATA --output_dir=-x --ckpt_path included --allow_outside True": (
        "cdws infer FOLDER --output_dir=-x --ckpt_path included"
    ),
}


@pytest.mark.parametrize("line", NEXT)
def test_a_run_ends_with_the_command_that_follows(line: str, started, capsys) -> None:
    assert main(line.split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Next: {NEXT[line]}"


@pytest.mark.parametrize(("method", "model"), [("recommended", "area_ranked.pt"), ("dws", "model.pt")])
def test_the_included_model_has_a_word(started, method: str, model: str) -> None:
    assert main(["evaluate", "DATA", "--method", method, "--output_dir", "new", "--ckpt_path", "included"]) == 0
    assert main(["export", "new", "--wsinfer", "--method", method, "--ckpt_path", "included"]) == 0
    for words in started:
        assert words[words.index("--ckpt_path") + 1] == str(BUNDLE / "models" / model)


def test_a_next_round_is_not_repeated(started) -> None:
    assert main(["train", "DATA", "--overlay", "next_round", "--ranked_by", "a.pt"]) == 0
    assert [names(words) for words in started] == [["train", "recommended", "next_round"]]


def test_options_arrive_as_they_were_typed(started) -> None:
    line = ["train", "set #2", "--max_epochs=3", "--spatial_size", "[64, 64]", "--r", "-5", "--network_def#stages", "2"]
    assert main([*line, "--output_dir=-x", "--amp", "--rounds", "1"]) == 0
    words = started[0][started[0].index("--config_file") + 2 :]
    typed = ["--max_epochs", "3", "--spatial_size", "[64, 64]", "--r=-5", "--network_def#stages", "2"]
    assert words == ["--dataset_dir", "set #2", *typed, "--output_dir=-x", "--amp"]


def test_many_files_are_given_as_a_list(started) -> None:
    assert main(["infer", "a.png", "it's.png"]) == 0
    assert started[0][-2:] == ["--images", repr(["a.png", "it's.png"])]


def test_a_name_that_monai_would_take_for_a_part_of_a_config_is_a_path(started) -> None:
    """MONAI's parser reads what follows '%' as the name of a config."""
    assert main(["infer", "%a.png", "b.png"]) == 0
    assert main(["train", "%set", "--output_dir", "%out", "--network", "%mine.json::network", "--rounds", "1"]) == 0
    assert started[0][-2:] == ["--images", repr(["./%a.png", "b.png"])]
    assert started[1][-5:] == ["./%set", "--output_dir", "./%out", "--network", "%mine.json::network"]


def test_an_own_overlay_is_a_file(started, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"my_setting": 1}))
    assert main(["train", "DATA", "--overlay", str(tmp_path / "mine.json"), "--my_setting", "2"]) == 0
    assert names(started[0])[-1] == "mine"


def test_the_demo_gives_each_run_what_it_has(started, capsys, tmp_path: Path) -> None:
    scores = {"f_pos": 0.75, "f_neg": 1.0, "all_ones_f_pos": 0.5, "all_ones_f_neg": 0.0, "auc": 0.875}
    (tmp_path / "metrics.json").write_text(json.dumps(scores))
    line = ["demo", "--seed", "3", "--val_interval", "2", "--max_epochs", "4", "--output_dir", str(tmp_path)]
    assert main([*line, "--datalist::counts", "{'training':8}"]) == 0
    assert [words[2] for words in started] == ["training", "evaluating", "inferring"]
    assert [names(words)[:5] for words in started[:2]] == [
        ["train", "cdws", "demo", "recommended", "demo_recommended"]
    ] * 2
    assert all(words[words.index("--seed") + 1] == "3" for words in started)
    assert ["--val_interval" in words for words in started] == [True, True, False]
    assert all(words[words.index("--datalist::counts") + 1] == "{'training':8}" for words in started)
    assert "runs/demo/data-3/dataset.json" in started[2]
    assert [words[words.index("--split") + 1] for words in started[1:]] == ["test", "test"]
    shown = capsys.readouterr().out
    assert "F+ 0.75  F- 1.00  (all pixels marked: 0.50 and 0.00)  AUC 0.88" in shown
    assert shown.splitlines()[-1].endswith(f"{tmp_path}/predictions/index.html")


def test_a_folder_for_another_program_is_a_run(started) -> None:
    Path("m.pt").touch()
    assert main(["export", "my", "--bioimageio", "--method", "dws", "--ckpt_path", "m.pt", "--mpp", "0.5"]) == 0
    (words,) = started
    assert words[:3] == ["monai.bundle", "run", "exporting"]
    assert names(words) == ["inference", "dws", "export"]
    typed = "--export_dir my --export_as bioimageio --ckpt_path m.pt --mpp 0.5"
    assert " ".join(words).endswith(typed)


@pytest.mark.parametrize(
    ("line", "run_id", "written"),
    [
        ("--encoder resnet18 a.ts", "exporting_file", "--export_file a.ts"),
        ("a.onnx --encoder resnet18", "exporting_file", "--export_file a.onnx"),
        ("--wsinfer my --encoder resnet18", "exporting", "--export_dir my --export_as wsinfer"),
    ],
)
def test_an_export_takes_the_settings_of_the_network(started, line: str, run_id: str, written: str) -> None:
    assert main(["export", *line.split()]) == 0
    (words,) = started
    assert words[:3] == ["monai.bundle", "run", run_id]
    assert names(words) == ["inference", "recommended", "export"]
    assert " ".join(words).endswith(f"{written} --encoder resnet18")


def test_the_study_and_the_page_are_started(started) -> None:
    assert main(["study", "DATA", "--experiment", "comparison", "--methods", "cdws", "dws"]) == 0
    assert main(["study", "--demo", "--output_dir", "x"]) == 0
    assert main(["label", "DATA", "--annotator", "anna"]) == 0
    assert main(["merge", "DATA", "anna", "ben", "--third", "cleo"]) == 0
    study = ["scripts.experiments", "comparison", "--dataset_dir", "DATA", "--methods", "cdws", "dws"]
    assert started == [
        [*study, "--output_dir", "runs/study"],
        ["scripts.experiments", "all", "--demo", "--output_dir", "x"],
        ["scripts.labelling", "label", "DATA", "--annotator", "anna"],
        ["scripts.labelling", "merge", "DATA", "anna", "ben", "--third", "cleo"],
    ]


def test_help_and_settings_need_no_pytorch() -> None:
    lines = [["-h"], ["train", "-h"], ["infer", "-h"], ["demo", "-h"], ["data", "-h"], ["data", "from-csv", "-h"]]
    lines += [["settings"], ["settings", "-h"], ["export", "-h"], ["train", "DATA", "--typo", "1"], ["typo"]]
    program = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.console.command import main\n"
        f"for line in {lines}:\n    try:\n        main(line)\n    except SystemExit:\n        pass\n"
        "assert not {'torch', 'monai', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2  # the two that are refused


def test_data_sets_are_written_checked_and_labelled_without_pytorch(tmp_path: Path) -> None:
    make_demo_dataset(tmp_path, counts={"training": 2, "validation": 2}, size=(32, 32))
    pictures, masks = (str(next(tmp_path.glob(f"**/{name}"))) for name in ("images", "masks"))
    own = [
        ["data", "from-masks", pictures, masks, "--without_mask", "negative", "--output", str(tmp_path / "own.json")]
    ]
    lines = [["check", str(tmp_path)], ["check", str(tmp_path), "--method", "unet"], *own]
    program = (
        f"import sys; sys.path.insert(0, {str(BUNDLE)!r})\nfrom scripts.console.command import main\n"
        f"assert [main(line) for line in {lines}] == [0, 0, 0]\nimport scripts.labelling.__main__\n"
        f"next(iter(__import__('pathlib').Path({pictures!r}).iterdir())).unlink()\n"
        f"try:\n    main(['check', {str(tmp_path)!r}])\nexcept ValueError as error:\n"
        "    assert 'there is no such file' in str(error)\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("The data set can be used.") == 2


def test_settings_are_those_of_the_method(capsys) -> None:
    main(["settings", "batch_size"])
    main(["settings", "batch_size", "--method", "cdws"])
    main(["settings", "batch_size", "--method", "cdws", "--overlay", "minibatch"])
    found = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  batch_size")]
    assert found == ["8", "all", "4"]


def test_monais_own_options_are_known() -> None:
    own = {
        name for function in (run_bundle, create_workflow, ConfigWorkflow) for name in signature(function).parameters
    }
    assert {*MONAI_OPTIONS, "config_file"} == own - {"override", "kwargs"}


def test_a_reader_who_has_had_enough_is_no_error(quick_python) -> None:
    """As `head`: the pipe is closed before anything is read from it."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([quick_python, BUNDLE, "settings"], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_printed_command_does_the_same(quick_python, tmp_path: Path) -> None:
    folder = tmp_path / "it's #1"
    make_demo_dataset(folder, counts={"training": 2, "validation": 2}, size=(32, 32))
    ours = subprocess.run([quick_python, BUNDLE, "check", folder], cwd=tmp_path, capture_output=True, text=True)
    assert ours.returncode == 0, ours.stderr
    printed, _, rest = ours.stdout.partition("\n")
    assert printed.startswith("$ ")
    assert "training: 1 positive images (1 with an area or a mask), 1 negative ones, of 2 groups." in rest
    words = shlex.split(printed[2:])
    assert words[1:5] == ["-m", "monai.bundle", "run", "checking"]
    next((folder / "images").iterdir()).unlink()
    again = subprocess.run(["bash", "-c", printed[2:]], cwd=tmp_path, capture_output=True, text=True)
    ours = subprocess.run([quick_python, BUNDLE, "check", folder], cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, ours.returncode) == (1, 1)
    problems = [run.stderr.partition("error: ")[2] for run in (again, ours)]  # after the progress bar
    assert "there is no such file" in problems[0]
    assert problems[0] == problems[1]
    assert "UserWarning" not in ours.stderr


@pytest.fixture
def reviewed(started, tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Reviews the run in ``run``, the model looking at nothing; returns which modules were started."""
    for name in ("run/models/model.pt", "other.pt", "data/dataset.json", "more/dataset.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    os.utime(tmp_path / "more" / "dataset.json", (1, 1))

    def review(run: str = "run", data: str = "data", *options: str) -> list[str]:
        started.clear()
        assert main(["review", str(tmp_path / run), str(tmp_path / data), *options]) == 0
        for words in started[:-1]:
            monkeypatch.setattr(sys, "argv", words)
            model = typed_options(words).get("ckpt_path") or tmp_path / run / "models" / "model.pt"
            writer = FindingsWriter(str(tmp_path / run / "review"), str(model))
            writer.start(None)
            writer.complete(None)
        return [words[0] for words in started]

    return review


LOOKS = ["monai.bundle", "scripts.review"]


def test_a_review_runs_the_model_and_shows_what_it_says(reviewed, started, tmp_path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    assert reviewed("run", "data", "--port", "0", "--no_browser") == LOOKS
    [inference, page] = started
    assert inference[:3] == ["monai.bundle", "run", "inferring"]
    assert inference[4].endswith("review.json']")
    assert inference[5:] == ["--dataset_dir", str(data), "--output_dir", str(run)]
    assert page == ["scripts.review", str(run), str(data), "--port", "0", "--no_browser"]
    assert reviewed("run", "data/dataset.json") == ["scripts.review"]
    (run / "review" / "findings.json").write_text('{"made": "now", "images": {}}')  # as version 1.0.1 wrote it
    assert reviewed() == LOOKS


@pytest.mark.parametrize(
    "options",
    [
        ["--threshold", "0.001"],
        ["--ckpt_path", "../other.pt"],
        ["--method", "cdws"],
        ["--overlay", "superpixels"],
    ],
    ids=" ".join,
)
def test_a_review_of_other_settings_runs_the_model(reviewed, tmp_path, monkeypatch, options) -> None:
    monkeypatch.chdir(tmp_path / "data")
    assert reviewed() == LOOKS
    assert reviewed("run", "data", *options) == LOOKS
    assert reviewed("run", "data", *options) == ["scripts.review"]
    assert reviewed() == LOOKS


def test_a_review_by_the_included_model(reviewed, started, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert reviewed("new", "data", "--ckpt_path", "included") == LOOKS
    inference = started[0]
    assert Path(inference[inference.index("--ckpt_path") + 1]).samefile(BUNDLE / "models" / "area_ranked.pt")
    assert reviewed("new", "data", "--ckpt_path", "included") == ["scripts.review"]


@pytest.mark.parametrize("name", ["run/models/model.pt", "data/dataset.json", "data/a.png"])
def test_a_review_runs_the_model_on_what_has_changed(reviewed, tmp_path, name) -> None:
    (tmp_path / "data" / "a.png").write_text("")
    items = [{"image": "a.png", "label": 1}, {"image": "lost.png", "label": 0}]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"training": items}))
    assert reviewed() == LOOKS
    (tmp_path / name).write_text("{}\n")
    os.utime(tmp_path / name, (1, 1))  # as a file that was copied from elsewhere may be
    assert reviewed() == LOOKS
    assert reviewed() == LOOKS[1:]


def test_a_review_of_other_data_or_a_copied_run_runs_the_model(reviewed, tmp_path) -> None:
    assert reviewed() == LOOKS
    assert reviewed("run", "more") == LOOKS
    assert reviewed("run", "more") == ["scripts.review"]
    assert reviewed() == LOOKS
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert reviewed("copy") == LOOKS
