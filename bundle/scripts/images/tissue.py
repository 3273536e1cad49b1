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

"""Tissue in a picture of a whole slide, by its colour."""

from __future__ import annotations

import numpy as np
from skimage.color import rgb2hsv
from skimage.filters import gaussian, threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

__all__ = ["OVERVIEW", "find_tissue"]

OVERVIEW = 2048  # longest side in pixels, of the picture in which tissue is found
LEAST_SATURATION = 0.05  # less is glass, also where Otsu's method has nothing but glass to divide
MOST_SATURATION = 0.15  # more is tissue, also where there is nothing but tissue
FLAT = 1e-3  # a range of saturations in which Otsu's method finds but rounding
SMALLEST = 64  # pixels of the overview; smaller pieces and gaps are dust and pores


def find_tissue(overview: np.ndarray) -> np.ndarray:
    """
    Tissue by its colour: Otsu's threshold on the saturation, as wsinfer, CLAM and others do it.

    The saturation is smoothed (a Gaussian of one pixel), the threshold kept between 0.05 and 0.15, so that a slide of
    glass alone has no tissue and one of tissue alone nothing else; pieces and gaps below 64 pixels are left out.

    Args:
        overview: (H, W, 3) in 0..1.

    Returns:
        (H, W) bool.
    """
    saturation = gaussian(rgb2hsv(overview)[..., 1], 1)
    flat = np.ptp(saturation) < FLAT
    threshold = LEAST_SATURATION if flat else np.clip(threshold_otsu(saturation), LEAST_SATURATION, MOST_SATURATION)
    tissue = saturation > threshold
    return remove_small_holes(remove_small_objects(tissue, max_size=SMALLEST - 1), max_size=SMALLEST - 1)
