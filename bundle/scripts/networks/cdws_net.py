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

"""CDWSNet: the first stages of VGG16 with side outputs and their fusion (Jia et al. 2017, Figure 3 and section IV)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from scripts.networks.map_network import MapNetwork
from scripts.networks.vgg import VGG16_STAGES, initialise_convolutions, load_trunk_weights, stage_ends, vgg16_trunk
from scripts.runtime.errors import InputError
from scripts.runtime.values import is_number, truth_value

__all__ = ["CDWSNet", "WeightedFusion"]


class WeightedFusion(nn.Module):
    """
    Weighted average of side probabilities, equation (10).

    In training the weights are learned; a softmax keeps them on the simplex, so that the result is a probability.
    In evaluation they are fixed, since the learned ones converge to the deepest side alone (section III-B.3).

    Args:
        test_weights: one weight per side, non-negative, summing to 1.

    Raises:
        InputError: when `test_weights` are not weights of an average.
    """

    def __init__(self, test_weights: Sequence[float]) -> None:
        super().__init__()
        weights = torch.tensor(test_weights, dtype=torch.float32)
        if (weights < 0).any() or abs(float(weights.sum()) - 1.0) > 1e-4:
            raise InputError(f"fusion weights must be non-negative and sum to 1, got {list(test_weights)}.")
        self.logits = nn.Parameter(torch.zeros(len(weights)))  # softmax of zeros: 1/T each
        # Not part of the state dict: the constructor decides, whatever weights a checkpoint was tested with.
        self.register_buffer("test_weights", weights, persistent=False)

    def forward(self, sides: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W) side probabilities to their average (B, 1, H, W)."""
        weights = torch.softmax(self.logits, dim=0) if self.training else self.test_weights
        return (sides * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


class CDWSNet(MapNetwork):
    """
    Fully convolutional network with a probability map at each scale and one fused of all.

    The trunk is VGG16's convolutional stages, each side output a 1x1 convolution on a stage's last convolution
    (after its ReLU, before pooling), sigmoid, and bilinear upsampling of the probability to the input's size.
    The parameters of the trunk carry torchvision's names (``features.0.weight`` ...).

    Args:
        stages: number T of VGG16 stages, 1 to 5. The paper trims to 3: deeper stages see too far for tissue texture.
        fusion_weights: the fixed weights of the T sides in evaluation; the paper's 0.2, 0.35, 0.45 for three stages.
            Without deep supervision they have no meaning.
        pretrained: ``"imagenet"`` for torchvision's weights, the path of a state dict with the same key names,
            or ``"random"`` for random initialisation.
        deep_supervision: False for the deepest side output alone, which is the paper's baseline.
        method: name of what the network is trained as, at most 64 bytes. It goes into the state dict, and a network of
            another method refuses to load it: the weights alone don't tell whether they were learned with an area
            constraint, or for superpixels. An empty name neither refuses nor is refused.
        dropout: probability with which each channel of a stage's features is hidden from its side output, in training
            mode alone. MONAI Label asks for it to see how sure the network is (Monte Carlo dropout).
        in_channels: of the image. Pretrained weights are fitted to others than 3, see `load_trunk_weights`.

    Raises:
        InputError: when `stages` is out of range, `fusion_weights` don't fit it, or `method` is too long.
        InputError: when the pretrained weights can't be had.
    """

    def __init__(
        self,
        stages: int = 3,
        fusion_weights: Sequence[float] = (0.2, 0.35, 0.45),
        pretrained: str = "random",
        deep_supervision: bool = True,
        method: str = "",
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        trunk = vgg16_trunk(stages, in_channels)
        truth_value("deep_supervision", deep_supervision)
        if deep_supervision and not _are_numbers(fusion_weights, stages):
            raise InputError(
                f"fusion_weights must be a list of {stages} numbers, one for each of the stages; "
                f"got {fusion_weights!r}."
            )
        sides = [f"side {t}" for t in range(1, stages + 1)]
        super().__init__(["fusion", *sides] if deep_supervision else ["map"], method)
        self.features = trunk
        self.smallest_size = max(self.smallest_size, 2 ** (stages - 1))  # every stage but the last halves it
        self.pretrained = pretrained
        self.deep_supervision = deep_supervision
        self.stage_ends = stage_ends(stages) if deep_supervision else stage_ends(stages)[-1:]
        channels = [stage[-1] for stage in VGG16_STAGES[:stages]]
        self.sides = nn.ModuleList(nn.Conv2d(c, 1, kernel_size=1) for c in channels[-len(self.stage_ends) :])
        initialise_convolutions(self.features)
        for side in self.sides:  # ImageNet's features reach the hundreds: random weights would saturate the sigmoid
            nn.init.zeros_(side.weight)
            nn.init.zeros_(side.bias)
        self.dropout = nn.Dropout2d(dropout)
        self.fusion = WeightedFusion(fusion_weights) if deep_supervision else nn.Identity()
        if pretrained != "random":
            load_trunk_weights(self, pretrained)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        All probability maps, fused first.

        Args:
            image: (B, in_channels, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation.
                H and W at least 4 for three stages (2 to the power of stages - 1).

        Returns:
            (B, 1 + T, H, W) float32 in 0..1: the fusion, then the sides from shallow to deep. Without deep supervision
            (B, 1, H, W).
        """
        stage_features: list[torch.Tensor] = []
        x = image
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stage_ends:
                stage_features.append(x)
        sides: list[torch.Tensor] = []
        for t, side in enumerate(self.sides):
            # float32 whatever the autocast: half precision can't hold the small probabilities the loss works on
            probability = torch.sigmoid(side(self.dropout(stage_features[t])).float())
            sides.append(F.interpolate(probability, size=image.shape[-2:], mode="bilinear", align_corners=False))
        side_maps = torch.cat(sides, dim=1)  # (B, T, H, W)
        return torch.cat([self.fusion(side_maps), side_maps], dim=1) if self.deep_supervision else side_maps

    def receptive_fields(self) -> dict[str, tuple[int, int]]:
        """
        Receptive field and stride of each side output, from shallow to deep, as Table I of the paper has them.

        A layer of kernel k and stride s on top of a field f and a stride j makes them f + (k - 1) j and j s.
        """
        field, stride, found = 1, 1, []
        for index, layer in enumerate(self.features):
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                kernel, step = (v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride))
                field, stride = field + (kernel - 1) * stride, stride * step
            if index in self.stage_ends:
                found.append((field, stride))
        return dict(zip(self.map_names[-len(found) :], found, strict=True))


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, (list, tuple)) and len(values) == count and all(map(is_number, values))
