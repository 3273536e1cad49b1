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


"""Slides at any resolution, from hand-made TIFFs whose resolution is known."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
from PIL import Image
from scripts.errors import InputError
from scripts.slides.reader import Slide


def test_resolution_is_that_of_the_file(write_slide, tissue_picture, tmp_path):
    slide = Slide(write_slide(tmp_path / "a.tif", tissue_picture(200, 300), 0.4))
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.4, 0.4))
    view = slide.at(1.0)  # 200 x 0.4 = 80 and 300 x 0.4 = 120 micrometres
    assert (view.height, view.width) == (80, 120)
    assert view.mpp == pytest.approx((1.0, 1.0))


def test_resolution_may_be_given(write_slide, tissue_picture, tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(200, 300), None)
    with pytest.raises(InputError, match=r"a\.tif.*--slide_mpp"):
        Slide(path)
    assert (Slide(path, 0.5).at(1.0).height, Slide(path, 0.5).at(1.0).width) == (100, 150)


def test_given_resolution_goes_before_the_file_s(write_slide, tissue_picture, tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(200, 300), 0.4)
    assert Slide(path, 2.0).at(1.0).width == 600


@pytest.mark.parametrize(("mpp", "level"), [(0.25, 0), (0.4, 0), (0.9, 0), (1.0, 1), (3.9, 1), (4.0, 2), (40.0, 2)])
def test_coarsest_level_that_is_fine_enough(write_slide, tissue_picture, tmp_path, mpp, level):
    slide = Slide(write_slide(tmp_path / "a.tif", tissue_picture(640, 960), 0.25, factors=(1, 4, 16)))
    assert slide.at(mpp).level == level


def test_a_level_of_the_right_size_is_taken_as_it_is(write_slide, tissue_picture, tmp_path):
    picture = tissue_picture(640, 960)
    view = Slide(write_slide(tmp_path / "a.tif", picture, 0.25, factors=(1, 4))).at(1.0)
    means = np.rint(picture.reshape(160, 4, 240, 4, 3).mean(axis=(1, 3))) / 255
    np.testing.assert_allclose(view.read(0, 160, 0, 240), means, atol=1e-6)


def test_triangle_worked_out_by_hand(write_slide, tmp_path):
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :, 0] = [0, 100, 200, 40, 80, 120, 160, 20]
    red = Slide(write_slide(tmp_path / "a.tif", picture, 1.0)).at(2.0).read(0, 2, 0, 4)[0, :, 0] * 255
    # pixel j has its centre at 2 j + 0.5: weights 1/4, 3/4, 3/4, 1/4 for the four pixels around, where they exist
    first = (0.75 * 0 + 0.75 * 100 + 0.25 * 200) / 1.75
    second = (0.25 * 100 + 0.75 * 200 + 0.75 * 40 + 0.25 * 80) / 2
    np.testing.assert_allclose(red[:2], [first, second], rtol=1e-5)


def test_close_to_another_library(write_slide, tmp_path):
    """Pillow's bilinear filter, which rounds to 8 bit."""
    picture = np.random.default_rng(0).integers(0, 255, (211, 307, 3), dtype=np.uint8)
    view = Slide(write_slide(tmp_path / "a.tif", picture, 0.37)).at(1.0)
    expected = Image.fromarray(picture).resize((view.width, view.height), Image.Resampling.BILINEAR)
    found = view.read(0, view.height, 0, view.width) * 255
    np.testing.assert_allclose(found, np.asarray(expected), atol=1.0)


@pytest.mark.parametrize("mpp", [0.31, 0.5, 1.37])
def test_a_pixel_does_not_depend_on_the_region(write_slide, tissue_picture, tmp_path, mpp):
    path = write_slide(tmp_path / "a.tif", tissue_picture(1500, 1300), 0.5, factors=(1, 2))
    view = Slide(path).at(mpp)
    bounds = (view.height // 3, view.height // 3 + 60, view.width // 2 - 7, view.width // 2 + 40)
    whole = view.read(0, view.height, 0, view.width)
    part = Slide(path).at(mpp).read(*bounds)
    np.testing.assert_allclose(part, whole[bounds[0] : bounds[1], bounds[2] : bounds[3]], atol=1e-6)


def test_beyond_the_slide_is_background(write_slide, tmp_path):
    view = Slide(write_slide(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), 1.0)).at(1.0)
    region = view.read(-2, 66, 60, 70)
    assert (region[2:66, :4] == 0).all()
    assert (region[:2] == 1).all()
    assert (region[:, 4:] == 1).all()


def test_no_slide(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.svs"):
        Slide(tmp_path / "a.svs")


def test_openslide_is_the_reader(write_slide, tissue_picture, tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(150, 170), 1.0)
    expected = np.asarray(openslide.OpenSlide(str(path)).read_region((20, 30), 0, (100, 90)))[..., :3]
    found = Slide(path).at(1.0).read(30, 120, 20, 120)
    np.testing.assert_allclose(found, expected / 255, atol=1e-6)
