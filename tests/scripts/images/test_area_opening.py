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

"""Area opening and closing, against scikit-image's by a max-tree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scripts.images.area_opening import area_closing, area_opening
from skimage import morphology


@pytest.mark.parametrize("levels", [2, 5, 65536])
@pytest.mark.parametrize("shape", [(3, 30), (17, 5), (24, 24)])
def test_random_levels(shape: tuple[int, int], levels: int) -> None:
    random = np.random.default_rng(levels)
    for least in (1, 2, 7, 30, 80):
        image = random.integers(0, levels, shape).astype(np.uint16)
        np.testing.assert_array_equal(area_opening(image, least), morphology.area_opening(image, least))
        np.testing.assert_array_equal(area_closing(image, least), morphology.area_closing(image, least))


def test_a_smooth_map_with_flat_parts() -> None:
    smooth = gaussian_filter(np.random.default_rng(0).random((90, 130)), 3) * 30 - 14.5
    image = (smooth.clip(0, 1) * 65535).round().astype(np.uint16)
    assert (image == 0).mean() > 0.05
    assert (image == 65535).mean() > 0.05
    opened = area_opening(image, 60)
    np.testing.assert_array_equal(opened, morphology.area_opening(image, 60))
    np.testing.assert_array_equal(area_closing(opened, 60), morphology.area_closing(opened, 60))


def test_parts_touch_by_their_sides_and_not_around_an_end_of_a_row() -> None:
    image = np.zeros((4, 4), np.uint8)
    image[0, 3] = image[1, 0] = 200  # neighbours in memory alone
    image[1, 2] = image[2, 1] = 100  # by a corner
    image[3, 2] = image[3, 3] = 50
    expected = np.zeros_like(image)
    expected[3, 2:] = 50
    np.testing.assert_array_equal(area_opening(image, 2), expected)
    assert image[1, 0] == 200  # what was given stays
