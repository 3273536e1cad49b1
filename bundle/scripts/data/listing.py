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

"""The images to infer on, and what had to be left out."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from scripts.data.datalist import SHOWN, data_error, first_names, read_splits
from scripts.data.items import check_picture, is_item
from scripts.images.pictures import SLIDE_SUFFIXES, SUFFIXES
from scripts.images.slide_parts import PART_KEYS, item_name, source_of
from scripts.runtime.errors import InputError
from scripts.runtime.files import is_table, result_name
from scripts.runtime.paths import file_problem
from scripts.runtime.processes import process_rank, union

__all__ = [
    "COLUMNS",
    "OUTLINES",
    "PARTIAL",
    "RESULTS",
    "TABLE",
    "ImageList",
    "check_given",
    "earlier_results",
    "list_images",
    "told_names",
]

TABLE = "predictions.csv"  # of an inference, beside its other results
PARTIAL = f"{TABLE}.part"  # of a run that isn't done
COLUMNS = ("image", "probability", "area_fraction")  # the first ones, also in a table of version 0.6
KINDS = ("mask", "heat", "overlay", "probability")
OUTLINES = "_outlines.geojson"
RESULTS = (*(f"_{kind}{suffix}" for kind in KINDS for suffix in (".png", ".nii.gz", ".dcm")), OUTLINES)
logger = logging.getLogger(__name__)


def list_images(
    images: str | PathLike | Sequence[str], allow_outside: bool = False, split: str | None = None
) -> ImageList:
    """
    The images to infer on.

    Args:
        images: a folder, whose pictures are taken, or those of its subfolders where it has none; a file; or a list of
            files and folders; or a ``dataset.json``, of which the images of all splits are taken, parts of slides too.
        allow_outside: see `check_datalist`.
        split: of a ``dataset.json``, that alone.

    Returns:
        One item each, ``{"image": path}`` or with the part of the slide that it is, sorted by name for a folder; with
        ``results``, what its results are called, where its file's name alone might be that of others. What
        is missing, can't be read, or would overwrite another's results is logged as an error and left out: see
        `ImageList.report_left_out`.

    Raises:
        InputError: when there is no image left, naming everything that was left out; for a split that there is not.
    """
    if isinstance(images, (str, PathLike)) and Path(images).suffix == ".json" and not os.path.isdir(images):
        return _usable(*_listed(images, allow_outside, split))
    if split is not None:
        raise InputError(f"'{images}' has no splits, such as '{split}'; name a dataset.json, or leave --split out.")
    if isinstance(images, (str, PathLike)):
        items = _in_folder(Path(images)) if check_given(images, "image") else [{"image": str(images)}]
    else:
        items = []
        for path in map(Path, images):
            if os.path.isdir(path):
                whole = os.path.basename(os.path.abspath(path))
                named = [(item, item.get("results", Path(item["image"]).stem)) for item in _in_folder(path)]
                items += [item | {"results": f"{whole}_{name}"} for item, name in named]
            else:
                items.append({"image": str(path)})
    _refuse_slides(item["image"] for item in items)
    if not items:
        raise InputError(
            f"There is no picture ({', '.join(SUFFIXES)}) in '{images}'. Volumes need their overlay: cdws infer with "
            "--overlay slices, or 'bundle/configs/slices.json' after 'bundle/configs/inference.json' in --config_file."
        )
    return _usable(items, [])


def _in_folder(folder: Path) -> list[dict[str, str]]:
    """
    Pictures of a folder by name; where it has none, those of its subfolders, whose results are named after these too.

    Raises:
        InputError: when it can't be read, or has slides instead.
    """
    try:
        listed = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"The folder '{folder}' can't be read ({error.strerror}).") from error
    # what is called a picture and is none, as a link to nothing, is to be named
    files = [path for path in listed if os.path.isfile(path) or (_is_picture(path) and not os.path.isdir(path))]
    results = earlier_results(folder)
    pictures = [path for path in files if _is_picture(path)]
    left_out = [path for path in pictures if path in results]
    files, pictures = ([path for path in paths if path not in results] for paths in (files, pictures))
    if not pictures:
        _refuse_slides(files)
        inside = sorted(path for path in folder.rglob("*") if _is_picture(path) and path.is_file())
        made = {parent for parent in {path.parent for path in inside} if _has_table(parent)}
        results = set().union(*map(earlier_results, made))
        # elsewhere the results of an inference lie without their images
        left_out = [path for path in inside if path in results or (path.parent in made and _is_result(path))]
        inside = sorted(set(inside) - set(left_out))
        names = ("_".join(path.relative_to(folder).with_suffix("").parts) for path in inside)
        if inside:
            _log_results(left_out)
            return [{"image": str(path), "results": name} for path, name in zip(inside, names, strict=True)]
    _log_results(left_out)
    if pictures and (deeper := [path.name for path in listed if _holds_pictures(path)]):
        told = f"since '{folder}' has pictures itself: {first_names(deeper)}"
        logger.warning(f"Pictures in folders inside are left out, {told}; name these folders too.")
    skipped = [path.name for path in files if path not in pictures]
    if skipped:
        logger.warning(f"Not pictures ({', '.join(SUFFIXES)}), left out: {first_names(skipped)}")
    return [{"image": str(path)} for path in pictures]


def _holds_pictures(path: Path) -> bool:
    """Whether it is a folder with pictures that are no results of an inference."""
    with suppress(OSError):  # not ours to read
        return os.path.isdir(path) and not _has_table(path) and any(_is_picture(Path(n)) for n in os.listdir(path))
    return False


def _log_results(left_out: Sequence[Path]) -> None:
    if left_out:
        where = ", ".join(f"'{folder}'" for folder in sorted({path.parent for path in left_out}))
        logger.info(f"Results of an earlier run, left out: {len(left_out)} pictures in {where}.")


def _is_picture(path: Path) -> bool:
    return path.suffix[1:].lower() in SUFFIXES


def _is_result(path: Path) -> bool:
    return path.name.endswith(RESULTS)


def _results_of(item: Mapping[str, Any]) -> str:
    """What the results of an item are called. Raises InputError when that can't be the name of a file."""
    return result_name(item_name(item), item.get("results"))


def _refuse_slides(paths: Iterable[str | PathLike]) -> None:
    slides = [path.name for path in map(Path, paths) if path.suffix[1:].lower() in SLIDE_SUFFIXES]
    if slides:
        raise InputError(
            f"Whole slides ({', '.join(slides)}) need their overlay: cdws infer with --overlay slides, or "
            "'bundle/configs/slides.json' after 'bundle/configs/inference.json' in --config_file."
        )


def _listed(path: str | PathLike, allow_outside: bool, split: str | None) -> tuple[list[dict], list[str]]:
    """The items of a ``dataset.json``, of each image or part the first, and those that are none."""
    _, splits, _ = read_splits(path, (), allow_outside)
    if split is not None and split not in list(splits):  # it may be anything
        raise InputError(f"There is no split '{split}' in '{path}' (found: {', '.join(splits) or 'none'}).")
    items = [item for name, listed in splits.items() if split in (None, name) for item in listed]
    images = [item for item in items if is_item(item)]
    if not images:
        raise InputError(f"There is no image in '{path}'.")
    unusable = [f"{item!r} in '{path}': has no image" for item in items if item not in images]
    kept = [{key: item[key] for key in ("image", *PART_KEYS) if key in item} for item in images]
    return list({(item_name(item), item.get("slide_mpp")): item for item in kept}.values()), unusable


def _usable(items: Sequence[dict], left_out: Sequence[str]) -> ImageList:
    """Those whose images can be read, and whose results have names of their own."""
    found = ImageList()
    found.left_out += left_out
    seen: dict[str, str] = {}
    for item in items:
        name = item_name(item)
        try:
            problems = [f"'{name}': {problem}" for problem in check_picture(source_of(item))[1]]
        except InputError as error:
            problems = [f"'{name}': {error}"]
        try:
            results = _results_of(item)
        except InputError as error:
            results, problems = "", problems or [str(error)]
        if results in seen and not problems:
            problems = [f"'{name}': its results would have the same name as those of '{seen[results]}'"]
        if problems:
            found.left_out += problems
        else:
            seen[results] = name
            found.append(item)
    found.log_left_out("the images")
    return found


def earlier_results(folder: Path) -> set[Path]:
    """Results of an inference into a folder with its table: files named after an image there, or one it tells of."""
    if not _has_table(folder):
        return set()
    names = os.listdir(folder)
    sources = [*names, os.path.basename(os.path.abspath(folder))]  # the folder itself may be a DICOM series
    parts = [name.split(".") for name in sources]  # a name may have dots, and so may its suffix
    owners = {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)} - {""} | told_names(folder)
    return {folder / n for n in names if any(n.endswith(e) and n.removesuffix(e) in owners for e in RESULTS)}


def told_names(folder: Path) -> set[str]:
    """
    What the results may be called of the images that the table of a folder, and that of a run that was stopped, tell
    of: after the file alone, or after folders that it lies in as well.
    """
    images = {image for table in (TABLE, PARTIAL) for image in _images_in(folder / table)}
    return {name for image in images for name in _names_of(image)}


def _images_in(table: Path) -> list[str]:
    """The images that a table tells of; none where it is no table."""
    try:
        with table.open(newline="", encoding="utf-8", errors="replace") as file:
            return [row["image"] for row in csv.DictReader(file) if row.get("image")]
    except (OSError, csv.Error):
        return []


def _names_of(path: str) -> list[str]:
    try:
        name, folder = result_name(path), Path(path).parent
    except InputError:  # as of a line that isn't ours
        return []
    parts = folder.parts[bool(folder.anchor) :]
    return ["_".join([*parts[place:], name]) for place in range(len(parts) + 1)]


def _has_table(folder: Path) -> bool:
    return is_table(folder / TABLE, COLUMNS) or (folder / PARTIAL).exists()


def check_given(path: str | PathLike, what: str) -> bool:
    """
    Whether what is to be inferred on is a folder.

    Args:
        path: as it was given.
        what: is expected, if it is no folder.

    Raises:
        InputError: when it is neither a folder nor a file that can be read.
    """
    if os.path.isdir(path):  # False for what is no name of a file
        return True
    problem = file_problem(path)
    if problem and problem.startswith("there is no"):
        raise InputError(f"There is no folder or {what} '{path}'; name one (cdws infer FOLDER, or --dataset_dir).")
    if problem:
        raise InputError(f"'{path}' {problem}; name another (cdws infer FOLDER, or --dataset_dir).")
    return False


class ImageList(list):
    """Items of images, and in ``left_out`` what is wrong with those that are not in it."""

    def __init__(self) -> None:
        super().__init__()
        self.left_out: list[str] = []

    def log_left_out(self, where: str) -> None:
        """Log it as errors. Raises InputError naming all of it when nothing else is in the list."""
        if not self:
            raise data_error(where, self.left_out)
        for problem in self.left_out[:SHOWN]:
            logger.error(f"Left out: {problem}")
        if len(self.left_out) > SHOWN:
            logger.error(f"Left out: {len(self.left_out) - SHOWN} more.")

    def report_left_out(self) -> None:
        """
        End a run whose other images are done. Raises InputError naming what all processes have left out, if anything.
        """
        left_out = union({(process_rank(), place): problem for place, problem in enumerate(self.left_out)})
        if left_out:
            raise data_error("the images; all others are done", list(left_out.values()))
