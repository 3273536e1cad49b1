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

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import make_layers

from scripts.errors import InputError

__all__ = ["CDWSNet", "WeightedFusion", "load_trunk_weights", "receptive_fields"]

logger = logging.getLogger(__name__)

METHOD_BYTES = 64
# Channels of VGG16's convolutions, stage by stage (Simonyan & Zisserman 2015, configuration D).
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class WeightedFusion(nn.Module):
    """
    Weighted average of side probabilities, equation (10).

    In training the weights are learned; a softmax keeps them on the simplex, so that the result is a probability.
    In evaluation they are fixed, since the learned ones converge to the deepest side alone (section III-B.3).

    Args:
        test_weights: one weight per side, non-negative, summing to 1.

    Raises:
        ValueError: when `test_weights` are not weights of an average.
    """

    def __init__(self, test_weights: Sequence[float]) -> None:
        super().__init__()
        weights = torch.tensor(test_weights, dtype=torch.float32)
        if (weights < 0).any() or abs(float(weights.sum()) - 1.0) > 1e-4:
            raise ValueError(f"fusion weights must be non-negative and sum to 1, got {list(test_weights)}.")
        self.logits = nn.Parameter(torch.zeros(len(weights)))  # softmax of zeros: 1/T each
        # Not part of the state dict: the constructor decides, whatever weights a checkpoint was tested with.
        self.register_buffer("test_weights", weights, persistent=False)

    def forward(self, sides: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W) side probabilities to their average (B, 1, H, W)."""
        weights = torch.softmax(self.logits, dim=0) if self.training else self.test_weights
        return (sides * weights.view(1, -1, 1, 1)).sum(dim=1, keepdim=True)


class CDWSNet(nn.Module):
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

    Raises:
        ValueError: when `stages` is out of range, `fusion_weights` don't fit it, or `method` is too long.
        InputError: when the pretrained weights can't be had.
    """

    def __init__(
        self,
        stages: int = 3,
        fusion_weights: Sequence[float] = (0.2, 0.35, 0.45),
        pretrained: str = "random",
        deep_supervision: bool = True,
        method: str = "",
    ) -> None:
        super().__init__()
        if not isinstance(stages, int) or isinstance(stages, bool) or not 1 <= stages <= len(VGG16_STAGES):
            raise ValueError(f"stages must be a whole number from 1 to {len(VGG16_STAGES)}, got {stages}.")
        if len(method.encode()) > METHOD_BYTES:
            raise ValueError(f"the name of a method has at most {METHOD_BYTES} bytes, got '{method}'.")
        if deep_supervision and len(fusion_weights) != stages:
            raise ValueError(f"{stages} stages need {stages} fusion weights, got {list(fusion_weights)}.")
        channels = VGG16_STAGES[:stages]
        layers: list[int | str] = [layer for stage in channels for layer in (*stage, "M")]
        self.features = make_layers(layers[:-1])  # no pooling after the last stage
        self.method = method
        self.deep_supervision = deep_supervision
        supervised = range(stages) if deep_supervision else [stages - 1]
        # Index of the last ReLU of each stage: (convolution, ReLU) pairs, and a pooling layer between stages.
        self.stage_ends = [2 * sum(len(stage) for stage in channels[: t + 1]) + t - 1 for t in supervised]
        self.sides = nn.ModuleList(nn.Conv2d(channels[t][-1], 1, kernel_size=1) for t in supervised)
        self.fusion = WeightedFusion(fusion_weights) if deep_supervision else nn.Identity()
        self._initialise()
        if pretrained != "random":
            load_trunk_weights(self, pretrained)

    def _initialise(self) -> None:
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # ImageNet's features reach the hundreds: any random projection of them would saturate the sigmoid.
        for side in self.sides:
            nn.init.zeros_(side.weight)
            nn.init.zeros_(side.bias)

    def get_extra_state(self) -> torch.Tensor:
        """The method's name as a tensor, since MONAI expects nothing else in a state dict."""
        return torch.tensor(list(self.method.encode().ljust(METHOD_BYTES)), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Raises InputError when the state dict is of another method."""
        found = bytes(state.tolist()).decode().strip()
        if found and self.method and found != self.method:
            raise InputError(
                f"it was trained as '{found}', the settings are of '{self.method}'; give the overlays that it was "
                "trained with, which have the names of its method (and superpixels.json), or name another checkpoint."
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        state_dict.setdefault(prefix + "_extra_state", self.get_extra_state())  # weights from elsewhere have no method
        super()._load_from_state_dict(state_dict, prefix, *args)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """
        All probability maps, fused first.

        Args:
            image: (B, 3, H, W), RGB in 0..1 normalised by ImageNet's mean and standard deviation.
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
            probability = torch.sigmoid(side(stage_features[t]).float())
            sides.append(F.interpolate(probability, size=image.shape[-2:], mode="bilinear", align_corners=False))
        side_maps = torch.cat(sides, dim=1)  # (B, T, H, W)
        return torch.cat([self.fusion(side_maps), side_maps], dim=1) if self.deep_supervision else side_maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to all maps (B, 1 + T, H, W) in training, and to the fused map (B, 1, H, W) in evaluation."""
        maps = self.maps(image)
        return maps if self.training else maps[:, :1]


def receptive_fields(network: CDWSNet) -> list[tuple[int, int]]:
    """
    Receptive field and stride of each side output in pixels, from shallow to deep, as Table I of the paper has them.

    A layer of kernel k and stride s on top of a field f and a stride j makes them f + (k - 1) j and j s.
    """
    field, stride, found = 1, 1, []
    for index, layer in enumerate(network.features):
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            kernel, step = (v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride))
            field, stride = field + (kernel - 1) * stride, stride * step
        if index in network.stage_ends:
            found.append((field, stride))
    return found


def load_trunk_weights(network: CDWSNet, source: str) -> None:
    """
    Load VGG16 weights into the trunk of `network`; sides and fusion are left as they are.

    Args:
        source: ``"imagenet"`` for torchvision's weights (from its cache, or downloaded), or the path of a state dict
            that has the trunk's keys under torchvision's names. Stages at the end may be missing as a whole: they keep
            their random weights, and a warning says so.

    Raises:
        InputError: when the weights can't be downloaded, the file can't be read, or a key is missing or misshapen.
    """
    state = _imagenet_weights() if source == "imagenet" else _read_state_dict(source)
    stages = _trunk_keys_by_stage(network)
    found = 1 + max((t for t, keys in enumerate(stages) if keys & set(state)), default=-1)
    missing = sorted(set().union(*stages[: max(found, 1)]) - set(state))
    if missing:
        raise InputError(f"The weights '{source}' lack '{missing[0]}'; give a state dict of torchvision's VGG16.")
    if found < len(stages):
        logger.warning(
            f"The weights '{source}' end with stage {found}; stages {found + 1} to {len(stages)} are random."
        )
    trunk = {key.removeprefix("features."): state[key] for keys in stages[:found] for key in keys}
    try:
        network.features.load_state_dict(trunk, strict=False)  # what may be missing was checked
    except RuntimeError as error:
        raise InputError(f"The weights '{source}' don't fit VGG16: {str(error).splitlines()[-1].strip()}") from error


def _trunk_keys_by_stage(network: CDWSNet) -> list[set[str]]:
    stages: list[set[str]] = [set()]
    for index, layer in enumerate(network.features):
        if isinstance(layer, nn.MaxPool2d):
            stages.append(set())
        stages[-1] |= {f"features.{index}.{name}" for name, _ in layer.named_parameters()}
    return stages


def _imagenet_weights() -> dict[str, torch.Tensor]:
    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        # without the hash a download that breaks off would stay in the cache
        return weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # of the network, the disk, the hash, or a damaged file in the cache
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise InputError(
            f"Torchvision's ImageNet weights of VGG16 could not be had ({error}): either put {weights.url} "
            f"into '{cache}', or give a file of VGG16 weights by --pretrained PATH (or start from --pretrained random)."
        ) from error


def _read_state_dict(path: str) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise InputError(f"There are no pretrained weights '{path}'; give 'imagenet', 'random', or an existing file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file may raise anything
        raise InputError(f"'{path}' is not a state dict that PyTorch can read; save one with torch.save.") from error
    if not isinstance(state, dict):
        raise InputError(f"'{path}' holds a {type(state).__name__}, not a state dict.")
    return state
