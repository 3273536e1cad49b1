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
How another module is run: its command is printed, and is run as that.

A run has the process for itself, as under ``python -m``: it fails, and is stopped, as that command is.
"""

from __future__ import annotations

import logging
import os
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from scripts import bundle_root
from scripts.runtime.command_line import PATHS

__all__ = [
    "HELP",
    "as_typed",
    "config_option",
    "path_value",
    "print_line",
    "relative_path",
    "run_module",
    "run_monai",
    "say_starting",
]

HELP = {"-h", "--help"}


def run_monai(words: Sequence[str]) -> None:
    """``python -m monai.bundle`` with these words, printed first."""
    # configs that come from anywhere may run any code, and MONAI says so each time; these are the bundle's, or named
    warnings.filterwarnings("ignore", "parsing config_file", UserWarning)
    # it says which logging config it takes before it takes that
    logging.getLogger("monai.bundle.workflows").addFilter(lambda record: record.levelno > logging.INFO)
    run_module("monai.bundle", words)


def run_module(module: str, words: Sequence[str]) -> None:
    """A module as ``python -m`` runs it, with these words; the line is printed first."""
    print_line(module, words)
    if not HELP & set(words):
        say_starting()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def say_starting() -> None:
    """A word before PyTorch is imported, which takes seconds, on a busy machine a minute."""
    if "torch" not in sys.modules:
        print("starting ...", file=sys.stderr, flush=True)


def print_line(module: str, words: Sequence[str]) -> None:
    """What `run_module` does as a line of a shell."""
    needs_path = module.startswith("scripts.") and Path.cwd() != Path(bundle_root())
    path = f"PYTHONPATH={shlex.quote(relative_path(Path(bundle_root())))} " if needs_path else ""
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


def relative_path(path: Path) -> str:
    """Relative to the working directory where it lies in it."""
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def config_option(files: Sequence[Path]) -> list[str]:
    """``--config_file`` and its value, of one file or of several."""
    names = [relative_path(file) for file in files]
    return ["--config_file", names[0] if len(names) == 1 else "[" + ",".join(map(repr, names)) + "]"]


def path_value(typed: str) -> str:
    """MONAI's parser takes what begins with '%' for a part of another config, before the bundle's code is called."""
    return f"./{typed}" if typed.startswith("%") else typed


def as_typed(options: Sequence[tuple[str, str | None]]) -> list[str]:
    """Options as the words of a command line."""
    named = ((k, path_value(v) if v and k in PATHS else v) for k, v in options)
    # what begins as an option does is a value only behind '='
    pairs = ([f"--{k}"] if v is None else [f"--{k}={v}"] if v[:1] == "-" or not v else [f"--{k}", v] for k, v in named)
    return [word for pair in pairs for word in pair]
