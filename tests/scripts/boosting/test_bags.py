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

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.boosting.bags import bag_gradient, bag_losses
from scripts.losses.pooling import generalized_mean

BAGS = np.array([0, 3, 4, 9, 10, 12])
LABELS = np.array([True, True, False, False, True])


def loss_of(scores: np.ndarray, bags: np.ndarray, labels: np.ndarray, r: float) -> float:
    """The loss as it is written on paper, bag by bag."""
    total = 0.0
    for index, positive in enumerate(labels):
        p = 1 / (1 + np.exp(-scores[bags[index] : bags[index + 1]]))
        bag_p = np.mean(p**r) ** (1 / r)
        total -= np.log(bag_p) if positive else np.log(1 - bag_p)
    return total


@pytest.mark.parametrize("r", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_derivatives_are_those_of_finite_differences(r: float, spread: float) -> None:
    scores = spread * np.random.default_rng(0).standard_normal(12)
    gradient, hessian = bag_gradient(scores, BAGS, LABELS, r)
    assert bag_losses(scores, BAGS, LABELS, r).sum() == pytest.approx(loss_of(scores, BAGS, LABELS, r), rel=1e-12)
    for j, step in enumerate(np.eye(12)):
        left, middle, right = (loss_of(scores + h * step, BAGS, LABELS, r) for h in (-1e-4, 0.0, 1e-4))
        assert gradient[j] == pytest.approx((right - left) / 2e-4, rel=1e-6, abs=1e-8)
        assert hessian[j] == pytest.approx((right - 2 * middle + left) / 1e-8, rel=1e-4, abs=1e-6)


def test_derivatives_of_one_instance_are_those_of_logistic_regression() -> None:
    scores = np.array([0.7, 0.7, -1.9, -1.9])
    gradient, hessian = bag_gradient(scores, np.arange(5), np.array([True, False, True, False]))
    p = 1 / (1 + np.exp(-scores))
    assert gradient == pytest.approx(p - [1, 0, 1, 0])
    assert hessian == pytest.approx(p * (1 - p))


def test_curvature_of_a_positive_bag_may_be_negative() -> None:
    """Two instances at p = 0.5, r = 4: w = 0.5, g = -0.25, H = -0.25 (4 * 0.5 * 0.5 - 0.5) = -0.125."""
    gradient, hessian = bag_gradient(np.zeros(2), np.array([0, 2]), np.array([True]))
    assert gradient.tolist() == [-0.25, -0.25]
    assert hessian.tolist() == [-0.125, -0.125]


@pytest.mark.parametrize("size", [40.0, 300.0, 1e6])
@pytest.mark.parametrize("positive", [True, False])
def test_extreme_scores_are_finite(size: float, positive: bool) -> None:
    for scores in ([size] * 3, [-size] * 3, [size, -size, 0.0], [-size, -size, size]):
        arguments = np.array(scores), np.array([0, 3]), np.array([positive])
        results = bag_losses(*arguments), *bag_gradient(*arguments)
        assert all(np.isfinite(result).all() for result in results)


@pytest.mark.parametrize("score", [40.0, -40.0])
def test_extreme_losses_keep_their_digits(score: float) -> None:
    """All p alike, P = p: -log p = log(1 + exp(-h)), and -log(1 - p) = log(1 + exp(h))."""
    scores, bags = np.full(8, score), np.array([0, 3, 8])
    losses = bag_losses(scores, bags, np.array([True, False]))
    assert losses == pytest.approx([np.logaddexp(0, -score), np.logaddexp(0, score)], rel=1e-12)
    gradient, _ = bag_gradient(scores, bags, np.array([True, False]))
    p, q = 1 / (1 + math.exp(-score)), 1 / (1 + math.exp(score))
    assert gradient == pytest.approx([-q / 3] * 3 + [p / 5] * 5, rel=1e-12)


def test_negative_bag_close_to_one_keeps_its_digits() -> None:
    """Near to 1 every generalized mean is the mean: 1 - P is the mean of 1 - p, to the first order."""
    scores = np.array([40.0, 35.0, 36.0])
    loss = bag_losses(scores, np.array([0, 3]), np.array([False])).item()
    assert loss == pytest.approx(-math.log(np.exp(-scores).mean()), rel=1e-12)


def test_bag_probability_is_the_generalized_mean() -> None:
    scores = np.random.default_rng(1).standard_normal(3)
    probability = generalized_mean(torch.from_numpy(scores).sigmoid().view(1, 1, 3), r=3.0).item()
    losses = [bag_losses(scores, np.array([0, 3]), np.array([label]), r=3.0).item() for label in (True, False)]
    assert losses == pytest.approx([-math.log(probability), -math.log(1 - probability)])


@pytest.mark.parametrize(
    ("bags", "labels"), [([0, 3, 3, 6], [1, 0, 1]), ([0, 3], [1]), ([1, 6], [1]), ([0, 3, 6], [1])]
)
def test_refuses_bags(bags: list[int], labels: list[int]) -> None:
    with pytest.raises(ValueError, match="expected bags from 0 to 6, none of them empty"):
        bag_gradient(np.zeros(6), np.array(bags), np.array(labels))
