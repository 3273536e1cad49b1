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
"""
MONAI's bundle runs by short names: each is printed as the command that does the same, and run as that.

A run has the process for itself, as under ``python -m``: it fails, and is stopped, as that command is.
"""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import shlex
import shutil
import sys
import textwrap
import warnings
from ast import literal_eval
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
from scripts.images.limits import MIN_SIZE
from scripts.runtime.command_line import PATHS, did_you_mean, typed_options, typed_words
from scripts.runtime.errors import InputError
from scripts.runtime.values import image_size
from scripts.training.included import included_model, model_of, require_training

__all__ = [
    "HELP",
    "RUNS",
    "curve",
    "demo",
    "export",
    "export_folder",
    "labelling",
    "review",
    "run",
    "run_help",
    "say_starting",
    "study",
]

HELP = {"-h", "--help"}
OWN = ("method", "overlay")  # options that aren't settings
# what MONAI's own `run` takes
MONAI_OPTIONS = ("run_id", "init_id", "final_id", "meta_file", "logging_file", "tracking", "args_file", "workflow_name")
MONAI_OPTIONS += ("workflow_type", "properties_path")
OF_REVIEW = ("area_step", "port", "no_browser")  # options of its page
INCLUDED = "included"  # as ckpt_path: the model that comes with the bundle
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
    method, added = _take_own(options, DEFAULT_METHOD)
    files = config_files(chosen.base, method, added, chosen.last)
    typed_rounds = _take_rounds(options) if command == "train" else None
    _refuse(command, options, files)
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
        options = [(name, _model(value, top) if name == "ckpt_path" else value) for name, value in given]
    typed = words[0] if words else dict(options).get("dataset_dir")
    if command in ("train", "check") and top["method"] == AREA_RANKED and typed and _has_no_area(Path(typed)):
        print(NO_AREA, flush=True)
        rounds = rounds if typed_rounds else 1  # there is nothing to rank pixels by
    checked = _plain_check(files, options, typed)
    if checked is not None and command == "check":
        _print_line("monai.bundle", ["run", chosen.name, *_config_file(files), *data, *_typed(options)])
        _check_at_once(**checked)
        return 0
    if checked is not None:
        _look_at_once(**checked)
    output = dict(options).get("output_dir") or top["output_dir"]
    ranked_by: list[tuple[str, str | None]] = []
    for number in range(1, rounds):
        print(f"Round {number} of {rounds}.", flush=True)
        own = [option for option in options if option[0] not in ("output_dir", "ckpt_dir")]
        folder = f"{output}/round_{number}"
        own += [*ranked_by, ("output_dir", folder)]
        run_monai(["run", chosen.name, *_config_file(files), *data, *_typed(own)])
        files = config_files(chosen.base, method, [*added, NEXT_ROUND])
        ranked_by = [("ranked_by", _path(f"{folder}/models/model.pt"))]
    if ranked_by:
        print(f"Round {rounds} of {rounds}, ranked by that before.", flush=True)
        options = [*(option for option in options if option[0] != "output_dir"), *ranked_by, ("output_dir", output)]
    run_monai(["run", chosen.name, *_config_file(files), *data, *_typed(options)])
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
    return shlex.join([*words, *_typed([(k, v) for k, v in options if k in known])])


def demo(arguments: Sequence[str]) -> int:
    """Train, evaluate and infer on the embedded data set; a setting goes to the runs that have it."""
    words, options = typed_words(arguments)
    method, added = _take_own(options, DEFAULT_METHOD)
    if words:
        raise UsageError(f"cdws demo brings its own images, and takes no '{words[0]}'; for yours: cdws train DATA.")
    chosen = [RUNS[name] for name in ("train", "evaluate", "infer")]
    if method == DEFAULT_METHOD:  # which keeps most of its own settings, the paper's methods those of the demo
        method, added = "cdws", [DEFAULT_METHOD, f"demo_{DEFAULT_METHOD}", *added]
    files = {run.name: config_files(run.base, method, ["demo", *added], run.last) for run in chosen}
    _refuse("demo", options, [file for chain in files.values() for file in chain])
    given = dict(options)
    data = given.get("demo_dir") or f"runs/demo/data-{given.get('seed') or DEMO_SEED}"
    test = ["--split", "test"]  # images that training has not seen
    extra = {"evaluating": test, "inferring": ["--dataset_dir", f"{data}/dataset.json", *test]}
    for name, chain in files.items():
        known = {*top_of(chain), *MONAI_OPTIONS}
        own = [(k, v) for k, v in options if _top(k) in known]
        run_monai(["run", name, *_config_file(chain), *extra.get(name, []), *_typed(own)])
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
        _require_images(typed_words(arguments)[0][: 2 if command == "merge_masks" else 1], "FOLDER, that of the images")
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
        _require_dataset(words[0])
    run_module("scripts.experiments.curve", arguments)
    return 0


def review(arguments: Sequence[str]) -> int:
    """
    What a trained model says of a data set, unless that is known, and the page of it, see ``scripts.review``.

    Raises:
        UsageError: when an option, an overlay or a folder is none.
    """
    words, options = typed_words(arguments)
    method, added = _take_own(options, DEFAULT_METHOD)
    if len(words) != 2:
        raise UsageError("cdws review takes two folders, of a training and of dataset.json: cdws review RUN DATA.")
    page = [option for option in options if option[0] in OF_REVIEW]
    settings = [option for option in options if option not in page]
    files = config_files("inference", method, added, ("review",))
    _refuse("review", settings, files)
    folder, data = map(Path, words)
    model, found = folder / "models" / "model.pt", folder / "review" / "findings.json"
    if not model.is_file():
        raise UsageError(f"There is no trained model '{model}'; give the --output_dir of a training.")
    _require_dataset(words[1])
    newest = max(path.stat().st_mtime for path in (model, _dataset_file(data)) if path.is_file())
    if settings or not found.is_file() or found.stat().st_mtime < newest:
        given = ["--dataset_dir", str(data), "--output_dir", str(folder)]
        run_monai(["run", "inferring", *_config_file(files), *given, *_typed(settings)])
    run_module("scripts.review", [*words, *_typed(page)])
    return 0


def study(arguments: Sequence[str]) -> int:
    """The experiments of the paper, see ``scripts.experiments``."""
    data, rest = (arguments[:1], arguments[1:]) if arguments and arguments[0][:1] != "-" else ([], arguments)
    given = typed_options(rest)
    if data and not HELP & set(arguments):
        _require_dataset(data[0])
    experiment = given.get("experiment") or "all"
    if "experiment" in given:
        at = next(i for i, word in enumerate(rest) if word.startswith("--experiment"))
        rest = [*rest[:at], *rest[at + (1 if "=" in rest[at] else 2) :]]
    words = [experiment, *(["--dataset_dir", *data] if data else []), *rest]
    if "output_dir" not in given and not HELP & set(arguments):
        words += ["--output_dir", "runs/study"]
    run_module("scripts.experiments", words)
    return 0


def export(file: str, method: str, added: Sequence[str], folders: Mapping[str, str | None]) -> int:
    """
    Write a trained network as TorchScript or ONNX.

    Args:
        file: that is written, ``.ts`` or ``.onnx``.
        method: of the network.
        added: overlays.
        folders: ``ckpt_path``, ``ckpt_dir`` and ``output_dir``, None for the default.
    """
    kinds = {".ts": "ckpt_export", ".onnx": "onnx_export"}
    if Path(file).suffix not in kinds:
        raise UsageError(
            f"'{file}' must end in .ts, for TorchScript, or in .onnx; for a folder add --wsinfer or --bioimageio."
        )
    files = config_files("inference", method, added)
    top = top_of(files)
    model = folders["ckpt_path"]
    if model is None:
        output = folders["output_dir"] or top["output_dir"]
        _require_own_model(folders)
        model = model_of(folders["ckpt_dir"] or f"{output}/models", output, f"{bundle_root()}/models", _trained_as(top))
    model = _model(model, top)
    if not Path(model).is_file():
        raise InputError(f"There is no checkpoint '{model}'; train first, or name one with --ckpt_path PATH.")
    if not Path(file).parent.is_dir():
        raise InputError(f"There is no folder '{Path(file).parent}' to write '{Path(file).name}' into; make it first.")
    say_starting()
    from scripts.training.checkpoints import read_checkpoint

    read_checkpoint(model, "cpu")  # MONAI's exports end in a traceback where it is damaged
    words = [kinds[Path(file).suffix], "network_def", "--filepath", file, "--ckpt_file", _shown(Path(model))]
    words += ["--meta_file", _shown(Path(bundle_root()) / "configs" / "metadata.json"), *_config_file(files)]
    if Path(file).suffix == ".onnx":
        axes = "{0:'batch',2:'height',3:'width'}"
        names = f"'input_names':['image'],'output_names':['pred'],'dynamic_axes':{{'image':{axes},'pred':{axes}}}"
        names = f"{{{names},'dynamo':False}}"
        words += ["--input_shape", "[2,3,64,96]", "--use_trace", "True", "--converter_kwargs", names]
    run_monai(words)
    return 0


def export_folder(
    folder: str, export_as: str, method: str, added: Sequence[str], settings: Mapping[str, str | None]
) -> int:
    """
    Write a trained network as a folder for another program, see ``scripts.exports``.

    Args:
        folder: that is made.
        export_as: the program.
        method: of the network.
        added: overlays.
        settings: of ``export.json``, None for the default.
    """
    files = config_files("inference", method, added, ["export"])
    top = top_of(files)
    _require_own_model(settings)
    given = [(name, _model(value, top)) for name, value in settings.items() if value is not None]
    run_monai(
        ["run", "exporting", *_config_file(files), "--export_dir", folder, "--export_as", export_as, *_typed(given)]
    )
    return 0


def run_monai(words: Sequence[str]) -> None:
    """``python -m monai.bundle`` with these words, printed first."""
    # configs that come from anywhere may run any code, and MONAI says so each time; these are the bundle's, or named
    warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
    # it says which logging config it takes before it takes that
    logging.getLogger("monai.bundle.workflows").addFilter(lambda record: record.levelno > logging.INFO)
    run_module("monai.bundle", words)


def run_module(module: str, words: Sequence[str]) -> None:
    """A module as ``python -m`` runs it, with these words; the line is printed first."""
    _print_line(module, words)
    if not HELP & set(words):
        say_starting()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def say_starting() -> None:
    """A word before PyTorch is imported, which takes seconds, on a busy machine a minute."""
    if "torch" not in sys.modules:
        print("starting ...", file=sys.stderr, flush=True)


def _print_line(module: str, words: Sequence[str]) -> None:
    """What `run_module` does as a line of a shell."""
    needs_path = module.startswith("scripts.") and Path.cwd() != Path(bundle_root())
    path = f"PYTHONPATH={shlex.quote(_shown(Path(bundle_root())))} " if needs_path else ""
    print(f"$ {path}{_python()} -m {module} {' '.join(map(_quoted, words))}", flush=True)


def _python() -> str:
    """How this interpreter is called in this shell."""
    found = shutil.which("python")
    own = Path(sys.executable)
    return "python" if found and Path(found).absolute().parent == own.absolute().parent else shlex.quote(str(own))


def _quoted(word: str) -> str:
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'  # as the documents have it
    return shlex.quote(word)


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies in it."""
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def _config_file(files: Sequence[Path]) -> list[str]:
    names = [_shown(file) for file in files]
    return ["--config_file", names[0] if len(names) == 1 else "[" + ",".join(map(repr, names)) + "]"]


def _plain_check(
    files: Sequence[Path], options: Sequence[tuple[str, str | None]], typed: str | None
) -> dict[str, Any] | None:
    """
    What `check_datalist` is to be given, where that needs nothing that MONAI's parser finds out.

    Args:
        files: of the run.
        options: as typed.
        typed: path of the data set.
    """
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.suffix == ".json"]
    given = dict(options)
    deeper = any(key.startswith("datalist") and key != "datalist" for key in given)
    top = top_of(files)
    arguments = dict(top.get("datalist", {}))
    changes = {key: value for content in contents for key, value in content.items() if key.startswith("datalist#")}
    deeper = deeper or not {key.removeprefix("datalist#") for key in changes} <= arguments.keys()
    arguments |= {key.removeprefix("datalist#"): value for key, value in changes.items()}
    is_usual = arguments.pop("_target_", None) == "scripts.data.datalist.load_datalist"
    if typed is None or deeper or not is_usual or len(contents) < len(files) or given.keys() & set(MONAI_OPTIONS):
        return None
    named = {name: value for name, value in (top | given).items() if isinstance(value, str)}

    def meant(value: Any) -> Any:
        if isinstance(value, list):
            return [named.get(part[1:], part) if str(part)[:1] == "@" else part for part in value]
        return top.get(value[1:], value) if str(value)[:1] == "@" else value

    values = {name: meant(value) for name, value in arguments.items()}
    for name in values.keys() & given.keys() - {"dataset_dir"}:
        if given[name] not in ("True", "False"):
            return None
        values[name] = given[name] == "True"
    values["dataset_dir"] = typed
    plain = (part for value in values.values() for part in (value if isinstance(value, list) else [value]))
    return None if any(str(part)[:1] in ("@", "$", "%") for part in plain) else values


def _check_at_once(**values: Any) -> None:
    """The run ``checking``, without MONAI, whose import takes seconds."""
    from logging.config import fileConfig

    from scripts.data.datalist import check_datalist, report_datalist

    fileConfig(Path(bundle_root()) / "configs" / "logging.conf", disable_existing_loggers=False)
    report_datalist(check_datalist(**values))


def _look_at_once(**values: Any) -> None:
    """Raise what can be seen of a data set without opening its files, before imports that take seconds."""
    from scripts.data.datalist import check_datalist

    logging.disable()  # the run repeats what there is to say
    try:
        check_datalist(**values, opened=False)
    finally:
        logging.disable(logging.NOTSET)


def _has_no_area(data: Path) -> bool:
    """Whether a dataset.json states no area; what is wrong with one, the training says."""
    try:
        content = json.loads(_dataset_file(data).read_text(encoding="utf-8"))
        return not any(item.get("area") or isinstance(item["label"], str) for item in content["training"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _dataset_file(data: Path) -> Path:
    return data / "dataset.json" if data.is_dir() else data


def _require_dataset(data: str) -> None:
    """
    Refuse what is no data set, before imports that take seconds.

    Raises:
        InputError: when it is neither the folder of a dataset.json nor a file.
    """
    if not _is_there(_dataset_file(Path(data))):
        raise InputError(
            f"There is no data set at '{data}'; give DATA, the folder of dataset.json or that file. `cdws data -h` "
            "says how one is written."
        )


def _require_images(paths: Sequence[str], what: str) -> None:
    """The same of images. Raises InputError for the first path at which there is nothing."""
    for path in paths:
        if not _is_there(Path(path)):
            raise InputError(f"There is no folder or file '{path}'; give {what}.")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no name of a file
        return False


def _take_rounds(options: list[tuple[str, str | None]]) -> str | None:
    """Takes the number of rounds out of the options."""
    given = [value or "nothing" for name, value in options if name == "rounds"]
    options[:] = [option for option in options if option[0] != "rounds"]
    return given[-1] if given else None


def _take_own(options: list[tuple[str, str | None]], method: str) -> tuple[str, list[str]]:
    """Takes the method and the overlays out of the options."""
    added = []
    for name, value in options:
        if name in OWN and not value:
            raise UsageError(f"--{name} has no value; give a name of those that cdws train -h lists.")
        method = value if name == "method" else method
        added += value.split(",") if name == "overlay" else []
    options[:] = [option for option in options if option[0] not in OWN]
    return method, added


def _data(command: str, words: list[str], options: list[tuple[str, str | None]], added: list[str]) -> list[str]:
    given = {name for name, _ in options} & {"dataset_dir", "images", "args_file"}
    name = RUNS[command].data
    if words and given:
        raise UsageError(f"'{words[0]}' and --{given.pop()} are both given; cdws {command} takes one of them.")
    if len(words) > 1 and command == "infer":
        _require_images(words, "files")
        return ["--images", repr([_path(word) for word in words])]
    if len(words) > 1:
        raise UsageError(f"'{words[1]}' is one word too many; cdws {command} takes one {name}, and --SETTING VALUE.")
    if not words and not given and not (RUNS[command].base == "train" and "demo" in added):
        what = "images" if command == "infer" else "dataset.json"
        raise UsageError(f"cdws {command} needs the folder of {what}: cdws {command} {name}.")
    typed = words or [value for option, value in options if option == "dataset_dir" and value]
    if command == "infer":
        _require_images(typed, "FOLDER, the folder of the images, or files")
    elif typed and "demo" not in added:  # which draws what isn't there
        _require_dataset(typed[-1])
    return ["--dataset_dir", _path(words[0])] if words else []


def _trained_as(top: Mapping[str, Any]) -> str:
    return top["method"] + " with superpixels" * top["superpixels"]


def _require_own_model(given: Mapping[str, str | None]) -> None:
    """Raise InputError where a training is meant, by its output_dir alone, that there is not."""
    if given.get("output_dir") and not any(given.get(name) for name in ("ckpt_dir", "ckpt_path", "args_file")):
        require_training(given["output_dir"], INCLUDED)


def _model(typed: str | None, top: Mapping[str, Any]) -> str | None:
    """
    What was typed as the path of a model; by a word of its own the one that comes with the bundle is meant.

    Raises:
        UsageError: for what is nearly that word, and no file.
    """
    if typed and typed != INCLUDED and did_you_mean(typed, [INCLUDED]) and not _is_there(Path(typed)):
        raise UsageError(
            f"There is no checkpoint '{typed}' (did you mean {INCLUDED}?); give the word {INCLUDED}, or a file, with "
            "--ckpt_path."
        )
    return _shown(included_model(f"{bundle_root()}/models", _trained_as(top))) if typed == INCLUDED else typed


def _path(typed: str) -> str:
    """MONAI's parser takes what begins with '%' for a part of another config, before the bundle's code is called."""
    return f"./{typed}" if typed.startswith("%") else typed


def _typed(options: Sequence[tuple[str, str | None]]) -> list[str]:
    named = ((k, _path(v) if v and k in PATHS else v) for k, v in options)
    # what begins as an option does is a value only behind '='
    pairs = ([f"--{k}"] if v is None else [f"--{k}={v}"] if v[:1] == "-" or not v else [f"--{k}", v] for k, v in named)
    return [word for pair in pairs for word in pair]


def _refuse(command: str, options: Sequence[tuple[str, str | None]], files: Sequence[Path]) -> None:
    """
    Refuse options that nothing at the top of the configs is called as, before MONAI is imported, which takes seconds.

    The run itself refuses those that name something deeper, or that come with experiment tracking.
    """
    given = dict(options)
    if "config_file" in given:
        raise UsageError(f"cdws {command} chooses --config_file itself; add yours by --overlay FILE.")
    # what MONAI takes itself, and ends in a traceback
    for name in ("seed", "num_workers"):
        if not re.fullmatch(r"[-+]?\d+|None|[$@%].*", given.get(name, "0") or ""):
            raise UsageError(f"--{name} is a whole number; got '{given[name] or 'nothing'}'.")
    size = given.get("spatial_size", "@")
    if not str(size).startswith(("$", "@", "%")):
        try:
            image_size("--spatial_size", literal_eval(size or ""), MIN_SIZE)
        except InputError as error:
            raise UsageError(str(error)) from error
        except (SyntaxError, ValueError):
            raise UsageError(f"--spatial_size is height and width, as [224,224]; got '{size or 'nothing'}'.") from None
    for name in ("args_file", "logging_file"):
        if name in given and given[name] not in ("False", "None") and not Path(given[name] or "").is_file():
            raise UsageError(f"There is no file '{given[name] or ''}'; name one with --{name}, or leave it out.")
    known = {*top_of(files), *OWN, *MONAI_OPTIONS, *(["rounds"] if command == "train" else [])}
    if "tracking" in given or any(file.suffix != ".json" for file in files):
        return
    meant = {k: did_you_mean(_top(k), known, "--") for k in given if _top(k) not in known}
    # of the two that are as near the one that takes this word
    meant |= {k: " (did you mean --ckpt_path?)" for k in meant if given[k] == INCLUDED and "ckpt_path" in known}
    meant |= {k: " (it is of cdws train alone)" for k in meant if k == "rounds"}
    unknown = [f"--{name}{near}" for name, near in meant.items()]
    if unknown:
        raise UsageError(
            f"There is no option {', '.join(unknown)}; `cdws settings` lists the settings, `cdws {command} -h` the "
            "other options."
        )


def _top(name: str) -> str:
    """What stands at the top of a config of a setting that may be deeper in it, or added to a list."""
    return name.removeprefix("+").replace("::", "#").partition("#")[0]
