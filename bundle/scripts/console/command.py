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
"""The command line of ``cdws``: which command it is, and its help. Starts without PyTorch."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from scripts import bundle_version
from scripts.console.configs import DEFAULT_METHOD, UsageError, config_files, described_settings, top_of
from scripts.console.options import EXPORT_FOLDERS, take_own
from scripts.console.running import HELP
from scripts.console.runs import RUNS, curve, demo, export, labelling, review, run, run_help, study
from scripts.runtime.command_line import Parser, did_you_mean, typed_words

__all__ = ["main"]

SUMMARIES = {
    "demo": "train, evaluate and infer on embedded data",
    "data": "write dataset.json from folders, a table, masks, or outlines on slides",
    "label FOLDER": "label images, or fields of slides, on a page in the browser",
    "merge FOLDER": "merge the labels of two annotators",
    "merge_masks": "merge the masks of two annotators",
    **{f"{name} {run.data}": run.summary for name, run in RUNS.items()},
    "review RUN DATA": "correct on a page the labels that a trained model doubts",
    "curve DATA": "train on growing parts of the images: do more labels help?",
    "study DATA": "the paper's experiments on your data",
    "export FILE": "write the trained network as TorchScript (.ts), ONNX, or for QuPath",
    "settings": "all settings, with their defaults",
}


def main(arguments: Sequence[str]) -> int:
    """
    Run a command line.

    Returns:
        The exit status: 2 for a word that is no command, option, method or overlay; 1 for data that can't be used.
    """
    arguments = list(arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("-h", [])
    try:
        if command in HELP:
            return _show(_help())
        if command == "--version":
            print(bundle_version())
            return 0
        if command not in COMMANDS:
            near = did_you_mean(command, COMMANDS, "cdws ")
            raise UsageError(f"There is no command '{command}'{near}; cdws -h lists them.")
        return COMMANDS[command](rest)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _show(text: str) -> int:
    """Print what may be long; the exit status."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # who reads has had enough, as `head`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _help() -> str:
    rows = "\n".join(f"  {name:18}{text}" for name, text in SUMMARIES.items())
    return (
        f"usage: cdws COMMAND ...\n\n{rows}\n\n"
        "`cdws COMMAND -h` explains one. Each run prints the command of MONAI that does the same."
    )


def _run(command: str) -> Callable[[list[str]], int]:
    def start(arguments: list[str]) -> int:
        if HELP & set(arguments):
            print(run_help(command))
            return 0
        return run(command, arguments)

    return start


def _review(arguments: list[str]) -> int:
    if HELP & set(arguments):
        print(
            "usage: cdws review RUN DATA [--method NAME] [--overlay NAME] [--area_step S] [--port N] [--no_browser] "
            "[--SETTING VALUE]\n\n"
            "Opens a page of the images of DATA, the folder of dataset.json or that file, those first whose labels\n"
            "the model of RUN, the folder of a training, doubts. Corrections, exclusions and strokes are kept in\n"
            "review.jsonl beside dataset.json, and written as reviewed.json, to train from. Settings are those of\n"
            "cdws infer, such as --device; --spatial_size is that of the training unless it is given. With\n"
            "--ckpt_path PATH, or included, another model is asked, and RUN, a folder, keeps what it says."
        )
        return 0
    return review(arguments)


def _demo(arguments: list[str]) -> int:
    if HELP & set(arguments):
        print(
            "usage: cdws demo [--method NAME] [--seed N] [--SETTING VALUE]\n\nTrains, evaluates and infers on phantoms "
            "that it draws, by the recommended method unless another is named, in runs/demo."
        )
        return 0
    return demo(arguments)


def _data(arguments: list[str]) -> int:
    from scripts.console.data import main as write_data

    return write_data(arguments)


def _export(arguments: list[str]) -> int:
    if HELP & set(arguments):
        folders = "\n".join(f"  --{name:14}{of}" for name, of in EXPORT_FOLDERS.items())
        print(
            "usage: cdws export FILE [--wsinfer | --bioimageio] [--method NAME] [--overlay NAME] [--SETTING VALUE]\n\n"
            "Writes a trained network as TorchScript, where FILE ends in .ts, or as ONNX (.onnx). Or as a folder, for\n"
            f"{folders}\n"
            "of which --mpp gives the micrometres per pixel of what the network sees, --class_name what it finds\n"
            "(Cancer).\n\n"
            f"The method is '{DEFAULT_METHOD}' unless another is named. Overlays and settings of the network, such as\n"
            "--encoder, are those of its training. --output_dir is the folder of the training, --ckpt_dir that of its\n"
            "checkpoints (output_dir/models); --ckpt_path is a checkpoint (model.pt of ckpt_dir, or the included one;\n"
            "included: that one anyway)."
        )
        return 0
    kinds = {f"--{name}" for name in EXPORT_FOLDERS}  # which take no value: what follows may be FILE
    words, options = typed_words([f"{word}=" if word in kinds else word for word in arguments])
    method, added = take_own(options, DEFAULT_METHOD)
    given = [name for name in EXPORT_FOLDERS if name in dict(options)]
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} are two exports; run cdws export once for each.")
    if not words:
        raise UsageError("cdws export needs the file or folder to write: cdws export FILE; see cdws export -h.")
    if len(words) > 1:
        raise UsageError(f"'{words[1]}' is one word too many; cdws export takes one FILE, and --SETTING VALUE.")
    settings = [option for option in options if option[0] not in EXPORT_FOLDERS]
    return export(words[0], given[0] if given else None, method, added, settings)


def _settings(arguments: list[str]) -> int:
    parser = Parser(
        prog="cdws settings",
        description="List the settings at the top of the configs: name, value in force, meaning. Give any to a command "
        "as --NAME VALUE.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--method", default=DEFAULT_METHOD, metavar="NAME", help=f"whose values ({DEFAULT_METHOD})")
    parser.add_argument("--overlay", action="append", default=[], metavar="NAME", help="that is added")
    options = parser.parse_args(arguments)
    files = config_files("inference", options.method, options.overlay)
    known = {setting.name for setting in described_settings()}
    for name in options.names:
        if name not in known:
            raise UsageError(f"There is no setting '{name}'{did_you_mean(name, known)}; `cdws settings` lists all.")
    # those that training and evaluation alone have stand in theirs
    training, *_, evaluation = config_files("train", DEFAULT_METHOD, last=["evaluate"])
    values = top_of([files[0], evaluation, training, *files[1:]])
    width, section, lines = shutil.get_terminal_size().columns, "", []
    for setting in described_settings():
        if setting.name not in values or (options.names and setting.name not in options.names):
            continue
        if setting.section != section:
            section = setting.section
            lines.append(f"\n{section}\n")
        lines.append(f"  {setting.name:24}{_value(values[setting.name], setting.default)}")
        lines.append(textwrap.fill(setting.meaning, max(width, 40), initial_indent=" " * 8, subsequent_indent=" " * 8))
    return _show("\n".join(lines))


def _value(value: Any, described: str) -> str:
    """As it would be typed; what the configs compute is described."""
    if isinstance(value, dict) or (isinstance(value, str) and value[:1] in ("$", "@", "%")):
        return "computed" if described.replace(".", "").isdigit() else described
    return value if isinstance(value, str) else str(value)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "data": _data,
    **{name: partial(labelling, name) for name in ("label", "merge", "merge_masks")},
    **{name: _run(name) for name in RUNS},
    "review": _review,
    "curve": curve,
    "study": study,
    "export": _export,
    "settings": _settings,
}
