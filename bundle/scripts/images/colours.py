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

"""Pictures of any kind to RGB."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from skimage.util import img_as_float32

from scripts.runtime.errors import InputError

__all__ = ["ToRGB", "is_volume", "value_range", "with_metadata_of"]


class ToRGB(Transform):
    """
    Grey, grey with alpha, RGB or RGBA to RGB in 0..1.

    Grey is repeated; what is transparent becomes white, as a viewer shows it. Integers are divided by the largest
    value of their type, floating-point must be in 0..1 already.

    Examples:
        >>> ToRGB()(np.array([[[0, 51, 255]]], np.uint8))[:, 0]
        tensor([[0.0000, 0.2000, 1.0000],
                [0.0000, 0.2000, 1.0000],
                [0.0000, 0.2000, 1.0000]])
    """

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """
        Args:
            img: (C, H, W) with 1 to 4 channels.

        Returns:
            (3, H, W) float32 in 0..1.

        Raises:
            InputError: for another number of channels or axes, non-finite values, or values outside the range.
        """
        if isinstance(img, np.ndarray) and img.dtype.kind == "u":
            img = img_as_float32(img)  # MONAI would turn 16 bit into 32, after which the range is lost
        image = convert_to_tensor(img, track_meta=isinstance(img, MetaTensor))
        if is_volume(image):
            size = " x ".join(map(str, image.shape[1:]))
            raise InputError(f"it is a volume, of {size} voxels; volumes need the overlay slices.json")
        if image.ndim != 3 or not 1 <= image.shape[0] <= 4:
            raise InputError(f"expected an image of shape (1 to 4 channels, H, W), got {tuple(image.shape)}")
        if not image.is_floating_point():
            image = image.float() / (1 if image.dtype == torch.bool else torch.iinfo(image.dtype).max)
        image = image.float()
        low, high = value_range(image, "image")
        if low < 0 or high > 1:
            raise InputError(
                f"values must be in 0..1, this one goes from {_digits(low)} to {_digits(high)}; rescale it, or save it "
                "as 8 or 16 bit"
            )
        if image.shape[0] in (2, 4):
            alpha = image[-1:]
            image = image[:-1] * alpha + (1 - alpha)
        return image if image.shape[0] == 3 else image.repeat(3, 1, 1)


def value_range(image: torch.Tensor, what: str) -> tuple[float, float]:
    """Smallest and largest value. Raises InputError when there is none, or one that is not finite."""
    if image.numel() == 0:
        raise InputError(f"the {what} has no pixels")
    values = image.detach().cpu().numpy()  # PyTorch would copy what does not lie in order
    low, high = float(values.min()), float(values.max())  # either is NaN when any value is
    if not math.isfinite(low) or not math.isfinite(high):
        raise InputError(f"the {what} has values that are not finite")
    return low, high


def _digits(value: float) -> str:
    """A float32 with as many digits as tell it from its neighbours: 1.0000001, but 255."""
    return str(np.float32(value)).removesuffix(".0")


def is_volume(image: torch.Tensor) -> bool:
    """Whether an image without batch axis is a volume, (C, W, H, D), rather than a picture, (C, W, H)."""
    return image.ndim == 4


def with_metadata_of(source: NdarrayOrTensor, image: torch.Tensor) -> torch.Tensor:
    """What was made of an image, with that image's metadata where it has any."""
    return MetaTensor(image, meta=source.meta) if isinstance(source, MetaTensor) else image
