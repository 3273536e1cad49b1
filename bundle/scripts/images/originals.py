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


"""How large the images that a network learns from were as they were read, which fixes the scale that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Originals", "deviation", "originals_of", "shrunk_far"]

USUAL = 0.95  # part of the images that are within the spread
FAR = 3.0  # times smaller


class Originals(NamedTuple):
    """
    Median height and width in pixels, what nearly all images deviate from them by at most, see `deviation`, and
    micrometres per pixel, None where not all images say so.
    """

    height: int
    width: int
    spread: float = 1.0
    mpp: float | None = None


def deviation(height: float, width: float, usual: Originals) -> float:
    """
    How much larger an image is than is usual, or how much longer or wider its shape: the largest of these factors.

    Examples:
        >>> usual = Originals(200, 300)
        >>> [deviation(*size, usual) for size in [(200, 300), (400, 600), (200, 600), (100, 150), (100, 300)]]
        [1.0, 2.0, 2.0, 1.0, 2.0]
    """
    tall, wide = height / usual.height, width / usual.width
    return max(1.0, tall, wide, tall / wide, wide / tall)


def originals_of(sizes: Sequence[tuple[int, int]], mpps: Sequence[float | None] = ()) -> Originals | None:
    """
    What is usual among images of these heights and widths, and of these resolutions; None without any sizes.

    Examples:
        >>> originals_of([(200, 300)] * 99 + [(4000, 300)])
        Originals(height=200, width=300, spread=1.0, mpp=None)
    """
    if not len(sizes):
        return None
    height, width = (round(median) for median in np.median(sizes, axis=0).tolist())
    usual = Originals(height, width, mpp=float(np.median(mpps)) if len(mpps) and all(mpps) else None)
    return usual._replace(spread=float(np.quantile([deviation(*size, usual) for size in sizes], USUAL)))


def shrunk_far(usual: Originals, size: Sequence[int]) -> str | None:
    """
    What the user should know of training on such images at a size, height and width, if little is left of them there.

    Examples:
        >>> shrunk_far(Originals(672, 900), (224, 224)) is None
        True
        >>> shrunk_far(Originals(1536, 2048), (224, 224)).partition(":")[0]
        'The pictures are large, 2048 x 1536 pixels, and training sees them at 224 x 224'
    """
    if min(usual.height / size[0], usual.width / size[1]) <= FAR:
        return None
    return (
        f"The pictures are large, {usual.width} x {usual.height} pixels, and training sees them at {size[1]} x "
        f"{size[0]}: if single cells matter, cut them into fields (cdws data -h: --field), or train at a larger "
        "--spatial_size."
    )
