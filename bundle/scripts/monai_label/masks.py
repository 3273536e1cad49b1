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

"""A predicted mask as MONAI Label writes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils.type_conversion import convert_data_type

__all__ = ["LabelMap", "LabelMapd"]


class LabelMap(Transform):
    """A predicted mask as most writers take it: whole numbers, without a channel axis."""

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """(C, H, W) of 0 and 1 to (H, W) uint8: its first channel, which is the network's answer."""
        return convert_data_type(img[0], dtype=np.uint8)[0]


class LabelMapd(MapTransform):
    """Dictionary version of `LabelMap`."""

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = LabelMap()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.converter(d[key])
        return d
