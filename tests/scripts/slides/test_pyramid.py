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


"""Pyramids opened by two other libraries."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import openslide
import pytest
import tifffile
from scripts.slides.pyramid import level_shapes, write_pyramid

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


@pytest.fixture(params=[(300, 410), (64, 64), (33, 130)])
def picture(request) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 256, request.param, dtype=np.uint8)
    values[:64, :64] = 0
    return values


def write(path, picture: np.ndarray, nearest: bool = False) -> None:
    padded = np.zeros([-(-n // 64) * 64 for n in picture.shape], np.uint8)
    padded[: picture.shape[0], : picture.shape[1]] = picture

    def read_tile(row: int, column: int) -> np.ndarray | None:
        tile = padded[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        return tile if tile.any() else None

    write_pyramid(path, *picture.shape, 64, read_tile, (0.5, 0.25), "a mask", nearest)


def test_both_libraries_read_every_level(picture, tmp_path):
    write(tmp_path / "a.ome.tif", picture, nearest=True)
    expected = [picture[:: 2**k, :: 2**k] for k in range(len(level_shapes(*picture.shape, 64)))]
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_ome
        assert len(file.series) == 1
        levels = [level.asarray() for level in file.series[0].levels]
    slide = openslide.OpenSlide(str(tmp_path / "a.ome.tif"))
    assert slide.level_count == len(levels) == len(expected)
    for k, level in enumerate(expected):
        np.testing.assert_array_equal(levels[k], level)
        seen = np.asarray(slide.read_region((0, 0), k, slide.level_dimensions[k]))[..., 0]
        np.testing.assert_array_equal(seen, level)


def test_smaller_levels_are_means(tmp_path):
    picture = np.zeros((128, 128), np.uint8)
    picture[0, :4] = [10, 20, 30, 41]
    picture[1, :4] = [20, 30, 40, 50]
    write(tmp_path / "a.ome.tif", picture)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.series[0].levels[1].asarray()[0, :3].tolist() == [20, 40, 0]  # 80 / 4, 161 / 4


def test_resolution_is_in_the_metadata(picture, tmp_path):
    write(tmp_path / "a.ome.tif", picture)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        pixels = ET.fromstring(file.ome_metadata).find(f"{OME}Image/{OME}Pixels")
        assert file.pages[0].is_tiled
        assert file.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE
    assert (float(pixels.get("PhysicalSizeX")), float(pixels.get("PhysicalSizeY"))) == (0.5, 0.25)
    assert (pixels.get("PhysicalSizeXUnit"), pixels.get("SizeX")) == ("µm", str(picture.shape[1]))
    properties = openslide.OpenSlide(str(tmp_path / "a.ome.tif")).properties
    assert float(properties["openslide.mpp-x"]) == pytest.approx(0.5)
    assert float(properties["openslide.mpp-y"]) == pytest.approx(0.25)


def test_a_failure_leaves_no_file(tmp_path):
    def read_tile(row: int, column: int) -> np.ndarray:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        write_pyramid(tmp_path / "a.ome.tif", 100, 100, 64, read_tile, (1, 1), "a")
    assert not list(tmp_path.iterdir())
