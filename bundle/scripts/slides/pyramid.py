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


"""Maps of slides as pyramidal, tiled, compressed OME-TIFF that both QuPath and OpenSlide open."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np
import tifffile

from scripts.runtime.files import replacing

__all__ = ["level_shapes", "write_pyramid"]

TIFF_DEFLATE = 6  # the usual level
OPENED_BY_OPENSLIDE = np.uint8  # it shows 16-bit tiles at the right edge as noise (4.0.1)


def level_shapes(height: int, width: int, tile: int) -> list[tuple[int, int]]:
    """Heights and widths of a pyramid's levels, each half of the one before, rounded up; the last fits into a tile."""
    shapes = [(height, width)]
    while max(shapes[-1]) > tile:
        shapes.append(tuple((n + 1) // 2 for n in shapes[-1]))
    return shapes


def write_pyramid(
    path: str | Path,
    height: int,
    width: int,
    tile: int,
    read_tile: Callable[[int, int], np.ndarray | None],
    mpp: tuple[float, float],
    name: str,
    nearest: bool = False,
) -> None:
    """
    Write a grey picture as a pyramid; it takes its name only when it is complete.

    The levels lie in the file as OME-TIFF wants them, as SubIFDs of the first, and as OpenSlide wants them, as a chain
    of directories: both point to the same. Resolutions are in the OME-XML, and as TIFF tags. What is in memory is one
    tile a level, and the compressed tiles of the smaller levels, a third of the file.

    Args:
        path: of the file.
        height, width: of the picture.
        tile: side of its tiles, a multiple of 16.
        read_tile: gives the tile (tile, tile) uint8 at a row and a column of tiles, or None where all is zero.
        mpp: micrometres per pixel along x and y.
        name: of the image, in the OME-XML.
        nearest: smaller levels take every other pixel, as masks need, instead of means over 2 x 2.
    """
    shapes = level_shapes(height, width, tile)
    levels = _Levels(shapes, tile, read_tile, nearest)
    with replacing(path, binary=True) as file:
        with tifffile.TiffWriter(file, bigtiff=True, ome=True) as writer:
            for level, shape in enumerate(shapes):
                metadata = {
                    "axes": "YX",
                    "Name": name,
                    "PhysicalSizeX": mpp[0],
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeY": mpp[1],
                    "PhysicalSizeYUnit": "µm",
                }
                writer.write(
                    levels.compressed(level),
                    shape=shape,
                    dtype=OPENED_BY_OPENSLIDE,
                    tile=(tile, tile),
                    compression="zlib",
                    predictor=True,
                    photometric="minisblack",
                    subifds=len(shapes) - 1 if level == 0 else None,
                    subfiletype=1 if level else 0,
                    metadata=metadata if level == 0 else None,
                    resolution=tuple(10_000 / size / 2**level for size in mpp),
                    resolutionunit="CENTIMETER",
                )
        _chain_levels(file)


class _Levels:
    """Compressed tiles of all levels, of which each is made from the one before while that is written."""

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        tile: int,
        read_tile: Callable[[int, int], np.ndarray | None],
        nearest: bool,
    ) -> None:
        self.shapes, self.tile, self.read_tile, self.nearest = shapes, tile, read_tile, nearest
        self.zero = _compress(np.zeros((tile, tile), np.uint8))
        self.kept: list[dict[tuple[int, int], bytes]] = [{} for _ in shapes]

    def compressed(self, level: int) -> Iterator[bytes]:
        rows, columns = (-(-n // self.tile) for n in self.shapes[level])
        for row in range(rows):
            for column in range(columns):
                tile = self.read_tile(row, column) if level == 0 else self._reduced(level, row, column)
                content = self.zero if tile is None else _compress(tile)
                if tile is not None:
                    self._pass_on(level, row, column, tile)
                yield content

    def _pass_on(self, level: int, row: int, column: int, tile: np.ndarray) -> None:
        """Keep a quarter of the next level's tile."""
        if level + 1 < len(self.shapes):
            self.kept[level + 1][row, column] = imagecodecs.zstd_encode(self._halved(tile), level=1)

    def _halved(self, tile: np.ndarray) -> np.ndarray:
        if self.nearest:
            return np.ascontiguousarray(tile[::2, ::2])
        half = self.tile // 2
        return np.rint(tile.reshape(half, 2, half, 2).mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)

    def _reduced(self, level: int, row: int, column: int) -> np.ndarray | None:
        half = self.tile // 2
        tile = None
        for y in (0, 1):
            for x in (0, 1):
                quarter = self.kept[level].pop((2 * row + y, 2 * column + x), None)
                if quarter is not None:
                    tile = np.zeros((self.tile, self.tile), np.uint8) if tile is None else tile
                    values = np.frombuffer(imagecodecs.zstd_decode(quarter), np.uint8).reshape(half, half)
                    tile[y * half : (y + 1) * half, x * half : (x + 1) * half] = values
        return tile


def _compress(tile: np.ndarray) -> bytes:
    # libdeflate: zlib's format in a third of its time
    return imagecodecs.deflate_encode(imagecodecs.delta_encode(tile, axis=-1), level=TIFF_DEFLATE)


def _chain_levels(file: IO) -> None:
    """Let the first directory of a BigTIFF point to the first of its SubIFDs, which tifffile has chained already."""
    file.flush()
    with tifffile.TiffFile(file.name) as written:
        first = written.pages.first
        next_directory = first.offset + 8 + 20 * len(first.tags)  # a count, then the tags, of 20 bytes each
        reduced, order = first.subifds, written.byteorder
    if reduced:
        file.seek(next_directory)
        file.write(struct.pack(f"{order}Q", reduced[0]))
