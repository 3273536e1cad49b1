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
The bundle's configs as a user of ``cdws`` knows them: methods, overlays, and the settings at their tops.

Read as plain JSON, without MONAI, whose import takes seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from scripts import bundle_root
from scripts.runtime.command_line import did_you_mean
from scripts.runtime.errors import InputError

__all__ = [
    "DEFAULT_METHOD",
    "Setting",
    "UsageError",
    "config_files",
    "described_settings",
    "methods",
    "overlays",
    "top_of",
]

DEFAULT_METHOD = "recommended"
# overlays of an overlay
AFTER = {"recommended_supervised": "recommended", "next_round": "recommended", "mri": "slices", "ct": "slices"}
BASES = ("train", "inference", "evaluate", "check", "review", "metadata")
# of MONAI Label, of torchrun, of federations, of the experiments and of exports, which start them
OF_OTHERS = ("monai_label", "multi_gpu_train", "multi_gpu_evaluate", "federated", "study_training", "study_evaluation")
OF_OTHERS += ("export",)
OF_INFERENCE = ("slides", "inference_onnx", "inference_trt")
OF_TRAINING = ("next_round",)
ROW = re.compile(r"^\| (`.+?) \| (.+?) \| (.+?) \|$")


class UsageError(InputError):
    """What was typed names something that there is not."""


class Setting(NamedTuple):
    """A row of ``docs/settings.md``."""

    section: str
    name: str
    default: str
    meaning: str


def _folder() -> Path:
    return Path(bundle_root()) / "configs"


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _described(names: Iterable[str]) -> dict[str, str]:
    texts = {name: _read(_folder() / f"{name}.json")["_desc_"] for name in sorted(names)}
    return {name: re.sub(r"^Overlay(, after [^:]+| of [\w.]+)?: ", "", text) for name, text in texts.items()}


def _stems() -> set[str]:
    return {path.stem for path in _folder().glob("*.json")} - {*BASES, *OF_OTHERS}


def methods() -> dict[str, str]:
    """Methods, which are the overlays that name one, with what they are."""
    return _described(name for name in _stems() if "method" in _read(_folder() / f"{name}.json"))


def overlays(base: str = "inference") -> dict[str, str]:
    """All other overlays of `cdws` that go with a run, ``"train"`` or ``"inference"``, with what they are."""
    others = OF_INFERENCE if base != "inference" else OF_TRAINING
    return _described(_stems() - set(methods()) - set(others))


def config_files(base: str, method: str, added: Sequence[str] = (), last: Sequence[str] = ()) -> list[Path]:
    """
    Files of a run in their order.

    Args:
        base: ``"train"`` or ``"inference"``.
        method: one of `methods`.
        added: names of `overlays`, or paths of a user's own.
        last: names of what follows all others.

    Raises:
        UsageError: for a method or an overlay that there is not, with the nearest.
    """
    if method not in methods():
        raise UsageError(
            f"There is no method '{method}'{did_you_mean(method, methods())}; cdws train -h lists the methods."
        )
    files = [_folder() / f"{base}.json"]
    for name in (method, *added):
        path = Path(name)
        if path.suffix in (".json", ".yaml", ".yml"):
            if not path.is_file():
                raise UsageError(f"There is no overlay '{name}': no such file.")
            files.append(path)
            continue
        if name not in _stems():
            known = [*overlays(base), *methods()]
            lists = f"cdws {'infer' if base == 'inference' else 'train'} -h lists the overlays"
            raise UsageError(f"There is no overlay '{name}'{did_you_mean(name, known)}; {lists}.")
        if name in OF_INFERENCE and base != "inference":
            raise UsageError(f"The overlay '{name}' is of inference alone: cdws infer FOLDER --overlay {name}.")
        chain = [AFTER[name], name] if name in AFTER else [name]
        files += [file for stem in chain if (file := _folder() / f"{stem}.json") not in files]
    return files + [_folder() / f"{name}.json" for name in last]


def top_of(files: Iterable[Path]) -> dict[str, Any]:
    """What stands at the top of configs that follow each other; those that are no JSON are left out."""
    return {k: v for file in files if file.suffix == ".json" for k, v in _read(file).items() if "#" not in k}


@cache
def described_settings() -> tuple[Setting, ...]:
    """The rows of ``docs/settings.md``, the only place where settings are described, as plain text."""
    section, rows = "", []
    for line in (Path(bundle_root()) / "docs" / "settings.md").read_text(encoding="utf-8").splitlines():
        section = line[3:] if line.startswith("## ") else section
        row = ROW.match(line)
        if row:
            cells = [re.sub(r"\[([^]]*)\]\(.*?\)", r"\1", cell) for cell in row.groups()]  # links as their text
            rows.append(Setting(section, *(cell.replace("`", "") for cell in cells)))
    return tuple(rows)
