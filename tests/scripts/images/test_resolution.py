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

"""What pictures say of their pixels' size."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from scripts.images.resolution import picture_mpp

PIXELS = np.zeros((8, 9, 3), np.uint8)


def test_a_microscopes_pixels_are_known_from_tiff_and_png(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb", resolution=(20_000, 25_000), resolutionunit=3)
    assert picture_mpp(tmp_path / "a.tif") == pytest.approx((0.5, 0.4))
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(50_800, 50_800))  # 25,400 um an inch
    assert picture_mpp(tmp_path / "a.png") == pytest.approx((0.5, 0.5), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"dpi": (72, 72)}, {"dpi": (300, 300)}])
def test_a_printers_are_none(tmp_path, options) -> None:
    for suffix in ("png", "jpg", "tif"):
        Image.fromarray(PIXELS).save(tmp_path / f"a.{suffix}", **options)
        assert picture_mpp(tmp_path / f"a.{suffix}") is None
    assert picture_mpp(tmp_path / "missing.png") is None
