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

"""The outline of a mask, drawn into a picture."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Resize, Transform
from monai.utils.type_conversion import convert_to_numpy
from skimage.segmentation import find_boundaries

from scripts.images.colours import is_volume, with_metadata_of

__all__ = ["OutlineOverlay", "OutlineOverlayd"]

OUTLINE_COLOUR = (0.0, 1.0, 0.2)  # green: absent from H&E, and visible on grey


class OutlineOverlay(Transform):
    """
    Draw the outline of a mask into a picture.

    Args:
        width: width of the outline in pixels.

    Examples:
        >>> black, square = np.zeros((3, 5, 5), np.uint8), np.pad(np.ones((1, 3, 3)), ((0, 0), (1, 1), (1, 1)))
        >>> OutlineOverlay(width=1)(black, square)[1]  # the green of the outline
        array([[  0,   0,   0,   0,   0],
               [  0, 255, 255, 255,   0],
               [  0, 255,   0, 255,   0],
               [  0, 255, 255, 255,   0],
               [  0,   0,   0,   0,   0]], dtype=uint8)
    """

    def __init__(self, width: int = 2) -> None:
        self.width = width

    def __call__(self, image: NdarrayOrTensor, mask: NdarrayOrTensor) -> np.ndarray:
        """
        Args:
            image: (3, H, W) in 0..1, or uint8.
            mask: (1, H, W), or of another size, stretched over the picture; what is above 0 is outlined.

        Returns:
            (3, H, W) uint8 if that was given, else float32 in 0..1.
        """
        picture = convert_to_numpy(image)  # of a tensor on any device
        picture = picture.astype(np.uint8 if picture.dtype == np.uint8 else np.float32)  # a copy
        region = convert_to_numpy(Resize(picture.shape[1:], mode="nearest")(mask))[0] > 0
        outline = np.zeros_like(region)
        for _ in range(self.width):  # one ring of pixels at a time, from the edge inwards
            ring = find_boundaries(np.pad(region, 1), mode="inner", connectivity=2)[1:-1, 1:-1]
            outline |= ring
            region &= ~ring
        scale = 255 if picture.dtype == np.uint8 else 1
        picture[:, outline] = np.array([scale * colour for colour in OUTLINE_COLOUR], picture.dtype)[:, None]
        return picture


class OutlineOverlayd(MapTransform):
    """
    Dictionary version of `OutlineOverlay`: draws into the picture under each key; a volume stays as it is.

    Args:
        keys: key of the picture, (3, H, W) in 0..1 or uint8.
        mask_key: key of the mask, (1, H, W).
        width: width of the outline in pixels.
        name: key of the drawing; that of the picture, which it replaces, where it is None.
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "pred", width: int = 2, name: str | None = None) -> None:
        super().__init__(keys)
        self.mask_key = mask_key
        self.overlay = OutlineOverlay(width)
        self.name = name

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            if is_volume(d[key]):
                continue
            drawn = torch.as_tensor(self.overlay(d[key], d[self.mask_key]))
            d[self.name or key] = with_metadata_of(d[key], drawn)
        return d
