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

"""Weak labels: what a pathologist would have said of an image, derived from a mask of it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from scripts.runtime.errors import InputError

__all__ = ["rough_area"]


def rough_area(mask: np.ndarray, step: float = 0.1) -> float:
    """The part of an image that is cancer, rounded up to the next annotation step.

    Counted in whole pixels and decimal steps, so that a fraction of exactly 0.3 stays 0.3: in floating point
    0.3 / 0.1 is under 3 and 0.7 / 0.1 is over 7.

    Args:
        mask: array of any shape; every value but 0 is cancer.
        step: of the annotation, in (0, 1], read as the decimal number that it prints as.

    Returns:
        0.0 for a mask without cancer, else a multiple of `step` from `step` to 1.0 (the last is 1.0 even where the
        step does not divide 1).

    Raises:
        InputError: if the step is not in (0, 1], or the mask has no pixels.

    Examples:
        >>> rough_area(np.array([[1, 1, 1, 0], [0, 0, 0, 0]]))  # 3 of 8 pixels
        0.4
    """
    if not 0 < step <= 1:
        raise InputError(f"the annotation step must be in (0, 1], got {step}")
    mask = np.asarray(mask)
    if mask.size == 0:
        raise InputError(f"the mask has no pixels: its shape is {mask.shape}")
    exact_step = Fraction(str(step))
    steps = math.ceil(Fraction(int(np.count_nonzero(mask)), mask.size) / exact_step)
    return float(min(steps * exact_step, 1))
