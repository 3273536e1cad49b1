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

import numpy as np
import pytest
from scripts.runtime.errors import InputError
from scripts.volumes.windows import CT_WINDOWS, ScalePercentiles, ct_window


@pytest.mark.parametrize(
    ("window", "black", "white"),
    [("lung", -1350, 150), ("bone", -500, 1300), ("soft_tissue", -150, 250), ("brain", 0, 80), ([30, 300], -120, 180)],
)
def test_window_in_hounsfield_units(window, black, white):
    middle = (black + white) / 2
    scaled = ct_window(window)(np.array([-3000.0, black, black + (white - black) / 4, middle, white, 3000.0]))
    np.testing.assert_allclose(scaled, [0, 0, 0.25, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize("window", ["lungs", [40], [40, 0], [40, -400], ["a", 3], 400])
def test_unknown_window_is_refused(window):
    with pytest.raises(InputError, match="window must be"):
        ct_window(window)


def test_every_named_window_has_a_width():
    assert {"lung", "bone", "soft_tissue", "brain", "liver", "kidney", "abdomen", "mediastinum"} <= set(CT_WINDOWS)
    assert all(width > 0 for _, width in CT_WINDOWS.values())


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_a_mostly_empty_volume_is_scaled_by_what_is_there(noise):
    """Of 10,000 voxels 9,949 are background; the other 51 are 100, 102 ... 200: their percentiles 10 and 90 too."""
    volume = np.zeros(10_000, np.float32)
    volume[:9949:2] = noise
    volume[9949:] = np.arange(100, 201, 2)
    scaled = ScalePercentiles(10, 90)(volume)
    assert scaled[:9949].max() < 1e-6  # background stays black
    np.testing.assert_allclose(scaled[9949:], np.minimum(np.arange(100, 201, 2) / 190, 1), atol=1e-5)


def test_a_mask_like_volume_is_black_and_white():
    volume = np.zeros((10, 10, 10), np.float32)
    volume[4, 4, 4] = 7
    np.testing.assert_array_equal(ScalePercentiles(1, 99)(volume), volume / 7)


@pytest.mark.parametrize("percentiles", [(99, 1), (0, 101), (-1, 50), (50, 50), ("a", 3), (None, 5), (float("nan"), 9)])
def test_percentiles_are_checked(percentiles):
    with pytest.raises(InputError, match="percentiles must be two numbers from 0 to 100"):
        ScalePercentiles(*percentiles)
