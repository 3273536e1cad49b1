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
What an epoch makes of the images: order, steps, shares of the processes, and random changes.

All of it follows from the seed, the epoch and the image alone: not from the number of processes or of loader workers,
nor from what was drawn before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import CacheDataset
from torch.utils.data import Sampler

from scripts.runtime.bars import on_terminal
from scripts.runtime.memory import free_memory
from scripts.runtime.processes import agreed_seed, process_count, process_rank, processes_here
from scripts.runtime.values import fraction, whole_number

__all__ = ["Batch", "SeededDataset", "StepSampler"]

logger = logging.getLogger(__name__)

MICRO_BATCH_ON_CPU, MICRO_BATCH_ELSEWHERE = 4, 32


class Batch(NamedTuple):
    """A batch of a `StepSampler` in its place."""

    indices: list[int]
    counted: int
    """How many of its images count: all, or none in a process that has no share in a step."""
    images_in_step: int
    """Of all processes together."""
    ends_step: bool


class StepSampler(Sampler[list[int]]):
    """
    Batch sampler of the images of each optimiser step: shared out among the processes, in batches that fit into memory.

    A step takes `batch_size` images of all processes together, the last one of an epoch what is left. Every process
    has its share of every step, in one batch or more; shares differ by one image at most. No image is left out or taken
    twice. A process that has no share in a step, which has fewer images than there are processes, gets the step's first
    image as one that does not count, since it must run its network to take part.

    With ``"all"`` the images keep their order and each process its own images, which it alone has to load. Otherwise
    they are shuffled in every epoch.

    Args:
        dataset: whose images are sampled.
        batch_size: images per optimiser step, or ``"all"`` for the whole training set, as the paper does.
        micro_batch_size: images of one batch, at most. ``"auto"`` is 4 on the CPU, where more is no faster, and 32 on
            others, where `AccumulatingTrainer` finds out how many of them fit into memory.
        seed: of the shuffling; None for a random one.
        rank: of this process; that in `torch.distributed` by default.
        processes: their number; that in `torch.distributed` by default.
        device: on which the network is trained.

    Raises:
        InputError: when `batch_size` or `micro_batch_size` is neither a number of images nor the word.
    """

    recorded = ("step_size", "shuffled")  # what a result depends on, see `record`

    def __init__(
        self,
        dataset: Sized,
        batch_size: int | str = "all",
        micro_batch_size: int | str = "auto",
        seed: int | None = None,
        rank: int | None = None,
        processes: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        whole = batch_size == "all"
        if not whole:
            whole_number("batch_size", batch_size, words="'all' or ")
        if micro_batch_size == "auto":
            micro_batch_size = MICRO_BATCH_ON_CPU if torch.device(device).type == "cpu" else MICRO_BATCH_ELSEWHERE
        whole_number("micro_batch_size", micro_batch_size, words="'auto' or ")
        self.images = len(dataset)
        self.shuffled = not whole
        self.step_size = self.images if whole else batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = agreed_seed(seed)
        self.rank = process_rank() if rank is None else rank
        self.processes = process_count() if processes is None else processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch that is sampled next."""
        self.epoch = epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return sum(batch.ends_step for batch in self.plan())

    def plan(self) -> list[Batch]:
        """The batches of this process in the epoch. But for the indices they are the same in every epoch."""
        order = np.arange(self.images)
        if self.shuffled:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(order)
        steps = (order[start : start + self.step_size].tolist() for start in range(0, self.images, self.step_size))
        return [batch for step in steps for batch in self._batches(step)]

    def _batches(self, step: Sequence[int]) -> list[Batch]:
        own = step[self.rank :: self.processes]
        chunks = [own[start : start + self.micro_batch_size] for start in range(0, len(own), self.micro_batch_size)]
        batches = [Batch(chunk, len(chunk), len(step), False) for chunk in chunks] or [
            Batch([step[0]], 0, len(step), False)
        ]
        return [*batches[:-1], batches[-1]._replace(ends_step=True)]

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.indices for batch in self.plan())

    def __len__(self) -> int:
        return len(self.plan())


class SeededDataset(CacheDataset):
    """
    `CacheDataset` whose random transforms draw the same for an image in an epoch, whoever asks for it and when.

    Its copies in loader processes that outlive an epoch know the number of the epoch too. Its bar is left out of logs.

    It keeps no more images than fit into half of the memory that is free, a quarter where they are read as they are
    asked for (`runtime_cache`), a share of it for each process on this machine, and says so; the others are read in
    each epoch, which changes nothing else. All are taken to be as large as the first.

    Args:
        seed: of the random transforms; None, where there are none, leaves them to their own random state.
        kwargs: see `CacheDataset`; the transform must be a `Compose`.
    """

    def __init__(self, *, seed: int | None = None, **kwargs: Any) -> None:
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        fraction("cache_rate", kwargs.get("cache_rate", 1.0))
        super().__init__(**{"progress": on_terminal(), **kwargs})

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch whose images are asked for next."""
        self.epoch.fill_(epoch)

    def set_data(self, data: Sequence) -> None:
        """The images from now on, and those of them that are kept."""
        asked, self.data = self.set_num, data
        try:
            self.set_num = min(asked, self._number_with_room(min(asked, int(len(data) * self.set_rate))))
            super().set_data(data)
        finally:
            self.set_num = asked

    def _number_with_room(self, wanted: int) -> int:
        if not wanted:
            return 0
        # a cache that fills as it goes leaves as much to the next data set as if it were empty
        room = free_memory() // ((4 if self.runtime_cache else 2) * processes_here())
        size = _size(self._load_cache_item(0))
        if size * wanted <= room:
            return wanted
        logger.warning(
            f"Of {wanted} images to be kept in memory {room // size} are, {size / 1e6:.3g} MB each: no more than "
            f"{room / 1e6:.3g} MB of what is free are taken. The others are read in each epoch, which takes longer "
            "(--num_workers 4 reads ahead; a smaller --spatial_size takes less in training)."
        )
        return room // size

    def _transform(self, index: int) -> Any:
        if self.seed is not None:
            drawn = np.random.SeedSequence([self.seed, int(self.epoch), index % len(self)]).generate_state(1)
            self.transform.set_random_state(seed=int(drawn[0]))
        # MONAI's own looks for a negative one among those that are kept
        return super()._transform(index + len(self) if index < 0 else index)


def _size(item: Any) -> int:
    """Bytes of the arrays and tensors in an item."""
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, (list, tuple)):
        return sum(map(_size, item))
    return getattr(item, "nbytes", 0)
