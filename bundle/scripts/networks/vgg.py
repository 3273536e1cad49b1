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

"""VGG16's convolutional stages, and their ImageNet weights."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn
from torchvision.models import VGG16_Weights
from torchvision.models.vgg import make_layers

from scripts.networks.weights import fit_channels, read_state_dict, refuse_not_finite, refuse_not_floating
from scripts.runtime.errors import InputError
from scripts.runtime.values import is_whole

__all__ = [
    "VGG16_STAGES",
    "initialise_convolutions",
    "load_trunk_weights",
    "noise_image",
    "pooled_vgg16_trunk",
    "stage_ends",
    "vgg16_trunk",
]

logger = logging.getLogger(__name__)

# Channels of VGG16's convolutions, stage by stage (Simonyan & Zisserman 2015, configuration D).
VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_trunk(stages: int, in_channels: int = 3) -> nn.Sequential:
    """
    The first stages of VGG16, (convolution, ReLU) pairs, with pooling between stages and none at the end.

    Called ``features`` in a network, its parameters carry torchvision's names (``features.0.weight`` ...).
    `load_trunk_weights` fits RGB's to another number of channels.

    Raises:
        InputError: when there are not so many stages.
    """
    if not is_whole(stages) or not 1 <= stages <= len(VGG16_STAGES):
        raise InputError(f"stages must be a whole number from 1 to {len(VGG16_STAGES)}; got {stages!r}.")
    layers: list[int | str] = [layer for stage in VGG16_STAGES[:stages] for layer in (*stage, "M")]
    trunk = make_layers(layers[:-1])
    if in_channels != 3:
        trunk[0] = nn.Conv2d(in_channels, VGG16_STAGES[0][0], kernel_size=3, padding=1)
    return trunk


def pooled_vgg16_trunk() -> nn.Sequential:
    """
    All stages of VGG16 with pooling after each, which rounds sizes up, as Caffe's does: an image of any size has
    features, and cell i of stride s covers pixels s i to s i + s - 1 of it. Parameters are named as in `vgg16_trunk`.
    """
    trunk = make_layers([layer for stage in VGG16_STAGES for layer in (*stage, "M")])
    for layer in trunk:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    return trunk


def initialise_convolutions(network: nn.Module) -> None:
    """Random weights after He et al. 2015, for convolutions before a ReLU; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def noise_image() -> torch.Tensor:
    """(1, 3, 64, 64), as varied as a normalised image: shows how large a network's features are, without any data."""
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def stage_ends(stages: int) -> list[int]:
    """Index in `vgg16_trunk` of the last ReLU of each of so many stages."""
    return [2 * sum(len(stage) for stage in VGG16_STAGES[: t + 1]) + t - 1 for t in range(stages)]


def load_trunk_weights(network: nn.Module, source: str) -> dict[str, torch.Tensor]:
    """
    Load VGG16 weights into the trunk of `network`; all else is left as it is.

    Args:
        network: has a `vgg16_trunk` or `pooled_vgg16_trunk` as ``features``.
        source: ``"imagenet"`` for torchvision's weights (from its cache, or downloaded), or the path of a state dict
            that has the trunk's keys under torchvision's names. Stages at the end may be missing as a whole: they keep
            their random weights, and a warning says so. Where the image has not three channels, the first layer's
            weights are fitted: equal channels give the features that they give as grey RGB.

    Returns:
        All that was read, for a network that has a use for more of it than the trunk.

    Raises:
        InputError: when the weights can't be downloaded, the file can't be read, a key is missing or misshapen, or a
            value is not finite or not floating-point.
    """
    state = _imagenet_weights() if source == "imagenet" else read_state_dict(source)
    refuse_not_finite(state, source)
    refuse_not_floating(state, network.features.state_dict(prefix="features."), source)
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
        trunk["0.weight"] = fit_channels(trunk["0.weight"], network.features[0].in_channels)
        network.features.load_state_dict(trunk, strict=False)  # what may be missing was checked
    except (AttributeError, IndexError, RuntimeError) as error:
        raise InputError(f"The weights '{source}' don't fit VGG16: {str(error).splitlines()[-1].strip()}") from error
    return state


def _trunk_keys_by_stage(network: nn.Module) -> list[set[str]]:
    stages: list[set[str]] = [set()]
    for index, layer in enumerate(network.features):
        if isinstance(layer, nn.MaxPool2d):
            stages.append(set())
        stages[-1] |= {f"features.{index}.{name}" for name, _ in layer.named_parameters()}
    return [keys for keys in stages if keys]  # after a last pooling there is no stage


def _imagenet_weights() -> dict[str, torch.Tensor]:
    weights = VGG16_Weights.IMAGENET1K_V1
    try:
        # without the hash a download that breaks off would stay in the cache
        return weights.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # of the network, the disk, the hash, or a damaged file in the cache
        cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        raise InputError(
            f"Torchvision's ImageNet weights of VGG16 could not be downloaded ({error}): either put {weights.url} "
            f"into '{cache}', or give a file of VGG16 weights by --pretrained PATH (or start from --pretrained random)."
        ) from error
