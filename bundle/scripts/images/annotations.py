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

"""Masks as people make them: pictures of any kind, and polygons."""

from __future__ import annotations

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor

from scripts.images.colours import _range
from scripts.runtime.errors import InputError

__all__ = ["BinaryMask"]


class BinaryMask(Transform):
    """
    A mask image to one channel of 0 and 1: positive where any channel but alpha is above 0, and alpha is as well.

    So masks with 0 and 1, 0 and 255, several classes, or colours on black, or on nothing, all work.
    """

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """(C, H, W) to (1, H, W) float32. Raises InputError for other than 1 to 4 channels, or values not finite."""
        mask = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if mask.ndim != 3 or not 1 <= mask.shape[0] <= 4:
            raise InputError(f"expected a mask of shape (1 to 4 channels, H, W), got {tuple(mask.shape)}")
        _range(mask, "mask")
        has_alpha = mask.shape[0] in (2, 4)
        positive = (mask[:-1] if has_alpha else mask).amax(dim=0, keepdim=True) > 0
        return (positive & (mask[-1:] > 0) if has_alpha else positive).float()
