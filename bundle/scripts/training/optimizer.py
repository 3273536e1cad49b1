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

"""What an optimizer steps: the parameters of a network, each part of it at its own learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from scripts.runtime.values import fraction, number

__all__ = ["hundredth", "parameter_groups", "sgd"]


def hundredth(learning_rate: float) -> float:
    """
    A hundredth of a learning rate, which the paper has for side outputs and fusion.

    Raises:
        InputError: unless the rate is a number, 0 or more.
    """
    number("learning_rate", learning_rate)
    return learning_rate / 100


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    side_learning_rate: float | None = None,
    encoder_learning_rate: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """
    The parameters of a network as an optimizer of `torch.optim` takes them.

    Args:
        network: all of its parameters are in one group or another.
        learning_rate: of all that no other rate is for.
        side_learning_rate: of side outputs (``sides``) and their ``fusion``, where the network has them.
        encoder_learning_rate: of a pretrained ``encoder``, where the network has one.
        weight_decay: of all.

    Raises:
        InputError: for a rate, or a decay, that is no number of 0 or more.

    Examples:
        >>> groups = parameter_groups(nn.Linear(2, 1), 0.1)
        >>> [(len(group["params"]), group["lr"]) for group in groups]
        [(2, 0.1)]
    """
    rates = {"side_learning_rate": side_learning_rate, "encoder_learning_rate": encoder_learning_rate}
    given = {name: rate for name, rate in rates.items() if rate is not None}
    for name, value in {"learning_rate": learning_rate, **given, "weight_decay": weight_decay}.items():
        number(name, value)
    parts = [("sides", side_learning_rate), ("fusion", side_learning_rate), ("encoder", encoder_learning_rate)]
    groups = [
        {"params": list(getattr(network, part).parameters()), "lr": rate}
        for part, rate in parts
        if rate is not None and hasattr(network, part)
    ]
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    others = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    return [{**group, "weight_decay": weight_decay} for group in (*groups, {"params": others, "lr": learning_rate})]


def sgd(params: list[dict[str, Any]], momentum: float = 0.0) -> torch.optim.SGD:
    """`torch.optim.SGD` of parameter groups. Raises InputError unless the momentum is a fraction."""
    fraction("momentum", momentum)
    return torch.optim.SGD(params, momentum=momentum)
