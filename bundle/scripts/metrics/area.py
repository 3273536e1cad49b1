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

"""The area that a map has at each threshold, and the threshold that gives the areas stated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["THRESHOLDS", "area_errors", "middle_of_best", "pixels_reaching", "threshold_by_areas"]

THRESHOLDS = tuple(threshold / 100 for threshold in range(1, 100))
LEAST_OF_SMALL = 0.25  # part of an area of a step or less that is positive at least, as in `area_ranked_labels`


def pixels_reaching(probability: np.ndarray) -> np.ndarray:
    """Number of a map's pixels in {p >= t} for each t of `THRESHOLDS`, integers (99,)."""
    levels = np.searchsorted(np.asarray(THRESHOLDS), probability, side="right")
    return np.bincount(levels.ravel(), minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:]


def area_errors(probability: np.ndarray, area: float, area_step: float) -> np.ndarray:
    """
    By how much the area of a map is outside of what is stated at each of `THRESHOLDS`, fractions (99,).

    Args:
        probability: (H, W) in 0..1.
        area: of a positive image, rounded up to `area_step`: from a step below it to itself is as stated; from a
            quarter of it where that is a step or less, since something is positive.
        area_step: a fraction of the image.
    """
    marked = pixels_reaching(probability) / probability.size
    least = area - area_step if area > area_step else LEAST_OF_SMALL * area
    return np.maximum(np.maximum(marked - area, least - marked), 0)


def threshold_by_areas(errors: np.ndarray) -> float:
    """
    The one of `THRESHOLDS` with the least sum of `area_errors` (99,) over images; the middle one of several.

    Examples:
        Two of four pixels are stated, and 0.61 to 0.8 mark two:

        >>> threshold_by_areas(area_errors(np.array([[0.9, 0.8], [0.6, 0.1]]), area=0.5, area_step=0.1))
        0.71
    """
    return middle_of_best(THRESHOLDS, -errors)


def middle_of_best(candidates: Sequence[float], values: Sequence[float]) -> float:
    """The candidate with the highest value; the middle one where several have it."""
    best = np.asarray(candidates)[np.isclose(values, np.max(values))]
    return float(best[len(best) // 2])
