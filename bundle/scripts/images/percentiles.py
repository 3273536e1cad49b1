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

"""From values that mean something else in each volume to 0..1."""

from __future__ import annotations

import numpy as np
from monai.transforms import Transform

from scripts.runtime.errors import InputError

__all__ = ["ScalePercentiles"]

COINCIDING = 1e-4  # of the range of a volume: percentiles that are no further apart


class ScalePercentiles(Transform):
    """
    A volume to 0..1 between two of its percentiles, clipped.

    Where they (nearly) coincide, since most of the volume is one background, they are those of the other voxels.

    Args:
        lower, upper: percentiles, from 0 to 100.

    Examples:
        >>> ScalePercentiles(25, 75)(np.arange(5.0))
        array([0. , 0. , 0.5, 1. , 1. ])
    """

    def __init__(self, lower: float, upper: float) -> None:
        numbers = [v for v in (lower, upper) if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if len(numbers) < 2 or not 0 <= lower < upper <= 100:
            raise InputError(
                f"percentiles must be two numbers from 0 to 100, the lower one first; got [{lower!r}, {upper!r}]."
            )
        self.percentiles = (lower, upper)

    def __call__(self, img: np.ndarray) -> np.ndarray:
        """Any shape, finite, to the same. Raises ValueError when all voxels have one value."""
        darkest, brightest = float(img.min()), float(img.max())
        if darkest == brightest:
            raise ValueError(f"has the value {darkest:g} in all voxels: there is nothing to see in it")
        low, high = np.percentile(img, self.percentiles)
        if high - low <= COINCIDING * (brightest - darkest):
            others = np.percentile(img[(img < low) | (img > high)], self.percentiles)
            low, high = min(low, others[0]), max(high, others[1])
        return np.clip((img - low) / (high - low), 0, 1)
