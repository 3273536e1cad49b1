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

"""Regions and fields of slides as images, by what hand-made slides have there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scripts.data.datalist import load_datalist
from scripts.data.listing import list_images
from scripts.images.loading import LoadPictured, load_image
from scripts.images.slide_parts import SlidePart, source_of
from scripts.runtime.errors import InputError

RED, BLUE = (200, 40, 60), (60, 40, 200)


def shown(image) -> np.ndarray:
    """(H, W, 3) uint8 from MONAI's (C, W, H)."""
    return np.rint(np.asarray(image).transpose(2, 1, 0) * 255).astype(np.uint8)


def write_data(folder: Path, *items: dict) -> Path:
    """These items, and what else a split needs, in both splits."""
    others = [{"image": "a.tif", "region": [0, 0, 20, 20], "label": label} for label in (0, 1)]
    others[1]["region"][0] = 30
    content = {"training": [*items, *others], "validation": others}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.fixture
def slide(write_slide, tissue_picture, tmp_path) -> np.ndarray:
    """``a.tif`` of 300 x 200 pixels at 0.5 micrometres, with a level of half the size; ``b.tif`` says no resolution."""
    picture = tissue_picture(200, 300)
    write_slide(tmp_path / "a.tif", picture, 0.5, (1, 2))
    write_slide(tmp_path / "b.tif", picture, None)
    return picture


def test_a_region_is_what_the_slide_has_there(slide, tmp_path):
    item = {"image": str(tmp_path / "a.tif"), "region": [30, 50, 80, 60], "label": 1}
    image = LoadPictured("image")(item)["image"]
    np.testing.assert_array_equal(shown(image), slide[50:110, 30:110])
    halved = LoadPictured("image")(item | {"mpp": 1.0})["image"]
    means = slide[50:110, 30:110].reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(shown(halved), np.rint(means))
    assert halved.meta["spatial_shape"].tolist() == [40, 30]


def test_level_0_needs_no_resolution_and_another_may_be_given(slide, tmp_path):
    item = {"image": str(tmp_path / "b.tif"), "region": [30, 50, 80, 60]}
    np.testing.assert_array_equal(shown(load_image(source_of(item))), slide[50:110, 30:110])
    assert source_of(item | {"mpp": 1.0, "slide_mpp": 0.25}).size() == (20, 15)


def test_regions_of_one_size_are_pictures_of_one_size(slide, tmp_path):
    """70 pixels of 0.5 micrometres are 29.2 of 1.2, wherever they begin; at the edge too."""
    sizes = {SlidePart(str(tmp_path / "a.tif"), (x, 0, 70, 70), 1.2).size() for x in [*range(8), 230]}
    assert sizes == {(29, 29)}
    assert load_image(SlidePart(str(tmp_path / "a.tif"), (230, 130, 70, 70), 1.2)).shape == (3, 29, 29)


def test_each_part_has_a_name_of_its_own(tmp_path):
    items = [{"region": [0, 0, 50, 60]}, {"region": [0, 0, 50, 60], "mpp": 0.5}, {"region": [1, 0, 50, 60], "mpp": 0.5}]
    items += [{"fields": 4}, {"fields": 9, "mpp": 0.25}]
    names = [str(source_of({"image": str(tmp_path / "a.b.tif")} | item)) for item in items]
    assert [Path(name).name for name in names] == [
        "a.b_x0_y0_w50_h60.tif",
        "a.b_x0_y0_w50_h60_500nm.tif",
        "a.b_x1_y0_w50_h60_500nm.tif",
        "a.b_4x128.tif",
        "a.b_9x128_250nm.tif",
    ]
    assert {Path(name).parent for name in names} == {tmp_path}


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"region": [250, 0, 60, 60]}, r"the region \[250, 0, 60, 60\] reaches out of the slide of 300x200 pixels"),
        ({"region": [0, 150, 60, 60]}, "reaches out of the slide"),
        ({"region": [-1, 0, 60, 60]}, r"region is \[-1, 0, 60, 60\], must be \[left, top, width, height\]"),
        ({"region": [0, 0, 60]}, "must be .left, top, width, height"),
        ({"region": [0, 0, 60.5, 60]}, "must be .left, top, width, height"),
        ({"region": [0, 0, float("inf"), 60]}, "must be .left, top, width, height"),
        ({"region": "0 0 60 60"}, "must be .left, top, width, height"),
        ({"region": [0, 0, 6, 6], "mpp": 1}, "is 3x3, smaller than 4x4"),
        ({"region": [0, 0, 60, 60], "mpp": 0}, "mpp is 0, must be micrometres per pixel"),
        ({"region": [0, 0, 60, 60], "mpp": "1"}, "mpp is '1', must be micrometres"),
        ({"region": [0, 0, 60, 60], "mpp": 0.001}, "has 30000x30000 pixels as it is read.*larger mpp"),
        ({"region": [0, 0, 60, 60], "fields": 4}, "has a region, and fields"),
        ({"fields": 5}, "fields is 5, must be a square number"),
        ({"fields": 4, "field_size": 8}, "field_size is 8, must be"),
        ({"fields": 4, "field_size": 500}, "no field of 500x500 pixels was found"),
        ({"fields": 4, "field_size": 16, "mask": "a.tif"}, "has a mask, which a slide without a region can't have"),
        ({"image": "b.tif", "region": [0, 0, 60, 60], "mpp": 1}, 'doesn\'t say how large.*"slide_mpp" of the item'),
        ({"image": "c.tif", "region": [0, 0, 60, 60]}, "can't be opened as a slide"),
        ({"image": "d.svs", "region": [0, 0, 60, 60]}, "there is no such file"),
        ({"region": [0, 0, 60, 60], "mask": "c.tif"}, "the mask '.*c.tif' can't be read"),
        ({"regions": [0, 0, 60, 60]}, "unknown key 'regions'; write 'region'"),
    ],
)
def test_what_is_no_part_of_a_slide_is_named(slide, tmp_path, item, problem):
    (tmp_path / "c.tif").write_bytes(b"II*\0" + bytes(50))
    with pytest.raises(InputError, match=r"(?s)1 problem in .*training\[0\] .*" + problem):
        load_datalist(write_data(tmp_path, {"image": "a.tif", "label": 1} | item))


def test_two_regions_of_a_slide_are_two_images(slide, tmp_path, caplog):
    region = {"image": "a.tif", "region": [30, 50, 80, 60], "mpp": 1.0}
    data = load_datalist(write_data(tmp_path, region | {"label": 1, "area": 0.3}, region | {"mpp": 0.5, "label": 0}))
    assert len(data["training"]) == 4
    assert "more than once" not in caplog.text
    assert "image 'a.tif' is in 'training' and in 'validation'" in caplog.text
    with pytest.raises(InputError, match="has label 1 and label 0 in 'training'"):
        load_datalist(write_data(tmp_path, region | {"label": 1, "area": 0.3}, region | {"label": 0}))


def test_a_mask_is_of_the_region_as_it_is_read(slide, write_slide, tmp_path):
    write_slide(tmp_path / "mask.tif", np.full((30, 40, 3), 255, np.uint8), None)
    region = {"image": "a.tif", "region": [30, 50, 80, 60], "mpp": 1.0, "label": 1, "mask": "mask.tif"}
    assert load_datalist(write_data(tmp_path, region))["training"][0]["mask"] == str(tmp_path / "mask.tif")
    with pytest.raises(InputError, match="is 40x30, the image 80x60; they must have the same size"):
        load_datalist(write_data(tmp_path, region | {"mpp": None}))


def test_fields_are_spread_over_the_tissue(write_slide, tmp_path):
    """A slide of glass, with a piece of 320 x 320 pixels, a quarter of it red: so are the fields, and nothing else."""
    picture = np.full((700, 900, 3), 250, np.uint8)
    picture[128:448, 256:576] = BLUE
    picture[128:288, 256:416] = RED
    write_slide(tmp_path / "a.tif", picture, 0.5)
    item = {"image": str(tmp_path / "a.tif"), "fields": 16, "field_size": 32, "label": 1, "area": 0.25}
    montage = shown(load_image(source_of(item)))
    assert montage.shape == (128, 128, 3)
    fields = montage.reshape(4, 32, 4, 32, 3).swapaxes(1, 2).reshape(16, -1, 3)
    reds = (fields == RED).all(axis=(1, 2))
    assert (reds | (fields == BLUE).all(axis=(1, 2))).all()
    assert reds.sum() in (3, 4, 5)
    np.testing.assert_array_equal(montage, shown(load_image(source_of(item))))


def test_fields_that_may_miss_a_small_area_are_warned_of(write_slide, tmp_path, caplog):
    """None of 16 is of an area of 0.2 in 0.8^16 = 3 % of slides, of 0.1 in 0.9^16 = 19 %."""
    write_slide(tmp_path / "a.tif", np.full((200, 200, 3), RED, np.uint8), 0.5)
    bags = [{"image": "a.tif", "field_size": 16, "fields": 16, "label": 1, "area": area} for area in (0.2, 0.1)]
    bags[1]["mpp"] = 0.6
    load_datalist(write_data(tmp_path, *bags))
    assert "by chance hold nothing of the area: training[1] 19%." in caplog.text


def test_the_images_of_a_data_set_can_be_inferred_on(slide, tmp_path, caplog):
    region = {"image": "a.tif", "region": [30, 50, 80, 60], "mpp": 1.0}
    path = write_data(tmp_path, region | {"label": 1}, region | {"region": [280, 0, 80, 60], "label": 0})
    found = list_images(path)
    assert [item["region"] for item in found] == [[30, 50, 80, 60], [0, 0, 20, 20], [30, 0, 20, 20]]
    assert found[0] == region | {"image": str(tmp_path / "a.tif")}
    assert len(found.left_out) == 1
    assert "a_x280_y0_w80_h60_1000nm.tif': the region" in found.left_out[0]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "../x.svs"}]}))
    with pytest.raises(InputError, match="lies outside the folder"):
        list_images(path)
