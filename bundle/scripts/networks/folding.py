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

from copy import deepcopy

import torch
from torch import nn
from torch.func import functional_call

__all__ = ["FoldedEncoder", "normalisations"]


def normalisations(encoder: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations in a module."""
    return [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class FoldedEncoder:
    """
    What an encoder computes, by convolutions with its normalisations in them, where statistics stay.

    It is the same function of the encoder's own parameters, with the same gradient, up to rounding. The encoder itself
    is called where that can't be had: while a normalisation gathers statistics, where one has no convolution of its own
    just before it, where a hook listens to a part of it, and when the network is compiled or exported.

    Args:
        encoder: from (B, C, H, W) to a list of feature maps; on one device.
        in_channels: C.
    """

    def __init__(self, encoder: nn.Module, in_channels: int) -> None:
        self.encoder = encoder
        self.norms = normalisations(encoder)
        self.skeleton = deepcopy(encoder).to("meta", torch.float32).requires_grad_(False)
        self.pairs = _pairs(self.skeleton, in_channels)
        if len(self.pairs) < len(self.norms):
            self.pairs = {}
        for convolution, norm in self.pairs.items():
            layer = self.skeleton.get_submodule(convolution)
            layer.bias = nn.Parameter(torch.empty(layer.out_channels, device="meta"), requires_grad=False)
            parent, _, name = norm.rpartition(".")
            after = self.skeleton.get_submodule(norm)  # timm's has its activation in it
            rest = nn.Sequential(after.drop, after.act) if hasattr(after, "act") else nn.Identity()
            setattr(self.skeleton.get_submodule(parent), name, rest)
        self._module = deepcopy(self.skeleton)
        self._of: list[tuple[int, int]] = []

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, H, W) to the encoder's feature maps."""
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        heard = any(module._forward_hooks or module._forward_pre_hooks for module in self.encoder.modules())
        if traced or heard or not self.pairs or any(norm.training for norm in self.norms):
            return self.encoder(x)
        for copy in (self.skeleton, self._module):
            if copy.training != self.encoder.training:
                copy.train(self.encoder.training)
        if torch.is_grad_enabled():
            return functional_call(self.skeleton, self.folded(), (x,))
        tensors = (*self.encoder.parameters(), *self.encoder.buffers())
        now = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        if now != self._of:
            self._module.load_state_dict(self.folded(), assign=True)
            self._of = now
        return self._module(x)

    def folded(self) -> dict[str, torch.Tensor]:
        """The encoder's state with its normalisations in the convolutions: the skeleton's."""
        state = {**dict(self.encoder.named_parameters()), **dict(self.encoder.named_buffers())}
        for convolution, name in self.pairs.items():
            norm = self.encoder.get_submodule(name)
            bias = state.get(f"{convolution}.bias", 0)
            factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
            state[f"{convolution}.weight"] = state[f"{convolution}.weight"] * factor.view(-1, 1, 1, 1)
            state[f"{convolution}.bias"] = norm.bias + (bias - norm.running_mean) * factor
            for own in norm.state_dict():
                del state[f"{name}.{own}"]
        return state


def _pairs(encoder: nn.Module, in_channels: int) -> dict[str, str]:
    """
    Convolutions, and those normalisations whose input is their output, in the same part of the encoder: where it leaves
    that part it may go elsewhere too.
    """
    names = {module: name for name, module in encoder.named_modules()}
    made: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}  # the outputs too, or another may get the address of one
    pairs: dict[str, str] = {}

    def note(module: nn.Conv2d, _: tuple, output: torch.Tensor) -> None:
        made[id(output)] = (module, output)

    def pair(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        convolution = names[made[id(inputs[0])][0]] if id(inputs[0]) in made else ""
        if convolution and convolution.startswith(names[norm].rpartition(".")[0]):
            pairs[convolution] = names[norm]

    hooks = [m.register_forward_hook(note) for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(pair) for norm in normalisations(encoder)]
    training = encoder.training
    features = encoder.eval()(torch.empty(1, in_channels, 64, 64, device="meta"))
    encoder.train(training)
    for hook in hooks:
        hook.remove()
    given = {names[made[id(feature)][0]] for feature in features if id(feature) in made}  # as they are
    return {convolution: norm for convolution, norm in pairs.items() if convolution not in given}
