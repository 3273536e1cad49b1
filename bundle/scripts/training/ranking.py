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

"""How networks that have been trained rank the pixels of training images: labels for the next one."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform

from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError
from scripts.training.checkpoints import NetworkLoader
from scripts.training.record import describe

__all__ = ["RankingMapd"]


class RankingMapd(MapTransform):
    """
    Add the map of networks that have been trained, averaged over them and over the image and its three flips.

    It belongs among what is cached, after the image has its size and its colours and before random changes: so each
    network sees an image once. The map of a negative image, whose pixels need no ranking, is 0.

    Args:
        keys: key of the image (C, W, H), as the network takes it; ``label`` is its weak target, label and area.
        names: key of the result, (1, W, H) float32 in 0..1.
        network: of the same kind as those that are loaded.
        paths: of their checkpoints, or of one.

    Raises:
        InputError: when none is named, or one can't be loaded, see `NetworkLoader`.
    """

    def __init__(
        self, keys: KeysCollection, names: KeysCollection, network: MapNetwork, paths: str | Sequence[str]
    ) -> None:
        super().__init__(keys)
        self.names = (names,) if isinstance(names, str) else tuple(names)
        paths = [paths] if isinstance(paths, str) else paths
        if not paths:
            raise InputError("ranked_by names no checkpoint; give the model.pt of a training, or of several.")
        self._networks = [deepcopy(network).averaging_flips(True).eval().requires_grad_(False) for _ in paths]
        for ranker, path in zip(self._networks, paths, strict=True):
            NetworkLoader(ranker, path, map_location="cpu", setting="ranked_by")(None)
        self.weights = [describe(dict(ranker.state_dict())) for ranker in self._networks]  # for the record

    @torch.no_grad()
    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key, name in zip(self.keys, self.names, strict=True):
            image = torch.as_tensor(d[key])
            ranking = torch.zeros_like(image[:1], dtype=torch.float32)
            if d["label"][0] > 0.5:
                for ranker in self._networks:
                    device = next(ranker.parameters()).device
                    ranking += ranker(image[None].to(device))[0, :1].cpu()
            d[name] = ranking / len(self._networks)
        return d
