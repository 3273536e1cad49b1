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

"""What is exported: a trained network, and what its users must know of it; and how TorchScript is written."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn

from scripts.boosting.ensemble import MILBoostNet
from scripts.losses.pooling import Pooling
from scripts.networks import MapNetwork
from scripts.runtime.errors import InputError
from scripts.runtime.files import write_bytes

__all__ = ["TrainedModel", "require_of_pytorch", "write_torchscript"]


@dataclass(frozen=True)
class TrainedModel:
    """
    A network in evaluation mode on the CPU, and its settings.

    Args:
        network: from (B, 3, H, W), normalised by `mean` and `std`, to a map (B, 1, H, W) in 0..1.
        pool: from the map to the image's probability.
        mean, std: of the three channels in 0..1.
        spatial_size: (H, W) of the images that it was trained on.
        mpp: micrometres per pixel of these.
        class_name: of what it finds.
        threshold: probability from which on a pixel is of that class.
        shipped: whether the weights are those that come with the bundle.
    """

    network: MapNetwork
    pool: Pooling
    mean: list[float]
    std: list[float]
    spatial_size: tuple[int, int]
    mpp: float
    class_name: str
    threshold: float
    shipped: bool

    def scripted(self) -> torch.jit.ScriptModule:
        """The network as TorchScript, which takes any size and number of images; flips are averaged if it does."""
        return torch.jit.script(self.network)


def require_of_pytorch(network: nn.Module) -> None:
    """Raises InputError for a network that is none, which no other program could compute."""
    if isinstance(network, MILBoostNet):
        raise InputError("MIL-Boosting is no network of PyTorch, and can't be exported; choose another method.")


def write_torchscript(
    path: str | PathLike, module: torch.jit.ScriptModule, extra_files: Mapping[str, bytes] | None = None
) -> None:
    """
    Write a module as TorchScript.

    Args:
        path: of the file, which takes its name when it is complete.
        module: scripted or traced.
        extra_files: to put into it, by their names.

    Raises:
        InputError: when it can't be written, as on a full disk; an older file is still there then.
    """
    buffer = io.BytesIO()  # PyTorch, writing to a full disk itself, ends the process
    torch.jit.save(module, buffer, dict(extra_files or {}))
    write_bytes(path, buffer.getbuffer())
