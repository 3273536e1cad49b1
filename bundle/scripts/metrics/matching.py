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
One-to-one matching of boundary pixels within a tolerance: the ``correspondPixels`` of the Berkeley benchmark, exact.

Martin, Fowlkes and Malik, "Learning to detect natural image boundaries using local brightness, color, and texture
cues", TPAMI 26(5), 2004, appendix. They solve it as a minimum-cost assignment in which an unmatched pixel costs a
hundred tolerances, with random edges between the outliers, which now and then lose a match. Here the number of pairs is
the largest there is: `MaximumMatching` gives that number, and `nearest_matching.py` pairs of least total distance.

Pixels are flat indices into an image of row length `stride` padded by the tolerance, so that no offset leaves it.
Left are the pixels of a prediction, right those of a truth map; `Neighbours` lists, for every pixel of the image, the
pixels of the truth in reach.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scripts.runtime.compiled import compiled

__all__ = ["MaximumMatching", "Neighbours", "neighbours_of", "tolerance_offsets"]


class Neighbours(NamedTuple):
    """Truth pixels within the tolerance of each pixel, nearest first, as the rows of a sparse matrix."""

    indptr: np.ndarray  # int64 (size of the padded image + 1,)
    columns: np.ndarray  # int32 (n,), which truth pixel
    costs: np.ndarray  # int32 (n,), its distance in hundredths of a pixel, rounded as the reference does
    n_columns: int  # number of truth pixels


def tolerance_offsets(max_distance: float) -> np.ndarray:
    """Steps (dy, dx) no longer than `max_distance` pixels, nearest first: int64 (n, 2)."""
    radius = int(np.floor(max_distance))
    steps = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    squared = (steps**2).sum(axis=1)
    reachable = np.flatnonzero(squared <= max_distance * max_distance)
    return steps[reachable[np.argsort(squared[reachable], kind="stable")]]


@compiled
def _fill_neighbours(truth, offsets, offset_costs, size):
    indptr = np.zeros(size + 1, dtype=np.int64)
    for pixel in truth:
        for offset in offsets:
            indptr[pixel + offset + 1] += 1
    for pixel in range(size):
        indptr[pixel + 1] += indptr[pixel]
    free = indptr[:-1].copy()
    columns = np.empty(indptr[-1], dtype=np.int32)
    costs = np.empty(indptr[-1], dtype=np.int32)
    for k in range(offsets.size):
        for column in range(truth.size):
            pixel = truth[column] + offsets[k]
            columns[free[pixel]] = column
            costs[free[pixel]] = offset_costs[k]
            free[pixel] += 1
    return indptr, columns, costs


def neighbours_of(truth: np.ndarray, offsets: np.ndarray, stride: int, size: int) -> Neighbours:
    """
    Table of the pixels of `truth` in reach of every pixel of the image.

    Args:
        truth: int64 (n,), flat indices, at least the longest offset away from the frame.
        offsets: int64 (m, 2), of `tolerance_offsets`.
        stride: row length of the padded image.
        size: number of its pixels.
    """
    costs = np.rint(100 * np.sqrt((offsets**2).sum(axis=1))).astype(np.int32)
    return Neighbours(*_fill_neighbours(truth, offsets @ np.array([stride, 1]), costs, size), truth.size)


@compiled
def _keep_and_claim(pixels, indptr, columns, row_of, column_of, present):
    """Drop the pairs of pixels that have gone, give each new pixel its nearest free column; number of pairs."""
    for pixel in pixels:
        present[pixel] = True
    n_matched = 0
    for column in range(row_of.size):
        pixel = row_of[column]
        if pixel >= 0:
            if present[pixel]:
                n_matched += 1
            else:
                row_of[column] = -1
                column_of[pixel] = -1
    for pixel in pixels:
        present[pixel] = False
        if column_of[pixel] >= 0:
            continue
        for edge in range(indptr[pixel], indptr[pixel + 1]):
            column = columns[edge]
            if row_of[column] < 0:
                row_of[column], column_of[pixel] = pixel, column
                n_matched += 1
                break
    return n_matched


@compiled
def _augment(start, indptr, columns, row_of, column_of, seen, entered_from, queue):
    """
    Breadth-first search from the pixel `start` for a free column; if there is one, exchange the pairs along the way.

    What a failed search has seen can reach no free column, now or later, and stays `seen`: no search enters it again.
    """
    queue[0] = start
    head, tail, free = 0, 1, -1
    while head < tail and free < 0:
        pixel = queue[head]
        head += 1
        for edge in range(indptr[pixel], indptr[pixel + 1]):
            column = columns[edge]
            if seen[column]:
                continue
            seen[column] = True
            entered_from[column] = pixel
            if row_of[column] < 0:
                free = column
                break
            queue[tail] = row_of[column]
            tail += 1
    if free < 0:
        return False
    seen[free] = False
    for k in range(1, tail):
        seen[column_of[queue[k]]] = False
    while free >= 0:
        pixel = entered_from[free]
        previous = column_of[pixel]
        row_of[free], column_of[pixel] = pixel, free
        free = previous
    return True


@compiled
def _maximum_matching(pixels, indptr, columns, row_of, column_of, present):
    n_matched = _keep_and_claim(pixels, indptr, columns, row_of, column_of, present)
    seen = np.zeros(row_of.size, dtype=np.bool_)
    entered_from = np.empty(row_of.size, dtype=np.int64)
    queue = np.empty(row_of.size + 1, dtype=np.int64)
    for pixel in pixels:
        if n_matched == row_of.size:
            break
        if column_of[pixel] < 0 and _augment(pixel, indptr, columns, row_of, column_of, seen, entered_from, queue):
            n_matched += 1
    return n_matched


class MaximumMatching:
    """
    Maximum one-to-one matching of one truth map with one prediction after the other.

    Each call starts from the pairs of the one before whose pixels are still there: predictions at neighbouring
    thresholds share most of theirs. New pixels take the nearest free one, and augmenting paths settle the rest.

    Args:
        neighbours: the truth's, of `neighbours_of`.
    """

    def __init__(self, neighbours: Neighbours) -> None:
        size = len(neighbours.indptr) - 1
        self.neighbours = neighbours
        self._row_of = np.full(neighbours.n_columns, -1, dtype=np.int64)
        self._column_of = np.full(size, -1, dtype=np.int64)
        self._present = np.zeros(size, dtype=bool)

    def __call__(self, pixels: np.ndarray) -> int:
        """Number of pairs with `pixels`, int64 (n,), flat indices of the prediction's boundary."""
        indptr, columns = self.neighbours.indptr, self.neighbours.columns
        return _maximum_matching(pixels, indptr, columns, self._row_of, self._column_of, self._present)
