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
Whole slides through OpenSlide, seen at any resolution.

MONAI's `WSIReader` reads regions, too, but scales each by itself, so that a pixel depends on the region it was read in.
Tiles that must fit together need pixels that depend on the slide alone.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
import openslide
from scipy.sparse import csr_matrix

from scripts.errors import InputError

__all__ = ["Slide", "SlideView"]

BLOCK = 1024  # pixels of a level that are read at once
CACHED_BLOCKS = 24  # 3 MiB each
CENTIMETRE = {"centimeter": 10_000.0, "inch": 25_400.0}  # micrometres per resolution unit of TIFF
SAME = 1.01  # a level at most so much coarser than asked for still counts as fine enough
PLAUSIBLE_MPP = (0.01, 100.0)  # micrometres; outside, the metadata are placeholders


class Slide:
    """
    An open slide.

    Args:
        path: file that OpenSlide can open.
        mpp: micrometres per pixel at level 0; read from the slide's metadata where None.

    Raises:
        InputError: when the file can't be opened as a slide, or has no resolution and none is given.
    """

    def __init__(self, path: str | Path, mpp: float | None = None) -> None:
        self.path = Path(path)
        try:
            self.file = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise InputError(f"'{path}' can't be opened as a slide ({error}).") from error
        found = (mpp, mpp) if mpp else _resolution(self.file.properties)
        if found is None:
            self.file.close()
            raise InputError(f"'{path}' doesn't say how large its pixels are; give micrometres by --slide_mpp.")
        self.mpp_x, self.mpp_y = found
        self.width, self.height = self.file.dimensions
        colour = self.file.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self.background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.uint8)
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        self.file.close()

    def at(self, mpp: float) -> SlideView:
        """The slide at a resolution: its sides are those in micrometres divided by `mpp`, rounded, 1 at least."""
        width, height = self.width * self.mpp_x / mpp, self.height * self.mpp_y / mpp
        return SlideView(self, max(1, round(width)), max(1, round(height)))

    def level_region(self, level: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """
        Pixels of a level, (bottom - top, right - left, 3) uint8; transparent ones are of the slide's background colour.

        Raises:
            InputError: when the slide is damaged there.
        """
        region = np.empty((bottom - top, right - left, 3), np.uint8)
        for row in range(top // BLOCK, (bottom - 1) // BLOCK + 1):
            for column in range(left // BLOCK, (right - 1) // BLOCK + 1):
                block = self._block(level, row, column)
                y, x = row * BLOCK, column * BLOCK
                y0, y1 = max(top, y), min(bottom, y + block.shape[0])
                x0, x1 = max(left, x), min(right, x + block.shape[1])
                region[y0 - top : y1 - top, x0 - left : x1 - left] = block[y0 - y : y1 - y, x0 - x : x1 - x]
        return region

    def _block(self, level: int, row: int, column: int) -> np.ndarray:
        """
        One of the fixed blocks into which a level is cut.

        OpenSlide takes places in pixels of level 0. Where a level is not exactly 2, 4 ... times smaller, it shifts what
        it reads by a fraction of a pixel that depends on the place: fixed blocks make that the same for all readers.
        """
        key = (level, row, column)
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
                return self._blocks[key]
            width, height = self.file.level_dimensions[level]
            downsample = self.file.level_downsamples[level]
            x, y = column * BLOCK, row * BLOCK
            size = (min(BLOCK, width - x), min(BLOCK, height - y))
            try:
                picture = self.file.read_region((round(x * downsample), round(y * downsample)), level, size)
            except openslide.OpenSlideError as error:
                raise InputError(f"'{self.path}' is damaged: {error}.") from error
            rgba = np.array(picture)
            opaque = rgba[..., 3:]
            block = rgba[..., :3]
            if opaque.min() < 255:
                weight = opaque.astype(np.float32) / 255
                block = np.rint(block * weight + self.background * (1 - weight)).astype(np.uint8)
            self._blocks[key] = block
            while len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
            return block


class SlideView:
    """
    A slide scaled to a size, of which any region can be read.

    It is taken from the coarsest level that is not coarser than the view. Pixel j of the view has its centre at
    (j + 0.5) s - 0.5 in pixels of that level, with s = (slide's width / view's width) / (downsample of the level); its
    value is the mean of the level's pixels weighted by a triangle of half-width max(1, s) around it (bilinear with
    antialiasing), along each axis. A view of just the size of a level is that level.

    Args:
        slide: open while this is used.
        width, height: of the view in pixels.
    """

    def __init__(self, slide: Slide, width: int, height: int) -> None:
        self.slide = slide
        self.width, self.height = width, height
        self.scale_x, self.scale_y = slide.width / width, slide.height / height  # pixels of level 0 per pixel
        downsamples = slide.file.level_downsamples
        finest = min(self.scale_x, self.scale_y) * SAME
        self.level = max((k for k, d in enumerate(downsamples) if d <= finest), default=0)
        self.level_width, self.level_height = slide.file.level_dimensions[self.level]
        self._is_level = (self.level_width, self.level_height) == (width, height)
        self._step_x, self._step_y = (s / downsamples[self.level] for s in (self.scale_x, self.scale_y))

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometres per pixel of the view along x and y."""
        return self.slide.mpp_x * self.scale_x, self.slide.mpp_y * self.scale_y

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """
        A region of the view, which may reach beyond it: there it has the slide's background colour.

        Returns:
            (bottom - top, right - left, 3) float32 in 0..1. A pixel's value doesn't depend on the region.

        Raises:
            InputError: when the slide is damaged there.
        """
        region = np.empty((bottom - top, right - left, 3), np.float32)
        region[:] = self.slide.background / np.float32(255)
        y0, y1, x0, x1 = max(top, 0), min(bottom, self.height), max(left, 0), min(right, self.width)
        # not more than a few blocks of the level at once, however much finer it is
        rows, columns = (max(1, int(2 * BLOCK / step)) for step in (self._step_y, self._step_x))
        for y in range(y0, y1, rows):
            for x in range(x0, x1, columns):
                bounds = (y, min(y + rows, y1), x, min(x + columns, x1))
                part = self._scaled(*bounds)
                region[y - top : bounds[1] - top, x - left : bounds[3] - left] = part
        return region

    def _scaled(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if self._is_level:
            return self.slide.level_region(self.level, top, bottom, left, right) / np.float32(255)
        y0, vertical = _triangles(top, bottom, self._step_y, self.level_height)
        x0, horizontal = _triangles(left, right, self._step_x, self.level_width)
        height, width = vertical.shape[1], horizontal.shape[1]
        pixels = self.slide.level_region(self.level, y0, y0 + height, x0, x0 + width).astype(np.float32) / 255
        rows = (vertical @ pixels.reshape(height, -1)).reshape(bottom - top, width, 3)
        columns = horizontal @ rows.swapaxes(0, 1).reshape(width, -1)
        return columns.reshape(right - left, bottom - top, 3).swapaxes(0, 1)


def _triangles(start: int, stop: int, step: float, length: int) -> tuple[int, csr_matrix]:
    """Weights of a level's pixels, of which there are `length`, in the view's from start to stop; first pixel, too."""
    half = max(1.0, step)
    centres = np.clip((np.arange(start, stop) + 0.5) * step - 0.5, 0, length - 1)
    first = max(0, math.ceil(centres[0] - half))
    last = min(length - 1, math.floor(centres[-1] + half))
    offsets = np.arange(math.ceil(2 * half) + 1)
    pixels = np.ceil(centres - half).astype(int)[:, None] + offsets
    weights = np.clip(1 - np.abs(pixels - centres[:, None]) / half, 0, None)
    weights[(pixels < 0) | (pixels >= length)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    row, column = np.nonzero(weights)
    shape = (stop - start, last - first + 1)
    return first, csr_matrix((weights[row, column].astype(np.float32), (row, pixels[row, column] - first)), shape)


def _resolution(properties: dict[str, str]) -> tuple[float, float] | None:
    """Micrometres per pixel along x and y: as OpenSlide has them, else as TIFF's resolution tags; None if unknown."""
    values = [_number(properties.get(name)) for name in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    if None in values:
        unit = CENTIMETRE.get(properties.get("tiff.ResolutionUnit", "").lower())
        per_unit = [_number(properties.get(f"tiff.{axis}Resolution")) for axis in "XY"]
        values = [unit / value if unit and value else None for value in per_unit]
    low, high = PLAUSIBLE_MPP
    return tuple(values) if all(value and low <= value <= high for value in values) else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
