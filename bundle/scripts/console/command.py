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
from scripts.console.running import HELP
from scripts.console.runs import RUNS, curve, demo, export, export_folder, labelling, review, run, run_help, study
from scripts.runtime.command_line import Parser, did_you_mean

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
FOLDERS = {"wsinfer": "WSInfer, also in QuPath", "bioimageio": "the model format of bioimage.io"}


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
            "cdws infer, such as --device; --spatial_size is that of the training unless it is given."
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
    parser = Parser(
        prog="cdws export",
        description="Write a trained network as TorchScript or ONNX, or as a folder that QuPath's WSInfer or a program "
        "of bioimage.io opens.",
    )
    parser.add_argument("file", metavar="FILE", help="to write; ends in .ts or .onnx. Or a folder, with one of:")
    for name, of in FOLDERS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"{of}; makes a folder")
    parser.add_argument("--method", default=DEFAULT_METHOD, metavar="NAME", help=f"of the network ({DEFAULT_METHOD})")
    parser.add_argument("--overlay", action="append", default=[], metavar="NAME", help="of the network")
    parser.add_argument("--output_dir", metavar="FOLDER", help="of the training (that of the method)")
    parser.add_argument("--ckpt_dir", metavar="FOLDER", help="of its checkpoints (output_dir/models)")
    parser.add_argument(
        "--ckpt_path",
        metavar="FILE",
        help="checkpoint (model.pt of ckpt_dir, or the included one; included: that one anyway)",
    )
    parser.add_argument("--mpp", metavar="N", help="of a folder: micrometres per pixel of what the network sees")
    parser.add_argument("--class_name", metavar="NAME", help="of a folder: what the network finds (Cancer)")
    options = parser.parse_args(arguments)
    folders = {name: getattr(options, name) for name in ("ckpt_path", "ckpt_dir", "output_dir")}
    of_folder = {name: getattr(options, name) for name in ("mpp", "class_name")}
    kinds = [name for name in FOLDERS if getattr(options, name)]
    if len(kinds) > 1:
        raise UsageError(f"--{' and --'.join(kinds)} are two exports; run cdws export once for each.")
    if kinds:
        return export_folder(options.file, kinds[0], options.method, options.overlay, folders | of_folder)
    given = [f"--{name}" for name, value in of_folder.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} is of a folder: add --wsinfer or --bioimageio.")
    return export(options.file, options.method, options.overlay, folders)


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
