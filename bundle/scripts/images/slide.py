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
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
from scipy.sparse import csr_matrix

from scripts.runtime.errors import InputError

__all__ = ["Slide", "SlideView", "resolution"]

BLOCK = 1024  # pixels of a level that are read at once
CACHED_BLOCKS = 24  # 3 MiB each
CENTIMETRE = {"centimeter": 10_000.0, "inch": 25_400.0}  # micrometres per resolution unit of TIFF
SAME = 1.01  # a level at most so much coarser than asked for still counts as fine enough
# What may be true of a microscope's picture. Anything else is a placeholder, a printer's resolution, or an error.
PLAUSIBLE_MPP = (0.08, 10.0)  # micrometres: more than a tenth of the usual 0.5, less than 2540 dots per inch
PLAUSIBLE_CAMERA = (2.5, 40.0)  # micrometres of a camera's pixel: those of the slide times the objective's power
LONGEST_SIDE = 250_000.0  # micrometres; the largest glasses have 203 mm
MOST_OBLONG = 2.0
PRINTER_DPI = 9600  # up to here a multiple of 100 dots per inch is a printer's or a desktop scanner's
OME_UNITS = {  # in micrometres; "pixel" and "reference frame" are no lengths
    "pm": 1e-6,
    "\u00c5": 1e-4,
    "nm": 1e-3,
    "\u00b5m": 1.0,
    "\u03bcm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "in": 25_400.0,
}


class Slide:
    """
    An open slide.

    Args:
        path: file that OpenSlide can open.
        mpp: micrometres per pixel at level 0; read from the slide's metadata where None.
        by: how they are given, for the error.

    Raises:
        InputError: when the file can't be opened as a slide, or none is given and it says none that can be right.
    """

    def __init__(self, path: str | Path, mpp: float | None = None, by: str = "by --slide_mpp") -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # OpenSlide would wait for what is written into a pipe
            raise InputError(f"'{path}' is not a regular file.")
        try:
            self.file = openslide.OpenSlide(str(path))
        except (openslide.OpenSlideError, OSError) as error:
            raise InputError(f"'{path}' can't be opened as a slide ({error}).") from error
        try:
            self.mpp_x, self.mpp_y = (mpp, mpp) if mpp else resolution(self.file.properties, self.file.dimensions)
        except ValueError as error:
            self.file.close()
            raise InputError(f"'{path}' {error}; give micrometres per pixel {by}.") from error
        self.width, self.height = self.file.dimensions
        colour = self.file.properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "ffffff")
        self.background = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.uint8)
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def stated(self) -> tuple[float, float] | None:
        """Micrometres per pixel at level 0 along x and y, as the file says; None where they can't be right."""
        try:
            return resolution(self.file.properties, self.file.dimensions)
        except ValueError:
            return None

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
            rgba = np.asarray(picture)
            opaque = rgba[..., 3:]
            block = np.ascontiguousarray(rgba[..., :3])
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

    def fitting(self, longest: int) -> SlideView:
        """The same slide with its longest side at most so many pixels."""
        factor = min(1.0, longest / max(self.width, self.height))
        return SlideView(self.slide, max(1, round(self.width * factor)), max(1, round(self.height * factor)))

    def read(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """
        A region of the view, which may reach beyond it: there it has the slide's background colour.

        Returns:
            (bottom - top, right - left, 3) float32 in 0..1. A pixel's value doesn't depend on the region.

        Raises:
            InputError: when the slide is damaged there.
        """
        region = np.empty((bottom - top, right - left, 3), np.float32)
        y0, y1, x0, x1 = max(top, 0), min(bottom, self.height), max(left, 0), min(right, self.width)
        if (y0, y1, x0, x1) != (top, bottom, left, right):
            region[:] = self.slide.background / np.float32(255)
        # not more than a few blocks of the level at once, however much finer it is
        rows, columns = (max(1, int(2 * BLOCK / step)) for step in (self._step_y, self._step_x))
        for y in range(y0, y1, rows):
            for x in range(x0, x1, columns):
                bounds = (y, min(y + rows, y1), x, min(x + columns, x1))
                self._scale(*bounds, region[y - top : bounds[1] - top, x - left : bounds[3] - left])
        return region

    def _scale(self, top: int, bottom: int, left: int, right: int, out: np.ndarray) -> None:
        """Read a region into `out`."""
        if self._is_level:
            np.divide(self.slide.level_region(self.level, top, bottom, left, right), np.float32(255), out=out)
            return
        y0, vertical = _triangles(top, bottom, self._step_y, self.level_height)
        x0, horizontal = _triangles(left, right, self._step_x, self.level_width)
        height, width = vertical.shape[1], horizontal.shape[1]
        pixels = self.slide.level_region(self.level, y0, y0 + height, x0, x0 + width).astype(np.float32) / 255
        rows = (vertical @ pixels.reshape(height, -1)).reshape(bottom - top, width, 3)
        columns = horizontal @ rows.swapaxes(0, 1).reshape(width, -1)
        out[:] = columns.reshape(right - left, bottom - top, 3).swapaxes(0, 1)


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


def resolution(properties: Mapping[str, str], size: tuple[int, int]) -> tuple[float, float]:
    """
    Micrometres per pixel along x and y: as the OME-XML has them, else as OpenSlide, else as TIFF's resolution tags.

    Args:
        properties: OpenSlide's.
        size: of the slide in pixels, by which its image is found in the OME-XML.

    Raises:
        ValueError: when they are missing, or can't be those of a microscope's picture.
    """
    found = _ome_sizes(properties.get("tiff.ImageDescription", ""), size)
    if found is None:
        names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
        unit = CENTIMETRE.get(properties.get("tiff.ResolutionUnit", "").lower(), math.nan)
        tags = tuple(unit / (_number(properties.get(f"tiff.{axis}Resolution")) or math.nan) for axis in "XY")
        found = tuple(map(_number, map(properties.get, names)))
        found = tags if None in found else found
    x, y = found
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError("doesn't say how large its pixels are")
    said = f"says that its pixels are {x:.4g} x {y:.4g} micrometres"
    dpi = CENTIMETRE["inch"] / x if x else 0
    if dpi and dpi <= PRINTER_DPI and abs(dpi - 100 * round(dpi / 100)) < 0.1:
        raise ValueError(f"{said} ({dpi:.0f} dots per inch), as for a printer and not for a microscope")
    low, high = PLAUSIBLE_MPP
    if not (low <= x < high and low <= y < high):
        raise ValueError(f"{said}, which no microscope has (they have {low:g} to {high:g})")
    if max(x, y) > MOST_OBLONG * min(x, y):
        raise ValueError(f"{said}, which can't both be right")
    if max(x * size[0], y * size[1]) > LONGEST_SIDE:
        raise ValueError(f"{said}, which would make it larger than any glass")
    power = _number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER))
    low, high = PLAUSIBLE_CAMERA
    if power is not None and math.isfinite(power) and power > 0 and not low <= x * power <= high:
        raise ValueError(f"{said}, which contradicts its objective's power of {power:g}")
    return x, y


def _ome_sizes(description: str, size: tuple[int, int]) -> tuple[float, float] | None:
    """
    The physical sizes of a pixel in micrometres that OME-XML has of an image of this size; None without any.

    Raises:
        ValueError: when there is but one, or they are no lengths: what else the file says is then not to be trusted.
    """
    if "<OME" not in description and ":OME" not in description:
        return None
    try:
        root = ElementTree.fromstring(description.strip().strip("\0").encode())
    except ElementTree.ParseError:
        return None
    for pixels in root.iter():
        if pixels.tag.endswith("Pixels") and (pixels.get("SizeX"), pixels.get("SizeY")) == tuple(map(str, size)):
            given = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
            names = [pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m").strip() for axis in "XY"]
            sizes, units = list(map(_number, given)), list(map(OME_UNITS.get, names))
            if None not in sizes and None not in units:
                return sizes[0] * units[0], sizes[1] * units[1]
            if given != [None, None]:
                said = " x ".join(
                    f"{size} {name}" if size else "nothing" for size, name in zip(given, names, strict=True)
                )
                raise ValueError(f"says in its OME-XML that its pixels are {said}, which is not a width and a height")
    return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
