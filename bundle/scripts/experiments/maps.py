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


"""An inferer that asks a network for one of its maps, so that a side output is scored as an answer of its own."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer

from scripts.networks import MapNetwork
from scripts.runtime.errors import InputError

__all__ = ["MapInferer"]


class MapInferer(Inferer):
    """
    One map of a `MapNetwork`.

    Args:
        name: one of the network's ``map_names``, ``"side 2"`` say; empty for its answer, the first.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name

    def __call__(self, inputs: torch.Tensor, network: MapNetwork, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        (B, 3, H, W) to (B, 1, H, W) in 0..1.

        Raises:
            InputError: when the network has no such map.
        """
        if not self.name:
            return network(inputs, *args, **kwargs)
        if self.name not in network.map_names:
            raise InputError(f"There is no map '{self.name}': the network has {', '.join(network.map_names)}.")
        position = network.map_names.index(self.name)
        return network.maps(inputs)[:, position : position + 1]
