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

"""DCAN: objects and their contours from three levels of VGG16 (Chen, Qi, Yu & Heng, CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.fcn import BilinearUpsampling
from scripts.networks.map_network import MapNetwork
from scripts.networks.vgg import (
    VGG16_STAGES,
    initialise_convolutions,
    load_trunk_weights,
    noise_image,
    pooled_vgg16_trunk,
    stage_ends,
)

__all__ = ["DCAN", "LevelHead"]

# Stride of a level, and the number of the VGG16 stage whose pooling it follows.
LEVELS = {8: 3, 16: 4, 32: 5}
HEAD_CHANNELS = 32


class LevelHead(nn.Module):
    """
    From the features of a level to its score at the image's size.

    As published, features are upsampled by a transposed convolution and then classified by a 1x1 convolution. Ours is
    that the features are scaled, that a 3x3 convolution to few channels comes first, and that each channel is upsampled
    on its own.

    Args:
        channels: of the features.
        stride: of the features, in pixels.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))  # ImageNet's features reach the hundreds
        self.reduce = nn.Conv2d(channels, HEAD_CHANNELS, kernel_size=3, padding=1)
        self.upsample = BilinearUpsampling(HEAD_CHANNELS, stride, groups=HEAD_CHANNELS)
        self.score = nn.Conv2d(HEAD_CHANNELS, 1, kernel_size=1)
        initialise_convolutions(self.reduce)
        nn.init.zeros_(self.score.weight)  # all probabilities start at one half, like CDWSNet's
        nn.init.zeros_(self.score.bias)

    def forward(self, features: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(B, C, h, w) features to (B, 1, height, width) scores in float32."""
        x = F.relu(self.reduce(features * self.scale))  # (B, 32, h, w)
        x = self.upsample(x)[:, :, :height, :width]  # (B, 32, height, width)
        return self.score(x).float()  # half precision can't hold the small probabilities the loss works on


class DCAN(MapNetwork):
    """
    Deep contour-aware network: the scores of three levels of VGG16, each supervised, and their sum.

    The classes are object and background, so there is one score and a sigmoid in place of two and a softmax.

    Args:
        contour: True for a second set of heads, on the same trunk, that predicts the objects' contours.
        pretrained: ``"imagenet"`` for torchvision's weights, the path of a state dict with the same key names,
            or ``"random"`` for random initialisation.
        method: name of what the network is trained as, see `MapNetwork`.

    Raises:
        ValueError: when `method` is too long.
        InputError: when the pretrained weights can't be had.
    """

    def __init__(self, contour: bool = False, pretrained: str = "random", method: str = "") -> None:
        names = ["fusion", *(f"level {stride}" for stride in LEVELS)]
        if contour:
            names += ["contour", *(f"contour level {stride}" for stride in LEVELS)]
        super().__init__(names, method)
        self.contour = contour
        self.pretrained = pretrained
        self.features = pooled_vgg16_trunk()
        ends = stage_ends(len(VGG16_STAGES))
        self.pools = [ends[stage - 1] + 1 for stage in LEVELS.values()]
        initialise_convolutions(self.features)
        self.object_heads = _heads()
        self.contour_heads = _heads() if contour else nn.ModuleList()
        if pretrained != "random":
            load_trunk_weights(self, pretrained)
        with torch.no_grad():
            levels = self._levels(noise_image())
        for heads in (self.object_heads, self.contour_heads):
            for head, features in zip(heads, levels, strict=False):  # no heads without contours
                head.scale.copy_(1 / features.std())

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        All probability maps, fused first.

        Args:
            image: (B, 3, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation. Any H and W.

        Returns:
            (B, 4, H, W) float32 in 0..1: the fusion, then the levels from shallow to deep; with contours (B, 8, H, W),
            the same of the contours behind it. In evaluation the first map of a network with contours is
            min(object, 1 - contour): at a threshold of 0.5 that is the paper's decision for a pixel, an object where
            its probability reaches the threshold and that of a contour does not. In training it is the object's
            probability alone, which is what is supervised.
        """
        levels = self._levels(image)
        height, width = image.shape[2], image.shape[3]
        object_scores: list[torch.Tensor] = []
        for t, head in enumerate(self.object_heads):
            object_scores.append(head(levels[t], height, width))
        maps = _fused_first(object_scores)  # (B, 4, H, W)
        if self.contour:
            contour_scores: list[torch.Tensor] = []
            for level, contour_head in enumerate(self.contour_heads):  # names of its own, for TorchScript
                contour_scores.append(contour_head(levels[level], height, width))
            contours = _fused_first(contour_scores)
            if not self.training:
                decision = torch.minimum(maps[:, :1], 1 - contours[:, :1])
                maps = torch.cat([decision, maps[:, 1:]], dim=1)
            maps = torch.cat([maps, contours], dim=1)  # (B, 8, H, W)
        return maps

    def _levels(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of each level, (B, C, H / s, W / s) for its stride s, from shallow to deep."""
        levels: list[torch.Tensor] = []
        x = image
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.pools:
                levels.append(x)
        return levels


def _heads() -> nn.ModuleList:
    return nn.ModuleList(LevelHead(VGG16_STAGES[stage - 1][-1], stride) for stride, stage in LEVELS.items())


def _fused_first(scores: list[torch.Tensor]) -> torch.Tensor:
    """Probabilities of the summed score and of each, (B, 1 + T, H, W)."""
    each = torch.cat(scores, dim=1)
    return torch.sigmoid(torch.cat([each.sum(dim=1, keepdim=True), each], dim=1))
