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

"""Probability maps in colour."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache

import numpy as np
import torch
from matplotlib import colormaps
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_tensor

from scripts.images.colours import is_volume, with_metadata_of

__all__ = ["HEAT", "HeatMapd", "heat_palette"]

HEAT = "inferno"  # of Matplotlib: lightness grows with the probability, so that it is one in grey too


@cache
def heat_palette() -> np.ndarray:
    """(256, 3) uint8: the colours of probabilities 0, 1/255 ... 1."""
    return (colormaps[HEAT](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


class HeatMapd(MapTransform):
    """
    Colours a probability map, (1, H, W) in 0..1, under `name`: (3, H, W) uint8. A volume gets none.

    Args:
        keys: key of the map.
        name: key of the coloured one.
    """

    def __init__(self, keys: KeysCollection, name: str = "heat") -> None:
        super().__init__(keys)
        self.name = name

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            if is_volume(d[key]):
                continue
            index = (convert_to_tensor(d[key], track_meta=False)[0].cpu() * 255).round().to(torch.uint8).numpy()
            coloured = torch.from_numpy(np.moveaxis(heat_palette()[index], -1, 0).copy())
            d[self.name] = with_metadata_of(d[key], coloured)
        return d
