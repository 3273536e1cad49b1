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
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn

__all__ = ["FoldedEncoder", "normalisations"]

logger = logging.getLogger(__name__)


def normalisations(encoder: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations in a module."""
    return [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class FoldedEncoder:
    """
    How an encoder is computed by convolutions with its normalisations in them, where statistics stay.

    It is the same function of the encoder's own parameters, with the same gradient, up to rounding: for each call a
    copy is made that shares all but the convolutions' weights. The encoder itself is called where that can't be had:
    while a normalisation gathers statistics, where one has no convolution of its own just before it, where its layers
    are others than they were, where a hook listens to one or activations are computed again for the backward pass, and
    when the network is traced, compiled or exported.

    Args:
        encoder: from (B, C, H, W) to a list of feature maps.
        in_channels: C.
    """

    def __init__(self, encoder: nn.Module, in_channels: int) -> None:
        self.pairs: list[_Pair] = []
        if not normalisations(encoder):
            return
        try:
            with torch.device("cpu"), torch.no_grad():
                names = _names_of_pairs(encoder, in_channels)
        except Exception as error:  # of an encoder that takes no images but those of one size, for instance
            logger.debug(f"not folded: {error}")
            return
        self.pairs = _pairs(encoder, names)

    def __call__(self, encoder: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            encoder: that which this was made of, with whatever weights it has now.
            x: (B, C, H, W).

        Returns:
            The encoder's feature maps.
        """
        is_traced = not isinstance(x, torch.Tensor) or torch.jit.is_tracing() or torch.compiler.is_compiling()
        if not self.pairs or is_traced:
            return encoder(x)
        members = set(encoder.modules())
        if any(map(_is_observed, members)) or not all(pair.can_be_folded(members) for pair in self.pairs):
            return encoder(x)
        return _folded(encoder, self.pairs)(x)


class _Rest(nn.Module):
    """What a normalisation does beside normalising: timm's have a dropout and an activation in them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.__dict__["norm"] = norm  # not as a part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm.act(self.norm.drop(x)) if hasattr(self.norm, "act") else x


class _Pair(NamedTuple):
    """A convolution, the normalisation just after it, and what is in the place of that when it is folded."""

    convolution: nn.Conv2d
    norm: nn.modules.batchnorm._BatchNorm
    rest: _Rest

    def can_be_folded(self, members: set[nn.Module]) -> bool:
        """Whether both are still in the encoder, whose modules these are, with all tensors that it takes."""
        ours, norms = self.convolution._parameters, self.norm._parameters
        own = [ours.get("weight"), norms.get("weight"), norms.get("bias"), self.norm._buffers.get("running_mean")]
        is_complete = all(tensor is not None for tensor in own)  # a parametrised weight is not there
        return is_complete and self.convolution in members and self.norm in members

    def folded(self) -> nn.Conv2d:
        convolution, norm = self.convolution, self.norm
        weight, bias = convolution.weight, convolution.bias
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        offset = norm.running_mean if bias is None else norm.running_mean - bias
        own = {
            "weight": (weight * factor.view(-1, 1, 1, 1)).to(weight.dtype),
            "bias": (norm.bias - offset * factor).to(weight.dtype),
        }
        return _copy(convolution, _parameters=own)


def _copy(module: nn.Module, **changed: dict) -> nn.Module:
    """A module that shares all but these with another."""
    copied = object.__new__(type(module))
    copied.__dict__ = {**module.__dict__, **changed}
    return copied


def _folded(encoder: nn.Module, pairs: list[_Pair]) -> nn.Module:
    """A copy of the encoder, which shares all that has no folded convolution in it."""
    others = {pair.convolution: pair.folded() for pair in pairs} | {pair.norm: pair.rest for pair in pairs}

    def with_others(module: nn.Module) -> nn.Module:
        if module not in others:
            parts = {name: part if part is None else with_others(part) for name, part in module._modules.items()}
            is_changed = any(parts[name] is not part for name, part in module._modules.items())
            others[module] = _copy(module, _modules=parts) if is_changed else module
        return others[module]

    return with_others(encoder)


def _is_observed(module: nn.Module) -> bool:
    """Whether something depends on this module itself being called, and not another in its place."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
        return True
    heard = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(heard) or "forward" in module.__dict__ or getattr(module, "grad_checkpointing", False)


def _pairs(encoder: nn.Module, names: dict[str, str]) -> list[_Pair]:
    modules = [(encoder.get_submodule(convolution), encoder.get_submodule(norm)) for convolution, norm in names.items()]
    return [_Pair(convolution, norm, _Rest(norm)) for convolution, norm in modules]


def _names_of_pairs(encoder: nn.Module, in_channels: int) -> dict[str, str]:
    """
    Convolutions, and those normalisations whose input is their output: none if any normalisation has no convolution, or
    if the answer of a copy with other weights is another when it is folded.
    """
    trial = deepcopy(encoder).to_empty(device="cpu").double().eval()
    numbers = torch.Generator("cpu").manual_seed(0)  # the program's own stays as it is
    for tensor in (*trial.parameters(), *trial.buffers()):
        if tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=numbers, dtype=torch.float64) / tensor[0].numel() ** 0.5)
        else:  # of a normalisation, or another's bias
            tensor.copy_(torch.rand(tensor.shape, generator=numbers, dtype=torch.float64) + 0.5)
    names = {module: name for name, module in trial.named_modules()}
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # the outputs too, or another may get the address of one
    pairs: dict[str, str] = {}

    def note(module: nn.Conv2d, _: tuple, output: torch.Tensor) -> None:
        made[id(output)] = (module, output)

    def pair(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if id(inputs[0]) in made:
            pairs[names[made[id(inputs[0])][0]]] = names[norm]

    norms = normalisations(trial)
    hooks = [m.register_forward_hook(note) for m in trial.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(pair) for norm in norms]
    image = torch.randn((1, in_channels, 64, 64), generator=numbers, dtype=torch.float64)
    expected = trial(image)
    for hook in hooks:
        hook.remove()
    if len(pairs) < len(norms):
        return {}
    found = _folded(trial, _pairs(trial, pairs))(image)
    is_same = all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))
    return pairs if is_same else {}
