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

"""Whole volumes through a network of pictures, for programs that hand them over as such: MONAI Label."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Resize, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from scripts.images.colours import is_volume, value_range
from scripts.images.percentiles import ScalePercentiles
from scripts.images.resizing import SmoothResize, SmoothResized
from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError

__all__ = ["PictureOrSliceInferer", "ResizePictured", "VolumeToRGB"]


class VolumeToRGB(Transform):
    """
    A grey volume to RGB in 0..1.

    Its values mean something else in each: they are scaled by `ScalePercentiles`, from the 1st to the 99th.
    """

    def __init__(self) -> None:
        self.scale = ScalePercentiles(1, 99)

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """
        (1, W, H, D) to (3, W, H, D) float32 in 0..1. Raises InputError for another number of channels, values that are
        not finite, or but one value.
        """
        volume = convert_to_tensor(img, dtype=torch.float32, track_meta=isinstance(img, MetaTensor))
        if volume.shape[0] != 1:
            raise InputError(f"expected a volume of one channel, got {tuple(volume.shape)}")
        value_range(volume, "volume")
        try:
            scaled = self.scale(np.asarray(volume))
        except ValueError as error:
            raise InputError(f"the volume {error}") from error
        return convert_to_dst_type(scaled, volume)[0].repeat(3, 1, 1, 1)


class ResizePictured(SmoothResized):
    """
    `SmoothResized` that leaves volumes as they are: `PictureOrSliceInferer` resizes their slices.

    Args:
        keys, spatial_size, size_mode: see `SmoothResized`.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        return dict(data) if self._has_volume(data) else super().__call__(data, lazy)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return dict(data) if self._has_volume(data) else super().inverse(data)

    def _has_volume(self, data: Mapping[Hashable, Any]) -> bool:
        return any(is_volume(data[key]) for key in self.key_iterator(data))


class PictureOrSliceInferer(Inferer):
    """
    `SimpleInferer` for pictures; volumes go through the network slice by slice, along their last axis.

    Each slice is resized as `Resized` would resize a picture, and its map back again.

    Args:
        spatial_size: size of the network's input.
        tta: whether maps are averaged over flips, see `MapNetwork.averaging_flips`: MONAI Label takes ``network_def``,
            and leaves ``network``, which says so.
    """

    def __init__(self, spatial_size: Sequence[int], tta: bool = False) -> None:
        super().__init__()
        self.tta = tta
        self.resize = SmoothResize(spatial_size, mode="bilinear", anti_aliasing=True)

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor] | MapNetwork, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """(B, C, W, H) to (B, M, W, H), or (B, C, W, H, D) to (B, M, W, H, D)."""
        if self.tta:
            network.averaging_flips(True)
        if inputs.ndim == 4:
            return network(inputs, *args, **kwargs)
        volumes = convert_to_tensor(inputs, track_meta=False)
        back = Resize(volumes.shape[2:4], mode="bilinear")

        def segment(slices: torch.Tensor) -> torch.Tensor:
            resized = torch.stack([self.resize(one) for one in slices])  # (B, C, *spatial_size)
            return torch.stack([back(one) for one in network(resized, *args, **kwargs)])

        maps = [convert_to_tensor(segment(slices), track_meta=False) for slices in volumes.unbind(dim=-1)]
        return torch.stack(maps, dim=-1)
