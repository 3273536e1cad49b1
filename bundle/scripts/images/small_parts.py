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

"""Probability maps without holes and islands that are too small to have been drawn."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform

from scripts.images.colours import with_metadata_of
from scripts.runtime.values import fraction

__all__ = ["WithoutSmallPartsd", "without_small_parts"]

LEVELS = 65535  # of a map that are told apart
LARGEST_CHANGE = 1 / 8  # of a map's sum; maps of colon biopsies change by a tenth at most
LARGEST_SHARE = 0.01  # of a map's sum, in pixels, that a small part may have


def without_small_parts(probability: torch.Tensor, pixels: float) -> torch.Tensor:
    """
    Fill the holes and level the islands of a map that are smaller than so many pixels, where these are exceptions.

    An outline that is drawn by hand goes around lumens, and around no single nucleus. At every level of the map, holes
    are filled first, then islands are levelled (area closing and opening: Vincent, EURASIP workshop 1993). Where the
    one or the other would change the map's sum by more than an eighth, parts so small are what is looked for, and stay.

    Args:
        probability: (1, W, H) in 0..1.
        pixels: parts of fewer are small.

    Returns:
        (1, W, H) float32.

    Examples:
        >>> probability = torch.full((1, 4, 5), 0.8)
        >>> probability[0, 1, 2] = 0.2  # a hole of one pixel, 0.6 of 15.4
        >>> without_small_parts(probability, pixels=2).min()
        tensor(0.8000)
    """
    least = math.ceil(pixels)
    if least <= 1:
        return probability.float()
    from scripts.images.area_opening import area_closing, area_opening  # with Numba, which takes long to import

    levels = (probability[0] * LEVELS).round().cpu().numpy().astype(np.uint16)
    for cleaned_of in (area_closing, area_opening):
        cleaned, total = cleaned_of(levels, least), levels.sum(dtype=np.int64)
        if abs(cleaned.sum(dtype=np.int64) - total) <= LARGEST_CHANGE * total:
            levels = cleaned
    return torch.from_numpy(levels.astype(np.float32) / LEVELS)[None].to(probability.device)


class WithoutSmallPartsd(MapTransform):
    """
    Dictionary version of `without_small_parts`, for maps at the scale of the training images.

    What is small depends on what is found: a part of as many pixels as a hundredth of the map's sum stays.

    Args:
        keys: keys of the maps, (1, W, H), or (1, W, H, D) of D slices.
        smallest: part of a training image, 0..1; 0 keeps all.
        spatial_size: of a training image, as the network saw it.

    Raises:
        InputError: when `smallest` is no fraction.
    """

    def __init__(self, keys: KeysCollection, smallest: float, spatial_size: Sequence[int]) -> None:
        super().__init__(keys)
        fraction("min_part", smallest)
        self.pixels = smallest * math.prod(spatial_size)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            value = torch.as_tensor(d[key]).float()
            d[key] = with_metadata_of(d[key], self._cleaned(value))
        return d

    def _cleaned(self, value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 4:
            return torch.stack([self._cleaned(one) for one in value.unbind(-1)], dim=-1)
        return without_small_parts(value, min(self.pixels, LARGEST_SHARE * value.sum().item()))
