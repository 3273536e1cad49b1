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
import tifffile
from PIL import Image
from scripts.images.slide import Slide
from scripts.runtime.errors import InputError


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


def write_tagged(path, resolution, unit: int, size=(400, 600)):
    """With just these TIFF tags; the unit is 1 for none, 2 for inches, 3 for centimetres."""
    tifffile.imwrite(
        path,
        np.full((*size, 3), 255, np.uint8),
        tile=(128, 128),
        photometric="rgb",
        compression="zlib",
        metadata=None,
        resolution=resolution,
        resolutionunit=unit,
    )
    return path


@pytest.mark.parametrize("dpi", [72, 75, 96, 100, 150, 200, 240, 300, 400, 600, 1200, 2400, 4800])
@pytest.mark.parametrize("unit", ["inch", "centimetre"])
def test_a_printer_s_resolution_is_none(tmp_path, dpi, unit):
    per_unit, code = (dpi, 2) if unit == "inch" else (dpi / 2.54, 3)
    path = write_tagged(tmp_path / "a.tif", (per_unit, per_unit), code)
    with pytest.raises(InputError, match=r"a\.tif' says .* give micrometres per pixel by --slide_mpp"):
        Slide(path)
    assert Slide(path, 0.5).at(1.0).width == 300


@pytest.mark.parametrize("mpp", [0.0274, 0.05, 0.002, 12.0, 1e4])
def test_a_size_that_no_microscope_has_is_none(tmp_path, mpp):
    with pytest.raises(InputError, match=r"a\.tif' says .*--slide_mpp"):
        Slide(write_tagged(tmp_path / "a.tif", (1e4 / mpp, 1e4 / mpp), 3))


@pytest.mark.parametrize(("mpp", "unit"), [(0.1, 3), (0.2528, 3), (0.25, 2), (1.0, 2), (2.8, 3), (5.0, 3), (8.0, 3)])
def test_a_microscope_s_sizes_are_taken(tmp_path, mpp, unit):
    per_unit = {2: 25_400, 3: 10_000}[unit] / mpp
    slide = Slide(write_tagged(tmp_path / "a.tif", (per_unit, per_unit), unit))
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx((mpp, mpp), rel=1e-5)


def test_resolution_without_a_unit_is_none(tmp_path):
    with pytest.raises(InputError, match=r"a\.tif' doesn't say"):
        Slide(write_tagged(tmp_path / "a.tif", (20_000, 20_000), 1))


def test_oblong_pixels_are_made_square(tmp_path):
    """600 x 400 pixels of 0.5 x 1 micrometres are 300 x 400 micrometres."""
    view = Slide(write_tagged(tmp_path / "a.tif", (20_000, 10_000), 3)).at(2.0)
    assert (view.width, view.height) == (150, 200)
    assert view.mpp == pytest.approx((2.0, 2.0))
    assert (view.scale_x, view.scale_y) == (4, 2)


def test_sides_that_cannot_both_be_right_are_none(tmp_path):
    with pytest.raises(InputError, match=r"0\.25 x 2\.5 .*--slide_mpp"):
        Slide(write_tagged(tmp_path / "a.tif", (40_000, 4_000), 3))


def write_ome(path, sizes, units, tags=None):
    metadata = {f"PhysicalSize{axis}": size for axis, size in zip("XY", sizes, strict=False)}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis, unit in zip("XY", units, strict=False)}
    options = {} if tags is None else {"resolution": (tags, tags), "resolutionunit": 2}
    with tifffile.TiffWriter(path, ome=True) as writer:
        picture = np.full((400, 600, 3), 255, np.uint8)
        writer.write(picture, tile=(128, 128), photometric="rgb", metadata={"axes": "YXS"} | metadata, **options)
    return path


@pytest.mark.parametrize(
    ("sizes", "units"),
    [
        ((0.5, 0.25), ("µm", "µm")),
        ((0.5, 0.25), ()),  # micrometres are the default
        ((500, 250), ("nm", "nm")),
        ((0.0005, 0.25), ("mm", "µm")),
        ((5e-7, 2.5e-5), ("m", "cm")),
    ],
)
@pytest.mark.parametrize("tags", [None, 72, 101_600])
def test_sizes_in_ome_xml_go_before_tags(tmp_path, sizes, units, tags):
    slide = Slide(write_ome(tmp_path / "a.ome.tif", sizes, units, tags))
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(
    ("sizes", "units"), [((0.5, 0.5), ("pixel", "pixel")), ((0.5,), ("µm",)), ((84.7, 84.7), ("µm", "µm")), ((), ())]
)
def test_ome_xml_without_a_length_gives_none(tmp_path, sizes, units):
    with pytest.raises(InputError, match=r"a\.ome\.tif' .*--slide_mpp"):
        Slide(write_ome(tmp_path / "a.ome.tif", sizes, units))


@pytest.mark.parametrize(("sizes", "units"), [((0.5, 0.5), ("pixel", "pixel")), ((0.5,), ("µm",))])
def test_ome_xml_without_a_length_is_not_passed_over_for_tags(tmp_path, sizes, units):
    with pytest.raises(InputError, match=r"says in its OME-XML that its pixels are 0\.5 .* not a width and a height"):
        Slide(write_ome(tmp_path / "a.ome.tif", sizes, units, tags=101_600))
    slide = Slide(
        write_ome(tmp_path / "b.ome.tif", (), (), tags=101_600)
    )  # it says nothing, and the tags 25.4 mm / 101600
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.25, 0.25))


APERIO = "Aperio Image Library v10\n600x400 [0,0 600x400] (128x128) JPEG/RGB Q=70|AppMag = {power}|MPP = {mpp}"


@pytest.mark.parametrize(
    ("mpp", "power", "right"), [(0.25, 40, True), (0.5, 20, True), (0.12, 40, True), (2.5, 40, False)]
)
@pytest.mark.parametrize("factor", [1, 0.1])
def test_sizes_must_go_with_the_objective(tmp_path, mpp, power, right, factor):
    tifffile.imwrite(
        tmp_path / "a.svs",
        np.full((400, 600, 3), 255, np.uint8),
        tile=(128, 128),
        photometric="rgb",
        compression="jpeg",
        description=APERIO.format(power=power, mpp=mpp * factor),
        metadata=None,
    )
    if right and factor == 1:
        assert Slide(tmp_path / "a.svs").mpp_x == pytest.approx(mpp)
    elif (mpp, factor) == (2.5, 0.1):
        assert Slide(tmp_path / "a.svs").mpp_x == pytest.approx(0.25)
    else:
        with pytest.raises(InputError, match="--slide_mpp"):
            Slide(tmp_path / "a.svs")


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
