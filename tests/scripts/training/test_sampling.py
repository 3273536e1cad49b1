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

"""Order, steps and shares of the images, and random changes that depend on nothing but seed, epoch and image."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad, RandFlipd, RandGaussianNoised
from scripts.runtime.errors import InputError
from scripts.training.sampling import SeededDataset, StepSampler


def samplers(count: int, batch: int | str, micro: int, processes: int, epoch: int = 1) -> list[StepSampler]:
    made = [
        StepSampler(range(count), batch, micro, seed=3, rank=rank, processes=processes) for rank in range(processes)
    ]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def steps_of(sampler: StepSampler) -> list[list[int]]:
    """The images that count of each step of one process."""
    steps: list[list[int]] = [[]]
    for batch in sampler.plan():
        assert batch.counted in (0, len(batch.indices))
        steps[-1] += batch.indices[: batch.counted]
        if batch.ends_step:
            steps.append([])
    assert not steps[-1]
    return steps[:-1]


def test_seven_images_in_full_batches_on_three_processes():
    """By hand: images 0 3 6, 1 4, 2 5; two at a time."""
    first, second, third = samplers(7, "all", 2, 3)
    assert list(first) == [[0, 3], [6]]
    assert list(second) == [[1, 4]]
    assert list(third) == [[2, 5]]
    assert [len(sampler) for sampler in (first, second, third)] == [2, 1, 1]
    assert [batch.images_in_step for batch in first.plan()] == [7, 7]
    assert [batch.ends_step for batch in first.plan()] == [False, True]


@pytest.mark.parametrize(("count", "batch", "micro"), [(7, "all", 4), (7, 4, 2), (7, 2, 2), (19, 6, 3), (5, 8, 8)])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_image_counts_once_in_the_step_that_one_process_would_take_it_in(count, batch, micro, processes):
    (alone,) = samplers(count, batch, micro, 1)
    together = [steps_of(sampler) for sampler in samplers(count, batch, micro, processes)]
    expected = [sorted(step) for step in steps_of(alone)]
    assert sorted(flat(expected)) == list(range(count))
    assert [sorted(flat(shares)) for shares in zip(*together, strict=True)] == expected
    for sampler in samplers(count, batch, micro, processes):
        plan = sampler.plan()
        assert all(0 < len(b.indices) <= micro for b in plan)
        ends = [b for b in plan if b.ends_step]
        assert [b.images_in_step for b in ends] == [len(step) for step in expected]


def test_without_a_share_an_image_is_seen_that_does_not_count():
    (batch,) = samplers(2, "all", 4, 3)[2].plan()
    assert batch == ([0], 0, 2, True)


def test_mini_batches_are_shuffled_anew_in_every_epoch_and_again_the_same_by_seed():
    orders = [flat(samplers(50, 5, 5, 1, epoch)[0]) for epoch in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != list(range(50))
    other = StepSampler(range(50), 5, 5, seed=4)
    other.set_epoch(1)
    assert flat(other) != orders[0]


def test_without_a_seed_every_run_has_its_own_order():
    orders = [flat(StepSampler(range(50), 5, 5)) for _ in range(2)]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("batch", [0, -4, 8.0, "none", None, True])
def test_refuses_a_batch_that_is_no_number_of_images(batch):
    with pytest.raises(InputError, match=f"batch_size must be 'all' or an integer of 1 or more; got {batch!r}"):
        StepSampler(range(8), batch, 4)
    with pytest.raises(InputError, match=f"micro_batch_size must be 'auto' or an integer of 1 or more; got {batch!r}"):
        StepSampler(range(8), "all", batch)


def test_steps_that_micro_batches_do_not_add_up_to_end_with_a_smaller_one():
    batches = StepSampler(range(8), 5, 3, seed=0).plan()
    assert [len(batch.indices) for batch in batches] == [3, 2, 3]
    assert [batch.ends_step for batch in batches] == [False, True, True]
    assert [batch.images_in_step for batch in batches] == [5, 5, 3]


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [4] * 25), ("cuda:0", [32, 32, 32, 4])])
def test_auto_is_few_images_on_a_cpu_and_many_elsewhere(device, sizes):
    sampler = StepSampler(range(100), "all", "auto", device=device)
    assert [len(batch.indices) for batch in sampler.plan()] == sizes


def noisy(seed: int | None = 0, **kwargs: Any) -> SeededDataset:
    image = torch.arange(6.0).view(1, 2, 3)
    transforms = [Lambdad("x", torch.clone), RandFlipd("x", prob=0.5, spatial_axis=1), RandGaussianNoised("x", prob=1)]
    items = [{"x": image + i} for i in range(4)]
    return SeededDataset(data=items, transform=Compose(transforms), progress=False, seed=seed, **kwargs)


def epoch_of(dataset: SeededDataset, epoch: int, order=range(4), workers: int = 0) -> dict[int, torch.Tensor]:
    dataset.set_epoch(epoch)
    loader = DataLoader(dataset, batch_sampler=[[i] for i in order], num_workers=workers)
    return {i: torch.as_tensor(batch["x"]) for i, batch in zip(order, loader, strict=True)}


def test_random_changes_depend_on_seed_epoch_and_image_alone():
    expected = epoch_of(noisy(), 5)
    half_cached = noisy(cache_rate=0.5)
    epoch_of(half_cached, 1)
    for again in (
        epoch_of(half_cached, 5, order=[2, 0, 3, 1]),  # other draws before, another order
        epoch_of(noisy(), 5, order=[3]),  # another process has the rest
        epoch_of(noisy(), 5, workers=2),
    ):
        for i, x in again.items():
            assert torch.equal(x, expected[i]), i
    differences = [x - i for i, x in expected.items()]
    assert not torch.allclose(differences[0], differences[1])
    assert not torch.allclose(epoch_of(noisy(), 6)[0], expected[0])
    assert not torch.allclose(epoch_of(noisy(seed=1), 5)[0], expected[0])


@pytest.mark.parametrize(("how", "part"), [({}, 2), ({"hash_as_key": True}, 2), ({"runtime_cache": True}, 4)])
def test_as_many_images_are_kept_as_fit_into_half_of_the_free_memory(monkeypatch, caplog, how, part) -> None:
    """Or into a quarter, while none has been read."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=part * 75))
    dataset = noisy(**how)  # 4 images of 6 numbers of 4 bytes: of 75 bytes, 3 fit
    assert dataset.cache_num == 3
    assert "Of 4 images to be kept in memory 3 are, 2.4e-05 MB each: no more than 7.5e-05 MB" in caplog.text
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=part * 4 * 24))
    caplog.clear()
    enough = noisy(**how)
    assert enough.cache_num == 4
    assert not caplog.text
    expected = epoch_of(enough, 3)
    assert all(torch.equal(x, expected[i]) for i, x in epoch_of(dataset, 3).items())
    dataset.set_epoch(3)
    assert torch.equal(torch.as_tensor(dataset[-2]["x"]), expected[2][0])
    with pytest.raises(IndexError):  # by which a loop over it ends
        dataset[4]
    with pytest.raises(RuntimeError, match="Lambdad"):
        dataset.set_data([{"x": 1}])  # no image
    dataset.set_data(enough.data * 4)  # there is room for 4 now, and 3 were kept before
    assert dataset.cache_num == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert noisy(**how).cache_num == 2


def test_the_size_of_an_item_is_that_of_all_its_arrays(monkeypatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 80))
    items = [{"x": [torch.zeros(4), (torch.zeros(4),)], "name": "a"}] * 4  # of 32 bytes
    assert SeededDataset(data=items, transform=Compose([]), progress=False).cache_num == 2


def test_what_is_not_to_be_kept_needs_no_room(monkeypatch, caplog):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=48))
    assert noisy(cache_rate=0.0).cache_num == 0
    assert noisy(cache_num=1).cache_num == 1
    assert not caplog.text
    assert noisy(cache_rate=0.5).cache_num == 1
    assert "Of 2 images to be kept" in caplog.text


def test_loader_processes_that_stay_know_the_epoch():
    dataset = noisy()
    loader = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in (1, 2, 7):
        dataset.set_epoch(epoch)
        (batch,) = loader
        expected = epoch_of(noisy(), epoch)
        assert all(torch.equal(x, expected[i][0]) for i, x in enumerate(batch["x"])), epoch
