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

"""Regions of slides: a tiled TIFF whose pixels are known is read at places worked out by hand, and outlined."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scripts.monai_label.regions import LoadImageOrRegiond, RegionPolygonsd, mask_polygons


def rectangle(width: int, height: int, x: slice, y: slice) -> np.ndarray:
    """(W, H), 1 in a rectangle."""
    mask = np.zeros((width, height), np.uint8)
    mask[x, y] = 1
    return mask


def area(polygon: list[list[float]]) -> float:
    """Shoelace formula."""
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(polygon))) / 2


def test_polygon_goes_along_the_pixels_edges() -> None:
    [polygon] = mask_polygons(rectangle(40, 30, slice(5, 25), slice(10, 18)))
    assert polygon[0] == polygon[-1]
    xs, ys = np.array(polygon).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (5, 25, 10, 18)
    assert area(polygon) == 20 * 8 - 4 / 8  # the corners are cut off, half a pixel long


def test_polygon_at_the_edge_of_the_mask_is_closed() -> None:
    [polygon] = mask_polygons(np.ones((40, 30), np.uint8))
    xs, ys = np.array(polygon).T
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (0, 40, 0, 30)


def test_small_polygons_are_left_out() -> None:
    mask = rectangle(40, 30, slice(5, 25), slice(10, 18)) + rectangle(40, 30, slice(30, 33), slice(20, 23))
    assert len(mask_polygons(mask)) == 2
    assert len(mask_polygons(mask, min_area=20)) == 1
    assert mask_polygons(np.zeros((40, 30), np.uint8)) == []


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """Of 600 x 400 pixels: red tells x / 4, green y / 2."""
    y, x = np.mgrid[:400, :600]
    pixels = np.stack([x // 4, y // 2, np.zeros_like(x)], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", pixels, tile=(256, 256), photometric="rgb")
    return tmp_path / "slide.tif"


def test_region_is_read_where_it_lies(slide: Path) -> None:
    pytest.importorskip("openslide", reason="regions of slides need OpenSlide")
    item = {"image": str(slide), "location": (300, 100), "size": (40, 20)}
    image = LoadImageOrRegiond(keys="image")(item)["image"]
    assert image.shape == (3, 40, 20)
    assert (image[:, 0, 0] * 255).tolist() == pytest.approx([300 // 4, 100 // 2, 0])
    assert (image[:, 39, 19] * 255).tolist() == pytest.approx([339 // 4, 119 // 2, 0])


def test_an_item_that_is_no_region_is_read_as_ever(slide: Path) -> None:
    for item in ({"image": str(slide)}, {"image": str(slide), "location": (300, 100), "size": (0, 0)}):
        image = LoadImageOrRegiond(keys="image")(item)["image"]
        assert image.shape == (3, 600, 400)


def test_polygons_of_a_region_are_in_the_slides_pixels() -> None:
    mask = torch.as_tensor(rectangle(40, 30, slice(5, 25), slice(10, 18)))
    item = {"pred": mask, "location": (300, 100), "size": (40, 30), "min_poly_area": 30}
    annotation = RegionPolygonsd("pred", label="cancer")(item)["result"]["annotation"]
    [element] = annotation["elements"]
    xs, ys = np.array(element["contours"][0]).T
    assert element["label"] == "cancer"
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (305, 325, 110, 118)
    assert set(annotation["labels"]) == {"cancer"}


def test_no_polygons_of_an_image_that_is_no_region() -> None:
    mask = torch.ones(4, 4)
    item = RegionPolygonsd("pred", label="cancer")({"pred": mask})
    assert item == {"pred": mask}
