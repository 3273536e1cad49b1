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

"""Artefacts: what each does to an image whose answer is known, and what is not done to positives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy.ndimage import gaussian_filter
from scripts.data.artefacts import RandArtefactd, RandWindowd, blank, blurred, defocused, fold, pen

RNG = np.random.RandomState
NOISE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))


def smoothed(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, axes=(1, 2)))


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


def test_slight_blur_is_a_gaussian_of_at_most_1_2_percent_of_the_width() -> None:
    """Of a single bright pixel, whose variance along an axis is sigma squared: 0.77 at most of 64 pixels."""
    image = torch.zeros(3, 64, 64)
    image[:, 32, 32] = 1
    variances = []
    for seed in range(20):
        profile = defocused(image, RNG(seed))[0].sum(dim=0)
        variances.append(float((profile * (torch.arange(64) - 32.0) ** 2).sum()))
        assert profile.sum() == pytest.approx(1, abs=1e-4)
    assert 0.3 < max(variances) <= 0.77**2 + 0.02
    assert min(variances) < 0.1


def test_blur_leaves_glass_as_bright_at_the_frame_as_inside() -> None:
    for change in (blurred, defocused):
        torch.testing.assert_close(change(torch.full((3, 64, 64), 0.9), RNG(0)), torch.full((3, 64, 64), 0.9))


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


def test_positives_are_slightly_blurred_alone_each_seed_alike() -> None:
    transform = Compose([RandArtefactd("image", prob=1.0, mean=[0.5] * 3, std=[0.25] * 3)])
    normalised = (NOISE - 0.5) / 0.25
    positive = {"image": normalised, "label": torch.tensor([1.0, 0.5])}
    negative = {"image": normalised, "label": torch.tensor([0.0, math.nan])}
    for seed in range(20):
        transform.set_random_state(seed)
        blurred_by = transform(positive)["image"] - normalised
        # nothing far out of focus, which is above 0.96 pixels, nor blank, inked or folded
        assert blurred_by[:, 8:-8, 8:-8].std() < (smoothed(normalised, 0.8) - normalised)[:, 8:-8, 8:-8].std()
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
