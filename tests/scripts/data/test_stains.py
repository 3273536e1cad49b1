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

"""Changes of stain, measured by scikit-image's separation of stains."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scripts.data.stains import RandStain, RandStaind
from scripts.runtime.errors import InputError
from skimage.color import hed2rgb, rgb2hed

UNIT = -math.log(1e-6)  # scikit-image's densities are to the base of a million, these to the base e
DENSITIES = np.random.default_rng(0).uniform(0.5, 1.5, (32, 32, 3))
SECTION = torch.from_numpy(hed2rgb(DENSITIES / UNIT).transpose(2, 0, 1).copy()).float()


def densities_of(image: torch.Tensor) -> np.ndarray:
    return rgb2hed(image.numpy().transpose(1, 2, 0).astype(float)) * UNIT


def test_each_stain_changes_by_a_factor_and_an_offset_of_its_own() -> None:
    transform, found = RandStain(0.2), []
    for seed in range(40):
        transform.set_random_state(seed)
        changed = densities_of(transform(SECTION))
        for stain in range(3):
            before, after = DENSITIES[..., stain].ravel(), changed[..., stain].ravel()
            line = np.polyfit(before, after, 1)
            assert np.polyval(line, before) == pytest.approx(after, abs=1e-3)
            found.append(line)
    factors, offsets = np.transpose(found)
    for values, middle in ((factors, 1), (offsets, 0)):
        assert middle - 0.2 <= values.min() + 1e-3 < middle - 0.17
        assert middle + 0.17 < values.max() - 1e-3 <= middle + 0.2
        assert len(set(values.round(4))) > 100  # no two stains by the same
    assert abs(np.corrcoef(factors, offsets)[0, 1]) < 0.3


@pytest.mark.parametrize(("light", "change"), [(1.0, 0.0), (0.97, 0.015), (0.92, 0.07)])
def test_glass_stays_nearly_white(light: float, change: float) -> None:
    transform = RandStain(0.2)
    glass = torch.full((3, 8, 8), light)
    for seed in range(40):
        transform.set_random_state(seed)
        assert (transform(glass) - glass).abs().max() <= change


def test_nothing_changes_at_0_however_improbable_the_colour() -> None:
    colours = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = colours.clamp(min=1 / 255)
    assert torch.allclose(RandStain(0.0)(image), image, atol=1e-5)


def test_normalised_images_change_as_others_each_seed_alike() -> None:
    mean, std = [0.5, 0.4, 0.3], [0.25, 0.2, 0.1]
    columns = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    transform = Compose([RandStaind("image", 0.1, mean, std)])
    item = {"image": (SECTION - columns[0]) / columns[1], "label": torch.tensor([1.0, 0.5])}
    results = []
    for seed in (1, 1, 2):
        transform.set_random_state(seed)
        results.append(transform(item)["image"])
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])
    seen = densities_of(results[0] * columns[1] + columns[0])
    for stain in range(3):
        before, after = DENSITIES[..., stain].ravel(), seen[..., stain].ravel()
        assert 0.9 - 1e-3 <= np.polyfit(before, after, 1)[0] <= 1.1 + 1e-3
        assert abs(np.corrcoef(before, after)[0, 1]) > 0.999


@pytest.mark.parametrize(
    "image",
    [torch.rand(1, 8, 8), torch.rand(1, 8, 8).expand(3, 8, 8), torch.rand(5, 8, 8)],
    ids=["one channel", "grey as RGB", "more than colours"],
)
def test_grey_images_are_refused(image: torch.Tensor) -> None:
    with pytest.raises(InputError, match="grey image among the training images; give --stain_shift 0"):
        RandStain(0.1)(image)


def test_volumes_are_refused() -> None:
    with pytest.raises(InputError, match="volumes have none"):
        RandStaind("image", 0.1)({"image": SECTION, "slice": 3})


@pytest.mark.parametrize("amount", [-0.1, 1.5, "much", None])
def test_amounts_are_fractions(amount: object) -> None:
    with pytest.raises(InputError, match="stain_shift must be a fraction"):
        RandStain(amount)
