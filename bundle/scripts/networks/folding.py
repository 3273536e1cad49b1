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

"""
Normalisation with statistics that stay, as a part of the convolution before it.

With fixed mean m and variance v, batch normalisation is a factor and an offset of each channel, g (y - m) / sqrt(v + e)
+ b. So a convolution of weight w g / sqrt(v + e) and bias b - g m / sqrt(v + e) gives the same, without passing over
its output once more, and without keeping it for the backward pass.
"""

from __future__ import annotations

import logging
from collections import Counter
from copy import deepcopy
from itertools import chain
from threading import Lock

import torch
from torch import nn

__all__ = ["FoldedEncoder", "normalisations"]

logger = logging.getLogger(__name__)
NORMS_OWN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NOTHING = torch.empty(0, device="meta")  # in the place of a tensor that is not lent
SWAPPING = Lock()  # weights are lent to a skeleton for a call; two threads may share one


def normalisations(encoder: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations in a module."""
    return [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class FoldedEncoder:
    """
    How an encoder is computed by convolutions with its normalisations in them, where statistics stay.

    It is the same function of the encoder's own parameters, with the same gradient, up to rounding, and keeps none of
    them. The encoder itself is called where that can't be had: while a normalisation gathers statistics, where one has
    no convolution of its own just before it, where a hook listens to a part of it or activations are computed again for
    the backward pass, and when the network is compiled or exported.

    Args:
        encoder: from (B, C, H, W) to a list of feature maps.
        in_channels: C.
    """

    def __init__(self, encoder: nn.Module, in_channels: int) -> None:
        self.pairs: dict[str, str] = {}
        self.names = set(_tensors(encoder))
        norms = normalisations(encoder)
        if not norms:
            return
        skeleton = deepcopy(encoder).to("meta", torch.float32).requires_grad_(False)
        try:
            pairs = _pairs(skeleton, in_channels)
        except Exception as error:  # of an encoder that takes no images but those of one size
            logger.debug(f"not folded: {error}")
            return
        if len(pairs) < len(norms):
            return
        self.pairs, self.skeleton = pairs, skeleton
        for convolution, norm in pairs.items():
            layer = self.skeleton.get_submodule(convolution)
            layer.bias = nn.Parameter(torch.empty(layer.out_channels, device="meta"), requires_grad=False)
            parent, _, name = norm.rpartition(".")
            after = self.skeleton.get_submodule(norm)  # timm's has its activation in it
            rest = nn.Sequential(after.drop, after.act) if hasattr(after, "act") else nn.Identity()
            setattr(self.skeleton.get_submodule(parent), name, rest)
        self.places = [  # of the skeleton's tensors: where they are, and their names
            (own, key, f"{name}.{key}" if name else key)
            for name, module in self.skeleton.named_modules()
            for own in (module._parameters, module._buffers)
            for key, tensor in own.items()
            if tensor is not None
        ]

    def __call__(self, encoder: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            encoder: that which this was made of, or a copy, with whatever weights it has now.
            x: (B, C, H, W).

        Returns:
            The encoder's feature maps.
        """
        if not self.pairs or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return encoder(x)
        tensors = _tensors(encoder)
        if tensors.keys() != self.names or any(map(_is_observed, encoder.modules())):
            return encoder(x)
        folded = self._folded(encoder, tensors)
        with SWAPPING:
            if self.skeleton.training != encoder.training:
                self.skeleton.train(encoder.training)
            try:
                # not by torch.func.functional_call, which takes a tenth of the time of a small picture
                for own, key, name in self.places:
                    own[key] = folded[name]
                return self.skeleton(x)
            finally:
                for own, key, _ in self.places:
                    own[key] = NOTHING

    def _folded(self, encoder: nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The skeleton's tensors."""
        gone: set[str] = set()
        folded = dict(tensors)
        for convolution, name in self.pairs.items():
            mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
            weight = tensors[f"{convolution}.weight"]
            factor = tensors[f"{name}.weight"] * (variance + encoder.get_submodule(name).eps).rsqrt()
            offset = mean - tensors[f"{convolution}.bias"] if f"{convolution}.bias" in tensors else mean
            folded[f"{convolution}.weight"] = (weight * factor.view(-1, 1, 1, 1)).to(weight.dtype)
            folded[f"{convolution}.bias"] = (tensors[f"{name}.bias"] - offset * factor).to(weight.dtype)
            gone |= {f"{name}.{own}" for own in NORMS_OWN}
        return {name: tensor for name, tensor in folded.items() if name not in gone}


def _tensors(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """By all of their names, where one has several."""
    both = (encoder.named_parameters(remove_duplicate=False), encoder.named_buffers(remove_duplicate=False))
    return dict(chain(*both))


def _is_observed(module: nn.Module) -> bool:
    """Whether something depends on this module itself being called, and not another in its place."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
        return True
    heard = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(heard) or getattr(module, "grad_checkpointing", False)


def _pairs(encoder: nn.Module, in_channels: int) -> dict[str, str]:
    """
    Convolutions, and those normalisations whose input is their output, in the same part of the encoder: where it leaves
    that part it may go elsewhere too. Each of both is used once.
    """
    names = {module: name for name, module in encoder.named_modules()}
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # the outputs too, or another may get the address of one
    pairs: dict[str, str] = {}
    uses: Counter[str] = Counter()

    def note(module: nn.Conv2d, _: tuple, output: torch.Tensor) -> None:
        uses[names[module]] += 1
        made[id(output)] = (module, output)

    def pair(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        uses[names[norm]] += 1
        convolution = names[made[id(inputs[0])][0]] if id(inputs[0]) in made else ""
        part = names[norm].rpartition(".")[0]
        is_plain = norm.affine and norm.track_running_stats
        if convolution and is_plain and (not part or convolution.startswith(f"{part}.")):
            pairs[convolution] = names[norm]

    hooks = [m.register_forward_hook(note) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(pair) for norm in normalisations(encoder)]
    training = encoder.training
    features = encoder.eval()(torch.empty(1, in_channels, 64, 64, device="meta"))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    uses.update(names[made[id(feature)][0]] for feature in features if id(feature) in made)  # as they are
    return {convolution: norm for convolution, norm in pairs.items() if uses[convolution] == uses[norm] == 1}
