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

"""What a reviewer says of an image, kept in a journal; and the data set in which it counts."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from scripts.data.datalist import SPLITS
from scripts.images.loading import load_image
from scripts.images.room import room_for
from scripts.images.slide_parts import source_of
from scripts.images.strokes import NEGATIVE, POSITIVE, UNKNOWN, write_strokes
from scripts.labelling.dataset import check_replaceable
from scripts.labelling.journal import Journal
from scripts.review.findings import reviewed_name
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing

__all__ = ["WRITER", "Correction", "Corrections", "Stroke", "paint", "reviewed_path", "write_reviewed"]

WRITER = "cdws review"
FARTHEST = 1e6  # pixels
MAX_POINTS, MAX_STROKES = 2000, 200
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stroke:
    """A line drawn with a round brush, in pixels of the image."""

    label: int
    width: float
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Stroke:
        """From JSON. Raises KeyError, TypeError or ValueError for what is none."""
        points = tuple((float(x), float(y)) for x, y in record["points"])
        width = float(record["width"])
        known = record["label"] in (0, 1) and 1 <= len(points) <= MAX_POINTS and 0 < width <= FARTHEST
        if not known or not all(abs(value) <= FARTHEST for point in points for value in point):  # NaN isn't, either
            raise ValueError("not a stroke")
        return cls(int(record["label"]), width, points)


@dataclass(frozen=True)
class Correction:
    """What counts of an image from then on, all of it."""

    label: int
    area: float | None = None
    excluded: bool = False
    strokes: tuple[Stroke, ...] = ()
    made: str = ""
    """The round of the review, see `Findings`."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Correction:
        """
        From JSON.

        Raises:
            KeyError, TypeError, ValueError: for what is none.
            InputError: for what contradicts itself.
        """
        label, area, excluded = record["label"], record.get("area"), record.get("excluded", False)
        strokes = tuple(Stroke.of(stroke) for stroke in record.get("strokes", ()))
        made = record.get("made", "")
        if type(label) is not int or label not in (0, 1) or not isinstance(excluded, bool) or not isinstance(made, str):
            raise ValueError("not a correction")
        if area is not None and not (label == 1 and math.isfinite(area) and 0 < area <= 1):
            raise ValueError("not an area")
        if len(strokes) > MAX_STROKES:
            raise InputError(f"An image has at most {MAX_STROKES} strokes; exclude it, or draw a mask.")
        if label == 0 and any(stroke.label == 1 for stroke in strokes):
            raise InputError(
                "An image without the finding can't have positive strokes; take them back, or give an area."
            )
        return cls(label, None if area is None else float(area), excluded, strokes, made)


class Corrections(Journal):
    """A journal of corrections."""

    def answer_of(self, record: Mapping[str, Any]) -> Correction:
        return Correction.of(record)


def paint(strokes: tuple[Stroke, ...], size: tuple[int, int]) -> np.ndarray:
    """
    Strokes as pixels, a later one over an earlier one.

    Args:
        size: width and height of the image.

    Returns:
        (H, W) uint8, see `scripts.images.strokes`.

    Examples:
        >>> paint((Stroke(1, 1.0, ((0.5, 0.5), (2.5, 0.5))), Stroke(0, 1.0, ((1.5, 1.5),))), (4, 2)).tolist()
        [[2, 2, 2, 0], [0, 1, 0, 0]]
    """
    painted = Image.new("L", size, UNKNOWN)
    draw = ImageDraw.Draw(painted)
    for stroke in strokes:
        value = POSITIVE if stroke.label else NEGATIVE
        points = [(math.floor(x), math.floor(y)) for x, y in stroke.points]
        width = max(1, round(stroke.width))
        draw.line(points, fill=value, width=width)
        if width > 2:
            for point in points:
                draw.circle(point, (width - 1) / 2, fill=value)
        elif len(points) == 1:
            draw.point(points, fill=value)
    return np.array(painted)


def reviewed_path(dataset: Path) -> Path:
    """Where the data set with the corrections goes: ``reviewed.json`` beside ``dataset.json``."""
    return dataset.with_name("reviewed.json" if dataset.name == "dataset.json" else f"{dataset.stem}-reviewed.json")


def write_reviewed(
    dataset: Path, corrections: Mapping[str, Correction], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, int]:
    """
    Write the data set with the corrections beside the one that they are of, which stays as it is.

    Strokes go into the folder ``strokes`` beside it, into files that are called by what is in them: what an older
    data set refers to stays, too. What the data set itself excludes stays excluded: no review shows it, so a correction
    of it is of before that.

    Args:
        dataset: file of the data set.
        corrections: by the names of the items, see `reviewed_name`.
        sizes: width and height of the images by these names. An image that is not among them, as one that is excluded
            by now, or in another split, keeps the strokes of the data set; where there are none, it is read.

    Returns:
        How many of these images are ``changed``, ``left out`` and ``with strokes``.

    Raises:
        InputError: when the file in its place was not written by a review.
    """
    path = reviewed_path(dataset)
    check_replaceable(path, WRITER)
    content = json.loads(dataset.read_text(encoding="utf-8-sig"))
    counts = {"changed": 0, "left out": 0, "with strokes": 0}
    for split in SPLITS:
        for item in content.get(split) or ():
            name = reviewed_name(item, dataset.parent)
            if name not in corrections:
                continue
            correction = corrections[name]
            before = dict(item)
            for key in ("label", "area"):
                item.pop(key, None)
            mask = before["label"] if isinstance(before.get("label"), str) else None
            item |= {"label": correction.label} | ({"mask": mask} if mask else {})
            item |= {} if correction.area is None else {"area": correction.area}
            item |= {"excluded": True} if correction.excluded else {}
            size = sizes.get(name)
            if correction.strokes and size is None and "strokes" not in item:
                size = _size_of(item, dataset.parent)
            if correction.strokes and size is not None:
                item["strokes"] = _strokes_file(dataset.parent, item["image"], correction.strokes, size)
            counts["changed"] += item != before
            counts["left out"] += bool(item.get("excluded"))
            counts["with strokes"] += "strokes" in item
    with replacing(path) as file:
        json.dump({**content, "written_by": WRITER}, file, indent=4)
    return counts


def _size_of(item: Mapping[str, Any], folder: Path) -> tuple[int, int] | None:
    """Width and height of an item's picture as a model is given it; None, with a word, where it can't be read."""
    try:
        source = source_of({**item, "image": str(folder / item["image"])})
        with room_for(source):
            _, width, height = load_image(source).shape  # not its header's, which are those before it is turned
    except Exception as error:  # a damaged file may raise anything
        logger.warning(f"'{folder / item['image']}' has no strokes: it can't be read ({first_line(error)}).")
        return None
    return width, height


def _strokes_file(folder: Path, image: str, strokes: tuple[Stroke, ...], size: tuple[int, int]) -> str:
    """Relative path of the file of these strokes, which is written unless it is there."""
    text = json.dumps([asdict(stroke) for stroke in strokes])
    name = f"{Path(image).stem[:100]}-{sha1(f'{size} {text}'.encode()).hexdigest()[:10]}.png"
    if not (folder / "strokes" / name).exists():
        write_strokes(folder / "strokes" / name, paint(strokes, size))
    return f"strokes/{name}"
