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

"""F-measure of regions on images of four pixels, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.metrics.region import RegionFMeasure, compute_region_f_measure, f_measure, intersection_over_union


def mask(bits: str) -> np.ndarray:
    """(2, 2) boolean from its four pixels, '1100' being the upper row."""
    return np.array([bit == "1" for bit in bits]).reshape(2, 2)


def batch(*bits: str) -> torch.Tensor:
    """(B, 1, 2, 2) float."""
    return torch.stack([torch.from_numpy(mask(b)).float()[None] for b in bits])


@pytest.mark.parametrize(
    ("prediction", "truth", "f", "iou"),
    [
        ("1100", "1100", 1.0, 1.0),
        ("1100", "0011", 0.0, 0.0),
        ("1100", "1000", 2 / 3, 1 / 2),  # P = 1/2, R = 1
        ("1000", "1110", 1 / 2, 1 / 3),  # P = 1, R = 1/3
        ("1110", "0111", 2 / 3, 2 / 4),  # P = R = 2/3
        ("1111", "0001", 2 / 5, 1 / 4),
        ("1111", "1111", 1.0, 1.0),
        ("0000", "1100", 0.0, 0.0),
        ("1100", "0000", 0.0, 0.0),
        ("0000", "0000", 1.0, 1.0),
    ],
)
def test_f_measure_and_iou_by_hand(prediction: str, truth: str, f: float, iou: float) -> None:
    assert f_measure(mask(prediction), mask(truth)) == pytest.approx(f)
    assert intersection_over_union(mask(prediction), mask(truth)) == pytest.approx(iou)


@pytest.mark.parametrize(
    ("prediction", "truth", "f", "positive"),
    [
        ("1100", "1000", 2 / 3, True),
        ("0000", "1000", 0.0, True),
        ("1111", "1111", 1.0, True),
        ("0000", "0000", 1.0, False),
        ("1000", "0000", 6 / 7, False),  # 3 of 4 pixels negative, all 4 should be: P = 1, R = 3/4
        ("1110", "0000", 2 / 5, False),
        ("1111", "0000", 0.0, False),
    ],
)
def test_f_measure_of_a_negative_image_is_that_of_its_negative_pixels(
    prediction: str, truth: str, f: float, positive: bool
) -> None:
    assert compute_region_f_measure(mask(prediction), mask(truth)) == (pytest.approx(f), positive)


def test_refuses_masks_of_two_shapes() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \(2, 2\) and \(1, 2\)"):
        f_measure(mask("1100"), np.ones((1, 2), dtype=bool))


# F: 2/3 and 0 of the positive ones; 6/7, 2/5 and 1 of the negative ones
PREDICTIONS = ("1100", "0100", "1000", "1110", "0000")
TRUTHS = ("1000", "1000", "0000", "0000", "0000")
EXPECTED = {"f_pos": 1 / 3, "f_neg": (6 / 7 + 2 / 5 + 1) / 3, "f_mean": (1 / 3 + (6 / 7 + 2 / 5 + 1) / 3) / 2}


@pytest.mark.parametrize("sizes", [[5], [1, 1, 1, 1, 1], [2, 3], [4, 1]])
@pytest.mark.parametrize("statistic", ["f_pos", "f_neg", "f_mean"])
def test_mean_over_the_images_of_a_class_however_batched(statistic: str, sizes: list[int]) -> None:
    metric = RegionFMeasure(statistic)
    predictions, truths = batch(*PREDICTIONS).split(sizes), batch(*TRUTHS).split(sizes)
    for prediction, truth in zip(predictions, truths, strict=True):
        metric(prediction, truth)
    assert metric.aggregate().item() == pytest.approx(EXPECTED[statistic])


def test_lists_of_images_of_mixed_sizes() -> None:
    metric = RegionFMeasure("f_mean")
    wide = torch.tensor([[[1.0, 1, 1, 0, 0, 0, 0, 0]]])  # 3 of 8 pixels wrong on a negative: 2 * 5 / (5 + 8)
    metric([batch("1100")[0], wide], [batch("1000")[0], torch.zeros(1, 1, 8)])
    assert metric.aggregate().item() == pytest.approx((2 / 3 + 10 / 13) / 2)


def test_reset_forgets() -> None:
    metric = RegionFMeasure("f_pos")
    metric(batch("0000"), batch("1000"))
    metric.reset()
    metric(batch("1000"), batch("1000"))
    assert metric.aggregate().item() == 1.0


@pytest.mark.parametrize(
    ("truth", "known", "unknown"), [("1000", "f_pos", ["f_neg", "f_mean"]), ("0000", "f_neg", ["f_pos", "f_mean"])]
)
def test_nan_when_a_class_is_missing(truth: str, known: str, unknown: list[str]) -> None:
    values = {}
    for statistic in (known, *unknown):
        metric = RegionFMeasure(statistic)
        metric(batch(truth), batch(truth))
        values[statistic] = metric.aggregate().item()
    assert values[known] == 1.0
    assert all(math.isnan(values[statistic]) for statistic in unknown)


@pytest.mark.parametrize(
    ("predictions", "truths", "expected"),
    [("1100", "1000", 2 / 3), ("1000", "0000", 6 / 7), ("1100 1000", "1000 0000", (2 / 3 + 6 / 7) / 2)],
)
def test_mean_of_what_is_known(predictions: str, truths: str, expected: float) -> None:
    metric = RegionFMeasure("f_known")
    for prediction, truth in zip(predictions.split(), truths.split(), strict=True):
        metric(batch(prediction), batch(truth))
    assert metric.aggregate().item() == pytest.approx(expected)


def test_refuses_an_unknown_statistic() -> None:
    with pytest.raises(ValueError, match="must be one of f_pos, f_neg, f_mean, f_known, got 'dice'"):
        RegionFMeasure("dice")


def test_integer_masks_and_tensors_are_sets_too() -> None:
    """Negative image, 1 of 2 pixels marked: 2 * 1 / (1 + 2), whatever the type of the 0 and 1."""
    for kind in (np.uint8, np.int64, np.float32, bool):
        prediction, truth = np.array([[1, 0]], kind), np.zeros((1, 2), kind)
        assert compute_region_f_measure(prediction, truth) == (pytest.approx(2 / 3), False)
        assert compute_region_f_measure(torch.tensor(prediction), torch.tensor(truth))[0] == pytest.approx(2 / 3)
    assert intersection_over_union(np.array([1, 1, 0]), np.array([1, 0, 0])) == 0.5


@pytest.mark.parametrize("bad", [np.nan, 0.5, 255])
def test_what_is_not_a_mask_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="prediction must be 0 or 1"):
        compute_region_f_measure(np.array([[bad, 0.0]]), np.array([[0.0, 1.0]]))
    with pytest.raises(ValueError, match="truth must be 0 or 1"):
        RegionFMeasure()([np.array([[[1.0, 0.0]]])], [np.array([[[bad, 1.0]]])])
