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
from scripts.images.annotations import BinaryMask


def pixel(*channels: float, dtype: type = np.float32) -> np.ndarray:
    """An image of one pixel, (C, 1, 1)."""
    return np.array(channels, dtype).reshape(-1, 1, 1)


@pytest.mark.parametrize("factor", [1, 255])
def test_binary_mask_of_any_foreground_value(factor: int) -> None:
    mask = BinaryMask()(np.array([[[0, 1], [1, 0]]], np.uint8) * factor)
    assert torch.equal(mask, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((3,), 1.0),  # the third of several classes
        ((0.004,), 1.0),
        ((0, 0, 0), 0.0),
        ((0, 0, 1), 1.0),  # a colour on black
        ((0, 255), 0.0),  # opaque black: alpha does not count
        ((255, 255), 1.0),
        ((0, 0, 0, 255), 0.0),
        ((0, 7, 0, 255), 1.0),
        ((255, 0), 0.0),  # nothing is to be seen there
        ((0, 7, 0, 0), 0.0),
        ((0, 7, 0, 1), 1.0),
    ],
)
def test_binary_mask_of_classes_colours_and_alpha(channels: tuple[float, ...], expected: float) -> None:
    mask = BinaryMask()(pixel(*channels))
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[[expected]]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_mask_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the mask has values that are not finite"):
        BinaryMask()(np.array([[[0, 1], [value, 0]]], np.float32))


@pytest.mark.parametrize("shape", [(5, 4, 4), (4, 4)])
def test_binary_mask_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a mask of shape"):
        BinaryMask()(np.zeros(shape))
