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

"""The record of findings: what they depend on, by which it is known whether a model has to look again. No PyTorch."""

from __future__ import annotations

import json
import os
from ast import literal_eval
from collections.abc import Sequence
from hashlib import sha1
from os import PathLike
from pathlib import Path
from typing import Any

from scripts import bundle_version
from scripts.data.dataset_file import dataset_file
from scripts.runtime.command_line import typed_options
from scripts.runtime.paths import file_version

__all__ = ["FINDINGS", "is_current", "record_of"]

FINDINGS = "findings.json"


def record_of(words: Sequence[str], model: str | PathLike) -> dict[str, Any] | None:
    """
    What the findings of a command depend on: versions of its files, see `file_version`, and the settings as typed.

    Args:
        words: of the command after ``python -m monai.bundle``.
        model: path of the checkpoint that it uses.

    Returns:
        For JSON; None where the words don't say it all, as those of a program that starts MONAI's workflow itself.
    """
    settings = typed_options(words)
    try:
        data, run, configs = (settings.pop(name) for name in ("dataset_dir", "output_dir", "config_file"))
        dataset = dataset_file(data)
        return {
            "version": bundle_version(),
            "run": os.path.realpath(run),
            "data": file_version(dataset),
            "pictures": _pictures(dataset),
            "model": file_version(model),
            "configs": [file_version(path) for path in literal_eval(configs)],
            "settings": settings,
            "files": [file_version(value) for value in settings.values() if value and os.path.isfile(value)],
        }
    except (AttributeError, KeyError, OSError, RecursionError, SyntaxError, TypeError, ValueError):
        return None


def _pictures(dataset: Path) -> str:
    """A digest of the versions of the images that a data set names."""
    content = json.loads(dataset.read_text(encoding="utf-8-sig"))
    items = [item for split in content.values() if isinstance(split, list) for item in split if isinstance(item, dict)]
    paths = sorted({dataset.parent / item["image"] for item in items if isinstance(item.get("image"), str)})
    versions = [file_version(path) if path.is_file() else None for path in paths]
    return sha1(json.dumps(versions).encode()).hexdigest()


def is_current(folder: Path, words: Sequence[str]) -> bool:
    """
    Whether the findings in a folder are those that a command would write.

    Args:
        folder: of the findings.
        words: see `record_of`.
    """
    try:
        record = json.loads((folder / FINDINGS).read_text(encoding="utf-8"))["record"]
        return record == record_of(words, record["model"][0])
    except (KeyError, OSError, RecursionError, TypeError, ValueError):  # none, damaged, or of version 1.0.1 or before
        return False
