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

"""PyramidNet: an ImageNet encoder of the timm library with a light feature pyramid (Lin et al., CVPR 2017) on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.encoders import create_encoder, load_encoder_weights
from scripts.networks.folding import FoldedEncoder, normalisations
from scripts.networks.map_network import MapNetwork

__all__ = ["PyramidNet"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PyramidNet(MapNetwork):
    """
    Encoder and feature pyramid: each level is brought to so many channels, added to the coarser one upsampled, and
    smoothed by a 3x3 convolution; the finest gives the map.

    Nothing in it depends on the other images of a batch, nor on an image as a whole: the statistics of the encoder's
    batch normalisation are taken from training images once, see `calibrate`, and stay; the pyramid has none. So a step
    gathered from micro-batches is that of the whole batch, and a slide's tiles have the map of the whole slide.

    The image is continued by its mirror image at its borders. Zeros there tell a network where the border is, and it
    learns to put into a frame around each image what its area says is not cancer.

    Args:
        encoder: name of a timm network.
        levels: how many of its feature maps are used, from the finest (stride 2 in most) on.
        channels: of the pyramid.
        border: pixels by which the image is continued, at most; fewer where it is smaller than that.
        deep_supervision: a map of each level beside their fusion, as the paper has them, instead of one.
        pretrained: ``"imagenet"``, the path of a state dict, or ``"random"``; see `load_encoder_weights`.
        method: name of what the network is trained as, see `MapNetwork`.
        in_channels: of the image.
        dropout: probability with which each channel of the pyramid is hidden from its map, in training mode alone; see
            `CDWSNet`.

    Raises:
        InputError: when timm has no such encoder, or the weights can't be had.
    """

    smallest_size = 32

    def __init__(
        self,
        encoder: str = "tf_efficientnet_lite0",
        levels: int = 4,
        channels: int = 48,
        border: int = 16,
        deep_supervision: bool = False,
        pretrained: str = "random",
        method: str = "",
        in_channels: int = 3,
        dropout: float = 0.0,
    ) -> None:
        features = create_encoder(encoder, levels, in_channels)
        strides = [f"stride {stride}" for stride in features.feature_info.reduction()]
        super().__init__(["fusion", *strides] if deep_supervision else ["map"], method)
        self.encoder = features
        self.pretrained = pretrained
        if pretrained != "random":
            load_encoder_weights(features, encoder, pretrained)
        self._folded = FoldedEncoder(features, in_channels)
        self.border = border
        self.deep_supervision = deep_supervision
        # from the input that all networks of the bundle take to the encoder's own: x a + b
        config = features.pretrained_cfg
        own_mean, own_std = torch.tensor(config["mean"]), torch.tensor(config["std"])
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        factor, offset = std / own_std, (mean - own_mean) / own_std
        if in_channels != 3:  # of no colour: as grey
            factor, offset = factor.mean().expand(in_channels), offset.mean().expand(in_channels)
        self.register_buffer("factor", factor.reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("offset", offset.reshape(1, -1, 1, 1).clone(), persistent=False)
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.uint8))
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in features.feature_info.channels())
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in self.lateral)
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in (self.lateral if deep_supervision else [0]))
        for convolution in (*self.lateral, *self.smooth):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            nn.init.zeros_(convolution.bias)
        for head in self.heads:  # every probability is 1/2 at first
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.dropout = nn.Dropout2d(dropout)
        self.fusion_logits = nn.Parameter(torch.zeros(len(self.heads)), requires_grad=deep_supervision)

    @torch.jit.unused
    @torch.no_grad()
    def calibrate(self, batches: Iterable[torch.Tensor]) -> None:
        """
        Take the statistics of the encoder's normalisation from images, unless that has been done.

        ImageNet's are those of photographs: a stained section has other colours, less contrast and more texture.

        Args:
            batches: of images (B, in_channels, H, W), as `maps` takes them.
        """
        if self.calibrated:
            return
        layers = normalisations(self.encoder)
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
            layer.train()
        for batch in batches:
            self.maps(batch)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()
        self.calibrated.fill_(1)

    @torch.jit.unused
    @torch.no_grad()
    def shift(self, logits: float) -> None:
        """Add to the logits of all maps."""
        for head in self.heads:
            head.bias += logits

    def train(self, mode: bool = True) -> PyramidNet:
        """Training mode, but for the encoder's normalisation, whose statistics stay."""
        super().train(mode)
        for layer in normalisations(self.encoder):
            layer.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Checkpoints of 0.7.0 have the encoder's unused blocks as well."""
        blocks, start = getattr(self.encoder, "blocks", ()), prefix + "encoder.blocks."
        for name in [name for name in state_dict if name.startswith(start)]:
            if int(name.removeprefix(start).partition(".")[0]) >= len(blocks) > 0:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        All probability maps.

        Args:
            image: (B, in_channels, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation, whatever
                the encoder was trained with. H and W at least 32.

        Returns:
            (B, 1, H, W) float32 in 0..1; with deep supervision (B, 1 + levels, H, W), the fusion first.
        """
        height, width = image.shape[-2:]
        vertical, horizontal = min(self.border, height - 1), min(self.border, width - 1)
        x = image * self.factor + self.offset
        x = F.pad(x, (horizontal, horizontal, vertical, vertical), mode="reflect")
        features: list[torch.Tensor] = self.encoder(x) if torch.jit.is_scripting() else self._folded(self.encoder, x)

        laterals: list[torch.Tensor] = []
        for level, lateral in enumerate(self.lateral):
            laterals.append(lateral(features[level]))
        pyramid: list[torch.Tensor] = []  # from coarse to fine
        for step in range(len(laterals)):
            y = laterals[len(laterals) - 1 - step]
            if step > 0:
                y = y + F.interpolate(pyramid[-1], size=y.shape[-2:], mode="bilinear", align_corners=False)
            pyramid.append(y)
            for level, smooth in enumerate(self.smooth):  # TorchScript indexes no list of modules by a variable
                if level == len(laterals) - 1 - step:
                    pyramid[-1] = F.relu(smooth(y))

        sides: list[torch.Tensor] = []
        for level, head in enumerate(self.heads):
            # float32 whatever the autocast: half precision can't hold the small probabilities the loss works on
            probability = torch.sigmoid(head(self.dropout(pyramid[len(laterals) - 1 - level])).float())
            probability = F.interpolate(probability, size=x.shape[-2:], mode="bilinear", align_corners=False)
            sides.append(probability[..., vertical : vertical + height, horizontal : horizontal + width])
        maps = torch.cat(sides, dim=1)
        if not self.deep_supervision:
            return maps
        weights = torch.softmax(self.fusion_logits, dim=0).view(1, -1, 1, 1)
        return torch.cat([(maps * weights).sum(dim=1, keepdim=True), maps], dim=1)
