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
Time of the boundary metric against a plain SciPy version of it, in one run and on one thread.

    python tests/benchmarks/boundary.py [--size 500] [--thresholds 99] [--repeat 3]

For each synthetic map: seconds per image of ours (the fastest of some runs), of the plain version (once), and how many
times faster ours is. Both must give the same counts, or the benchmark ends with an error. The plain version does, at
every threshold, what the definition says: boundary, scikit-image's thinning, a k-d tree for the pairs within the
tolerance, and SciPy's maximum flow for the matching (its bipartite matching takes up to minutes on parallel curves).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import cKDTree
from skimage.morphology import thin

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.metrics.boundary_counts import boundary_thresholds, compute_boundary_counts


def maps(size: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, probability map and truth of each case."""
    rng = np.random.default_rng(0)

    def field(sigma: float) -> np.ndarray:
        values = ndimage.gaussian_filter(rng.standard_normal((size, size)), sigma * size / 500)
        return values / values.std()

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    shape = field(25)
    truth, score = shape > 0.5, shape + 0.5 * field(12) - 0.5
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(y - size / 2, x - size / 2)
    yield "one disc", sigmoid((0.3 * size - radius) / 8), np.hypot(y - 0.52 * size, x - 0.49 * size) < 0.3 * size
    yield "smooth blobs", sigmoid(3 * score), truth
    yield "crisp blobs", sigmoid(30 * score), truth
    yield "noisy blobs", np.clip(sigmoid(3 * score) + 0.05 * rng.standard_normal((size, size)), 0, 1), truth
    yield "stripes", 0.5 + 0.5 * np.sin((x + 0.4 * y) / 4), np.sin((x + 0.4 * y) / 4 + 0.5) > 0
    yield "noise only", rng.random((size, size)), truth


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    neighbours = (padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:])
    return thin(np.logical_or.reduce([mask != neighbour for neighbour in neighbours]))


def plain_matches(prediction: np.ndarray, truth: np.ndarray, max_distance: float) -> int:
    """Maximum one-to-one matching as a flow from a source through prediction and truth to a sink."""
    ours, theirs = np.argwhere(prediction), np.argwhere(truth)
    if not len(ours) or not len(theirs):
        return 0
    near = cKDTree(ours).sparse_distance_matrix(cKDTree(theirs), max_distance, output_type="coo_matrix")
    n, m = len(ours), len(theirs)
    tails = np.concatenate([np.zeros(n, int), 1 + near.row, 1 + n + np.arange(m)])
    heads = np.concatenate([1 + np.arange(n), 1 + n + near.col, np.full(m, n + m + 1)])
    graph = csr_array((np.ones(len(tails), np.int32), (tails, heads)), shape=(n + m + 2, n + m + 2))
    return int(maximum_flow(graph, 0, n + m + 1, method="dinic").flow_value)


def plain_counts(probability: np.ndarray, mask: np.ndarray, thresholds: int) -> np.ndarray:
    truth = plain_boundary(mask)
    max_distance = 0.0075 * np.hypot(*mask.shape)
    rows = []
    for threshold in boundary_thresholds(thresholds):
        prediction = plain_boundary(probability >= threshold)
        matches = plain_matches(prediction, truth, max_distance)
        rows.append([matches, truth.sum(), matches, prediction.sum()])
    return np.array(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of the boundary metric against a plain SciPy version.")
    parser.add_argument("--size", type=int, default=500, help="height and width of the maps")
    parser.add_argument("--thresholds", type=int, default=99)
    parser.add_argument("--repeat", type=int, default=3, help="runs of ours, of which the fastest counts")
    options = parser.parse_args()

    start = time.perf_counter()
    compute_boundary_counts(np.zeros((8, 8)), np.ones((8, 8)))
    print(f"start, with loading or compiling: {time.perf_counter() - start:.1f} s")
    print(f"{'map':14s} {'ours, s':>9s} {'plain, s':>9s} {'ratio':>7s}")
    for name, probability, mask in maps(options.size):
        ours = []
        for _ in range(options.repeat):
            start = time.perf_counter()
            counts = compute_boundary_counts(probability, mask, options.thresholds)
            ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = plain_counts(probability, mask, options.thresholds)
        plain = time.perf_counter() - start
        if not np.array_equal(counts, expected):
            sys.exit(f"error: the counts of '{name}' differ from the plain version's.")
        print(f"{name:14s} {min(ours):9.3f} {plain:9.2f} {plain / min(ours):7.0f}", flush=True)


if __name__ == "__main__":
    main()
