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

"""Artefacts: what each does to an image whose answer is known, and that positives are left as they are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scripts.data.artefacts import RandArtefactd, RandWindowd, blank, blurred, fold, pen

RNG = np.random.RandomState
NOISE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_blank_is_of_one_colour_that_is_nearly_grey() -> None:
    for seed in range(5):
        image = blank(NOISE, RNG(seed))
        assert image.shape == NOISE.shape
        assert image.flatten(1).std(dim=1).max() < 0.02
        assert np.ptp(image.flatten(1).mean(dim=1).numpy()) < 0.12


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    image = blurred(NOISE, RNG(0))
    assert image[:, 16:48, 16:48].mean() == pytest.approx(float(NOISE[:, 16:48, 16:48].mean()), abs=0.03)
    assert image.std() < 0.5 * NOISE.std()


def test_a_pen_draws_a_band_of_one_colour_and_leaves_the_rest() -> None:
    image = pen(NOISE, RNG(0))
    changed = (image != NOISE).any(dim=0)
    assert 0.01 < changed.float().mean() < 0.4
    assert image[:, changed].std(dim=1).max() < 1e-6
    assert image[:, changed].max() <= 0.75


def test_a_fold_takes_twice_the_light_away() -> None:
    """Light that passes a layer with p passes two with p squared."""
    image = fold(torch.full((3, 64, 64), 0.6), RNG(0))
    values = sorted(image.unique().tolist())
    assert values == pytest.approx([0.36, 0.6])


def test_only_negatives_are_changed_each_seed_alike() -> None:
    transform = Compose([RandArtefactd("image", prob=1.0, mean=[0.5] * 3, std=[0.25] * 3)])
    normalised = (NOISE - 0.5) / 0.25
    positive = {"image": normalised, "label": torch.tensor([1.0, 0.5])}
    negative = {"image": normalised, "label": torch.tensor([0.0, math.nan])}
    assert torch.equal(transform(positive)["image"], normalised)
    results = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        results.append(transform(negative)["image"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    for result in results:
        assert -0.1 <= (result * 0.25 + 0.5).min() <= (result * 0.25 + 0.5).max() <= 1.1


def test_windows_lie_inside_and_reach_every_edge() -> None:
    transform = RandWindowd("image", fraction=0.5)
    transform.set_random_state(0)
    windows = torch.stack([transform({"image": torch.zeros(3, 10, 6)})["window"] for _ in range(200)])
    assert set(map(tuple, windows[:, 2:].tolist())) == {(5, 3)}
    assert set(windows[:, 0].tolist()) == set(range(6))
    assert set(windows[:, 1].tolist()) == set(range(4))
