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
from collections.abc import Sequence
from pathlib import Path

from scripts.data.listing import earlier_results
from scripts.images.pictures import SLIDE_SUFFIXES, SUFFIXES
from scripts.labelling.journal import Subject, place_of, subject_of, written
from scripts.runtime.errors import InputError, first_line

__all__ = ["find_images", "find_pictures", "find_slides", "groups_of", "holds_slides", "is_cut", "read_names"]

FIELDS = re.compile(r"fields_\d+(_masks|_to_label)?")


def is_cut(path: Path) -> bool:
    """Whether a path leads through a folder of fields."""
    return any(FIELDS.fullmatch(part) for part in path.parts[:-1])


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


def find_images(folder: Path, only: Path | None = None, listed: Sequence[Subject] = ()) -> list[str]:
    """
    Pictures of a folder and its subfolders, relative to it, in alphabetical order; links that lead out are left out.

    Args:
        only: JSON list of those to show.
        listed: all that may be shown; whatever is there where it is empty.

    Raises:
        InputError: when there is none, or the list is none.
    """
    root = folder.resolve()
    named = [folder / name for name in sorted({written(subject)["image"] for subject in listed})]
    found = [path for path in named if path.is_file()] if named else find_pictures(folder)
    images = [path.relative_to(folder).as_posix() for path in found if path.resolve().is_relative_to(root)]
    if only is not None:
        wanted = set(read_names(only))
        missing = sorted(wanted.difference(images), key=place_of)
        if missing:
            raise InputError(
                f"'{only}' lists '{written(missing[0])['image']}', which is not in '{folder}' ({len(missing)} in all)."
            )
        images = [image for image in images if image in wanted]
    if not images:
        raise InputError(f"There is no picture ({', '.join(SUFFIXES)}) to label in '{folder}'.")
    return images


def find_slides(path: Path) -> tuple[Path, list[str]]:
    """
    The folder of slides, or of one slide, and their paths relative to it; see `list_slides`.

    Raises:
        InputError: when there is none.
    """
    if not path.exists():
        raise InputError(f"There is no folder or slide '{path}'; give the one with the slides.")
    if path.is_dir():
        from scripts.slides.listing import list_slides  # with pydicom

        return path, [slide.relative_to(path).as_posix() for slide in list_slides(path).values()]
    return path.parent, [path.name]


def holds_slides(path: Path) -> bool:
    """Whether it is a slide, or a folder with files that are slides by their names."""
    files = path.iterdir() if path.is_dir() else [path]
    return any(file.suffix[1:].lower() in SLIDE_SUFFIXES for file in files)


def read_names(path: Path) -> list[Subject]:
    """The JSON list of images, or fields, that `run_merge` writes and ``--only`` takes. InputError when it is none."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list):
            raise ValueError("no list of names")
        return [name if isinstance(name, str) else subject_of(name) for name in names]
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' is not a JSON list of images ({first_line(error)}).") from error


def groups_of(images: list[str], pattern: str | None) -> dict[str, str]:
    """
    Group of each image by a regular expression: its first group, or all that it matches, in the path.

    Raises:
        InputError: for a pattern that is none, or images in which it matches nothing, or no character.
    """
    if pattern is None:
        return {}
    try:
        found = {image: re.search(pattern, image) for image in images}
    except re.error as error:
        raise InputError(f"--group '{pattern}' is not a regular expression ({error}).") from error
    groups = {
        image: match and (match[1] if match.re.groups and match[1] else match[0]) for image, match in found.items()
    }
    missing = [image for image in images if not groups[image]]
    if missing:
        raise InputError(f"--group '{pattern}' matches nothing in '{missing[0]}' ({len(missing)} images in all).")
    return groups
