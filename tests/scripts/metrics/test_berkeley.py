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
"""Boundary metric against the Berkeley benchmark's own output for the five images that come with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial import cKDTree
from scripts.metrics.boundary import BoundaryFMeasure, compute_boundary_scores
from skimage.morphology import thin

BSDS = Path(__file__).resolve().parents[4] / "shared" / "data" / "bsds"
THRESHOLDS = 5
DEGREE = 6  # random edges of each outlier in the reference

pytestmark = pytest.mark.skipif(not BSDS.is_dir(), reason="the benchmark's images are not in ../shared/data/bsds")


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Soft boundary map (1, H, W) in 0..1, and the annotators' boundaries (A, H, W)."""
    soft = np.asarray(Image.open(BSDS / "png" / f"{name}.png")) / 255
    drawn = [truth["Boundaries"][0, 0] for truth in loadmat(BSDS / "groundTruth" / f"{name}.mat")["groundTruth"].flat]
    return soft[None], np.stack(drawn)


@pytest.fixture(scope="module")
def measured():
    """The metric after all five images, and the counts of each, (5, K, 4)."""
    metric = BoundaryFMeasure("all", THRESHOLDS, mode="boundary")
    names = sorted(path.stem for path in (BSDS / "png").glob("*.png"))
    assert len(names) == 5
    counts = np.concatenate([metric(*([image] for image in load(name))) for name in names])
    return metric, counts


def test_every_threshold_of_the_reference(measured):
    scores = measured[0].scores()
    ours = np.stack([scores.thresholds, scores.recall, scores.precision, scores.f_measure], axis=1)
    np.testing.assert_allclose(ours, np.loadtxt(BSDS / "test_2" / "eval_bdry_thr.txt"), atol=1e-3, rtol=0)


def test_the_summary_of_the_reference(measured):
    scores = measured[0].scores()
    ours = [scores.ods_threshold, scores.ods_recall, scores.ods_precision, scores.ods, scores.ois, scores.boundary_ap]
    threshold, recall, precision, ods, _, _, ois, ap = np.loadtxt(BSDS / "test_2" / "eval_bdry.txt")
    np.testing.assert_allclose(ours, [threshold, recall, precision, ods, ois, ap], atol=1e-3, rtol=0)


def test_every_image_of_the_reference_at_its_best_threshold(measured):
    """The precision of the first is 1.1e-3 off, 3 of 2808 pixels; the reference itself varies by 4, see below."""
    for counts, (_, *expected) in zip(measured[1], np.loadtxt(BSDS / "test_2" / "eval_bdry_img.txt"), strict=True):
        scores = compute_boundary_scores(counts, THRESHOLDS)
        best = np.argmax(scores.f_measure)
        ours = [values[best] for values in (scores.thresholds, scores.recall, scores.precision, scores.f_measure)]
        np.testing.assert_allclose(ours, expected, atol=1.5e-3, rtol=0)
        assert abs(ours[-1] - expected[-1]) < 1e-3


def others(rng: np.random.Generator, rows: int, columns: int, skip: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """`DEGREE` random columns of each row, or of each but its own number."""
    drawn = np.stack([rng.choice(columns - skip, DEGREE, replace=False) for _ in range(rows)])
    if skip:
        drawn += drawn >= np.arange(rows)[:, None]
    return np.repeat(np.arange(rows), DEGREE), drawn.ravel()


def match_by_chance(ours: np.ndarray, theirs: np.ndarray, tolerance: float, rng: np.random.Generator) -> np.ndarray:
    """
    The reference's assignment with random numbers, and an order of the pixels, of `rng`: which of `ours` are matched.

    Every pixel can be an outlier by a random edge to one of its own side's copies, at a hundred tolerances; copies are
    joined with copies by random edges. Where those don't suffice, an edge of a hundred times that price makes up.
    """
    order = rng.permutation(len(ours))
    near = cKDTree(ours[order]).sparse_distance_matrix(cKDTree(theirs), tolerance + 1e-9, output_type="coo_matrix")
    rows, row = np.unique(near.row, return_inverse=True)
    columns, column = np.unique(near.col, return_inverse=True)
    n, m = len(rows), len(columns)
    outlier = np.ceil(100 * 100 * tolerance)
    edges = [(row, column, np.rint(100 * near.data))]
    i, j = others(rng, n, n, skip=True)
    edges.append((i, m + j, outlier))
    i, j = others(rng, m, m, skip=True)
    edges.append((n + j, i, outlier))
    i, j = others(rng, max(n, m), min(n, m))
    edges.append((n + i, m + j, outlier) if n < m else (n + j, m + i, outlier))
    edges.append((np.arange(n), m + np.arange(n), 100 * outlier))
    edges.append((n + np.arange(m), np.arange(m), 100 * outlier))
    # one more each, since SciPy takes 0 for no edge; every assignment has n + m of them
    costs = np.concatenate([np.broadcast_to(cost, start.shape) for start, _, cost in edges]) + 1
    starts, ends = (np.concatenate([edge[side] for edge in edges]) for side in (0, 1))
    start, end = min_weight_full_bipartite_matching(csr_array((costs, (starts, ends)), shape=(n + m, n + m)))
    matched = np.zeros(len(ours), dtype=bool)
    matched[order[rows[start[(start < n) & (end < m)]]]] = True
    return matched


def test_the_reference_itself_depends_on_chance(measured):
    """
    Its random edges leave it a few pairs short of the most there are, which we find, and change what is matched.

    In 20 runs the first image has 9246 to 9251 matched pixels in the truth, and 2489 to 2493 in the prediction. The
    reference printed 9248 and 2492, we count 9251 and 2489.
    """
    soft, drawn = load("2018")
    threshold = measured[0].scores().thresholds[0]
    prediction = np.argwhere(thin(soft[0] >= threshold))
    runs = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        tolerance = 0.0075 * np.hypot(*soft[0].shape)
        matched = np.stack([match_by_chance(prediction, np.argwhere(truth), tolerance, rng) for truth in drawn])
        runs.append((matched.sum(), matched.any(axis=0).sum()))
    in_truth, in_prediction = map(np.array, zip(*runs, strict=True))
    most, total, ours, size = measured[1][0, 0]
    _, recall, precision, _ = np.loadtxt(BSDS / "test_2" / "eval_bdry_img.txt")[0, 1:]
    assert len(set(in_prediction.tolist())) > 1
    assert (in_truth <= most).all()
    for printed, reached, counted in (
        (round(recall * total), in_truth, most),
        (round(precision * size), in_prediction, ours),
    ):
        assert abs(reached - printed).max() <= 5
        assert abs(reached - counted).max() <= 5
