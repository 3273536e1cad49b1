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

"""Each part of a network has its own learning rate, and every parameter is stepped once."""

from __future__ import annotations

import pytest
import torch
from scripts.networks import DCAN, CDWSNet, PyramidNet
from scripts.training.optimizer import parameter_groups, sgd


def test_sides_and_fusion_have_their_own_rate() -> None:
    network = CDWSNet()
    groups = parameter_groups(network, 0.001, side_learning_rate=0.00001, weight_decay=0.0005)
    assert [(len(group["params"]), group["lr"], group["weight_decay"]) for group in groups] == [
        (6, 0.00001, 0.0005),  # three convolutions of a weight and a bias
        (1, 0.00001, 0.0005),  # the fusion's weights
        (14, 0.001, 0.0005),  # seven convolutions of VGG16
    ]
    assert groups[1]["params"][0] is network.fusion.logits


@pytest.mark.parametrize("network", [CDWSNet(), CDWSNet(deep_supervision=False), DCAN(), PyramidNet("resnet10t")])
def test_every_parameter_is_in_one_group(network) -> None:
    groups = parameter_groups(network, 0.1, side_learning_rate=0.2, encoder_learning_rate=0.3)
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(map(id, network.parameters()))


def test_an_encoder_has_its_own_rate() -> None:
    network = PyramidNet("resnet10t")
    encoder, others = parameter_groups(network, 0.1, encoder_learning_rate=0.3)
    assert (encoder["lr"], others["lr"]) == (0.3, 0.1)
    assert len(encoder["params"]) == len(list(network.encoder.parameters()))


def test_momentum_by_hand() -> None:
    """With gradients of 1, a rate of 0.1 and a momentum of 0.5: steps of 0.1 and 0.15."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    optimizer = sgd(parameter_groups(layer, 0.1), 0.5)
    for expected in (-0.1, -0.25):
        layer.weight.grad = torch.ones(1, 1)
        optimizer.step()
        assert float(layer.weight) == pytest.approx(expected)
