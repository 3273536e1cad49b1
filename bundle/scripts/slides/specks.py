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


"""
Specks of a mask that no polygon will show, found before outlines are followed: noise has so many that following each
would take most of the time.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

__all__ = ["without_specks"]

BLOCK = 1024  # columns looked at together
BY_SIDE, BY_CORNER = (ndimage.generate_binary_structure(2, n) for n in (1, 2))


def without_specks(marked: np.ndarray, region: int, hole: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Leave out regions, and fill holes, that are certainly too small; not all: none that meets the border of a block.

    Args:
        marked: (H, W) bool.
        region: regions of fewer pixels are left out.
        hole: holes of fewer pixels are filled.

    Returns:
        The mask without these regions, and that with the holes filled as well; both as `marked`.
    """
    if region <= 1:  # what fills a hole could be a region of its own
        return marked, marked
    # A ring of n pixels that touch at corners encloses n^2 / 8 at most: no region that counts is in such a hole.
    hole = min(hole, math.isqrt(8 * region))
    kept, filled = marked.copy(), marked.copy()
    for left in range(0, marked.shape[1], BLOCK):
        part = np.s_[:, left : left + BLOCK]
        if marked[part].any() and not marked[part].all():
            kept[part] &= ~_small(marked[part], region, BY_SIDE)
            filled[part] = kept[part] | _small(~kept[part], hole, BY_CORNER)
    return kept, filled


def _small(parts: np.ndarray, least: int, neighbours: np.ndarray) -> np.ndarray:
    """(H, W) bool: parts of fewer than `least` pixels that don't meet the border."""
    labels, count = ndimage.label(parts, neighbours)
    small = np.bincount(labels.ravel(), minlength=count + 1) < least
    small[0] = False  # what is in no part
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[border] = False
    return small[labels]
