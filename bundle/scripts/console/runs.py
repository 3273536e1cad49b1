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
"""The commands of ``cdws`` that run something: each is MONAI's bundle, or a module, by a short name."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scripts import bundle_root
from scripts.console.configs import (
    DEFAULT_METHOD,
    UsageError,
    config_files,
    described_settings,
    methods,
    overlays,
    top_of,
)
from scripts.console.early_check import check_arguments, check_at_once, has_no_area, look_at_once
from scripts.console.options import (
    INCLUDED,
    MONAI_OPTIONS,
    is_there,
    refuse_options,
    require_dataset,
    require_images,
    take_own,
    take_rounds,
    top_name,
)
from scripts.console.running import (
    HELP,
    as_typed,
    config_option,
    path_value,
    print_line,
    relative_path,
    run_module,
    run_monai,
)
from scripts.review.record import is_current
from scripts.runtime.command_line import did_you_mean, typed_options, typed_words
from scripts.runtime.errors import InputError
from scripts.training.included import included_model, require_training

__all__ = [
    "RUNS",
    "curve",
    "demo",
    "export",
    "labelling",
    "review",
    "run",
    "run_help",
    "study",
]

OF_REVIEW = ("area_step", "port", "no_browser")  # options of its page
BY_WORDS = ("dataset_dir", "output_dir", "prediction_dir")  # what it is given by RUN and DATA
AREA_RANKED, NEXT_ROUND, ROUNDS = "area_ranked", "next_round", 2
NO_AREA = (
    "No training image has a rough area, by which a next round could rank pixels: the positive ones are learned from "
    "their label alone, and marked nearly whole; cdws label gives areas."
)
NEXT = {"train": "evaluate", "evaluate": "infer"}
# settings that the next command needs as well: where things are, and what turns an image into a map
CARRIED = ("output_dir", "ckpt_dir", "ckpt_path", "allow_outside", "superpixel_cache", "n_segments", "encoder")
CARRIED += ("stages", "tta", "min_part", "fusion_weights", "pooling", "r", "top_fraction", "in_channels", "device")
DEMO_SEED = "0"
DEMO_SCORES = ("f_pos", "f_neg", "all_ones_f_pos", "all_ones_f_neg", "auc")

OF_ROUNDS = (
    f"The recommended method trains in {ROUNDS} rounds: a network, in output_dir/round_1, ranks the pixels for a\n"
    "fresh one; the last is in output_dir. --rounds 1 takes half the time.\n"
)


class Run(NamedTuple):
    """A run of the bundle: its name there, its first and last config, and what it is given."""

    name: str
    base: str
    last: tuple[str, ...]
    data: str
    summary: str


RUNS = {
    "check": Run(
        "checking", "train", ("check",), "DATA", "check a data set, and name everything that is wrong with it"
    ),
    "train": Run("training", "train", (), "DATA", "train; the same command goes on with a training that was stopped"),
    "evaluate": Run(
        "evaluating", "train", ("evaluate",), "DATA", "score what has been trained; regions where there are masks"
    ),
    "infer": Run("inferring", "inference", (), "FOLDER", "masks and maps of new images, a folder or files"),
}


def run_help(command: str) -> str:
    """What ``cdws train -h`` prints."""
    run = RUNS[command]
    files = config_files(run.base, DEFAULT_METHOD, last=run.last)
    top = top_of(files if run.base == "train" else files[:1])  # the method brings those of its training
    own = ("dataset_dir", "method")
    names = ", ".join(
        setting.name for setting in described_settings() if setting.name in top and setting.name not in own
    )
    rows = {"methods (--method NAME)": methods(), "overlays (--overlay NAME, again for each)": overlays(run.base)}
    lists = [f"\n{title}:\n" + "\n".join(f"  {k:24}{v}" for k, v in texts.items()) for title, texts in rows.items()]
    what = {
        "DATA": "the folder of dataset.json",
        "FOLDER": "a folder of images, or of folders of them; or several, or files",
    }[run.data]
    return (
        f"usage: cdws {command} {run.data} [--method NAME] [--overlay NAME]{' [--rounds N]' * (command == 'train')} "
        "[--SETTING VALUE]\n\n"
        f"{run.summary[0].upper()}{run.summary[1:]}. {run.data} is {what}.\n"
        f"Prints the command of MONAI that does the same. The method is '{DEFAULT_METHOD}' unless another is named;\n"
        "checking, training, evaluation and inference need the same method and overlays. An overlay may be a file.\n"
        + OF_ROUNDS * (command == "train")
        + "\n".join(lists)
        + "\n\nsettings, which `cdws settings` describes:\n"
        + textwrap.fill(names, 112, initial_indent="  ", subsequent_indent="  ")
    )


def run(command: str, arguments: Sequence[str]) -> int:
    """
    Check what was typed, print the command, run it.

    Returns:
        The exit status.

    Raises:
        UsageError: when an option, an overlay or the data is none.
    """
    chosen = RUNS[command]
    words, options = typed_words(arguments)
    method, added = take_own(options, DEFAULT_METHOD)
    files = config_files(chosen.base, method, added, chosen.last)
    typed_rounds = take_rounds(options) if command == "train" else None
    refuse_options(command, options, files)
    data = _data(command, words, options, added)
    top = top_of(files)
    is_ranked = command == "train" and top["method"] == AREA_RANKED and "ranked_by" not in top
    if typed_rounds is not None and not (is_ranked and typed_rounds.isdecimal() and int(typed_rounds) > 0):
        of = f"of cdws train by the method '{DEFAULT_METHOD}' alone"
        raise UsageError(f"--rounds is a whole number of 1 or more, {of}; got '{typed_rounds}'.")
    rounds = int(typed_rounds or ROUNDS) if is_ranked else 1
    given = list(options)
    if "ckpt_path" in top:  # of the runs that use what has been trained
        # new images may be anybody's
        is_own = command == "evaluate" and all(file.suffix == ".json" for file in files)
        _require_own_model(({"output_dir": top["output_dir"]} if is_own else {}) | dict(given))
        options = _with_model(given, top)
    typed = words[0] if words else dict(options).get("dataset_dir")
    if command in ("train", "check") and top["method"] == AREA_RANKED and typed and has_no_area(Path(typed)):
        print(NO_AREA, flush=True)
        rounds = rounds if typed_rounds else 1  # there is nothing to rank pixels by
    checked = check_arguments(files, options, typed)
    if checked is not None and command == "check":
        print_line("monai.bundle", ["run", chosen.name, *config_option(files), *data, *as_typed(options)])
        check_at_once(**checked)
        return 0
    if checked is not None:
        look_at_once(**checked)
    output = dict(options).get("output_dir") or top["output_dir"]
    ranked_by: list[tuple[str, str | None]] = []
    for number in range(1, rounds):
        print(f"Round {number} of {rounds}.", flush=True)
        own = [option for option in options if option[0] not in ("output_dir", "ckpt_dir")]
        folder = f"{output}/round_{number}"
        own += [*ranked_by, ("output_dir", folder)]
        run_monai(["run", chosen.name, *config_option(files), *data, *as_typed(own)])
        files = config_files(chosen.base, method, [*added, NEXT_ROUND])
        ranked_by = [("ranked_by", path_value(f"{folder}/models/model.pt"))]
    if ranked_by:
        print(f"Round {rounds} of {rounds}, ranked by that before.", flush=True)
        options = [*(option for option in options if option[0] != "output_dir"), *ranked_by, ("output_dir", output)]
    run_monai(["run", chosen.name, *config_option(files), *data, *as_typed(options)])
    if command in NEXT and typed:
        print(f"Next: {_next(NEXT[command], typed, method, added, given)}", flush=True)
    return 0


def _next(command: str, data: str, method: str, added: Sequence[str], options: Sequence[tuple[str, str | None]]) -> str:
    """The command that goes on with what another has made."""
    overlays = [name for name in added if name != NEXT_ROUND]
    run = RUNS[command]
    known = top_of(config_files(run.base, method, overlays, run.last)).keys() & CARRIED
    known -= {"allow_outside"} if run.data != "DATA" else set()  # which is of this data set
    words = ["cdws", command, data if run.data == "DATA" else run.data]
    words += ["--method", method] if method != DEFAULT_METHOD else []
    words += [word for name in overlays for word in ("--overlay", name)]
    return shlex.join([*words, *as_typed([(k, v) for k, v in options if k in known])])


def demo(arguments: Sequence[str]) -> int:
    """Train, evaluate and infer on the embedded data set; a setting goes to the runs that have it."""
    words, options = typed_words(arguments)
    method, added = take_own(options, DEFAULT_METHOD)
    if words:
        raise UsageError(f"cdws demo brings its own images, and takes no '{words[0]}'; for yours: cdws train DATA.")
    chosen = [RUNS[name] for name in ("train", "evaluate", "infer")]
    if method == DEFAULT_METHOD:  # which keeps most of its own settings, the paper's methods those of the demo
        method, added = "cdws", [DEFAULT_METHOD, f"demo_{DEFAULT_METHOD}", *added]
    files = {run.name: config_files(run.base, method, ["demo", *added], run.last) for run in chosen}
    refuse_options("demo", options, [file for chain in files.values() for file in chain])
    given = dict(options)
    data = given.get("demo_dir") or f"runs/demo/data-{given.get('seed') or DEMO_SEED}"
    test = ["--split", "test"]  # images that training has not seen
    extra = {"evaluating": test, "inferring": ["--dataset_dir", f"{data}/dataset.json", *test]}
    for name, chain in files.items():
        known = {*top_of(chain), *MONAI_OPTIONS}
        own = [(k, v) for k, v in options if top_name(k) in known]
        run_monai(["run", name, *config_option(chain), *extra.get(name, []), *as_typed(own)])
    _report_demo(Path(given.get("output_dir") or "runs/demo"))
    return 0


def _report_demo(folder: Path) -> None:
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    short = {name: "-" if found[name] is None else f"{found[name]:.2f}" for name in DEMO_SCORES}
    scores = "F+ {f_pos}  F- {f_neg}  (all pixels marked: {all_ones_f_pos} and {all_ones_f_neg})  AUC {auc}"
    rows = {
        "TensorBoard log": f"tensorboard --logdir {folder}",
        "metrics": folder / "metrics.json",
        "best, median and worst image": folder / "examples.png",
        "masks, probability maps, overlays": folder / "predictions",
        "scores of the test images": scores.format(**short),
        "look at": folder / "predictions" / "index.html",
    }
    print("\n" + "\n".join(f"{what:36}{where}" for what, where in rows.items()))


def labelling(command: str, arguments: Sequence[str]) -> int:
    """The labelling page, or the merging of what annotators have given: a command of ``scripts.labelling``."""
    if not HELP & set(arguments):
        require_images(typed_words(arguments)[0][: 2 if command == "merge_masks" else 1], "FOLDER, that of the images")
    run_module("scripts.labelling", [command, *arguments])
    words, options = typed_words(arguments)
    if (
        command == "label"
        and words
        and "annotator" not in dict(options)
        and (Path(words[0]) / "dataset.json").is_file()
    ):
        print(f"Next: {shlex.join(['cdws', 'train', words[0]])}")
    return 0


def curve(arguments: Sequence[str]) -> int:
    """Quality against labels given, see ``scripts.experiments.curve``."""
    words = typed_words(arguments)[0]
    if words and not HELP & set(arguments):
        require_dataset(words[0])
    run_module("scripts.experiments.curve", arguments)
    return 0


def review(arguments: Sequence[str]) -> int:
    """
    What a trained model says of a data set, unless that is known, see `is_current`, and the page, ``scripts.review``.

    Raises:
        UsageError: when an option, an overlay or a folder is none.
    """
    words, options = typed_words(arguments)
    method, added = take_own(options, DEFAULT_METHOD)
    if len(words) != 2:
        raise UsageError("cdws review takes two folders, of a training and of dataset.json: cdws review RUN DATA.")
    page = [option for option in options if option[0] in OF_REVIEW]
    settings = [option for option in options if option not in page]
    files = config_files("inference", method, added, ("review",))
    refuse_options("review", settings, files)
    folder, data = map(Path, words)
    taken = sorted({name for name, _ in settings} & set(BY_WORDS))
    if taken:
        raise UsageError(f"cdws review takes RUN and DATA in the place of --{taken[0]}; leave it out.")
    model = folder / "models" / "model.pt"
    if not (model.is_file() or dict(settings).get("ckpt_path")):
        raise UsageError(
            f"There is no trained model '{model}'; give the --output_dir of a training, or another model by "
            f"--ckpt_path, as {INCLUDED}: the one that comes with the bundle."
        )
    require_dataset(words[1])
    settings = _with_model(settings, top_of(files))
    given = ["--dataset_dir", str(data), "--output_dir", str(folder)]
    inference = ["run", "inferring", *config_option(files), *given, *as_typed(settings)]
    if not is_current(folder / "review", inference):
        run_monai(inference)
    run_module("scripts.review", [*words, *as_typed(page)])
    return 0


def study(arguments: Sequence[str]) -> int:
    """The experiments of the paper, see ``scripts.experiments``."""
    data, rest = (arguments[:1], arguments[1:]) if arguments and arguments[0][:1] != "-" else ([], arguments)
    given = typed_options(rest)
    if data and not HELP & set(arguments):
        require_dataset(data[0])
    experiment = given.get("experiment") or "all"
    if "experiment" in given:
        at = next(i for i, word in enumerate(rest) if word.startswith("--experiment"))
        rest = [*rest[:at], *rest[at + (1 if "=" in rest[at] else 2) :]]
    words = [experiment, *(["--dataset_dir", *data] if data else []), *rest]
    if "output_dir" not in given and not HELP & set(arguments):
        words += ["--output_dir", "runs/study"]
    run_module("scripts.experiments", words)
    return 0


def export(
    target: str, kind: str | None, method: str, added: Sequence[str], options: Sequence[tuple[str, str | None]]
) -> int:
    """
    Write a trained network, see ``scripts.exports``.

    Args:
        target: what is written: a file, ``.ts`` or ``.onnx``, or a folder.
        kind: program that the folder is for; None of a file.
        method: of the network.
        added: overlays.
        options: settings as typed.

    Raises:
        UsageError: when an option, an overlay or the ending of the file is none.
    """
    files = config_files("inference", method, added, ["export"])
    refuse_options("export", options, files)
    top, given = top_of(files), dict(options)
    if kind is None:
        if Path(target).suffix not in (".ts", ".onnx"):
            raise UsageError(
                f"'{target}' must end in .ts, for TorchScript, or in .onnx; for a folder add --wsinfer or --bioimageio."
            )
        of_folder = [f"--{name}" for name in ("mpp", "class_name") if name in given]
        if of_folder:
            raise UsageError(f"{of_folder[0]} is of a folder: add --wsinfer or --bioimageio.")
        folder = Path(target).parent
        if not folder.is_dir():
            raise InputError(f"There is no folder '{folder}' to write '{Path(target).name}' into; make it first.")
    _require_own_model(given)
    typed = _with_model(options, top)
    model = dict(typed).get("ckpt_path")
    if model and not is_there(Path(model)):
        raise InputError(f"There is no checkpoint '{model}'; train first, or name one with --ckpt_path PATH.")
    run_id = "exporting" if kind else "exporting_file"
    written = [("export_dir", target), ("export_as", kind)] if kind else [("export_file", target)]
    run_monai(["run", run_id, *config_option(files), *as_typed([*written, *typed])])
    return 0


def _data(command: str, words: list[str], options: list[tuple[str, str | None]], added: list[str]) -> list[str]:
    given = {name for name, _ in options} & {"dataset_dir", "images", "args_file"}
    name = RUNS[command].data
    if "" in words:
        raise UsageError(f"cdws {command} was given an empty name; name {name}.")
    if words and given:
        raise UsageError(f"'{words[0]}' and --{given.pop()} are both given; cdws {command} takes one of them.")
    if len(words) > 1 and command == "infer":
        require_images(words, "files")
        return ["--images", repr([path_value(word) for word in words])]
    if len(words) > 1:
        raise UsageError(f"'{words[1]}' is one word too many; cdws {command} takes one {name}, and --SETTING VALUE.")
    if not words and not given and not (RUNS[command].base == "train" and "demo" in added):
        what = "images" if command == "infer" else "dataset.json"
        raise UsageError(f"cdws {command} needs the folder of {what}: cdws {command} {name}.")
    typed = words or [value for option, value in options if option == "dataset_dir" and value]
    if command == "infer":
        require_images(typed, "FOLDER, the folder of the images, or files")
    elif typed and "demo" not in added:  # which draws what isn't there
        require_dataset(typed[-1])
    return ["--dataset_dir", path_value(words[0])] if words else []


def _trained_as(top: Mapping[str, Any]) -> str:
    return top["method"] + " with superpixels" * top["superpixels"]


def _require_own_model(given: Mapping[str, str | None]) -> None:
    """Raise InputError where a training is meant, by its output_dir alone, that there is not."""
    if given.get("output_dir") and not any(given.get(name) for name in ("ckpt_dir", "ckpt_path", "args_file")):
        require_training(given["output_dir"], INCLUDED)


def _with_model(options: Sequence[tuple[str, str | None]], top: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """
    Options, with the path of the model that comes with the bundle where it was meant by a word of its own.

    Raises:
        UsageError: for what is nearly that word, and no file.
    """
    typed = dict(options).get("ckpt_path")
    if typed and typed != INCLUDED and did_you_mean(typed, [INCLUDED]) and not is_there(Path(typed)):
        raise UsageError(
            f"There is no checkpoint '{typed}' (did you mean {INCLUDED}?); give the word {INCLUDED}, or a file, with "
            "--ckpt_path."
        )
    if typed != INCLUDED:
        return list(options)
    path = relative_path(included_model(f"{bundle_root()}/models", _trained_as(top)))
    return [(name, path if name == "ckpt_path" else value) for name, value in options]
