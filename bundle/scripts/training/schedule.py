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

"""How long a training is, and how its learning rates change on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized

from monai.optimizers import WarmupCosineSchedule
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from scripts.runtime.values import whole_number

__all__ = ["SCHEDULES", "epochs_for", "one_cycle", "warm_up_epochs"]


STEPS, EPOCHS = 420, 3  # at least


def epochs_for(steps: int | str, images: Sized, batch_size: int | str) -> int:
    """
    Epochs that have at least so many optimiser steps.

    Args:
        steps: 1 or more; ``"auto"`` for 420, and three epochs at least: of one or two, the warm-up would take too much.
        images: of an epoch.
        batch_size: images of a step; ``"all"`` for one step an epoch.

    Raises:
        InputError: when `steps` is no integer of 1 or more nor ``"auto"``, or `batch_size` no number of images.
    """
    if steps != "auto":
        whole_number("steps", steps, words="'auto' or ")
    if batch_size != "all":
        whole_number("batch_size", batch_size, words="'all' or ")
    per_epoch = 1 if batch_size == "all" else math.ceil(len(images) / batch_size)
    least, epochs = (STEPS, EPOCHS) if steps == "auto" else (steps, 1)
    return max(epochs, math.ceil(least / max(per_epoch, 1)))


def warm_up_epochs(max_epochs: int, part: float = 0.3) -> int:
    """
    Epochs of the warm-up, 1 at least: such a part of all.

    Raises:
        InputError: when `max_epochs` is no integer of 1 or more.
    """
    whole_number("max_epochs", max_epochs)
    return max(1, round(part * max_epochs))


def constant(optimizer: Optimizer, steps: int) -> LambdaLR:
    """Learning rates that stay what they are."""
    return LambdaLR(optimizer, lambda _: 1.0)


def one_cycle(optimizer: Optimizer, steps: int, rise: float = 0.3, start: float = 0.04) -> WarmupCosineSchedule:
    """
    Learning rates that rise to what the optimiser was made with, and fall to 0 along a cosine, step by step.

    Args:
        optimizer: whose parameter groups keep their ratios.
        steps: of the whole training.
        rise: part of the training in which they rise, linearly.
        start: factor of the first step.
    """
    return WarmupCosineSchedule(optimizer, warmup_steps=round(rise * steps), t_total=steps, warmup_multiplier=start)


# By their names in a config: from an optimiser and the number of all steps to what changes its learning rates.
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {"constant": constant, "one_cycle": one_cycle}
