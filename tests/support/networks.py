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

"""What the tests of several networks ask of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

__all__ = ["assert_scripted_gives_the_same", "images", "learn_bright_square"]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def learn_bright_square(network: nn.Module, steps: int) -> float:
    """Part of the pixels that are right after so many steps of learning a square that is off the centre."""
    network.train()
    target = torch.zeros(1, 1, 48, 64)
    target[:, :, 4:16, 36:60] = 1.0
    image = 0.1 * images(1, 3, 48, 64) + 2 * target
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy(network(image), target).backward()
        optimizer.step()
    return float(((network.eval()(image) > 0.5) == target.bool()).float().mean())


def assert_scripted_gives_the_same(
    network: nn.Module, folder: Path, sizes: Sequence[tuple[int, int]], modes: Sequence[bool] = (False,)
) -> None:
    """In evaluation, and in training where `modes` has True; scripted in the mode in which the network comes."""
    torch.jit.script(network).save(folder / "model.ts")
    loaded = torch.jit.load(folder / "model.ts")
    for training in modes:
        for size in sizes:
            image = images(1, 3, *size)
            torch.testing.assert_close(loaded.train(training)(image), network.train(training)(image))
