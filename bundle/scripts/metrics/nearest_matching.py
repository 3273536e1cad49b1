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
One-to-one matching of boundary pixels with as many pairs as possible, and of those matchings one of least distance.

With several annotators a predicted pixel counts as correct if any of them drew it, so it matters which pixels are
paired. The Berkeley benchmark takes the pairs of least total distance, with a price of a hundred tolerances on every
pixel left over; here no distance is worth a pair, which differs only where a chain of more than a hundred pairs has to
move.

Shortest augmenting paths with dual prices (Jonker and Volgenant, Computing 38, 1987), on the sparse graph: rows are
the pixels of the prediction, columns those of the truth.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from scripts.metrics.matching import Neighbours
from scripts.runtime.compiled import compiled

__all__ = ["nearest_matching"]

FAR = np.iinfo(np.int64).max


@compiled
def _claim_nearest(pixels, indptr, columns, costs, row_of, column_of, row_price):
    """Match each row to a free column among those at its least distance, which is its price."""
    for row in range(pixels.size):
        first, last = indptr[pixels[row]], indptr[pixels[row] + 1]
        if first == last:
            continue
        row_price[row] = costs[first]
        for edge in range(first, last):
            if costs[edge] > costs[first]:
                break
            if row_of[columns[edge]] < 0:
                row_of[columns[edge]], column_of[row] = row, columns[edge]
                break


@compiled
def _shortest_path(start, pixels, indptr, columns, costs, row_of, prices, search, outlier):
    """
    Dijkstra on reduced costs, from row `start` to a free column or to a row that is given up, whichever costs less.

    Returns:
        the reduced cost, the free column or -1, the row given up, and the number of columns touched.
    """
    row_price, column_price = prices
    distance, entered_from, settled, touched = search
    row, reached, n_touched = start, np.int64(0), 0
    best, best_column, best_row = outlier - row_price[start], -1, start
    heap = [(np.int64(0), np.int64(0)) for _ in range(0)]
    while row >= 0:
        for edge in range(indptr[pixels[row]], indptr[pixels[row] + 1]):
            column = columns[edge]
            through = reached + costs[edge] - row_price[row] - column_price[column]
            if through < distance[column] and through < best:
                if distance[column] == FAR:
                    touched[n_touched] = column
                    n_touched += 1
                distance[column], entered_from[column] = through, row
                if row_of[column] < 0:
                    best, best_column = through, column
                else:
                    heappush(heap, (through, np.int64(column)))
        row = -1
        while row < 0 and len(heap) > 0:
            reached, column = heappop(heap)
            if reached >= best:
                break
            if not settled[column]:
                settled[column] = True
                row = row_of[column]
        if row >= 0 and reached + outlier - row_price[row] < best:
            best, best_column, best_row = reached + outlier - row_price[row], -1, row
    return best, best_column, best_row, n_touched


@compiled
def _raise_prices(start, best, n_touched, row_of, prices, search):
    """Restore the prices' conditions after a search, and its scratch."""
    row_price, column_price = prices
    distance, _, settled, touched = search
    row_price[start] += best
    for k in range(n_touched):
        column = touched[k]
        if settled[column]:
            row_price[row_of[column]] += best - distance[column]
            column_price[column] -= best - distance[column]
        distance[column] = FAR
        settled[column] = False


@compiled
def _nearest_matching(pixels, indptr, columns, costs, n_columns):
    row_of = np.full(n_columns, -1, dtype=np.int64)
    column_of = np.full(pixels.size, -1, dtype=np.int64)
    # Dual prices: cost - row price - column price is >= 0 on every edge and 0 on the matched ones, and a free column's
    # price is 0. To give a row up costs more than any detour, so that pairs come before distance.
    prices = (np.zeros(pixels.size, dtype=np.int64), np.zeros(n_columns, dtype=np.int64))
    outlier = np.int64(1)
    if costs.size:
        outlier += np.int64(costs.max()) * (min(pixels.size, n_columns) + 1)
    search = (
        np.full(n_columns, FAR, dtype=np.int64),
        np.empty(n_columns, dtype=np.int64),
        np.zeros(n_columns, dtype=np.bool_),
        np.empty(n_columns, dtype=np.int64),
    )
    _claim_nearest(pixels, indptr, columns, costs, row_of, column_of, prices[0])
    for start in range(pixels.size):
        if column_of[start] >= 0 or indptr[pixels[start]] == indptr[pixels[start] + 1]:
            continue
        best, column, given_up, n_touched = _shortest_path(
            start, pixels, indptr, columns, costs, row_of, prices, search, outlier
        )
        _raise_prices(start, best, n_touched, row_of, prices, search)
        row = given_up if column < 0 else -1
        if row >= 0:  # its column is handed on
            column, column_of[row] = column_of[row], -1
        while row != start:
            row = search[1][column]
            previous = column_of[row]
            row_of[column], column_of[row] = row, column
            column = previous
    return column_of


def nearest_matching(pixels: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """
    The one-to-one matching of least total distance among those with the largest number of pairs.

    Args:
        pixels: int64 (n,), flat indices of the prediction's boundary.
        neighbours: the truth's, of `neighbours_of`.

    Returns:
        int64 (n,), the truth pixel matched to each of `pixels`, -1 for none.
    """
    return _nearest_matching(pixels, *neighbours)
