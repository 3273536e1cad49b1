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

"""Phantoms: what their truth promises, and that telling cancer takes texture where colour does not do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import rankdata
from scripts.demo.phantoms import draw_phantom, draw_region
from skimage.color import rgb2hed
from skimage.morphology import disk

SEEDS = range(100, 124)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each seed the image with cancer, its mask, and the image of the same tissue without cancer."""
    drawn = []
    for seed in SEEDS:
        image, mask = draw_phantom(np.random.default_rng(seed))
        healthy, _ = draw_phantom(np.random.default_rng(seed), cancer=False)
        drawn.append((image, mask, healthy))
    return drawn


def auc(values: list[np.ndarray], truth: list[np.ndarray]) -> float:
    """Area under the ROC curve of pooled values, by the Mann-Whitney statistic."""
    ranks = rankdata(np.concatenate([v.ravel() for v in values]))
    positive = np.concatenate([t.ravel() for t in truth])
    n = int(positive.sum())
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n))


def is_solid(mask: np.ndarray) -> bool:
    """Whether a mask is one connected piece without holes."""
    return ndimage.label(mask)[1] == 1 and bool((ndimage.binary_fill_holes(mask) == mask).all())


@pytest.mark.parametrize("size", [(4, 4), (5, 31), (64, 33), (97, 128)])
@pytest.mark.parametrize("cancer", [True, False])
def test_any_size(size: tuple[int, int], cancer: bool) -> None:
    image, mask = draw_phantom(np.random.default_rng(3), size, cancer)
    assert (image.shape, image.dtype) == ((*size, 3), np.uint8)
    assert (mask.shape, mask.dtype) == (size, bool)
    assert mask.any() == cancer


def test_refuses_images_too_small() -> None:
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels, got size \(3, 80\)"):
        draw_phantom(np.random.default_rng(0), (3, 80))


def test_the_generator_decides_the_image() -> None:
    first, again, other = (draw_phantom(np.random.default_rng(seed), (40, 40))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10


@pytest.mark.parametrize("fraction", [0.05, 0.23, 0.5, 0.7])
@pytest.mark.parametrize("size", [(128, 128), (60, 141)])
def test_region_has_the_area_asked_for_and_is_solid(fraction: float, size: tuple[int, int]) -> None:
    for seed in range(8):
        region = draw_region(np.random.default_rng(seed), size, fraction)
        assert region.mean() == pytest.approx(fraction, abs=0.01)
        assert is_solid(region)


def test_region_is_irregular() -> None:
    """No disc: a region of this area clear of the frame has a perimeter well over a disc's 2 sqrt(pi area)."""
    ratios = []
    for seed in range(30):
        region = draw_region(np.random.default_rng(seed), (128, 128), 0.15)
        if not (region[[0, -1]].any() or region[:, [0, -1]].any()):
            # Steps between pixels along a digital curve count 4/pi times its length, averaged over directions.
            steps = (region[1:] != region[:-1]).sum() + (region[:, 1:] != region[:, :-1]).sum()
            ratios.append(steps * np.pi / 4 / (2 * np.sqrt(np.pi * region.sum())))
    assert len(ratios) >= 5
    assert np.median(ratios) > 1.12


def test_masks_are_solid_and_spread_over_5_to_70_percent(pairs: list) -> None:
    fractions = [mask.mean() for _, mask, _ in pairs]
    assert min(fractions) >= 0.045
    assert max(fractions) <= 0.705
    assert np.ptp(fractions) > 0.4
    assert all(is_solid(mask) for _, mask, _ in pairs)


def test_cancer_changes_the_region_and_nothing_else(pairs: list) -> None:
    for image, mask, healthy in pairs:
        beyond = ndimage.distance_transform_edt(~mask) > 8  # past the reach of the blurs
        assert np.array_equal(image[beyond], healthy[beyond])
        changed = np.abs(image.astype(int) - healthy).max(axis=-1) > 12
        assert changed[mask].mean() > 0.7


def test_stain_and_brightness_vary_from_image_to_image(pairs: list) -> None:
    means = np.array([healthy.mean(axis=(0, 1)) for _, _, healthy in pairs])
    assert (np.ptp(means, axis=0) > 30).all()
    red_over_blue = means[:, 0] / means[:, 2]
    assert red_over_blue.max() / red_over_blue.min() > 1.15


def colours(image: np.ndarray) -> list[np.ndarray]:
    """Maps (H, W) of colour that someone might threshold: optical densities, stains, redness."""
    density = -np.log((image + 1.0) / 256)
    return [
        *np.moveaxis(density, -1, 0),
        *np.moveaxis(rgb2hed(image), -1, 0),
        density[..., 0] / (density.sum(-1) + 0.1),
    ]


def large_crowded_nuclei(image: np.ndarray, window: int = 21) -> np.ndarray:
    """Part (H, W) of the window that is nucleus wide enough to hold a disc of 7 pixels."""
    density = ndimage.gaussian_filter(-np.log((image[..., 0] + 1.0) / 256), 0.5)
    low, high = np.percentile(density, (5, 95))
    nuclei = ndimage.binary_opening(density > (low + high) / 2, disk(3))
    return ndimage.uniform_filter(nuclei.astype(float), window)


def test_texture_tells_cancer_where_colour_does_not(pairs: list) -> None:
    images = [image for image, _, _ in pairs] + [healthy for _, _, healthy in pairs]
    truth = [mask for _, mask, _ in pairs] + [np.zeros_like(mask) for _, mask, _ in pairs]
    by_colour = [auc(list(channel), truth) for channel in zip(*map(colours, images), strict=True)]
    best_colour = max(max(value, 1 - value) for value in by_colour)
    texture = auc([large_crowded_nuclei(image) for image in images], truth)
    assert best_colour < 0.85
    assert texture > 0.9
    assert texture > best_colour + 0.08


def test_mean_colour_does_not_tell_positives() -> None:
    """Of images of different tissue, 48 positives and 48 negatives."""
    positive = [True, False] * 48
    images = [draw_phantom(np.random.default_rng(seed), (96, 96), cancer)[0] for seed, cancer in enumerate(positive)]
    means = [[channel.mean() for channel in colours(image)] for image in images]
    truth = [np.array([cancer]) for cancer in positive]
    by_colour = [auc(list(map(np.atleast_1d, channel)), truth) for channel in zip(*means, strict=True)]
    assert max(max(value, 1 - value) for value in by_colour) < 0.85
