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

"""Scores of images of four pixels by hand, and the trivial answers by brute force."""

from __future__ import annotations

import dataclasses
import math
from itertools import product

import numpy as np
import pytest
from scripts.evaluation.scores import (
    DISC_FRACTIONS,
    ImageScores,
    Thresholds,
    baseline_table,
    centred_disc,
    choose_thresholds,
    score_image,
    summarise,
    volume_dice,
)
from scripts.metrics.area import THRESHOLDS, area_errors, threshold_by_areas
from scripts.metrics.region import compute_region_f_measure
from scripts.runtime.errors import InputError

HALF = Thresholds(image=0.5, pixel=0.5)


def scores_of(label: int, probability: float) -> ImageScores:
    return ImageScores(image="a", label=label, probability=probability, area_predicted=0.0)


def grid(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def levels(*rows: str) -> np.ndarray:
    """Probabilities from tenths: '9' is 0.9; and '+' stands for 0.55."""
    return np.array([[0.55 if character == "+" else int(character) / 10 for character in row] for row in rows])


@pytest.mark.parametrize("shape", [(50, 50), (51, 51), (40, 90), (33, 64)])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.75, 0.95])
def test_disc_has_its_fraction_and_no_side(shape: tuple[int, int], fraction: float) -> None:
    disc = centred_disc(shape, fraction)
    assert disc.shape == shape
    assert disc.mean() == pytest.approx(fraction, abs=20 / disc.size)  # some 16 pixels have one distance
    np.testing.assert_array_equal(disc, disc[::-1])
    np.testing.assert_array_equal(disc, disc[:, ::-1])


def test_disc_holds_the_pixels_nearest_to_the_middle() -> None:
    np.testing.assert_array_equal(centred_disc((3, 3), 0.5), grid(".#.", "###", ".#."))
    np.testing.assert_array_equal(centred_disc((4, 4), 0.25), grid("....", ".##.", ".##.", "...."))
    # wider than high: cut off above and below
    np.testing.assert_array_equal(centred_disc((2, 6), 0.5), grid(".####.", ".####."))


def test_all_of_a_disc_of_fraction_one() -> None:
    assert centred_disc((7, 11), 1.0).all()


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 1], [0.2, 0.6], 0.4),
        ([0, 0, 1, 1], [0.1, 0.3, 0.7, 0.9], 0.5),
        ([0, 1, 0, 1], [0.1, 0.3, 0.4, 0.8], 0.6),  # .2 and .6 hit three of four: the upper one of the two
        ([1, 1], [0.2, 0.6], 0.0),
        ([0, 0], [0.2, 0.6], 1.0),
        ([1, 0], [0.2, 0.6], 1.0),  # 0 and 1 hit one of two, .4 none
        ([0, 0, 1], [0.5, 0.5, 0.75], 0.625),  # ties count once
        ([0, 1, 0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.35),  # .15, .35, .55 hit four: the middle one
    ],
)
def test_best_image_threshold_by_hand(labels: list[int], probabilities: list[float], expected: float) -> None:
    thresholds = choose_thresholds([scores_of(*pair) for pair in zip(labels, probabilities, strict=True)])
    assert thresholds == Thresholds(image=pytest.approx(expected), pixel=None)


@pytest.mark.parametrize("seed", range(5))
def test_no_image_threshold_is_better_than_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, probabilities = rng.integers(0, 2, 30), rng.random(30).round(1)

    def accuracy(threshold: float) -> float:
        return float(np.mean((probabilities >= threshold) == labels))

    chosen = choose_thresholds([scores_of(*pair) for pair in zip(labels, probabilities, strict=True)])
    assert accuracy(chosen.image) == max(accuracy(threshold) for threshold in np.linspace(0, 1, 1001))


def test_scores_of_a_positive_image_by_hand() -> None:
    truth = grid("#.", "..")
    scores = score_image("a.png", 1, 0.7, levels("95", "64"), truth)  # 0.5 counts as predicted
    assert (scores.image, scores.label, scores.probability) == ("a.png", 1, 0.7)
    assert (scores.area_predicted, scores.area_true) == (0.75, 0.25)
    assert scores.f_measure == pytest.approx(2 / 4)  # one pixel in common, 3 and 1
    assert scores.iou == pytest.approx(1 / 3)
    assert scores.all_ones_f == pytest.approx(2 / 5)
    assert scores.disc_f == pytest.approx((2 / 5,) * len(DISC_FRACTIONS))  # the four pixels are equally far


def test_scores_of_a_negative_image_by_hand() -> None:
    scores = score_image("a.png", 0, 0.7, levels("77", "74"), grid("..", ".."), threshold=0.6)
    assert scores.area_true == 0.0
    assert scores.f_measure == pytest.approx(2 / 5)  # the negative pixels: 1 of 4
    assert scores.iou == 0.0
    assert scores.all_ones_f == 0.0
    assert scores.disc_f == (0.0,) * len(DISC_FRACTIONS)


def test_without_truth_there_is_the_area_alone() -> None:
    """Of .9 and .1, half the pixels each, all reach the thresholds up to .1, half of them those up to .9."""
    scores = score_image("a.png", 1, 0.7, levels("99", "11"), None, area=0.6)
    errors = (0.4,) * 10 + (0.0,) * 80 + (0.5,) * 9  # from 0.5 to 0.6 is as stated
    assert scores.area_errors == pytest.approx(errors)
    assert dataclasses.replace(scores, area_errors=None) == ImageScores("a.png", 1, 0.7, area_predicted=0.5)


def test_recall_at_the_border_and_inside() -> None:
    """Of 20 x 30 pixels the outer 7 % are a row and two columns: a row marked but for one corner, and one pixel in."""
    truth = np.zeros((20, 30), bool)
    truth[0], truth[1, 2], truth[1, 27] = True, True, True
    probability = truth.astype(float)
    probability[0, 0] = probability[1, 27] = 0
    scores = score_image("a", 1, 0.9, probability, truth)
    assert (scores.border_recall, scores.inner_recall) == (pytest.approx(29 / 30), 0.5)
    nothing_there = score_image("a", 1, 0.9, probability, truth & False)
    assert (nothing_there.border_recall, nothing_there.inner_recall) == (None, None)


def test_pixel_threshold_by_areas_by_hand() -> None:
    stated = score_image("p", 1, 0.9, levels("84", "11"), None, area=0.3)
    also = score_image("q", 1, 0.8, levels("88", "11"), None, area=0.5)
    unknown = score_image("r", 1, 0.7, levels("99", "99"), None)
    negative = score_image("n", 0, 0.1, levels("66", "66"), None)
    # as stated in both from .41 to .8, whose middle is .61; .25 is as stated when .3 is
    assert choose_thresholds([stated, also, unknown, negative]).areas == pytest.approx(0.61)
    assert choose_thresholds([unknown, negative]).areas is None


def test_marking_nothing_is_not_as_stated_where_the_area_is_less_than_a_step() -> None:
    """Of 0.4 at least a quarter is positive: of .9, .3, .2 and .1 the thresholds of .31 to .9 alone mark enough."""
    errors = area_errors(levels("93", "21"), area=0.4, area_step=0.5)
    assert errors == pytest.approx((0.6,) * 10 + (0.35,) * 10 + (0.1,) * 10 + (0.0,) * 60 + (0.1,) * 9)
    assert threshold_by_areas(errors) == pytest.approx(0.61)


@pytest.mark.parametrize("truth", ["random", "empty", "full"])
def test_f_measure_at_every_threshold_by_brute_force(truth: str) -> None:
    rng = np.random.default_rng(0)
    probability = rng.random((20, 30)).round(2)  # many of them equal to a threshold
    masks = {"random": rng.random((20, 30)) < probability, "empty": probability > 2, "full": probability < 2}
    scores = score_image("a", 1, 0.5, probability, masks[truth])
    assert pytest.approx([k / 100 for k in range(1, 100)]) == THRESHOLDS
    for threshold, f in zip(THRESHOLDS, scores.f_by_threshold, strict=True):
        assert f == pytest.approx(compute_region_f_measure(probability >= threshold, masks[truth])[0], abs=1e-12)


def test_best_pixel_threshold_by_hand() -> None:
    """F+ is 2/3 up to .4 and 1 up to .8, F- 1 from .61 on, so that .61 to .8 are as good: the middle is .71."""
    truth = grid("#.", "..")
    scores = [
        score_image("p", 1, 0.9, levels("84", "11"), truth),
        score_image("n", 0, 0.1, levels("66", "66"), truth & ~truth),
    ]
    assert choose_thresholds(scores).pixel == pytest.approx(0.71)


def test_discs_of_every_fraction_by_brute_force() -> None:
    truth = np.zeros((20, 30), bool)
    truth[4:14, 10:18] = True
    scores = score_image("a", 1, 0.5, truth.astype(float), truth)
    assert pytest.approx([0.05 * k for k in range(1, 20)]) == DISC_FRACTIONS
    distances = {(y, x): math.hypot(y - 9.5, x - 14.5) for y, x in product(range(20), range(30))}
    for fraction, f in zip(DISC_FRACTIONS, scores.disc_f, strict=True):
        # the disc that holds the pixel at this place in the order of distance
        limit = sorted(distances.values())[math.floor(fraction * 599)]
        disc = {place for place, distance in distances.items() if distance <= limit}
        common = sum(bool(truth[place]) for place in disc)
        assert f == pytest.approx(2 * common / (len(disc) + 80), abs=1e-12)


def four_images() -> list[ImageScores]:
    """Images of 3x3; F of the positive ones is 2/3 and 1, of the negative ones 16/17 and 0."""
    middle, cross, none = grid("...", ".#.", "..."), grid(".#.", "###", ".#."), grid("...", "...", "...")
    return [
        score_image("a", 1, 0.9, levels("111", "19+", "111"), middle),  # F = 2 / 3, IoU = 1 / 2
        score_image("b", 1, 0.4, levels("191", "999", "191"), cross),  # F = 1, IoU = 1
        score_image("c", 0, 0.6, levels("+11", "111", "111"), none),  # 8 of 9 negative: F = 16 / 17
        score_image("d", 0, 0.2, levels("999", "999", "999"), none),  # F = 0
    ]


def test_summary_of_four_images_by_hand() -> None:
    # Small discs hold the middle pixel, larger ones the cross, then all. Their F+ is (1 + 2/6) / 2, (2/6 + 1) / 2 and
    # (2/10 + 10/14) / 2: the smallest of the best has 5 %. It leaves 8 of 9 pixels of a negative.
    all_ones_f_pos = (2 / 10 + 10 / 14) / 2  # 2 a / (1 + a) of a = 1/9 and 5/9
    expected = {
        "f_pos": 5 / 6,
        "f_neg": 8 / 17,
        "f_mean": (5 / 6 + 8 / 17) / 2,
        "dice_pos": 5 / 6,
        "iou_pos": 3 / 4,
        "inner_recall": 1.0,  # 7 % of three pixels is none
        "best_threshold": 0.6,  # where .55 is negative: F = 1, 1; 1, 0
        "best_threshold_f_pos": 1.0,
        "best_threshold_f_neg": 1 / 2,
        "best_threshold_f_mean": 3 / 4,
        "all_ones_f_pos": all_ones_f_pos,
        "all_ones_f_neg": 0.0,
        "all_ones_f_mean": all_ones_f_pos / 2,
        "disc_f_pos": 2 / 3,
        "disc_f_neg": 16 / 17,
        "disc_f_mean": (2 / 3 + 16 / 17) / 2,
        "disc_area": 0.05,
        "auc": 3 / 4,  # .4 < .6 is the one of four pairs in the wrong order
        "accuracy": 3 / 4,
        "image_threshold": 0.3,
    }
    assert summarise(four_images(), Thresholds(image=0.3, pixel=0.6)) == pytest.approx(expected)


def test_without_masks_in_validation_only_its_threshold_is_left_out() -> None:
    complete = summarise(four_images(), Thresholds(image=0.3, pixel=0.6))
    without = summarise(four_images(), Thresholds(image=0.3, pixel=None))
    assert without == {name: value for name, value in complete.items() if not name.startswith("best_threshold")}


def test_table_shows_the_prediction_beside_what_costs_nothing() -> None:
    lines = baseline_table(summarise(four_images(), Thresholds(image=0.3, pixel=0.6))).splitlines()
    numbers = [line.split()[-3:] for line in lines]
    assert numbers == [
        ["F+", "F-", "mean"],
        ["0.833", "0.471", "0.652"],
        ["1.000", "0.500", "0.750"],
        ["0.457", "0.000", "0.229"],
        ["0.667", "0.941", "0.804"],
    ]
    assert "0.60" in lines[2]
    assert "5%" in lines[4]
    without = baseline_table(summarise(four_images(), Thresholds(image=0.3, pixel=None))).splitlines()
    assert without == lines[:2] + lines[3:]
    assert baseline_table({"auc": 1.0}) == ""


@pytest.mark.parametrize("area", [0.1, 0.25, 0.7])
def test_marking_everything_has_twice_the_area_over_one_plus_the_area(area: float) -> None:
    truth = np.arange(100).reshape(10, 10) < round(100 * area)
    images = {1: truth, 0: truth & ~truth}
    scores = [score_image("a", label, 0.9, np.full((10, 10), 0.5), mask) for label, mask in images.items()]
    summary = summarise(scores, Thresholds(0.5, 0.5))
    assert summary["all_ones_f_pos"] == pytest.approx(2 * area / (1 + area))
    assert summary["all_ones_f_neg"] == 0.0


def test_the_size_of_the_disc_is_the_best_for_the_positives_alone() -> None:
    everything = np.full((20, 20), True)
    scores = [score_image("p", 1, 0.9, everything.astype(float), everything)]
    scores += [score_image("n", 0, 0.1, everything.astype(float), ~everything)] * 2
    assert summarise(scores, HALF)["disc_area"] == 0.95


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_part_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = [0, 1, *rng.integers(0, 2, 20).tolist()]
    probabilities = rng.random(22).round(1).tolist()  # with ties, which count half
    summary = summarise([scores_of(*pair) for pair in zip(labels, probabilities, strict=True)], HALF)
    positive, negative = ([p for p, y in zip(probabilities, labels, strict=True) if y == label] for label in (1, 0))
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in product(positive, negative)]
    assert summary["auc"] == pytest.approx(np.mean(pairs))


def test_accuracy_counts_a_probability_at_the_threshold_as_positive() -> None:
    scores = [scores_of(1, 0.5), scores_of(0, 0.5), scores_of(1, 0.4), scores_of(0, 0.1)]
    assert summarise(scores, Thresholds(0.5, None))["accuracy"] == 0.5
    assert summarise(scores, Thresholds(0.4, None))["accuracy"] == 0.75


def test_one_image_without_truth_leaves_the_image_level_metrics_alone() -> None:
    truth = grid("#.", "..")
    scores = [score_image("a", 1, 0.9, levels("91", "11"), truth), score_image("b", 0, 0.2, levels("91", "11"), None)]
    assert choose_thresholds(scores).pixel is None
    assert summarise(scores, HALF) == {"auc": 1.0, "accuracy": 1.0, "image_threshold": 0.5}


def test_dice_of_a_volume_pools_the_voxels_of_its_slices() -> None:
    """Volume a: 3 + 1 voxels predicted, 2 + 0 true, 1 + 0 of them hit. Volume b: nothing in it, nothing found."""
    nothing = grid("....", "....")
    slices = [
        ("a", levels("9900", "9000"), grid("#..#", "....")),
        ("a", levels("0000", "0009"), nothing),
        ("b", levels("0000", "0000"), nothing),
        (None, levels("9999", "9999"), grid("####", "####")),  # a picture is of no volume
    ]
    scores = [
        score_image("", int(truth.any()), 0.5, probability, truth, volume=volume)
        for volume, probability, truth in slices
    ]
    assert volume_dice(scores) == {"a": pytest.approx(2 * 1 / (4 + 2)), "b": 1.0}


@pytest.mark.parametrize("threshold", [50, -0.5, math.nan])
def test_refuses_a_threshold_that_is_no_probability(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold must be a fraction from 0 to 1"):
        score_image("a", 1, 0.5, np.full((2, 2), 0.5), None, threshold)
