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
"""Pictures as deep-zoom tiles: what is looked at is sent, and at the resolution at which it is looked at."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from scripts.images.pictures import FORMATS, MAX_PIXELS, is_picture, is_tiff, open_picture, picture_size, read_picture
from scripts.images.room import DECODING, room_for

__all__ = ["PictureTiles", "Tiles", "TilesCache", "thumbnail"]

WHOLE = 1024  # pixels of a side up to which a picture is sent as one tile, without loss
TILE, OVERLAP = 510, 1  # pixels of larger ones, and of their neighbours' around them
THUMBNAIL = 256
KEPT = 2**28  # bytes of decoded pictures
DIRECT = {"L": None, "RGB": None, "YCbCr": "RGB", "CMYK": "RGB"}  # Pillow's modes of 8 bit, and what they are shown as
ORIENTATION = 274  # EXIF tag


class Tiles(Protocol):
    """What a viewer shows, in levels as Deep Zoom has them: each half the one above, the last one 1 x 1."""

    width: int
    height: int
    nbytes: int

    def layout(self) -> dict[str, int]:
        """``width``, ``height``, ``tileSize``, ``tileOverlap`` and ``minLevel`` for OpenSeadragon."""

    def tile(self, level: int, column: int, row: int) -> tuple[bytes, str]:
        """A tile as a file, and its media type. Raises IndexError where there is none."""


class PictureTiles:
    """
    Tiles of a picture of any kind that the bundle reads; it is in memory in 8 bit.

    Args:
        path: of the file.

    Raises:
        Exception: as `load_image` and `ToRGB`.
    """

    def __init__(self, path: str | PathLike) -> None:
        self._picture = _load(path)
        self.width, self.height = self._picture.size
        self.nbytes = self.width * self.height * len(self._picture.getbands())
        self._deepest = math.ceil(math.log2(max(self.width, self.height)))
        self._is_whole = max(self.width, self.height) <= WHOLE

    def layout(self) -> dict[str, int]:
        least = self._deepest if self._is_whole else math.floor(math.log2(TILE))
        tile = {"tileSize": WHOLE, "tileOverlap": 0} if self._is_whole else {"tileSize": TILE, "tileOverlap": OVERLAP}
        return {"width": self.width, "height": self.height, "minLevel": least} | tile

    def tile(self, level: int, column: int, row: int) -> tuple[bytes, str]:
        layout = self.layout()
        if not layout["minLevel"] <= level <= self._deepest:
            raise IndexError("there is no such level")
        factor, size, overlap = 2 ** (self._deepest - level), layout["tileSize"], layout["tileOverlap"]
        width, height = math.ceil(self.width / factor), math.ceil(self.height / factor)
        if not (0 <= column * size < width and 0 <= row * size < height):
            raise IndexError("there is no such tile")
        left, top = max(0, column * size - overlap), max(0, row * size - overlap)
        right, bottom = min(width, (column + 1) * size + overlap), min(height, (row + 1) * size + overlap)
        box = (left * factor, top * factor, min(right * factor, self.width), min(bottom * factor, self.height))
        part = self._picture.crop(box) if factor == 1 else self._picture.reduce(factor, box)
        return _file(part, "PNG" if self._is_whole else "JPEG")


class TilesCache:
    """
    Tiles by name, of which those asked for last stay open, together of no more than 256 MiB, but always one.

    Two that ask for the same at once wait for one reading of it.

    Args:
        opened: gives the tiles of a name.
    """

    def __init__(self, opened: Callable[[Hashable], Tiles]) -> None:
        self._opened = opened
        self._kept: OrderedDict[Hashable, Tiles] = OrderedDict()
        self._reading: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, name: Hashable) -> Tiles:
        with self._lock:
            reading = self._reading.setdefault(name, threading.Lock())
        with reading:
            with self._lock:
                if name in self._kept:
                    self._kept.move_to_end(name)
                    return self._kept[name]
            tiles = self._opened(name)
            with self._lock:
                self._kept[name] = tiles
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT:
                    self._kept.popitem(last=False)
                self._reading.pop(name, None)
            return tiles


def thumbnail(path: str | PathLike) -> bytes:
    """JPEG of a picture, of at most 256 pixels. Raises as `PictureTiles`."""
    picture = _load(path, THUMBNAIL)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return _file(picture, "JPEG")[0]


def _file(picture: Image.Image, kind: str) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    options = {"compress_level": 1} if kind == "PNG" else {"quality": 90, "subsampling": 0}
    picture.save(buffer, kind, **options)
    return buffer.getvalue(), f"image/{kind.lower()}"


def _load(path: str | PathLike, at_least: int | None = None) -> Image.Image:
    """
    A picture, RGB or grey, of 8 bit.

    Args:
        at_least: pixels of its sides that are enough; it may be smaller than it is in the file then.
    """
    picture = _directly(Path(path), at_least)
    if picture is not None:
        return picture
    from scripts.images.colours import ToRGB  # with MONAI, which takes seconds
    from scripts.images.loading import in_8_bit, load_image

    with room_for(path):
        rgb = in_8_bit(ToRGB()(load_image(path)))
        return Image.fromarray(np.ascontiguousarray(np.asarray(rgb).transpose(2, 1, 0)))  # from MONAI's (C, W, H)


def _directly(path: Path, at_least: int | None) -> Image.Image | None:
    """
    A picture of 8 bit without anything that needs more than Pillow, in a quarter of the time and memory; or None.
    """
    try:
        if is_tiff(path):
            picture_size(path)  # by which most that can't be read is known
            return None
        opened = open_picture(path, FORMATS)
        with opened as picture:
            turned = picture.getexif().get(ORIENTATION, 1) != 1
            if picture.mode not in DIRECT or "transparency" in picture.info or turned:
                return None
            if picture.width * picture.height > MAX_PIXELS:
                return None
            with DECODING.taking(picture.width * picture.height):
                if at_least is not None:
                    picture.draft(picture.mode, (at_least, at_least))  # a JPEG is decoded at a fraction of its size
                picture.load()
                mode = DIRECT[picture.mode]
                return picture.convert(mode) if mode else picture.copy()
    except Exception:
        if is_picture(path):
            read_picture(path)  # which says what is wrong; the other way does too, after seconds
        return None
