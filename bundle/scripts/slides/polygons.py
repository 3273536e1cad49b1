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
Outlines in a map that comes in strips from top to bottom, as polygons written while it comes.

An outline is of one region of pixels that share sides; pixels that touch at a corner alone are of two. Its vertices are
corners of pixels, so that it covers just the mask; what is written is smoothed within half a pixel. In memory are the
regions that the last row still touches.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from shapely import LinearRing, Polygon, simplify, to_geojson, transform
from shapely.geometry.polygon import orient

from scripts.runtime.files import replacing
from scripts.slides.specks import without_specks

__all__ = ["Outline", "OutlineTracer", "smooth_polygon", "trace", "write_geojson"]

Ring = np.ndarray  # (N, 2) of integers, x and y; the first vertex is not repeated
STRIP = 64  # rows that are looked at together
DETAIL = 0.25  # pixels by which a polygon may leave its outline with the corners cut off


class Outline(NamedTuple):
    """A region of a map: outer ring and holes in pixels, of which (x, y) is the square from there to (x + 1, y + 1)."""

    rings: list[Ring]
    pixels: int
    total: float  # of their values
    highest: float


class OutlineTracer:
    """
    Follows the outlines of what is marked in a map from row to row.

    Where two regions, or two parts of one, touch at a corner, an outline stays with its own pixel. One that comes
    through a corner twice is cut there into an outer ring and holes, so that every polygon is valid.

    Args:
        width: of the map.
        least: value from which on a pixel is marked.
        small_region, small_hole: most regions and holes of fewer pixels are passed over, see `without_specks`.
    """

    def __init__(self, width: int, least: float = 1, small_region: int = 0, small_hole: int = 0) -> None:
        self.width = width
        self.least = least
        self.small_region, self.small_hole = small_region, small_hole
        self._above = np.zeros(width + 2, bool)  # the last row, with a pixel of nothing at each end
        self._y = 0
        self._open: dict[int, _End] = {}  # by column, the vertical sides that the last row ends with
        self._hung: dict[int, _End] = {}  # those that begin below the row of vertices at hand
        self._runs: set[tuple[int, int]] = set()  # left and right sides of the last row's runs
        self._closed: list[_Region] = []

    def add(self, values: np.ndarray) -> Iterator[Outline]:
        """
        Take the next rows, (H, width) of numbers or bool.

        Yields:
            Each region that they complete.
        """
        kept, filled = without_specks(values >= self.least, self.small_region, self.small_hole)
        for start in range(0, len(values), STRIP):
            rows = slice(start, start + STRIP)
            part, marked = values[rows], kept[rows]
            strip = np.concatenate([self._above[None], np.pad(filled[rows], ((0, 0), (1, 1)))])
            changes = np.flatnonzero((strip[1:] != strip[:-1]).any(axis=1)).tolist()
            ends = [*changes, len(part)]
            self._measure(part[: ends[0]], marked[: ends[0]])
            for i, end in zip(changes, ends[1:], strict=True):
                self._follow(self._y + i, strip[i], strip[i + 1])
                yield from self._completed()
                self._measure(part[i:end], marked[i:end])
            self._above = strip[-1]
            self._y += len(part)

    def finish(self) -> Iterator[Outline]:
        """The regions that end with the map."""
        return self.add(np.full((1, self.width), self.least) - 1)

    def _measure(self, rows: np.ndarray, marked: np.ndarray) -> None:
        """Add the marked values of rows, in all of which the runs are the same, to those of their regions."""
        if not len(rows) or not self._runs:
            return
        runs = sorted(self._runs)
        counts = np.concatenate([[0], marked.sum(axis=0).cumsum()])
        sums = np.concatenate([[0], rows.sum(axis=0, dtype=np.float64, where=marked).cumsum()])
        highest = np.append(rows.max(axis=0), 0)  # a run may end with the row
        highest = np.maximum.reduceat(highest, np.ravel(runs))[::2]
        for (left, right), most in zip(runs, highest.tolist(), strict=True):
            region = self._open[left].chain.region.root()
            region.pixels += int(counts[right] - counts[left])
            region.total += float(sums[right] - sums[left])
            region.highest = max(region.highest, most)

    def _follow(self, y: int, above: np.ndarray, below: np.ndarray) -> None:
        """Take the horizontal sides between two rows. Column x of corners is between the padded pixels x and x + 1."""
        kind = above.astype(np.int8) - below  # 1: the region is above, -1: it is below, 0: there is no side
        corners = np.flatnonzero(kind[1:] != kind[:-1])
        for left, right in zip(corners.tolist(), corners[1:].tolist(), strict=False):
            side = kind[left + 1]
            if side:
                # four pixels of which two opposite ones are of a region: with the pixel above up, with that below down
                up_left = side > 0 if kind[left] == -side else left in self._open
                up_right = side > 0 if kind[right + 1] == -side else right in self._open
                self._take_side(y, left, right, up_left, up_right, is_hole=bool(side > 0))
        self._open |= self._hung
        self._hung = {}
        runs = set(map(tuple, np.flatnonzero(below[1:] != below[:-1]).reshape(-1, 2).tolist()))
        for left, right in runs - self._runs:  # both sides of a run are of one region
            self._open[left].chain.region.root().unite(self._open[right].chain.region.root())
        self._runs = runs

    def _take_side(self, y: int, left: int, right: int, up_left: bool, up_right: bool, is_hole: bool) -> None:
        if up_left and up_right:
            first, second = self._open.pop(left), self._open.pop(right)
            first.extend(left, y)
            second.extend(right, y)
            if first.chain is second.chain:
                self._close(first.chain)
            else:
                _join(first, second)
        elif up_left or up_right:
            come, go = (left, right) if up_left else (right, left)
            end = self._open.pop(come)
            end.extend(come, y)
            end.extend(go, y)
            self._hung[go] = end
        else:
            chain = _Chain(y, is_hole)
            chain.head.extend(left, y)
            chain.tail.extend(right, y)
            self._hung[left], self._hung[right] = chain.head, chain.tail

    def _close(self, chain: _Chain) -> None:
        region = chain.region.root()
        region.open -= 1
        region.outlines.append((chain.vertices(), chain.is_hole))
        self._closed.append(region)

    def _completed(self) -> Iterator[Outline]:
        for region in dict.fromkeys(region.root() for region in self._closed):
            if region.open == 0:
                rings = [ring for outline in region.outlines for ring in _simple_rings(*outline)]
                holes_last = [ring for ring, _ in sorted(rings, key=lambda ring: ring[1])]
                yield Outline(holes_last, region.pixels, region.total, region.highest)
        self._closed = []


class _Region:
    """Outlines known to be of one region: a node of a union-find, whose root has the counts."""

    def __init__(self) -> None:
        self.parent = self
        self.open = 1  # chains that are not closed
        self.outlines: list[tuple[np.ndarray, bool]] = []
        self.pixels, self.total, self.highest = 0, 0.0, 0.0

    def root(self) -> _Region:
        node = self
        while node.parent is not node:
            node.parent = node.parent.parent
            node = node.parent
        return node

    def unite(self, other: _Region) -> None:
        """Of two roots."""
        if other is not self:
            large, small = (self, other) if len(self.outlines) >= len(other.outlines) else (other, self)
            small.parent = large
            large.open += small.open
            large.outlines += small.outlines
            small.outlines = []
            large.pixels += small.pixels
            large.total += small.total
            large.highest = max(large.highest, small.highest)


class _End:
    """An open end of a chain, with the vertices that were added there."""

    def __init__(self, chain: _Chain) -> None:
        self.chain = chain
        self.xy = array("q")  # in turns

    def extend(self, x: int, y: int) -> None:
        self.xy.extend((x, y))


class _Chain:
    """A piece of an outline: two ends that grow away from each other."""

    def __init__(self, top: int, is_hole: bool) -> None:
        self.top, self.is_hole = top, is_hole  # its highest side tells on which side of it the region is
        self.head, self.tail = _End(self), _End(self)
        self.region = _Region()

    def __len__(self) -> int:
        return len(self.head.xy) + len(self.tail.xy)

    def vertices(self) -> np.ndarray:
        """(N, 2) from head to tail."""
        head, tail = (np.array(end.xy, np.int64).reshape(-1, 2) for end in (self.head, self.tail))
        return np.concatenate([head[::-1], tail])


def _join(first: _End, second: _End) -> None:
    """Make one chain of two, where these ends of them meet; the longer one takes the other's vertices."""
    kept, gone = (first, second) if len(first.chain) >= len(second.chain) else (second, first)
    chain, other = kept.chain, gone.chain
    vertices = other.vertices()
    kept.xy.extend((vertices if gone is other.head else vertices[::-1]).ravel().tolist())
    far = other.tail if gone is other.head else other.head  # whoever holds this end goes on with the joined chain
    far.chain, far.xy = chain, kept.xy
    if kept is chain.head:
        chain.head = far
    else:
        chain.tail = far
    if other.top < chain.top:
        chain.top, chain.is_hole = other.top, other.is_hole
    chain.region.root().unite(other.region.root())
    chain.region.root().open -= 1


def _simple_rings(vertices: np.ndarray, is_hole: bool) -> Iterator[tuple[Ring, bool]]:
    """Cut an outline where it comes through a vertex again; each ring with whether it is a hole."""
    if len(np.unique(vertices @ (1 << 32, 1))) == len(vertices):  # a number for each place
        yield vertices, is_hole
        return
    direction = _doubled_area(vertices) > 0
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    loops = []
    for vertex in map(tuple, vertices.tolist()):
        if vertex in place:
            start = place[vertex]
            loops.append(path[start:])
            for gone in path[start + 1 :]:
                del place[gone]
            del path[start + 1 :]
        else:
            place[vertex] = len(path)
            path.append(vertex)
    for loop in map(np.array, [path, *loops]):
        turned = (_doubled_area(loop) > 0) != direction
        yield loop, is_hole != turned


def _doubled_area(ring: Ring) -> int:
    x, y = np.concatenate([ring, ring[:1]]).T
    return int(x[:-1] @ y[1:] - y[:-1] @ x[1:])


def trace(
    strips: Iterable[np.ndarray],
    width: int,
    least: float = 1,
    *,
    pixel: float = 1,
    min_region: float = 0,
    min_hole: float = 0,
) -> Iterator[Outline]:
    """
    Regions of a map from its strips (H, width); see `OutlineTracer`.

    Args:
        strips: from top to bottom.
        width: of the map.
        least: value from which on a pixel is marked.
        pixel: area of one, in the unit of the next two.
        min_region, min_hole: of smaller regions and holes, which `write_geojson` would leave out, most are not traced.
    """
    tracer = OutlineTracer(width, least, math.floor(min_region / pixel), math.floor(min_hole / pixel))
    for strip in strips:
        yield from tracer.add(strip)
    yield from tracer.finish()


def smooth_polygon(rings: Sequence[Ring]) -> Polygon:
    """
    A polygon that leaves the outlines of pixels, outer ring and holes, by half a pixel at most.

    Corners are cut off from the middle of a side to that of the next, by up to a quarter of a pixel; then what is
    nearly straight becomes straight, by another quarter. No centre of a pixel changes sides: those are farther from the
    cut corners, 0.35 pixels. Nor do rings meet, which are 0.7 pixels from each other: so each is smoothed on its own,
    since to compare all takes a time that grows with the square of their vertices.
    """
    outer, *holes = simplify([LinearRing(_without_corners(ring)) for ring in rings], DETAIL, preserve_topology=False)
    polygon = Polygon(outer, holes)
    return polygon if polygon.is_valid else Polygon(rings[0], rings[1:])


def _without_corners(ring: Ring) -> np.ndarray:
    side = np.roll(ring, -1, axis=0) - ring
    half = np.sign(side) / 2
    return np.stack([ring + half, ring + side - half], axis=1).reshape(-1, 2)


def write_geojson(
    path: str | Path,
    outlines: Iterable[Outline],
    scale: tuple[float, float],
    name: str,
    colour: Sequence[int],
    *,
    origin: tuple[float, float] = (0, 0),
    pixel_um2: float | None = None,
    full: float = 1,
    min_region: float = 0,
    min_hole: float = 0,
) -> int:
    """
    Write regions as a GeoJSON FeatureCollection that QuPath takes as annotations; one at a time is in memory.

    Each has a name, and as measurements the area of its marked pixels, in square micrometres or in pixels of level 0,
    and the mean and the highest of their probabilities.

    Args:
        path: of the file, which takes its name when it is complete.
        outlines: see `OutlineTracer`.
        scale: by which x and y are multiplied: pixels of the slide's level 0 per pixel.
        name, colour: of QuPath's class; the colour as red, green, blue in 0..255.
        origin: x and y of the map's left upper corner, in the slide's pixels.
        pixel_um2: square micrometres of a pixel, if known.
        full: value of the map that stands for probability 1.
        min_region, min_hole: smaller regions are left out, smaller holes filled; in square micrometres, or in pixels
            of level 0 where `pixel_um2` is None.

    Returns:
        How many polygons there are.
    """
    pixel = pixel_um2 or scale[0] * scale[1]
    count = 0
    with replacing(path) as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for outline in outlines:
            if outline.pixels * pixel < min_region:
                continue
            count += 1
            outer, *holes = outline.rings
            kept = [hole for hole in holes if abs(_doubled_area(hole)) / 2 * pixel >= min_hole]
            # outer rings counter-clockwise in a system whose y points up, as RFC 7946 asks for
            polygon = orient(
                transform(smooth_polygon([outer, *kept]), lambda corners: (corners * scale + origin).round(3))
            )
            unit = "px" if pixel_um2 is None else "\N{MICRO SIGN}m"
            properties = {
                "objectType": "annotation",
                "name": f"{name} {count}",
                "classification": {"name": name, "color": list(colour)},
                "measurements": {
                    f"Marked area {unit}^2": round(outline.pixels * pixel, 3),
                    "Mean probability": round(outline.total / outline.pixels / full, 5),
                    "Highest probability": round(outline.highest / full, 5),
                },
            }
            identity = uuid5(NAMESPACE_OID, f"{Path(path).name} {count}")  # the same at every run
            feature = (
                f'{{"type": "Feature", "id": "{identity}", "geometry": {to_geojson(polygon)}, '
                f'"properties": {json.dumps(properties)}}}'
            )
            file.write(("\n" if count == 1 else ",\n") + feature)
        file.write("\n]}\n")
    return count
