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
"""The pictures of a folder, and of which patient or slide each is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from scripts.data.listing import earlier_results
from scripts.images.pictures import SUFFIXES
from scripts.runtime.errors import InputError, first_line

__all__ = ["find_images", "find_pictures", "groups_of", "read_names"]


def find_pictures(folder: Path, with_results: bool = False) -> list[Path]:
    """
    Pictures of a folder and its subfolders in alphabetical order, by their names.

    Args:
        with_results: whether results of an inference into the folder of its images are among them.

    Raises:
        InputError: when there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}'; give the one with the images.")
    files = [p for p in sorted(folder.rglob("*")) if p.suffix[1:].lower() in SUFFIXES and p.is_file()]
    if with_results:
        return files
    results = set().union(*map(earlier_results, {path.parent for path in files}))
    return [path for path in files if path not in results]


def find_images(folder: Path, only: Path | None = None) -> list[str]:
    """
    Pictures of a folder and its subfolders, relative to it, in alphabetical order; links that lead out are left out.

    Args:
        only: JSON list of those to show.

    Raises:
        InputError: when there is none, or the list is none.
    """
    root = folder.resolve()
    images = [p.relative_to(folder).as_posix() for p in find_pictures(folder) if p.resolve().is_relative_to(root)]
    if only is not None:
        wanted = set(read_names(only))
        missing = sorted(wanted.difference(images))
        if missing:
            raise InputError(f"'{only}' lists '{missing[0]}', which is not in '{folder}' ({len(missing)} in all).")
        images = [image for image in images if image in wanted]
    if not images:
        raise InputError(f"There is no picture ({', '.join(SUFFIXES)}) to label in '{folder}'.")
    return images


def read_names(path: Path) -> list[str]:
    """The JSON list of images that `run_merge` writes and ``--only`` takes. Raises InputError when it is none."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of names")
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(f"'{path}' is not a JSON list of images ({first_line(error)}).") from error
    return names


def groups_of(images: list[str], pattern: str | None) -> dict[str, str]:
    """
    Group of each image by a regular expression: its first group, or all that it matches, in the path.

    Raises:
        InputError: for a pattern that is none, or images that it doesn't match.
    """
    if pattern is None:
        return {}
    try:
        found = {image: re.search(pattern, image) for image in images}
    except re.error as error:
        raise InputError(f"--group '{pattern}' is not a regular expression ({error}).") from error
    missing = [image for image in images if found[image] is None]
    if missing:
        raise InputError(f"--group '{pattern}' matches nothing in '{missing[0]}' ({len(missing)} images in all).")
    return {image: match[1] if match.re.groups and match[1] else match[0] for image, match in found.items()}
