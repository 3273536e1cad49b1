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

"""Thinning: equal to scikit-image's implementation of the same algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scripts.metrics.thinning import thin
from skimage import morphology


def blobs(shape: tuple[int, int], seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2) > 0.5


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(40, 61), (1, 30), (30, 2)])
def test_random_masks_are_thinned_as_scikit_image_does(shape, density):
    for seed in range(10):
        mask = np.random.default_rng(seed).random(shape) < density
        np.testing.assert_array_equal(thin(mask), morphology.thin(mask))


@pytest.mark.parametrize("seed", range(5))
def test_thick_shapes_and_their_outlines(seed):
    mask = blobs((90, 70), seed)
    outline = mask ^ ndimage.binary_erosion(mask, iterations=2)
    for shape in (mask, ~mask, outline, mask.T):
        np.testing.assert_array_equal(thin(shape), morphology.thin(shape))


def test_shapes_known_without_an_algorithm():
    np.testing.assert_array_equal(thin(np.zeros((4, 5))), np.zeros((4, 5), bool))
    np.testing.assert_array_equal(thin(np.ones((1, 1))), [[True]])
    line = np.zeros((5, 9), bool)
    line[2, 1:8] = True
    np.testing.assert_array_equal(thin(line), line)  # already thin
    bar = np.zeros((7, 40), bool)
    bar[2:5, 2:38] = True
    assert np.all(np.flatnonzero(thin(bar).any(axis=1)) == [3])  # a bar of three rows becomes its middle row


def test_a_volume_is_refused():
    with pytest.raises(ValueError, match=r"shape \(H, W\), got \(2, 3, 4\)"):
        thin(np.zeros((2, 3, 4)))
