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

"""From the values of a volume to 0..1: windows of Hounsfield units, and percentiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from monai.transforms import ScaleIntensityRange, Transform

from scripts.runtime.errors import InputError

__all__ = ["CT_WINDOWS", "ScalePercentiles", "ct_window"]

COINCIDING = 1e-4  # of the range of a volume: percentiles that are no further apart
# Centre and width in Hounsfield units, as radiology workstations offer them.
CT_WINDOWS = {
    "abdomen": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "kidney": (40, 400),
    "liver": (60, 160),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft_tissue": (50, 400),
}


def ct_window(window: str | Sequence[float]) -> ScaleIntensityRange:
    """
    Transform from Hounsfield units to 0..1, clipped.

    Args:
        window: one of `CT_WINDOWS`, or centre and width.

    Raises:
        InputError: for another name, or a width that is not above 0.
    """
    if isinstance(window, str) and window not in CT_WINDOWS:
        raise InputError(f"window must be one of {', '.join(CT_WINDOWS)}, or [centre, width]; got '{window}'.")
    limits = CT_WINDOWS[window] if isinstance(window, str) else window
    try:
        centre, width = (float(value) for value in limits)
    except (TypeError, ValueError):
        centre, width = 0.0, 0.0
    if not 0 < width < np.inf:
        raise InputError(f"window must be two numbers, [centre, width], the width above 0; got {window!r}.")
    return ScaleIntensityRange(centre - width / 2, centre + width / 2, 0.0, 1.0, clip=True)


class ScalePercentiles(Transform):
    """
    A volume to 0..1 between two of its percentiles, clipped.

    Where they (nearly) coincide, since most of the volume is one background, they are those of the other voxels.

    Args:
        lower, upper: percentiles, from 0 to 100.
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
