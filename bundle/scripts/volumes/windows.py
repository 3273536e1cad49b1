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
from monai.transforms import ScaleIntensityRange

from scripts.images.percentiles import ScalePercentiles
from scripts.runtime.errors import InputError

__all__ = ["CT_WINDOWS", "ScalePercentiles", "ct_window"]

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

    Examples:
        >>> ct_window([40, 400])(np.array([-200.0, 40.0, 140.0, 1000.0])).tolist()
        [0.0, 0.5, 0.75, 1.0]
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
