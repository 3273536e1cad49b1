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
A folder for WSInfer, and QuPath's extension of that name: a classifier of patches as TorchScript, and its config.

WSInfer's networks classify patches. A patch's probability is the one that the training has fitted: that of the image,
pooled from the map.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from scripts.exports.trained import TrainedModel, write_torchscript
from scripts.losses.pooling import Pooling, log1mexp

__all__ = ["PatchClassifier", "write_wsinfer"]

# QuPath's own name of what is of no interest. A class of its own, since QuPath's softmax makes 1 of a single score.
OTHER = "Other"


class PatchClassifier(nn.Module):
    """
    Scores of a patch whose softmax, which QuPath and WSInfer apply, is the probability of none and of the class.

    Args:
        network: from (B, 3, H, W) to maps (B, 1, H, W) in 0..1.
        pool: from the map to the image's probability.
    """

    def __init__(self, network: nn.Module, pool: Pooling) -> None:
        super().__init__()
        self.network = network
        self.pool = pool

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, 2): logarithms of the probabilities."""
        log_pooled = self.pool.log(self.network(image))  # (B, 1)
        return torch.cat([log1mexp(log_pooled), log_pooled], dim=1)


def write_wsinfer(folder: Path, model: TrainedModel) -> None:
    """``torchscript_model.pt`` and ``config.json``, of WSInfer's schema 1.0, into a folder."""
    side = min(model.spatial_size)
    classifier = PatchClassifier(model.scripted(), model.pool).eval()
    # the network is scripted, and takes any size; the pooling, which is not of TorchScript's Python, is traced
    example = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    write_torchscript(folder / "torchscript_model.pt", torch.jit.trace(classifier, example, check_trace=False))
    config = {
        "spec_version": "1.0",
        "architecture": type(model.network).__name__,
        "num_classes": 2,
        "class_names": [OTHER, model.class_name],
        "patch_size_pixels": side,
        "spacing_um_px": model.mpp,
        "transform": [
            {"name": "Resize", "arguments": {"size": side}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": model.mean, "std": model.std}},
        ],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
