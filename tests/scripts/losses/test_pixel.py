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

"""Losses from pixel labels, against arithmetic on paper."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.losses.pixel import ContourLoss, PixelLoss, contours

TARGET = torch.tensor([[1.0, 0.5]])


def test_is_the_mean_cross_entropy_of_the_pixels_summed_over_the_maps() -> None:
    prediction = torch.tensor([[[[0.8, 0.3]], [[0.5, 0.9]]]])  # two maps of two pixels
    truth = torch.tensor([[[[1.0, 0.0]]]])
    first = -(math.log(0.8) + math.log(0.7)) / 2
    second = -(math.log(0.5) + math.log(0.1)) / 2
    assert float(PixelLoss()(prediction, TARGET, truth)) == pytest.approx(first + second, rel=1e-5)
    weighted = PixelLoss([1.0, 0.25], reduction="none")(prediction, TARGET, truth)
    assert weighted.tolist() == pytest.approx([first + second / 4], rel=1e-5)
    assert float(PixelLoss([1.0, 0.25])(prediction[:, :1], TARGET, truth)) == pytest.approx(first, rel=1e-5)


def test_padding_does_not_count() -> None:
    prediction = torch.tensor([[[[0.8, 0.01]]]])
    truth, valid = torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert float(PixelLoss()(prediction, TARGET, truth, valid)) == pytest.approx(-math.log(0.8), rel=1e-5)


def test_contours_lie_on_both_sides_of_a_boundary_and_not_on_the_frame() -> None:
    truth = torch.zeros(1, 1, 4, 8)
    truth[..., 4:] = 1
    assert contours(truth, 1)[0, 0].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]] * 4
    assert contours(truth, 2)[0, 0].tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]] * 4


def test_the_second_half_of_the_maps_is_compared_with_contours() -> None:
    truth = torch.zeros(1, 1, 3, 8)
    truth[..., 4:] = 1
    objects, edges = truth * 0.8 + 0.1, contours(truth, 1) * 0.6 + 0.2  # errors of 0.1 and of 0.2 everywhere
    loss = ContourLoss(width=1)
    maps = torch.cat([objects, objects, edges, edges], dim=1)
    assert float(loss(maps, TARGET, truth)) == pytest.approx(-2 * math.log(0.9) - 2 * math.log(0.8), rel=1e-5)
    assert float(loss(objects, TARGET, truth)) == pytest.approx(-math.log(0.9), rel=1e-5)
    without = ContourLoss(contour=False)(objects.expand(-1, 4, -1, -1), TARGET, truth)
    assert float(without) == pytest.approx(-4 * math.log(0.9), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelLoss(reduction="sum"), "reduction must be"),
        (lambda: PixelLoss([-1.0]), "weights must be 0 or more"),
        (lambda: PixelLoss()(torch.rand(1, 1, 2, 2), TARGET), "give every positive image a 'mask'"),
        (lambda: PixelLoss()(torch.rand(1, 1, 2, 2), TARGET, torch.ones(1, 1, 2, 3)), "expected truth of shape"),
        (lambda: PixelLoss([1, 1])(torch.rand(1, 3, 2, 2), TARGET, torch.ones(1, 1, 2, 2)), "1 or 2 maps"),
    ],
)
def test_refuses_what_does_not_fit(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()
