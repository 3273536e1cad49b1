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

"""What an item of a datalist must be: its picture, label, area, mask and strokes."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from scripts.images.limits import MIN_SIZE
from scripts.images.masks import load_positive
from scripts.images.pictures import is_plain, is_tiff, lacks_end, picture_size, read_picture
from scripts.images.room import room_for
from scripts.images.slide_parts import SlidePart, source_of
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.paths import file_identity, file_problem

__all__ = [
    "QUOTED",
    "area_problems",
    "chance_of_none",
    "check_item",
    "check_picture",
    "is_item",
    "mask_path",
    "shortened",
]

QUOTED = ("0", "1")  # labels written as text
AREA_TOLERANCE = 0.1  # by which an annotator's area may differ from that of a mask
_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80
shortened = _short.repr  # what somebody has written, in a message


def check_item(where: str, item: object, opened: bool) -> tuple[list[str], bool | None, list[str]]:
    """
    Check one item.

    Returns:
        What breaks the contract, each problem beginning with its place; its label, None if unknown; and, where its mask
        contradicts its area, both.
    """
    if not is_item(item):
        return [f"{where}: must be an object with an 'image'"], None, []
    label, label_problems = _read_label(item)
    try:
        source = source_of(item)
    except InputError as error:
        return [f"{where} '{item['image']}': {problem}" for problem in (str(error), *label_problems)], label, []
    of_area = area_problems(item)
    if not opened:
        mask = item.get("mask") if label_problems else mask_path(item)  # what is no label is no mask either
        files = {"": source, "mask": mask, "strokes": item.get("strokes")}
        missing = [
            f"{f'the {key}: ' if key else ''}{problem}"
            for key, path in files.items()
            if isinstance(path, (str, SlidePart)) and (problem := file_problem(path))
        ]
        return [f"{where} '{item['image']}': {p}" for p in (*missing, *label_problems, *of_area)], label, []
    with room_for(*(path for path in (source, mask_path(item)) if isinstance(path, (str, SlidePart)))):
        size, problems = check_picture(source)
        mask, mask_problems = _read_mask(item)
    problems += label_problems + mask_problems + of_area + _stroke_problems(item, size)
    if mask is not None and size is not None and mask.shape[1:] != size:
        sizes = "{}x{}, the image {}x{}".format(*mask.shape[1:], *size)
        problems.append(f"the mask '{mask_path(item)}' is {sizes}; they must have the same size")
    if mask is not None and isinstance(item["label"], str):
        label = bool(mask.any())
    elif mask is not None and label is not None and bool(mask.any()) != label:
        found = "has positive pixels" if mask.any() else "is empty"
        problems.append(f"label is {item['label']}, but the mask '{item['mask']}' {found}")
    area, doubts = item.get("area"), []
    if mask is not None and area and not of_area and mask.any():
        covered = float(np.count_nonzero(mask)) / mask.size
        doubts = [f"{where} {area:g} (the mask: {covered:.3g})"] if abs(area - covered) > AREA_TOLERANCE + 1e-9 else []
    return [f"{where} '{item['image']}': {problem}" for problem in problems], label, doubts


def is_item(item: object) -> bool:
    """Whether it names an image, and can be checked as an item."""
    return isinstance(item, dict) and isinstance(item.get("image"), str)


def _read_label(item: dict) -> tuple[bool | None, list[str]]:
    label = item.get("label")
    if isinstance(label, str):
        quoted = f"label is the text '{label}'; write the number {label}, without quotes"
        if label not in QUOTED and not Path(label).suffix and not os.path.exists(label):
            return None, [f"label is '{Path(label).name}', must be 0 or 1 (or the path of a mask)"]
        return None, [quoted] if label in QUOTED else []
    if label not in (0, 1):
        return None, [f"label is {shortened(label)}, must be 0 or 1 (or the path of a mask)"]
    return bool(label), []


def area_problems(item: dict) -> list[str]:
    """What is wrong with the area of an item."""
    label, area = item.get("label"), item.get("area")
    if area is None or (label == 0 and area == 0):
        return []
    if label == 0:
        return [f"label is 0, but an area of {shortened(area)} is given; remove one"]
    if not isinstance(area, (int, float)) or isinstance(area, bool) or not 0 < area <= 1:
        # below 2 it may be as well one that is a little too large
        is_percent = isinstance(area, (int, float)) and not isinstance(area, bool) and 2 <= area <= 100
        hint = f" ({area / 100:g} for {area:g} %)" if is_percent else ""
        return [f"area is {shortened(area)}, must be a fraction of the image above 0 and up to 1{hint}"]
    return []


def check_picture(path: str | PathLike, decoded: bool = True) -> tuple[tuple[int, int] | None, list[str]]:
    """
    Look into an image, a file or a part of a slide.

    Args:
        path: of the image.
        decoded: whether all of it is read; the header of a picture tells nearly as much in no time. Of what else there
            is, which takes longer to begin with, it is only looked whether it is there.

    Returns:
        Width and height, None where they are not known; and what is wrong with it.
    """
    problem = file_problem(path)
    if problem:
        return None, [problem]
    try:
        if os.stat(path).st_size == 0 and not isinstance(path, SlidePart):  # MIRAX has all in a folder beside it
            return None, ["can't be read as an image (it is empty)"]
        if not decoded and not (is_plain(path) or is_tiff(path)):
            return None, []
        width, height = _size_of(path) if decoded or lacks_end(path) else picture_size(path)
    except Exception as error:  # a decoder may raise anything on a damaged file
        if isinstance(path, SlidePart) and isinstance(error, InputError):
            return None, [str(error).removesuffix(".")]
        return None, [f"can't be read as an image ({first_line(error)})"]
    small = f"is {width}x{height}, smaller than {MIN_SIZE}x{MIN_SIZE}"
    return (width, height), [small] if min(width, height) < MIN_SIZE else []


def _size_of(path: str | PathLike) -> tuple[int, int]:
    """Width and height of what can be read as a picture; raises as `load_image` and `ToRGB`."""
    if not isinstance(path, SlidePart) and is_plain(path):
        height, width = read_picture(path).shape[:2]
        return width, height
    from scripts.images.colours import ToRGB
    from scripts.images.loading import load_image

    image = load_image(path)
    ToRGB()(image)
    return tuple(image.shape[1:])  # MONAI's pictures are (C, W, H)


def chance_of_none(item: dict) -> float:
    """That none of a positive slide's fields is of its area, which is somewhere on it; 0 of any other image."""
    source, area = source_of(item), item.get("area")
    return (1 - area) ** source.fields if area and isinstance(source, SlidePart) and source.fields else 0.0


def mask_path(item: dict) -> Any:
    """Where its mask is said to be, the label or the mask of an item; None where there is none."""
    label = item.get("label")
    return label if isinstance(label, str) and label not in QUOTED else item.get("mask")


def _read_mask(item: dict) -> tuple[np.ndarray | None, list[str]]:
    """The mask of an item, (1, W, H), None where there is none to be had; and what is wrong with it."""
    path = mask_path(item)
    if path is None:
        return None, []
    if getattr(source_of(item), "fields", None):
        return None, ["has a mask, which a slide without a region can't have; add its region, or remove the mask"]
    if not isinstance(path, str):
        return None, [f"mask is {shortened(path)}, must be the path of a mask"]
    other = item.get("mask", path)
    if other != path and not (isinstance(other, str) and file_identity(other) == file_identity(path)):
        shown = f"'{other}'" if isinstance(other, str) else shortened(other)
        return None, [f"label is the mask '{path}', and mask is {shown}; remove one"]
    problem = file_problem(path)
    if problem and item.get("label") == path and not Path(path).suffix:
        return None, []  # the label says it
    if problem:
        missing = problem.startswith("there is no such file")
        return None, [problem.replace("such file", f"mask '{path}'") if missing else f"the mask '{path}' {problem}"]
    if file_identity(path) == file_identity(item["image"]):
        return None, [f"the mask '{path}' is the image itself"]
    try:
        return load_positive(path), []
    except Exception as error:
        return None, [f"the mask '{path}' can't be read ({first_line(error)})"]


def _stroke_problems(item: dict, size: tuple[int, int] | None) -> list[str]:
    """What is wrong with the strokes of an image of this width and height."""
    path = item.get("strokes")
    if path is None:
        return []
    if not isinstance(path, str):
        return [f"strokes is {shortened(path)}, must be the path of a PNG"]
    problem = file_problem(path)
    if problem:
        return [f"the strokes '{path}': {problem}"]
    from scripts.images.strokes import POSITIVE, read_strokes  # with PyTorch

    try:
        strokes = read_strokes(path)
    except Exception as error:  # a decoder may raise anything on a damaged file
        return [f"the strokes '{path}': {first_line(error)}"]
    if size is not None and strokes.T.shape != size:
        sizes = "{}x{}, the image {}x{}".format(*strokes.T.shape, *size)
        return [f"the strokes '{path}' are {sizes}; they must have the same size"]
    if item.get("label") == 0 and (strokes == POSITIVE).any():
        return [f"label is 0, but the strokes '{path}' mark positive pixels; remove one"]
    return []
