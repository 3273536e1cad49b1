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

"""The page of an inference's results: every image with its outline and map, in one file that needs no other."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image
from shapely import LinearRing
from skimage.measure import find_contours

from scripts.images.heat import heat_palette
from scripts.runtime.files import replacing

__all__ = ["Column", "ResultsPage", "View", "draw_view", "is_page", "shown_side"]

MARK = '<meta name="generator" content="CDWS-MIL">'
SIDE = 360  # pixels of the longer side of a picture in the page, of a small one
LARGE, LARGE_SIDES, LARGEST = 1024, (1600, 720), 50  # see `shown_side`
MAP_SIDE = 112
PICTURE_BYTES = 11_500  # of such a picture; in text a third more
QUALITIES = (80, 70, 60, 50, 40, 30, 20)  # of JPEG, from which the first is taken that is small enough
LEVELS = 32  # colours of a map
DETAIL = 0.5  # pixels by which an outline may be simplified
SPECK = 6  # square pixels; a smaller ring is left out of the page


class Column(NamedTuple):
    """What the page says of each image: its name in the table, what people read, and how it is shown."""

    key: str
    label: str
    form: str  # of the number: "fraction", "percent", "number"; or "text"

    def shown(self, value: str) -> str:
        """The text of the table as people read it; a dash for what is not known."""
        if value == "" or self.form == "text":
            return value or "\N{EN DASH}"
        number = float(value)
        if self.form == "fraction":
            return f"{number:.3f}"
        if self.form == "percent":
            return f"{100 * number:.1f} %"
        return f"{number:.4g}"


class View(NamedTuple):
    """A picture of `draw_view`: JPEG and PNG as base64, and the outline as the data of an SVG path."""

    width: int
    height: int
    picture: str
    heat: str
    outline: str
    title: str = ""


def shown_side(longest: int, earlier: int) -> int:
    """
    Pixels of the longer side of an image's picture in the page.

    Details of a large image can be judged in a picture of 1600, of a third of a megabyte at most; after the first 50
    such pictures they have 720, so that a page of hundreds can still be opened.

    Args:
        longest: side of the image.
        earlier: number of the large images before it.
    """
    return SIDE if longest <= LARGE else LARGE_SIDES[earlier >= LARGEST]


def draw_view(
    picture: np.ndarray, probability: np.ndarray, threshold: float | None, title: str = "", side: int = SIDE
) -> View:
    """
    A small picture of an image for the page.

    Args:
        picture: (H, W, 3) uint8.
        probability: (h, w) in 0..1, stretched over the picture.
        threshold: probability from which on the outline is drawn; none is where it is None.
        title: which of an image's pictures it is.
        side: pixels of the longer side. The size of the file grows with its square.
    """
    height, width = picture.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    limit = PICTURE_BYTES * max(1, (side / SIDE) ** 2)
    values = np.asarray(probability, np.float32)
    small = np.asarray(_reduced(values, size))
    return View(
        *size,
        _jpeg(Image.fromarray(picture).resize(size, Image.Resampling.BOX, reducing_gap=2), limit),
        _heat_png(np.asarray(_reduced(values, _fitting(size, MAP_SIDE * side / SIDE)))),
        "" if threshold is None else _outline(small, threshold),
        title,
    )


def _fitting(size: tuple[int, int], side: float) -> tuple[int, int]:
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _reduced(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)  # of a triangle when it shrinks


def _jpeg(picture: Image.Image, limit: float) -> str:
    for quality in QUALITIES:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= limit:
            break
    return base64.b64encode(file.getvalue()).decode()


def _heat_png(values: np.ndarray) -> str:
    """
    The map in colours that are the more transparent the darker they are.

    On black they are just those of `heat_palette`, on a picture they leave what is improbable as it is.
    """
    colours = heat_palette()[np.linspace(0, 255, LEVELS).round().astype(int)].astype(float)
    opacity = colours.max(axis=1)
    full = (colours * 255 / opacity[:, None]).round().astype(np.uint8)
    image = Image.fromarray((values.clip(0, 1) * (LEVELS - 1)).round().astype(np.uint8), "P")
    image.putpalette(full.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=opacity.round().astype(np.uint8).tobytes())
    return base64.b64encode(file.getvalue()).decode()


def _outline(values: np.ndarray, threshold: float) -> str:
    """Where the map, (H, W), reaches the threshold: closed lines, without those of specks."""
    outside = min(threshold, float(values.min())) - 1
    lines = find_contours(np.pad(values, 1, constant_values=outside), np.nextafter(threshold, -1))
    height, width = values.shape
    path = []
    for line in lines:
        ring = LinearRing(line[:, ::-1] - 0.5).simplify(DETAIL)  # less the padding; from centres to corners
        x, y = np.array(ring.coords[:-1]).clip(0, (width, height)).T
        if abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2 >= min(SPECK, height * width / 4):
            path.append("M" + "L".join(f"{a:.1f} {b:.1f}".replace(".0", "") for a, b in zip(x, y, strict=True)) + "Z")
    return "".join(path)


class ResultsPage:
    """
    Writes ``index.html`` of all results that are added, each when it comes; in memory is one at a time.

    Args:
        path: of the page.
        columns: of the values of each result. One called ``positive`` has ``yes`` or ``no``.
        note: a sentence on how results came about.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[Column], note: str = "") -> None:
        self.path = Path(path)
        self.columns = list(columns)
        self.note = note
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (until the page is written)

    def add(
        self,
        name: str,
        values: Mapping[str, str],
        views: Sequence[View],
        shown: int = 0,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """
        Add a result.

        Args:
            name: of its image.
            values: the cells of its row in the table; of the page's columns those are shown.
            views: its pictures, from `draw_view`.
            shown: place of the one that is seen first.
            files: of the result, in the page's folder, by what they are.
        """
        links = {what: _link(file) for what, file in (files or {}).items()}
        cells = [(column.key, values[column.key], column.shown(values[column.key])) for column in self.columns]
        card = {
            "name": _printable(name),
            "cells": cells,
            "views": [view._asdict() for view in views],
            "shown": shown,
            "links": links,
        }
        self._spool.write(json.dumps(card) + "\n")

    def write(self) -> None:
        """Write the page of what has been added, and start anew."""
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        template = environment.get_template("page.html")
        with replacing(self.path) as file:
            file.writelines(template.generate(mark=MARK, columns=self.columns, note=self.note, results=self._results()))
        self.clear()

    def clear(self) -> None:
        """Forget what has been added."""
        self._spool.seek(0)
        self._spool.truncate()

    def _results(self) -> Iterator[dict]:
        self._spool.seek(0)
        yield from map(json.loads, self._spool)


def is_page(path: str | os.PathLike) -> bool:
    """Whether a file is a page of `ResultsPage`."""
    try:
        with Path(path).open("rb") as file:
            return MARK.encode() in file.read(512)
    except OSError:
        return False


def _printable(name: str) -> str:
    """A file's name in which what is no text is written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _link(file: str) -> str:
    """The relative address of a file of any name beside the page."""
    return quote(os.fsencode(file), safe="")
