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

"""The score of doubt, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scripts.review.doubt import Doubt, Finding, doubt_of, outline_entropy
from scripts.runtime.errors import InputError


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.parametrize(
    ("predicted", "area", "expected"),
    [
        (0.35, 0.4, 0.0),  # within 0.3..0.4
        (0.30, 0.4, 0.0),
        (0.50, 0.4, 0.5),  # a step above
        (0.10, 0.4, 2 / 3),  # two steps below 0.3
        (0.00, 0.1, 0.0),  # 0..0.1
        (0.90, None, 0.0),  # nothing is stated
    ],
)
def test_areas_outside_of_the_stated_interval(predicted: float, area: float | None, expected: float) -> None:
    doubt = doubt_of(Finding(probability=0.8, area=predicted, outline=0.3), 1, area, area_step=0.1)
    assert doubt.area == pytest.approx(expected, abs=1e-12)
    assert doubt.label == pytest.approx(0.2)
    assert doubt.outline == 0.3
    assert doubt.total == pytest.approx(0.2 + expected + 0.15)


def test_of_a_negative_image_every_pixel_is_one_too_many() -> None:
    assert doubt_of(Finding(0.75, 0.25, 0.0), 0, area_step=0.25) == Doubt(0.75, 0.5, 0.0)
    assert doubt_of(Finding(0.0, 0.0, 0.0), 0).total == 0


def test_a_step_out_of_range() -> None:
    with pytest.raises(InputError, match="area_step"):
        doubt_of(Finding(0.5, 0.5, 0.5), 1, 0.5, area_step=0)


def test_the_entropy_of_both_sides_of_the_outline() -> None:
    """Of the columns .99 .8 | .3 .01 the middle two are at the outline; .5 is positive."""
    p = np.tile([0.99, 0.8, 0.3, 0.01], (3, 1))
    assert outline_entropy(p) == pytest.approx((entropy(0.8) + entropy(0.3)) / 2)
    assert outline_entropy(p.T) == pytest.approx((entropy(0.8) + entropy(0.3)) / 2)
    assert outline_entropy(np.array([[0.5, 0.01]])) == pytest.approx((1 + entropy(0.01)) / 2)
    assert outline_entropy(p, threshold=0.9) == pytest.approx((entropy(0.99) + entropy(0.8)) / 2)


def test_the_band_grows_with_the_image() -> None:
    """A hundredth of 200 columns are two, on each side."""
    p = np.tile([1.0] * 98 + [0.9, 0.8, 0.3, 0.2] + [0.0] * 98, (2, 1))
    assert outline_entropy(p) == pytest.approx(np.mean([entropy(v) for v in (0.9, 0.8, 0.3, 0.2)]))


@pytest.mark.parametrize("value", [0.0, 0.4, 0.6, 1.0])
def test_without_an_outline_there_is_none(value: float) -> None:
    assert outline_entropy(np.full((4, 5), value)) == 0
