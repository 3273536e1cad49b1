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

"""Pen and blur on pictures that are made for it, and the real tissue that must stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scripts.images.quality import Focus, check_kinds, find_blur, find_pen, leave_out, sharpness
from scripts.images.slide import Slide
from scripts.runtime.errors import InputError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
PINK, NUCLEUS = np.array([0.85, 0.55, 0.72]), np.array([0.25, 0.12, 0.42])


def section(height: int, width: int) -> np.ndarray:
    """Glass around a section whose nuclei, of 8 micrometres, cover a third of it; 2 micrometres per pixel."""
    picture = np.full((height, width, 3), 0.95)
    picture[30:-30, 30:-30] = PINK
    y, x = np.mgrid[:height, :width] % 7 - 3
    nuclei = (y**2 + x**2 <= 5)[..., None]
    picture[30:-30, 30:-30] = np.where(nuclei, NUCLEUS, picture)[30:-30, 30:-30]
    return picture


@pytest.mark.parametrize(
    "ink", [(0.1, 0.1, 0.1), (0.1, 0.1, 0.45), (0.1, 0.25, 0.7), (0.05, 0.4, 0.15), (0.6, 0.05, 0.1)]
)
def test_a_line_of_ink_is_found_on_tissue_and_on_glass(ink: tuple) -> None:
    """100 micrometres wide, with up to 16 beside it, and the 8 over which it is smoothed."""
    picture = section(200, 300)
    picture[:, 120:170] *= ink
    found = find_pen(picture, 2.0)
    assert found[:, 122:168].all()
    assert not found[:, :107].any()
    assert not found[:, 183:].any()


def test_dark_nuclei_red_cells_and_a_narrow_fold_are_tissue() -> None:
    picture = section(200, 300)
    picture[40:160, 60:100] = (0.75, 0.3, 0.4)  # blood
    picture[:, 120:130] = 0.1  # 20 micrometres
    assert not find_pen(picture, 2.0).any()
    assert not find_pen(picture * [0.9, 1.0, 0.85], 2.0).any()  # another colour of light


def test_of_white_noise_the_sharpness_is_known() -> None:
    """
    The Laplacian's weights, 4 and four times -1, have a sum of squares of 20. A Gaussian of s leaves a gradient of
    mean square 1 / (4 pi s^4), of which differences over two pixels see 0.92 (1 - 1 / 3s^2, nearly).
    """
    noise = np.random.default_rng(0).normal(0, 0.1, (512, 512))
    assert sharpness(noise) == pytest.approx(20 * 4 * np.pi * 16 / 0.92, rel=0.1)
    assert sharpness(noise * 0.5) == pytest.approx(sharpness(noise), rel=1e-6)
    assert np.isnan(sharpness(np.full((64, 64), 0.5)))


def blob_slide(write_slide, path: Path, sigmas: tuple[float, ...]) -> Slide:
    """Stripes of tissue 256 micrometres wide, each blurred by a Gaussian, of one contrast; the last is nearly flat."""
    rng = np.random.default_rng(0)
    stripes = []
    for sigma in sigmas:
        detail = gaussian_filter(rng.normal(0, 1, (512, 256)), sigma)
        stripes.append(0.5 + 0.15 * detail / detail.std())
    stripes.append(0.5 + 0.02 * (rng.uniform(0, 1, (512, 256)) - 0.5))
    grey = np.concatenate(stripes, axis=1).clip(0, 1)[..., None]
    return Slide(write_slide(path, ((0.3 + 0.6 * grey) * [1.0, 0.5, 0.9] * 255).astype(np.uint8), 1.0))


def test_blurred_stripes_are_found_and_smooth_ones_are_not(write_slide, tmp_path) -> None:
    slide = blob_slide(write_slide, tmp_path / "a.tif", (0, 4, 8, 0))
    found = find_blur(slide, np.ones((256, 640), bool))
    np.testing.assert_array_equal(found, np.repeat([[False, True, True, False, False]], 128, 1).repeat(256, 0))


def test_a_slide_that_is_blurred_all_over_is_found(write_slide, tmp_path) -> None:
    slide = blob_slide(write_slide, tmp_path / "a.tif", (4, 4))
    assert find_blur(slide, np.ones((64, 96), bool))[:, :64].all()


def test_nothing_is_left_out_where_there_is_no_tissue(write_slide, tmp_path) -> None:
    slide = blob_slide(write_slide, tmp_path / "a.tif", (4,))
    view = slide.at(1.0)
    kept, shares = leave_out(np.zeros((512, 512), bool), view.read(0, 512, 0, 512), view, ["pen", "blur"])
    assert not kept.any()
    assert shares == {}


def test_sharpness_below_which_a_slide_is_blurred_follows_its_best() -> None:
    assert [Focus.least(v) for v in ([60.0] * 9, [25.0] * 9, [1.0, np.nan], [])] == [3.0, 2.5, 2.0, 2.0]


@pytest.mark.parametrize("kinds", ["pen", ["dust"], None, [["pen"]]])
def test_kinds_that_are_none_are_refused(kinds: object) -> None:
    with pytest.raises(InputError, match="leave_out must be a list of pen and blur"):
        check_kinds(kinds)


@pytest.mark.skipif(not (SHARED / "colon").is_dir(), reason="needs the images in ../shared")
def test_of_real_tissue_nothing_is_left_out(write_slide, tmp_path) -> None:
    """Every tenth of the colon images: as they are, and the left half of them 3 pixels out of focus."""
    items = json.loads((SHARED / "colon" / "dataset.json").read_text())["training"][:490:10]
    images = [np.asarray(Image.open(SHARED / "colon" / item["image"]).convert("RGB")) for item in items]
    assert sum(find_pen(image / 255, 1.0).mean() for image in images) == 0
    picture = np.concatenate([np.concatenate(images[k : k + 7], axis=1) for k in range(0, 49, 7)])
    picture = picture[: 12 * 128, : 12 * 128].astype(float)
    tissue = np.ones((96, 96), bool)
    assert not find_blur(Slide(write_slide(tmp_path / "a.tif", picture, 1.0)), tissue).any()
    picture[:, : 6 * 128] = gaussian_filter(picture[:, : 6 * 128], (3, 3, 0))
    found = find_blur(Slide(write_slide(tmp_path / "b.tif", picture, 1.0)), tissue)
    assert found[:, :48].mean() > 0.95
    assert not found[:, 48:].any()
