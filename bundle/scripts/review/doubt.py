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

"""How much a model doubts, or contradicts, what has been said of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.special import xlogy
from skimage.segmentation import find_boundaries

from scripts.runtime.values import positive_fraction

__all__ = ["Doubt", "Finding", "doubt_of", "outline_entropy"]

BAND = 0.01  # on either side of the outline, of the image's longer side
OUTLINE_WEIGHT = 0.5  # a blurred outline is less than a contradiction


@dataclass(frozen=True)
class Finding:
    """What a model says of an image."""

    probability: float
    """Image-level probability."""
    area: float
    """Fraction of the pixels predicted positive."""
    outline: float
    """See `outline_entropy`."""


@dataclass(frozen=True)
class Doubt:
    """Each part in 0..1, 0 where the model agrees and is sure."""

    label: float
    """By how much the image-level probability is off the label."""
    area: float
    """e / (e + step), e being by how much the predicted area is outside of the stated interval: a half at one step."""
    outline: float
    """See `outline_entropy`."""

    @property
    def total(self) -> float:
        """Label and area, and half of the outline: in 0..2.5."""
        return self.label + self.area + OUTLINE_WEIGHT * self.outline


def outline_entropy(probability: np.ndarray, threshold: float = 0.5) -> float:
    """
    How unsure a map is of where the finding ends: mean entropy within 1 % of the image of its outline, in bits.

    Args:
        probability: (H, W) in 0..1.
        threshold: probability from which on a pixel is positive.

    Returns:
        In 0..1; 0 where nothing, or everything, is positive.

    Examples:
        A step from 0.9 to 0.1, and the same with a pixel between that may be either:

        >>> maps = np.array([[0.9, 0.9, 0.1, 0.1]]), np.array([[0.9, 0.5, 0.1]])
        >>> [round(outline_entropy(p), 3) for p in maps]
        [0.469, 0.734]
    """
    p = np.asarray(probability, float)
    at_outline = find_boundaries(p >= threshold, connectivity=1, mode="thick")
    reach = max(1, round(BAND * max(p.shape)))
    band = p[maximum_filter(at_outline, size=2 * reach - 1)]
    return float(-(xlogy(band, band) + xlogy(1 - band, 1 - band)).mean() / np.log(2)) if band.size else 0.0


def doubt_of(finding: Finding, label: int, area: float | None = None, area_step: float = 0.1) -> Doubt:
    """
    The doubt of a model in a label and a rough area.

    Args:
        finding: of the model.
        label: 0 or 1.
        area: as stated, rounded up to a step; None where it is not known, or for a negative image.
        area_step: that step.

    Raises:
        InputError: when the step is not above 0 and up to 1.

    Examples:
        >>> doubt_of(Finding(probability=0.75, area=0.5, outline=0.25), label=1, area=0.25, area_step=0.25)
        Doubt(label=0.25, area=0.5, outline=0.25)
    """
    positive_fraction("area_step", area_step)
    if label == 0:
        least, most = 0.0, 0.0
    else:
        least, most = (0.0, 1.0) if area is None else (max(0.0, area - area_step), area)
    excess = max(finding.area - most, least - finding.area, 0.0)
    off = finding.probability if label == 0 else 1 - finding.probability
    return Doubt(off, excess / (excess + area_step), finding.outline)
