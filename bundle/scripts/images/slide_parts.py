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

"""Parts of slides as images: a region, or fields of tissue side by side, which stand for the whole slide."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.images.pictures import MAX_PIXELS, SLIDE_SUFFIXES
from scripts.runtime.errors import InputError
from scripts.runtime.values import is_number, is_whole

if TYPE_CHECKING:
    from scripts.images.slide import Slide, SlideView

__all__ = ["PART_KEYS", "SlidePart", "item_name", "source_of"]

PART_KEYS = ("region", "mpp", "slide_mpp", "fields", "field_size")  # of an item, beside its image
FIELDS, FIELD_SIZE = 16, 128  # by default
LEAST_TISSUE = 0.5  # of a field
OPEN_SLIDES = 4  # at a time and process; each keeps up to 72 MiB of what was read


@dataclass(frozen=True)
class SlidePart(PathLike):
    """
    A part of a slide, which is loaded as an image is, and whose path is that of the slide.

    Its name, ``str(part)``, is that of a file beside the slide which isn't there, and another for each part.

    Args:
        path: of the slide.
        region: left, top, width and height in pixels of level 0; or None for `fields`.
        mpp: micrometres per pixel at which it is read; level 0 as it is where None.
        slide_mpp: micrometres per pixel of level 0, instead of what the slide says.
        fields: how many squares of tissue stand for the slide where there is no region: a square number.
        field_size: their side in pixels, as they are read.

    Raises:
        InputError: for values that can't be meant.
    """

    path: str
    region: tuple[int, int, int, int] | None = None
    mpp: float | None = None
    slide_mpp: float | None = None
    fields: int | None = None
    field_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("mpp", "slide_mpp"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value < 1e6):
                raise InputError(f"{name} is {value!r}, must be micrometres per pixel, above 0")
        if self.region is not None:
            if self.fields is not None or self.field_size is not None:
                raise InputError("has a region, and fields, which are of a whole slide; remove one")
            if not _is_region(self.region):
                raise InputError(
                    f"region is {self.region!r}, must be [left, top, width, height] in whole pixels of level 0, the "
                    "first two from 0 and the others from 1 on"
                )
            object.__setattr__(self, "region", tuple(map(int, self.region)))
            return
        for name, value in (("fields", FIELDS), ("field_size", FIELD_SIZE)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if not is_whole(self.fields) or self.fields < 1 or math.isqrt(self.fields) ** 2 != self.fields:
            raise InputError(f"fields is {self.fields!r}, must be a square number (4, 9, 16, 25 ...)")
        if not is_whole(self.field_size) or self.field_size < 16:
            raise InputError(f"field_size is {self.field_size!r}, must be a whole number of pixels, 16 or more")

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        path = Path(self.path)
        if self.region is not None:
            name = "{}_x{}_y{}_w{}_h{}".format(path.stem, *self.region)
        else:
            name = f"{path.stem}_{self.fields}x{self.field_size}"
        resolution = "" if self.mpp is None else f"_{1000 * self.mpp:.0f}nm"  # a dot would begin a suffix
        return str(path.with_name(f"{name}{resolution}{path.suffix}"))

    def size(self) -> tuple[int, int]:
        """
        Width and height in pixels as it is read.

        Raises:
            InputError: when the slide can't be opened, or doesn't say its resolution, or the region reaches out of it,
                or is too large to be one image.
        """
        if self.region is None:
            width = height = math.isqrt(self.fields) * self.field_size
        else:
            _, _, width, height = self._place(self._view())
        if width * height > MAX_PIXELS:
            raise InputError(f"has {width}x{height} pixels as it is read, at most {MAX_PIXELS} are; take a larger mpp")
        return width, height

    def read(self) -> np.ndarray:
        """
        The picture, (H, W, 3) float32 in 0..1.

        Raises:
            InputError: see `size`; when the slide is damaged there, or has too little tissue for a field.
        """
        self.size()
        view = self._view()
        if self.region is not None:
            left, top, width, height = self._place(view)
            return view.read(top, top + height, left, left + width)
        side, size = math.isqrt(self.fields), self.field_size
        picture = np.empty((side * size, side * size, 3), np.float32)
        for k, (top, left) in enumerate(self._places(view)):
            y, x = k // side * size, k % side * size
            picture[y : y + size, x : x + size] = view.read(top, top + size, left, left + size)
        return picture

    def _view(self) -> SlideView:
        # without a resolution to read at, that of level 0 is of no matter
        slide = _opened(self.path, _stamp(self.path), 1.0 if self.mpp is None else self.slide_mpp, os.getpid())
        return slide.at(1.0 if self.mpp is None else self.mpp)

    def _place(self, view: SlideView) -> tuple[int, int, int, int]:
        """The region in pixels of the view. Its size depends on its own alone, not on where it lies."""
        left, top, width, height = self.region
        slide = view.slide
        if left + width > slide.width or top + height > slide.height:
            raise InputError(
                f"the region {list(self.region)} reaches out of the slide of {slide.width}x{slide.height} pixels"
            )
        columns, rows = max(1, round(width / view.scale_x)), max(1, round(height / view.scale_y))
        x, y = round(left / view.scale_x), round(top / view.scale_y)
        return min(x, max(0, view.width - columns)), min(y, max(0, view.height - rows)), columns, rows

    def _places(self, view: SlideView) -> list[tuple[int, int]]:
        """
        Top and left of the fields: evenly spread over all of a grid that have tissue, from a place that the name draws.
        """
        from scripts.images.tissue import OVERVIEW, find_tissue

        small = view.fitting(OVERVIEW)
        tissue = find_tissue(small.read(0, small.height, 0, small.width))
        rows, columns = view.height // self.field_size, view.width // self.field_size
        sums = np.pad(tissue.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        y, x = (
            np.rint(np.arange(n + 1) * self.field_size * within / whole).astype(int)
            for n, within, whole in ((rows, small.height, view.height), (columns, small.width, view.width))
        )
        corners = sums[np.ix_(y, x)]
        inside = corners[1:, 1:] - corners[:-1, 1:] - corners[1:, :-1] + corners[:-1, :-1]
        enough = inside >= np.maximum(LEAST_TISSUE * np.diff(y)[:, None] * np.diff(x), 1)
        enough[1::2] = enough[1::2, ::-1]  # there and back, so that what follows each other is near
        found = np.argwhere(enough)
        if not len(found):
            raise InputError(
                f"no field of {self.field_size}x{self.field_size} pixels was found that is tissue by half; take a "
                "smaller field_size or mpp, or regions"
            )
        first = random.Random(Path(str(self)).name).random()
        chosen = found[((np.arange(self.fields) + first) * len(found) / self.fields).astype(int)]
        return [(int(r) * self.field_size, int(columns - 1 - c if r % 2 else c) * self.field_size) for r, c in chosen]


def source_of(item: Mapping[str, Any], key: str = "image") -> str | SlidePart:
    """
    What `load_image` takes of an item: the path of its picture, or the part of a slide that it names.

    A slide without a region is its fields.

    Raises:
        InputError: see `SlidePart`.
    """
    path = item[key]
    given = {name: item[name] for name in PART_KEYS if item.get(name) is not None}
    is_slide = isinstance(path, str) and Path(path).suffix[1:].lower() in SLIDE_SUFFIXES
    return SlidePart(path, **given) if is_slide or {"region", "fields"} & set(given) else path


def item_name(item: Mapping[str, Any]) -> str:
    """What the image of an item is called in messages and results."""
    try:
        return str(source_of(item))
    except InputError:
        return str(item["image"])


@lru_cache(maxsize=OPEN_SLIDES)
def _opened(path: str, stamp: tuple, mpp: float | None, process: int) -> Slide:
    """A slide that stays open for the next part of it; a process has its own, and a file that has changed is another"""
    from scripts.images.slide import Slide  # with OpenSlide, which most data sets don't need

    return Slide(path, mpp, 'as "slide_mpp" of the item, or leave "mpp" out, so that level 0 is read as it is')


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _is_whole(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, float) and value.is_integer())


def _is_region(region: Any) -> bool:
    whole = isinstance(region, (list, tuple)) and len(region) == 4 and all(map(_is_whole, region))
    return whole and min(region[:2]) >= 0 and min(region[2:]) >= 1
