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

import math
from collections.abc import Hashable, Mapping, Sequence
from copy import deepcopy

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform

from scripts.data.rough_area import rough_area
from scripts.images.small_parts import without_small_parts
from scripts.networks.map_network import MapNetwork
from scripts.runtime.errors import InputError
from scripts.runtime.values import fraction
from scripts.training.checkpoints import NetworkLoader
from scripts.training.record import describe

__all__ = ["RankingMapd"]

LARGEST_SHARE = 0.25  # of what is surely positive, that a small part may have


class RankingMapd(MapTransform):
    """
    Add the map of networks that have been trained, averaged over them and over the image and its three flips; and to a
    positive image without a rough area that of the map's mask.

    It belongs among what is cached, after the image has its size and its colours and before random changes: so each
    network sees an image once. The map of a negative image, whose pixels need no ranking, is 0.

    Args:
        keys: key of the image (C, W, H), as the network takes it; ``label`` is its weak target, label and area.
        names: key of the result, (1, W, H) float32 in 0..1.
        network: of the same kind as those that are loaded.
        paths: of their checkpoints, or of one.
        smallest: part of the image below which holes and islands are not kept, see `without_small_parts`, and at most
            a quarter of what is surely positive; 0 keeps all.
        area_step: the step to which areas are rounded up: a less a step is surely positive.

    Raises:
        InputError: when none is named, or one can't be loaded, see `NetworkLoader`, or `smallest` is no fraction.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: KeysCollection,
        network: MapNetwork,
        paths: str | Sequence[str],
        smallest: float = 0.0,
        area_step: float = 0.1,
    ) -> None:
        super().__init__(keys)
        fraction("smallest_part", smallest)
        self.smallest = smallest
        self.area_step = area_step
        self.names = (names,) if isinstance(names, str) else tuple(names)
        paths = [paths] if isinstance(paths, str) else paths
        if not paths:
            raise InputError("ranked_by names no checkpoint; give the model.pt of a training, or of several.")
        self._networks = [deepcopy(network).averaging_flips(True).eval().requires_grad_(False) for _ in paths]
        for ranker, path in zip(self._networks, paths, strict=True):
            NetworkLoader(ranker, path, map_location="cpu", setting="ranked_by")(None)
        self.weights = [describe(dict(ranker.state_dict())) for ranker in self._networks]  # for the record

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        label, area = torch.as_tensor(d["label"]).tolist()
        for key, name in zip(self.keys, self.names, strict=True):
            image = torch.as_tensor(d[key])
            if label < 0.5:
                d[name] = torch.zeros_like(image[:1], dtype=torch.float32)
                continue
            ranking = self._mean_map(image)
            if math.isnan(area):
                area = self._area(ranking, d.get("valid"))
                d["label"] = torch.tensor([label, area])
            smallest = min(self.smallest, LARGEST_SHARE * (area - self.area_step))
            d[name] = without_small_parts(ranking, smallest * ranking.numel()) if smallest > 0 else ranking
        return d

    @torch.no_grad()
    def _mean_map(self, image: torch.Tensor) -> torch.Tensor:
        """Of the networks, for an image (C, W, H): (1, W, H) float32."""
        maps = [
            ranker(image[None].to(next(ranker.parameters()).device))[0, :1].cpu().float() for ranker in self._networks
        ]
        return torch.stack(maps).mean(dim=0)

    def _area(self, ranking: torch.Tensor, valid: NdarrayOrTensor | None) -> float:
        """Of a map's mask within the image, rounded up to a step, one at least."""
        inside = ranking if valid is None else ranking[torch.as_tensor(valid) > 0]
        return max(rough_area((inside > 0.5).numpy(), self.area_step), self.area_step)
