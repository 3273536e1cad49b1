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

"""Slides of every kind that OpenSlide reads, by hand-made ones whose pixels and resolution are known."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from PIL import Image
from scripts.data.datalist import load_datalist
from scripts.images.loading import LoadPictured
from scripts.images.slide import Slide
from scripts.labelling.subjects import SlideTiles
from scripts.monai_label.regions import LoadImageOrRegiond
from scripts.runtime.errors import input_error_of
from slide_formats import GLASS, SLIDE_FORMATS, UNSCANNED
from slide_runs import infer

HEIGHT, WIDTH, BLOCK = 256, 384, 16
JPEG = 6  # by which it may change a colour, with all its edges between its blocks


def stained() -> np.ndarray:
    """
    Glass, and tissue of 16 x 16 blocks, each of another colour. The left half but for a hole is red, which is found.

    The edges are those of the blocks of JPEG, at a level of half the size too.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH] // BLOCK
    picture = np.full((HEIGHT, WIDTH, 3), GLASS, np.uint8)
    tissue = (y >= 4) & (y < 12) & (x >= 4) & (x < 20)
    red = tissue & (x < 11) & ~((y == 5) & (x > 5) & (x < 9))
    picture[tissue] = np.stack([np.where(red, 230, 70), 20 + 3 * x, 130 + 5 * y], axis=-1)[tissue]
    picture[-UNSCANNED:] = 255
    return picture


PICTURE = stained()
HALF = PICTURE[::2, ::2]  # since its blocks have one colour each
FOUND = PICTURE[..., 0] == 230


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "slides.csv").open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """A folder with a slide of each kind, of pixels of 0.5 micrometres."""
    folder = tmp_path_factory.mktemp("slides")
    for kind, written in SLIDE_FORMATS.items():
        written.write(written.path(folder, kind), PICTURE, (0.5, 0.5))
    return folder


@pytest.mark.parametrize("kind", SLIDE_FORMATS)
def test_a_slide_is_what_was_written(kind, tmp_path):
    written = SLIDE_FORMATS[kind]
    path = written.path(tmp_path, "a")
    written.write(path, PICTURE, (0.5, 0.4))
    assert openslide.OpenSlide.detect_format(str(path)) == written.vendor
    slide = Slide(path)
    assert (slide.mpp_x, slide.mpp_y) == pytest.approx((0.5, 0.5 if written.square else 0.4))
    assert slide.file.level_dimensions == tuple((WIDTH // f, HEIGHT // f) for f in written.levels)
    for level, expected in enumerate((PICTURE, HALF)):
        found = slide.level_region(level, 0, expected.shape[0], 0, expected.shape[1])
        np.testing.assert_allclose(found.astype(int), expected, atol=JPEG)
    part = {"image": str(path), "location": (0, 160), "size": (96, 96)}  # glass, tissue, and what isn't scanned
    found = np.asarray(LoadImageOrRegiond("image")(part)["image"]).transpose(2, 1, 0) * 255
    np.testing.assert_allclose(found, PICTURE[160:, :96], atol=JPEG)
    tiles = SlideTiles(path)
    content, _ = tiles.tile(9, 0, 0)  # 2 ** 9 is the first power of two from the width on
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(content))).astype(int), PICTURE, atol=40)
    view = slide.at(1.0)  # 384 x 0.5 and 256 x 0.4 or 0.5 micrometres
    assert (view.width, view.height) == (192, 128 if written.square else 102)


def test_maps_of_all_kinds_in_one_folder(configs, red_detector, slides, tmp_path, caplog):
    out = infer(configs, red_detector, slides, tmp_path, tile_size=128)
    assert "left out" not in caplog.text  # of what belongs to a slide
    assert set(rows(out)) == set(SLIDE_FORMATS)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for kind, row in rows(out).items():
        mask = tifffile.imread(out / f"{kind}_mask.ome.tif")
        np.testing.assert_array_equal(mask > 0, FOUND[::2, ::2], err_msg=kind)
        assert (row["mpp_x"], row["mpp_y"]) == ("1", "1"), kind
        assert float(row["area_mm2"]) == pytest.approx(FOUND.sum() * 0.25e-6, rel=1e-5), kind
        (feature,) = json.loads((out / f"{kind}.geojson").read_text())["features"]
        inside = shapely.contains_xy(shapely.geometry.shape(feature["geometry"]), x, y)
        assert (inside != FOUND).sum() < 50, kind  # corners are smoothed


def test_fields_of_all_kinds_in_one_data_set(slides, tmp_path):
    """What a training, a review and an inference on fields read."""
    items = [
        {"image": str(SLIDE_FORMATS[kind].path(slides, kind)), "region": [96, 64, 128, 96], "mpp": mpp, "label": label}
        for kind in SLIDE_FORMATS
        for mpp, label in ((0.5, 0), (1.0, 1))
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    loaded = load_datalist(tmp_path, ["training"], allow_outside=True)["training"]
    assert len(loaded) == 2 * len(SLIDE_FORMATS)
    for item in loaded:
        found = np.asarray(LoadPictured("image")(item)["image"]).transpose(2, 1, 0) * 255
        expected = PICTURE[64:160, 96:224] if item["mpp"] == 0.5 else HALF[32:80, 48:112]
        np.testing.assert_allclose(found, expected, atol=JPEG, err_msg=item["image"])


@pytest.mark.parametrize("kind", ["hamamatsu-vms", "mirax"])
def test_a_slide_is_done_again_when_any_of_its_files_has_changed(configs, red_detector, kind, tmp_path):
    """Though the file that is opened and the tissue are as they were."""
    written = SLIDE_FORMATS[kind]
    for folder, picture in (("old", PICTURE), ("new", PICTURE[:, ::-1])):
        (tmp_path / folder).mkdir()
        written.write(written.path(tmp_path / folder, "a"), picture, (0.5, 0.5))
    path = written.path(tmp_path / "old", "a")
    before = path.stat()
    infer(configs, red_detector, path, tmp_path / "out", mpp=0.5, tissue="all", tile_size=128)
    (tmp_path / "old").rename(tmp_path / "former")
    (tmp_path / "new").rename(tmp_path / "old")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size  # the file itself tells nothing
    out = infer(configs, red_detector, path, tmp_path / "out", mpp=0.5, tissue="all", tile_size=128)
    mask = tifffile.imread(out / f"{path.stem}_mask.ome.tif")
    np.testing.assert_array_equal(mask[:-UNSCANNED] > 0, FOUND[:-UNSCANNED, ::-1])


def test_what_is_wrong_with_a_slide_of_any_kind_is_said(configs, red_detector, tmp_path):
    """Without a resolution, and cut short; the others are done."""
    folder = tmp_path / "in"
    folder.mkdir()
    for kind, written in SLIDE_FORMATS.items():
        written.write(written.path(folder, f"{kind}_unknown"), PICTURE, None)
        written.write(written.path(folder, f"{kind}_cut"), PICTURE, (0.5, 0.5))
        data = written.data_path(folder, f"{kind}_cut")
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    written.write(written.path(folder, "whole"), PICTURE, (0.5, 0.5))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        infer(configs, red_detector, folder, tmp_path / "out", mpp=0.5, tile_size=128)
    problems = str(input_error_of(caught.value)).split("\n  - ")[1:]
    assert list(rows(tmp_path / "out" / "predictions")) == ["whole"]
    for kind, written in SLIDE_FORMATS.items():
        (unknown,) = [problem for problem in problems if str(written.path(folder, f"{kind}_unknown")) in problem]
        assert "give micrometres per pixel of this slide alone (cdws infer " in unknown
        assert len([problem for problem in problems if str(written.path(folder, f"{kind}_cut")) in problem]) == 1, kind
