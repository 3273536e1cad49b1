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

"""Matching: cardinality and distance against exhaustive search and SciPy's solvers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from scripts.metrics.matching import MaximumMatching, neighbours_of, tolerance_offsets
from scripts.metrics.nearest_matching import nearest_matching


def prepare(prediction, truth, max_distance):
    """Flat pixels of the prediction and the neighbour table of the truth, and distances, inf beyond the tolerance."""
    offsets = tolerance_offsets(max_distance)
    pad = int(max_distance)
    height, width = prediction.shape
    pixels = np.flatnonzero(np.pad(prediction, pad))
    size = (height + 2 * pad) * (width + 2 * pad)
    neighbours = neighbours_of(np.flatnonzero(np.pad(truth, pad)), offsets, width + 2 * pad, size)
    ours, theirs = np.argwhere(prediction), np.argwhere(truth)
    distances = np.sqrt(((ours[:, None] - theirs[None]) ** 2).sum(axis=-1))
    return pixels, neighbours, np.where(distances <= max_distance, distances, np.inf)


def random_maps(seed, low, high):
    rng = np.random.default_rng(seed)
    shape = rng.integers(low, high, 2)
    return tuple(rng.random(shape) < rng.uniform(0.05, 0.5) for _ in range(2))


def exhaustive(distances, row=0, taken=frozenset()):
    """Largest number of pairs, and the least negative distance with it, over every one-to-one matching."""
    if row == len(distances):
        return 0, 0.0
    options = [exhaustive(distances, row + 1, taken)]
    for column in np.flatnonzero(np.isfinite(distances[row])):
        if column not in taken:
            pairs, cost = exhaustive(distances, row + 1, taken | {column})
            options.append((pairs + 1, cost - np.rint(100 * distances[row, column])))
    return max(options)


def assert_is_matching(columns, distances):
    matched = columns[columns >= 0]
    assert len(np.unique(matched)) == len(matched)
    assert np.isfinite(distances[np.flatnonzero(columns >= 0), matched]).all()


@pytest.mark.parametrize("seed", range(40))
def test_small_masks_against_exhaustive_search(seed):
    prediction, truth = random_maps(seed, 2, 5)
    pixels, neighbours, distances = prepare(prediction, truth, [1, 1.5, 2.3][seed % 3])
    pairs, minus_cost = exhaustive(distances)
    assert MaximumMatching(neighbours)(pixels) == pairs
    columns = nearest_matching(pixels, neighbours)
    assert_is_matching(columns, distances)
    assert (columns >= 0).sum() == pairs
    rows = np.flatnonzero(columns >= 0)
    assert np.rint(100 * distances[rows, columns[rows]]).sum() == -minus_cost


@pytest.mark.parametrize("seed", range(40))
def test_larger_masks_against_scipy(seed):
    prediction, truth = random_maps(seed, 5, 30)
    pixels, neighbours, distances = prepare(prediction, truth, [0, 1, 2.3, 4.3][seed % 4])
    edges = np.isfinite(distances)
    pairs = int((maximum_bipartite_matching(csr_array(edges)) >= 0).sum())
    assert MaximumMatching(neighbours)(pixels) == pairs

    columns = nearest_matching(pixels, neighbours)
    assert_is_matching(columns, distances)
    assert (columns >= 0).sum() == pairs
    n, m = distances.shape
    weights = np.zeros((n, m + n))  # with a private outlier for each row, dearer than any detour
    weights[:, :m] = np.where(edges, np.rint(100 * np.where(edges, distances, 0)) + 1, 0)  # 0 would be no edge
    weights[np.arange(n), m + np.arange(n)] = 1e7
    rows, best = min_weight_full_bipartite_matching(csr_array(weights))
    real = best < m
    expected = np.rint(100 * distances[rows[real], best[real]]).sum()
    ours = np.flatnonzero(columns >= 0)
    assert np.rint(100 * distances[ours, columns[ours]]).sum() == expected


def test_one_prediction_after_the_other_gives_what_each_gives_alone():
    rng = np.random.default_rng(0)
    probability, truth = rng.random((25, 30)), rng.random((25, 30)) < 0.3
    together = MaximumMatching(prepare(truth, truth, 2.3)[1])
    for threshold in (0.9, 0.7, 0.4, 0.5, 1.0, 0.1):
        pixels, neighbours, _ = prepare(probability >= threshold, truth, 2.3)
        assert together(pixels) == MaximumMatching(neighbours)(pixels)


def test_greedy_alone_would_lose_a_pair():
    # Left pixel b reaches only truth 1; a is nearer to 1 but can also have 0: only an exchange pairs both.
    prediction, truth = np.zeros((2, 1, 8), bool)
    prediction[0, [3, 5]] = True
    truth[0, [1, 4]] = True
    pixels, neighbours, _ = prepare(prediction, truth, 2.0)
    assert MaximumMatching(neighbours)(pixels) == 2
    np.testing.assert_array_equal(nearest_matching(pixels, neighbours), [0, 1])


def test_pairs_come_before_distance_and_distance_decides_between_equals():
    prediction, truth = np.zeros((2, 1, 12), bool)
    prediction[0, [2, 3, 9]] = True  # of the neighbours 2 and 3, the truth at 4 takes the nearer
    truth[0, [4, 10]] = True
    pixels, neighbours, _ = prepare(prediction, truth, 2.0)
    np.testing.assert_array_equal(nearest_matching(pixels, neighbours), [-1, 0, 1])


def test_tolerance_is_inclusive_and_round():
    assert {tuple(step) for step in tolerance_offsets(1.0)} == {(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)}
    assert len(tolerance_offsets(1.42)) == 9
    np.testing.assert_array_equal(tolerance_offsets(0.2), [[0, 0]])


@pytest.mark.parametrize(("n_prediction", "n_truth"), [(0, 0), (0, 4), (4, 0)])
def test_empty_sides(n_prediction, n_truth):
    prediction, truth = np.zeros((2, 3, 4), bool)
    prediction.flat[:n_prediction] = truth.flat[:n_truth] = True
    pixels, neighbours, _ = prepare(prediction, truth, 1.0)
    assert MaximumMatching(neighbours)(pixels) == 0
    np.testing.assert_array_equal(nearest_matching(pixels, neighbours), np.full(n_prediction, -1))
