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
Cutting large pictures into fields, which are pictures with a label of their own.

What is known of a picture is known of a field where it follows: there is nothing to find in a field of a negative
picture, and a mask says what is in each. A field of a positive picture without a mask may be either.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from scripts.data.datalist import data_error
from scripts.data.rough_area import rough_area
from scripts.images.colours import ToRGB
from scripts.images.loading import in_8_bit, load_image, load_mask
from scripts.images.reading import image_size
from scripts.images.room import room_for
from scripts.labelling.journal import Answer, read_answers
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing
from scripts.runtime.values import whole_number

__all__ = ["CutItems", "cut_items", "places"]

WHOLE = 1.5  # fields: up to this long a side, a picture is left whole
LEAST = 0.1  # of a field; what remains of a picture is left out when it is less
SMALLEST = 16  # pixels of a field


class CutItems(NamedTuple):
    """Items that can be learned from, the number of pictures that were cut, and where fields wait for labels."""

    items: list[dict[str, Any]]
    cut: int
    to_label: Path
    waiting: int


def places(length: int, size: int) -> list[int]:
    """
    Where fields begin along a side.

    They are spread evenly over it, and so overlap a little unless it is a multiple of their size; up to a tenth of a
    field is left out rather than covered by one more.

    Examples:
        >>> places(1000, 500), places(1200, 500), places(1020, 500), places(300, 500)
        ([0, 500], [0, 350, 700], [0, 520], [0])
    """
    count = max(1, math.ceil(length / size - LEAST))
    return (
        [max(0, length - size) // 2]
        if count == 1
        else np.linspace(0, length - size, count).round().astype(int).tolist()
    )


def cut_items(items: Sequence[Mapping[str, Any]], size: int, folder: Path, area_step: float = 0.1) -> CutItems:
    """
    Cut pictures into fields, as PNG files in ``fields_SIZE``, their masks in ``fields_SIZE_masks``.

    A picture both of whose sides are at most 1.5 fields long stays as it is. Label and rough area of a field come from
    the mask; a negative picture's fields are negative. Those of a positive picture without a mask go to
    ``fields_SIZE_to_label``, and become items when they have been labelled there, see `scripts.labelling`.

    Args:
        items: with absolute paths, ``label`` and ``group``.
        size: side of the fields in pixels; a picture that is narrower has fields of its own width.
        folder: of ``dataset.json``; that of the fields is made in it.
        area_step: to which areas are rounded up.

    Returns:
        Items of fields, with ``source`` and ``field``, left, top, width and height in pixels of it; and of pictures
        that were left whole.

    Raises:
        InputError: naming what can't be read, or would be cut into files of one name.
    """
    whole_number("--field", size, SMALLEST)
    to_label = folder / f"fields_{size}_to_label"
    journal = to_label / "labels.jsonl"
    answers = read_answers(journal) if journal.is_file() else {}
    names = _names(items, folder)

    def cut(item: Mapping[str, Any]) -> list[dict[str, Any]] | str:
        try:
            with room_for(item["image"], *([item["mask"]] if "mask" in item else [])):
                return list(_cut(item, size, folder, names[item["image"]], area_step, answers))
        except (InputError, OSError) as error:
            return f"'{item['image']}': {first_line(error)}"
        except Exception as error:  # a decoder may raise anything on a damaged file
            return f"'{item['image']}': can't be read ({first_line(error)})"

    with ThreadPoolExecutor() as pool:
        found = list(Bar(pool.map(cut, items), total=len(items), desc="cutting", unit="image", leave=False))
    problems = [parts for parts in found if isinstance(parts, str)]
    if problems:
        raise data_error("the pictures to cut", problems)
    fields = [field for parts in found for field in parts]
    known = [field for field in fields if field["label"] is not None]
    cut_count = len({field["source"] for field in fields if "source" in field})
    return CutItems(known, cut_count, to_label, len(fields) - len(known))


def _names(items: Sequence[Mapping[str, Any]], folder: Path) -> dict[Path, str]:
    """The beginning of the name of each picture's fields, in their folder."""
    names: dict[Path, str] = {}
    sources: dict[str, Path] = {}
    for item in items:
        path = Path(os.path.relpath(item["image"], folder)).with_suffix("")
        name = Path(*(part for part in path.parts if part != "..")).as_posix()
        other = sources.setdefault(name, item["image"])
        if other != item["image"]:
            raise InputError(f"The fields of '{item['image']}' would be called as those of '{other}'; rename one.")
        names[item["image"]] = name
    return names


def _cut(
    item: Mapping[str, Any], size: int, folder: Path, name: str, area_step: float, answers: Mapping[str, Answer]
) -> Iterator[dict[str, Any]]:
    """The fields of a picture, each once its files are written; without a label where it isn't known."""
    if max(image_size(item["image"])[:2]) <= WHOLE * size:
        yield dict(item)
        return
    picture = np.asarray(in_8_bit(ToRGB()(load_image(item["image"])))).transpose(2, 1, 0)  # from MONAI's (C, W, H)
    mask = np.asarray(load_mask(item["mask"]))[0].T > 0 if "mask" in item else None
    if mask is not None and mask.shape != picture.shape[:2]:
        (height, width), (rows, columns) = picture.shape[:2], mask.shape
        raise InputError(f"its mask is {columns}x{rows}, the image {width}x{height}; they must have the same size")
    for top in places(picture.shape[0], size):
        for left in places(picture.shape[1], size):
            part = picture[top : top + size, left : left + size]
            file = f"{name}_x{left}_y{top}.png"
            field = {"label": 0} | {key: item[key] for key in ("group", "split") if key in item}
            marked = None if mask is None else mask[top : top + size, left : left + size]
            where = f"fields_{size}"
            if marked is not None and marked.any():
                field |= {"label": 1, "area": rough_area(marked, area_step), "mask": folder / f"{where}_masks" / file}
                _write(marked.astype(np.uint8) * 255, field["mask"])
            elif item["label"] and marked is None:
                where += "_to_label"
                field |= _answered(answers.get(file))
            field["image"] = folder / where / file
            _write(part, field["image"])
            yield field | {
                "source": Path(os.path.relpath(item["image"], folder)).as_posix(),
                "field": [left, top, part.shape[1], part.shape[0]],
            }


def _answered(answer: Answer | None) -> dict[str, Any]:
    if answer is None or answer.label is None:
        return {"label": None}
    return {"label": answer.label} | ({"area": answer.area} if answer.label and answer.area is not None else {})


def _write(pixels: np.ndarray, path: Path) -> None:
    with replacing(path, binary=True) as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=3)
