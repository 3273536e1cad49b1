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

"""Evaluation by ONNX Runtime, which computes the recommended network faster on a CPU than PyTorch does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from scripts.networks.cdws_net import CDWSNet
from scripts.networks.map_network import MapNetwork
from scripts.networks.pyramid_net import PyramidNet
from scripts.runtime.errors import InputError

if TYPE_CHECKING:  # imported where it is needed
    from onnxruntime import InferenceSession

__all__ = ["in_onnx_runtime"]

AXES = {0: "batch", 2: "height", 3: "width"}


def in_onnx_runtime(network: MapNetwork) -> MapNetwork:
    """
    The network itself, whose answer in evaluation ONNX Runtime computes from now on, in the CPU's memory.

    It is translated at its first image, and again after weights are loaded. It uses as many threads as PyTorch.

    Raises:
        InputError: for a network whose translation is not the same at every size.
    """
    if not isinstance(network, (CDWSNet, PyramidNet)):
        raise InputError(f"{type(network).__name__} isn't computed by ONNX Runtime; leave inference_onnx.json out.")
    network.maps = _Maps(network)
    return network


class _Maps:
    """Stands in for a network's `maps`."""

    def __init__(self, network: MapNetwork) -> None:
        self.network, self.own, self.session = network, network.maps, None
        network.register_load_state_dict_post_hook(lambda *_: setattr(self, "session", None))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """All maps in training; (B, 1, H, W), the first alone, in evaluation."""
        if self.network.training:
            return self.own(image)
        if self.session is None:
            self.session = _session(_FirstMap(self.network, self.own).eval(), image)
        return torch.from_numpy(self.session.run(None, {"image": image.contiguous().cpu().numpy()})[0])


class _FirstMap(nn.Module):
    def __init__(self, network: MapNetwork, maps: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.network, self.maps = network, maps

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.maps(image)[:, :1]


def _session(network: nn.Module, image: torch.Tensor) -> InferenceSession:
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter doesn't come to an end with timm's networks
        axes = {"image": AXES, "map": AXES}
        names = {"input_names": ["image"], "output_names": ["map"]}
        torch.onnx.export(network, (image.clone(),), file, dynamic_axes=axes, dynamo=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
