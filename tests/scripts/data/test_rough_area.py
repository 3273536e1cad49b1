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

"""The rough area against values worked out by hand, where floating point is known to trip."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.data.rough_area import rough_area


def mask_of(pixels: int, size: int) -> np.ndarray:
    """A mask of `size` pixels, the first `pixels` of them cancer."""
    return np.arange(size) < pixels


@pytest.mark.parametrize(
    ("pixels", "size", "step", "expected"),
    [
        (0, 10, 0.1, 0.0),
        (3, 10, 0.1, 0.3),  # 3 * 0.1 is 0.30000000000000004
        (7, 10, 0.1, 0.7),
        (6, 10, 0.1, 0.6),  # 0.6 / 0.1 is 5.999999999999999
        (31, 100, 0.1, 0.4),
        (29, 100, 0.1, 0.3),
        (29, 100, 0.05, 0.3),
        (31, 100, 0.05, 0.35),
        (35, 100, 0.05, 0.35),  # 0.35 / 0.05 is 6.999999999999999
        (15, 100, 0.05, 0.15),
        (1, 10**6, 0.1, 0.1),
        (1, 10**6, 0.05, 0.05),
        (300_001, 10**6, 0.1, 0.4),
        (999_999, 10**6, 0.1, 1.0),
        (10, 10, 0.1, 1.0),
        (95, 100, 0.3, 1.0),  # four steps of 0.3 are 1.2
        (1, 10, 1, 1.0),
    ],
)
def test_rounds_up_to_the_next_step(pixels: int, size: int, step: float, expected: float) -> None:
    assert rough_area(mask_of(pixels, size), step) == expected


def test_any_value_but_zero_is_cancer_in_any_shape() -> None:
    mask = np.zeros((1, 4, 5), np.uint8)
    mask[0, 1, :3] = 255  # 3 of 20 pixels: 0.15
    assert rough_area(mask) == 0.2
    assert rough_area(mask.astype(float) / 255, step=0.05) == 0.15


@pytest.mark.parametrize("step", [0, -0.1, 1.5, float("nan")])
def test_refuses_a_step_out_of_range(step: float) -> None:
    with pytest.raises(ValueError, match=r"step must be in \(0, 1\], got"):
        rough_area(mask_of(1, 2), step)


def test_refuses_a_mask_without_pixels() -> None:
    with pytest.raises(ValueError, match=r"no pixels: its shape is \(0, 5\)"):
        rough_area(np.zeros((0, 5)))
