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

"""Pictures at the size of a network's input."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.networks.layers import gaussian_1d
from monai.transforms import Resize, Resized
from scipy.sparse import csr_array

from scripts.images.limits import MIN_SIZE
from scripts.runtime.values import image_size

__all__ = ["SmoothResize", "SmoothResized"]


class SmoothResize(Resize):
    """
    `Resize`, bilinear with anti-aliasing, in a time and memory that don't grow with the factor.

    MONAI smooths every pixel of a picture, by a Gaussian half as wide as the factor by which it gets smaller, and takes
    a few of them: minutes, and gigabytes, for 49 million pixels. Here only those are computed; the values are MONAI's.
    """

    def __call__(
        self,
        img: torch.Tensor,
        mode: str | None = None,
        align_corners: bool | None = None,
        anti_aliasing: bool | None = None,
        anti_aliasing_sigma: Sequence[float] | float | None = None,
        dtype: DtypeLike | torch.dtype = None,
        lazy: bool | None = None,
    ) -> torch.Tensor:
        """(C, W, H) to (C, *size); see `Resize`."""
        arguments = mode, align_corners, anti_aliasing, anti_aliasing_sigma, dtype, lazy
        is_smooth = self.anti_aliasing if anti_aliasing is None else anti_aliasing
        is_bilinear = (mode or self.mode) == "bilinear" and not (align_corners or self.align_corners)
        is_own_sigma = bool(anti_aliasing_sigma or self.anti_aliasing_sigma)
        is_here = img.device.type == "cpu"
        if not is_here or not is_smooth or not is_bilinear or is_own_sigma or lazy or self.lazy or img.ndim != 3:
            return super().__call__(img, *arguments)
        # quick as it is without smoothing, and it notes what the inverse needs
        resized = super().__call__(img, mode, align_corners, False, None, dtype, lazy)
        size = resized.shape[1:]
        if all(to >= length for to, length in zip(size, img.shape[1:], strict=True)):
            return resized
        picture = np.asarray(img, np.float32).transpose(1, 2, 0)  # (W, H, C), as it lies in memory when it is read
        for length, to in zip(img.shape[1:], size, strict=True):
            picture = _weights(length, to) @ picture.reshape(length, -1)
            picture = picture.reshape(to, -1, img.shape[0]).swapaxes(0, 1)  # the other axis first
        return resized.copy_(torch.as_tensor(picture.transpose(2, 0, 1)))


@lru_cache
def _weights(length: int, size: int) -> csr_array:
    """(size, length): how much of each pixel of a row is in each of the smaller one. What is outside the row is 0."""
    factor = length / size
    kernel = gaussian_1d(torch.tensor(max(0.0, (factor - 1) / 2)), truncated=4.0, approx="erf").numpy()
    tail = len(kernel) // 2
    at = np.clip((np.arange(size) + 0.5) * factor - 0.5, 0, length - 1)
    left = np.floor(at).astype(int)
    part = at - left
    rows, offsets = np.mgrid[:size, -tail : tail + 1]
    weights = csr_array((size, length), dtype=np.float32)
    for place, share in ((left, 1 - part), (np.minimum(left + 1, length - 1), part)):
        columns = place[:, None] + offsets
        inside = (columns >= 0) & (columns < length)
        values = (share[:, None] * kernel).astype(np.float32)
        weights += csr_array((values[inside], (rows[inside], columns[inside])), shape=(size, length))
    return weights


class SmoothResized(Resized):
    """
    `Resized` by `SmoothResize`: bilinear, with anti-aliasing.

    Args:
        keys: keys of the pictures, (C, W, H).
        spatial_size: the size, two integers.
        size_mode: ``"longest"`` fits the longer side to the larger of both, and keeps the aspect.

    Raises:
        InputError: when the size is no size.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], size_mode: str = "all") -> None:
        image_size("spatial_size", spatial_size, MIN_SIZE)
        size = max(spatial_size) if size_mode == "longest" else spatial_size
        super().__init__(keys, size, size_mode, mode="bilinear", anti_aliasing=True)
        self.resizer = SmoothResize(size, size_mode)
