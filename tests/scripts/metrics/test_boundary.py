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

"""Boundary metric: counts against a plain implementation, ratios against arithmetic, and every edge case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, from_engine
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree
from scripts.metrics.boundary import BoundaryFMeasure, compute_boundary_scores
from scripts.metrics.boundary_counts import boundary_thresholds, compute_boundary_counts
from skimage import morphology


def plain_boundary(mask):
    """Pixels unlike their right, lower or lower-right neighbour, one at a time, then thinned."""
    height, width = mask.shape
    boundary = np.zeros(mask.shape, bool)
    for y in range(height):
        for x in range(width):
            corner = [mask[min(y + dy, height - 1), min(x + dx, width - 1)] for dy in (0, 1) for dx in (0, 1)]
            boundary[y, x] = len(set(corner)) > 1
    return morphology.thin(boundary)


def plain_matches(prediction, truth, max_distance):
    ours, theirs = np.argwhere(prediction), np.argwhere(truth)
    if not len(ours) or not len(theirs):
        return 0
    near = cKDTree(ours).sparse_distance_matrix(cKDTree(theirs), max_distance + 1e-9, output_type="coo_matrix")
    graph = csr_array((np.ones(near.nnz), (near.row, near.col)), shape=(len(ours), len(theirs)))
    return int((maximum_bipartite_matching(graph) >= 0).sum())


def plain_counts(probability, mask, thresholds):
    truth = plain_boundary(mask)
    tolerance = 0.0075 * np.sqrt(probability.shape[0] ** 2 + probability.shape[1] ** 2)
    rows = []
    for threshold in thresholds:
        prediction = plain_boundary(probability >= threshold)
        matches = plain_matches(prediction, truth, tolerance)
        rows.append([matches, truth.sum(), matches, prediction.sum()])
    return np.array(rows)


def smooth(shape, sigma, seed):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return 1 / (1 + np.exp(-2 * field / field.std()))


def square(size, low, high):
    mask = np.zeros((size, size))
    mask[low:high, low:high] = 1
    return mask


@pytest.mark.parametrize(("shape", "sigma"), [((150, 170), 6), ((60, 90), 0.7), ((2, 500), 3), ((1, 80), 2)])
def test_counts_equal_those_of_a_plain_implementation(shape, sigma):
    for seed in range(2):
        probability, mask = smooth(shape, sigma, seed), smooth(shape, sigma, seed + 10) > 0.6
        expected = plain_counts(probability, mask, boundary_thresholds(9))
        np.testing.assert_array_equal(compute_boundary_counts(probability, mask, thresholds=9), expected)


def test_boundary_of_a_two_by_two_mask_by_hand():
    # The lower-right pixel alone: the other three see it beside, below or diagonally; with the last row and column
    # repeated, it sees only itself. Of those three the corner goes in the thinning's second subiteration, since the
    # other two touch without it.
    counts = compute_boundary_counts(np.array([[0, 0], [0, 0.5]]), np.array([[0, 0], [0, 1]]), thresholds=[0.4, 0.6])
    np.testing.assert_array_equal(counts, [[2, 2, 2, 2], [0, 2, 0, 0]])


def test_perfect_prediction_scores_one_and_a_far_one_zero():
    mask = square(60, 20, 40)
    perfect = compute_boundary_scores(compute_boundary_counts(mask, mask))
    assert perfect.ods == perfect.ois == 1.0
    assert (perfect.f_measure == 1).all()
    far = compute_boundary_scores(compute_boundary_counts(square(60, 2, 10), mask))
    assert far.ods == far.ois == far.boundary_ap == 0.0


@pytest.mark.parametrize(("shift", "matched"), [(3, True), (4, False)])
def test_tolerance_is_a_fraction_of_the_diagonal(shift, matched):
    # 240 x 320 pixels have a diagonal of 400, so the tolerance is exactly 3 pixels, and 3 pixels are within it.
    prediction, mask = np.zeros((2, 240, 320))
    mask[:, :100], prediction[:, : 100 + shift] = 1, 1
    counts = compute_boundary_counts(prediction, mask, thresholds=1)
    np.testing.assert_array_equal(counts, [[240 * matched, 240, 240 * matched, 240]])


@pytest.mark.parametrize("value", [0.0, 1.0, 0.37])
@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (20, 30)])
def test_constant_maps_have_no_boundary(value, shape):
    counts = compute_boundary_counts(np.full(shape, value), np.ones(shape))
    np.testing.assert_array_equal(counts, np.zeros((99, 4)))


def test_full_and_empty_truth_have_no_boundary_to_find():
    prediction = square(30, 10, 20)
    for mask in (np.ones((30, 30)), np.zeros((30, 30))):
        counts = compute_boundary_counts(prediction, mask, thresholds=3)
        assert (counts[:, :3] == 0).all()
        assert (counts[:, 3] > 0).all()


def test_where_a_mask_touches_the_frame_there_is_no_boundary():
    mask = np.zeros((20, 30))
    mask[:, :10] = 1  # touches three sides: only its right edge counts, 20 pixels
    np.testing.assert_array_equal(compute_boundary_counts(mask, mask, thresholds=1), [[20, 20, 20, 20]])


def test_one_pixel_region():
    mask = np.zeros((9, 9))
    mask[4, 4] = 1  # a 2x2 square sees it, which thinning leaves as it is
    np.testing.assert_array_equal(compute_boundary_counts(mask, mask, thresholds=1)[0, 1], plain_boundary(mask).sum())
    assert compute_boundary_scores(compute_boundary_counts(mask, mask)).ods == 1


@pytest.mark.parametrize(
    ("y_pred", "y", "message"),
    [
        (np.full((4, 4), np.nan), np.ones((4, 4)), "y_pred contains NaN"),
        (np.zeros((4, 4)), np.full((4, 4), np.nan), "y contains NaN"),
        (np.full((4, 4), 1.5), np.ones((4, 4)), r"y_pred must be within 0..1, got 1.5..1.5"),
        (np.full((4, 4), -0.1), np.ones((4, 4)), r"y_pred must be within 0..1, got -0.1"),
        (np.zeros((4, 4)), np.full((4, 4), 255), "y must be 0 or 1, got values in 255..255"),
        (np.zeros((4, 4)), np.zeros((4, 5)), r"same size, got \(4, 4\) and \(4, 5\)"),
        (np.zeros((2, 4, 4)), np.zeros((4, 4)), "y_pred must have one channel, got 2"),
        (np.zeros((1, 1, 4, 4)), np.zeros((4, 4)), r"y_pred must have shape .*, got \(1, 1, 4, 4\)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), r"y_pred must have shape .* and pixels, got \(0, 4\)"),
    ],
)
def test_bad_images_are_refused(y_pred, y, message):
    with pytest.raises(ValueError, match=message):
        compute_boundary_counts(y_pred, y)
    with pytest.raises(ValueError, match=message):
        BoundaryFMeasure()([y_pred], [y])


def test_rounding_outside_the_range_is_accepted():
    mask = square(30, 10, 20)
    np.testing.assert_array_equal(
        compute_boundary_counts(mask * 1.0005 - 0.0002, mask), compute_boundary_counts(mask, mask)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "edge"}, "mode must be one of region, boundary, got 'edge'"),
        ({"max_distance": -0.1}, "max_distance must be a fraction .* got -0.1"),
        ({"thresholds": 0}, "thresholds must be at least 1, got 0"),
        ({"thresholds": [0.5, 0.2]}, "thresholds must increase"),
        ({"thresholds": [0.0, 0.2]}, "thresholds must increase within"),
        ({"statistic": "ap"}, "statistic must be one of ods, ois, boundary_ap, all, got 'ap'"),
    ],
)
def test_bad_options_are_refused_when_constructing(options, message):
    with pytest.raises(ValueError, match=message):
        BoundaryFMeasure(**options)


def test_thresholds_are_the_benchmarks():
    np.testing.assert_allclose(boundary_thresholds(99), np.arange(1, 100) / 100, rtol=1e-14)
    np.testing.assert_allclose(boundary_thresholds(1), [0.5])
    # MATLAB's linspace puts the second of five a bit above 1/3, so the 8-bit value 85/255 is below it.
    assert boundary_thresholds(5)[1] > 85 / 255


def test_a_probability_equal_to_the_threshold_is_reached():
    counts = compute_boundary_counts(square(30, 10, 20) * 0.5, square(30, 10, 20), thresholds=[0.5, 0.5000001])
    assert counts[0, 2] == counts[0, 3] == counts[0, 1] > 0
    assert counts[1, 3] == 0


def test_soft_boundary_map_is_thinned_and_annotators_are_not():
    soft, drawn = np.zeros((2, 40, 50))
    soft[10:13, 5:45] = 0.8  # three rows thick: its middle row is left, less the ends
    soft[11, 5:45] = 0.3  # and a hole in it at the higher threshold: two lines
    drawn[20:22] = 1  # two rows thick, and stays so
    counts = compute_boundary_counts(soft, drawn, thresholds=[0.2, 0.5], mode="boundary")
    thin = [morphology.thin(soft >= t).sum() for t in (0.2, 0.5)]
    np.testing.assert_array_equal(counts, [[0, 100, 0, thin[0]], [0, 100, 0, thin[1]]])
    assert thin[0] < 45 < 70 < thin[1]


def test_several_annotators_precision_by_union_recall_summed():
    prediction, first, second = np.zeros((3, 40, 50))
    prediction[10, 10:30] = 0.9  # 20 pixels, all found by the first, 8 by the second
    prediction[30, 10:30] = 0.9  # 20 pixels, 5 found by the second only
    first[10, 10:30] = 1
    second[10, 10:18] = 1
    second[30, 25:40] = 1
    counts = compute_boundary_counts(prediction, np.stack([first, second]), [0.5], max_distance=0.0, mode="boundary")
    np.testing.assert_array_equal(counts, [[20 + 8 + 5, 20 + 8 + 15, 20 + 5, 40]])


def test_several_annotators_take_the_nearest_pixels():
    # Either line of the prediction can be matched with either annotator's; the nearest choice pairs both with one
    # line, so that the union is one line, where a maximum matching of any kind could count both.
    prediction, drawn = np.zeros((2, 240, 320))
    prediction[100, 50:250] = prediction[102, 50:250] = 1
    drawn[99, 50:250] = 1
    counts = compute_boundary_counts(prediction, np.stack([drawn, drawn]), [0.5], mode="boundary")
    np.testing.assert_array_equal(counts, [[400, 400, 200, 400]])


def test_annotators_of_regions_as_of_boundaries():
    rng = np.random.default_rng(0)
    masks = np.stack([smooth((50, 60), 5, seed) > 0.5 for seed in (1, 2)])
    prediction = np.round(smooth((50, 60), 5, 1) + 0.1 * rng.random((50, 60)), 3).clip(0, 1)
    counts = compute_boundary_counts(prediction, masks, 5)
    alone = [compute_boundary_counts(prediction, mask, 5) for mask in masks]
    np.testing.assert_array_equal(counts[:, :2], alone[0][:, :2] + alone[1][:, :2])
    assert (counts[:, 2] >= np.maximum(alone[0][:, 2], alone[1][:, 2])).all()
    assert (counts[:, 2] <= alone[0][:, 2] + alone[1][:, 2]).all()


# Two images, three thresholds: columns are cntR, sumR, cntP, sumP.
COUNTS = np.array(
    [
        [[8, 10, 8, 40], [6, 10, 6, 8], [0, 10, 0, 0]],
        [[9, 10, 9, 10], [3, 10, 3, 4], [2, 10, 2, 2]],
    ]
)


def test_ratios_by_hand():
    scores = compute_boundary_scores(COUNTS, thresholds=3)
    np.testing.assert_allclose(scores.recall, [17 / 20, 9 / 20, 2 / 20])
    np.testing.assert_allclose(scores.precision, [17 / 50, 9 / 12, 1])
    np.testing.assert_allclose(scores.f_measure, [34 / 70, 18 / 32, 4 / 22])
    # Best alone: image 1 at its second threshold (F = 12/18), image 2 at its first (18/20): (6 + 9) / (20, 18).
    assert scores.ois == pytest.approx(30 / 38)


def test_best_f_lies_between_thresholds():
    # Recall 0.85 -> 0.45 and precision 0.34 -> 0.75: F has its maximum inside, about 2/3 of the way, where r = 0.59 and
    # p = 0.6065 give 0.5981.
    scores = compute_boundary_scores(COUNTS, thresholds=3)
    d = np.arange(100) / 99
    r, p = 0.85 - 0.4 * d, 0.34 + 0.41 * d
    best = np.argmax(2 * r * p / (r + p))
    assert scores.ods == pytest.approx(0.5981, abs=2e-4)
    assert 60 < best < 70
    assert (scores.ods_recall, scores.ods_precision) == pytest.approx((r[best], p[best]))
    assert scores.ods_threshold == pytest.approx(0.25 * (1 + d[best]))
    assert compute_boundary_scores(COUNTS[:, :1], thresholds=[0.3]).ods == pytest.approx(34 / 70)


def test_average_precision_by_hand():
    # The curve goes from recall 0 (precision 0) straight to (0.5, 1), and ends: on 0, 0.01 .. 0.5 it is 2 x recall.
    counts = [[5, 10, 5, 5], [0, 10, 0, 0]]
    assert compute_boundary_scores(counts, thresholds=2).boundary_ap == pytest.approx(0.01 * 2 * sum(range(51)) / 100)
    assert compute_boundary_scores(counts[:1], thresholds=1).boundary_ap == 0.0  # one point is no curve
    # Of two precisions at one recall the lower threshold's is taken.
    counts = [[5, 10, 5, 10], [5, 10, 5, 5], [0, 10, 0, 0]]
    assert compute_boundary_scores(counts, thresholds=3).boundary_ap == pytest.approx(0.01 * sum(range(51)) / 100)


def test_without_boundary_pixels_in_the_truth_nothing_is_defined():
    scores = compute_boundary_scores(np.array([[0, 0, 0, 7], [0, 0, 0, 0]]), thresholds=2)
    assert np.isnan([scores.ods, scores.ois, scores.boundary_ap]).all()
    assert (scores.f_measure == 0).all()
    assert torch.isnan(BoundaryFMeasure().aggregate())


def test_scores_refuse_counts_of_other_thresholds():
    with pytest.raises(ValueError, match=r"counts must have shape \(N, 5, 4\)"):
        compute_boundary_scores(COUNTS, thresholds=5)


def images(n=3, size=48):
    return [smooth((size, size + k), 4, k) for k in range(n)], [smooth((size, size + k), 5, k) > 0.5 for k in range(n)]


def test_metric_equals_the_functions_on_any_container():
    y_pred, y = images()
    expected = compute_boundary_scores([compute_boundary_counts(p, t) for p, t in zip(y_pred, y, strict=True)])
    containers = [
        ([p[None] for p in y_pred], [t[None] for t in y]),
        ([torch.from_numpy(p)[None] for p in y_pred], [torch.from_numpy(t)[None].long() for t in y]),
        ([MetaTensor(p[None]) for p in y_pred], [MetaTensor(t[None].astype(np.float32)) for t in y]),
        ([np.flip(np.flip(p)[None].copy()) for p in y_pred], [np.flip(np.flip(t)[None].copy()) for t in y]),
    ]
    for container in containers:
        metric = BoundaryFMeasure()
        assert metric(*container).shape == (3, 99, 4)
        for actual, wanted in zip(metric.scores(), expected, strict=True):
            np.testing.assert_array_equal(actual, wanted)


def test_metric_on_batches_and_after_reset():
    y_pred, y = (np.stack([image[:48, :48] for image in side])[:, None] for side in images())
    at_once, one_by_one = BoundaryFMeasure("ois"), BoundaryFMeasure("ois")
    at_once(torch.from_numpy(y_pred), torch.from_numpy(y))
    one_by_one(np.zeros((1, 1, 9, 9)), np.ones((1, 1, 9, 9)))
    one_by_one.reset()
    for p, t in zip(y_pred, y, strict=True):
        one_by_one(p[None], t[None])
    assert at_once.aggregate() == one_by_one.aggregate() == at_once.scores().ois
    half = torch.from_numpy(y_pred).to(torch.bfloat16)
    assert BoundaryFMeasure()(half, torch.from_numpy(y)).sum() > 0


def test_negative_images_do_not_count_but_full_ones_do():
    mask, prediction = square(40, 10, 30), square(40, 12, 32)
    metric = BoundaryFMeasure()
    metric([mask[None]], [mask[None]])
    assert (metric([prediction[None]], [np.zeros((1, 40, 40))]) == 0).all()
    assert metric.aggregate() == 1
    metric([prediction[None]], [np.ones((1, 40, 40))])
    assert metric.aggregate() < 1
    negative = BoundaryFMeasure(mode="boundary")([prediction[None]], [np.zeros((1, 40, 40))])
    assert (negative[..., 3] > 0).all()


def test_metric_needs_as_many_truths_as_predictions():
    with pytest.raises(ValueError, match="as many images as y_pred: 2, got 1"):
        BoundaryFMeasure()(np.zeros((2, 1, 4, 4)), np.zeros((1, 1, 4, 4)))
    with pytest.raises(ValueError, match="as many images as y_pred: 2, got 0"):
        BoundaryFMeasure()(np.zeros((2, 1, 4, 4)))


def test_memory_does_not_grow_with_images():
    metric = BoundaryFMeasure(thresholds=3)
    for _ in range(5):
        metric([square(20, 5, 15)[None]], [square(20, 5, 15)[None]])
    assert metric.get_buffer().shape == (4, 4)


@pytest.mark.parametrize("statistic", ["ods", "all"])
def test_in_an_engine(statistic):
    y_pred, y = images()
    data = [
        [{"pred": torch.from_numpy(p)[None], "label": torch.from_numpy(t)[None]}]
        for p, t in zip(y_pred, y, strict=True)
    ]
    engine = Engine(lambda engine, batch: batch)
    handler = IgniteMetricHandler(
        BoundaryFMeasure(statistic), output_transform=from_engine(["pred", "label"]), save_details=False
    )
    handler.attach(engine, "boundary")
    for _ in range(2):  # the second run must not add to the first
        engine.run(data)
    expected = compute_boundary_scores([compute_boundary_counts(p, t) for p, t in zip(y_pred, y, strict=True)])
    if statistic == "ods":
        assert engine.state.metrics == {"boundary": expected.ods}
    else:
        for name in ("ods", "ois", "boundary_ap"):
            assert engine.state.metrics[name] == getattr(expected, name)
