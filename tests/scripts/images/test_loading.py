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

"""Transforms on arrays and files of a few pixels, worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from PIL import Image
from scripts.data.targets import LoadTruthd, WeakTarget, WeakTargetd
from scripts.images.loading import LoadPictured, load_image, load_mask, load_preview
from scripts.images.resizing import SmoothResized
from scripts.runtime.errors import InputError

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


def write_mask(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array).save(path)
    return str(path)


def test_masks_and_images_load_in_one_orientation(tmp_path: Path) -> None:
    array = np.zeros((3, 5), np.uint8)
    array[2, 1] = 255  # row 2, column 1
    path = write_mask(tmp_path / "mask.png", array)
    expected = torch.zeros(1, 5, 3)
    expected[0, 1, 2] = 1.0
    assert torch.equal(load_mask(path).as_tensor(), expected)
    assert torch.equal(load_image(path).as_tensor(), expected)


def test_loading_says_nothing_of_libraries_that_it_does_not_need(tmp_path: Path) -> None:
    """MONAI's LoadImage, made once a process, warns of a codec that only machines with a GPU have."""
    write_mask(tmp_path / "mask.png", np.ones((3, 5), np.uint8))
    code = "import sys; from scripts.images.loading import load_image; print(tuple(load_image(sys.argv[1]).shape))"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "mask.png")]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(1, 5, 3)\n", "")


SHAPE = np.array([[0, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], np.uint8)  # what is drawn


def save_palette(path: Path, indices: np.ndarray, colours: list[int], **options: object) -> None:
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(colours)
    picture.save(path, **options)


def drawn_on_nothing(path: Path) -> None:
    """White everywhere, to be seen where it is drawn."""
    Image.fromarray(np.dstack([np.full((3, 5, 3), 255, np.uint8), SHAPE * 255])).save(path)


MASKS = {
    "one_bit.png": lambda path: Image.fromarray(SHAPE > 0).save(path),
    "white_is_zero.tif": lambda path: tifffile.imwrite(path, 255 - SHAPE * 255, photometric="miniswhite"),
    "white_is_zero16.tif": lambda path: tifffile.imwrite(path, np.uint16(65535) - SHAPE, photometric="miniswhite"),
    "white_is_zero_one_bit.tif": lambda path: tifffile.imwrite(path, SHAPE == 0, photometric="miniswhite"),
    "faint16.png": lambda path: Image.fromarray(SHAPE.astype(np.uint16)).save(path),
    "labels32.tif": lambda path: tifffile.imwrite(path, SHAPE.astype(np.int32) * 70_000),
    "float.tif": lambda path: tifffile.imwrite(path, SHAPE.astype(np.float32)),
    "palette.png": lambda path: save_palette(path, SHAPE, [0, 0, 0, 128, 0, 0]),
    "palette_inverted.png": lambda path: save_palette(path, 1 - SHAPE, [255, 255, 255, 0, 0, 0]),
    "palette_shows_one_of_three.png": lambda path: save_palette(path, SHAPE + 1, [9, 9, 9, 0, 0, 0, 0, 255, 0]),
    "palette_with_nothing.png": lambda path: save_palette(path, SHAPE, [255, 0, 0, 0, 255, 0], transparency=0),
    "drawn_on_nothing.png": drawn_on_nothing,
    "drawn_on_nothing.tif": drawn_on_nothing,
    "transparent_grey.png": lambda path: Image.fromarray(SHAPE + 7).save(path, transparency=7),
    "transparent_colour.png": lambda path: Image.fromarray(np.dstack([SHAPE + 7] * 3)).save(
        path, transparency=(7,) * 3
    ),
    "turned.tif": lambda path: tifffile.imwrite(path, np.rot90(SHAPE).copy(), extratags=[(274, "H", 1, 6, True)]),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_what_a_viewer_shows_of_it(name: str, tmp_path: Path) -> None:
    MASKS[name](tmp_path / name)
    np.testing.assert_array_equal(np.asarray(load_mask(tmp_path / name))[0].T, SHAPE)


def test_a_preview_is_small_and_in_its_colours(tmp_path: Path) -> None:
    """Of 40 x 30 pixels squares of 3 make 13 x 10: the left half red, the lower right corner white."""
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[:, :18, 0] = 200
    picture[24:, 36:] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    preview = load_preview(tmp_path / "a.png", 12)
    assert preview.dtype == np.uint8
    assert preview.shape == (10, 13, 3)
    assert preview[0, 0].tolist() == [200, 0, 0]
    assert preview[0, 6].tolist() == [0, 0, 0]
    assert preview[9, 12].tolist() == [255, 255, 255]
    np.testing.assert_array_equal(load_preview(tmp_path / "a.png", 100), picture)


@pytest.mark.parametrize(
    ("label", "area", "expected"),
    [
        (1, 0.3, [1.0, 0.3]),
        (1, None, [1.0, math.nan]),
        (1, math.nan, [1.0, math.nan]),
        (0, None, [0.0, math.nan]),
        (0, 0.0, [0.0, math.nan]),  # an area means nothing for a negative
    ],
)
def test_weak_target_of_a_label(label: int, area: float | None, expected: list[float]) -> None:
    target = WeakTarget()(label, area)
    assert target.dtype == torch.float32
    assert target.tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("pixels", "step", "expected"),
    [
        (5, 0.1, [1.0, 0.3]),  # 5 of 20: a quarter, rounded up
        (6, 0.1, [1.0, 0.3]),  # exactly .3 stays
        (1, 0.1, [1.0, 0.1]),
        (5, 0.05, [1.0, 0.25]),
        (20, 0.1, [1.0, 1.0]),
        (0, 0.1, [0.0, math.nan]),
    ],
)
def test_weak_target_of_a_mask(pixels: int, step: float, expected: list[float], tmp_path: Path) -> None:
    mask = np.where(np.arange(20).reshape(4, 5) < pixels, 255, 0).astype(np.uint8)
    path = write_mask(tmp_path / "mask.png", mask)
    assert WeakTarget(step)(path).tolist() == pytest.approx(expected, nan_ok=True)
    assert WeakTarget(step)(Path(path)).tolist() == pytest.approx(expected, nan_ok=True)


def test_weak_targetd_takes_the_area_and_leaves_the_mask() -> None:
    data = {"label": 1, "area": 0.4, "mask": "a.png"}
    result = WeakTargetd("label")(data)
    assert result["label"].tolist() == pytest.approx([1.0, 0.4])
    assert result["mask"] == "a.png"
    assert data["label"] == 1
    assert "mask" not in WeakTargetd("label")({"label": 0})


def test_weak_targetd_keeps_a_label_that_is_a_path_as_mask(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "mask.png", np.full((4, 5), 255, np.uint8))
    result = WeakTargetd("label", mask_key="truth")({"label": path})
    assert result["label"].tolist() == [1.0, 1.0]
    assert result["truth"] == path


def test_truth_may_have_a_name_of_its_own() -> None:
    image = MetaTensor(torch.zeros(3, 2, 2), meta={"spatial_shape": [5, 3]})
    result = LoadTruthd("mask", names="truth")({"image": image, "label": torch.tensor([0.0, math.nan])})
    assert torch.equal(result["truth"], torch.zeros(1, 5, 3))
    assert "mask" not in result


def test_truth_like_the_image_by_the_nearest_pixel(tmp_path: Path) -> None:
    """Of 2 x 2 pixels, the one at row 0, column 1, at twice the size; nothing where it is not asked for."""
    array = np.array([[0, 255], [0, 0]], np.uint8)
    path = write_mask(tmp_path / "mask.png", array)
    item = {"image": SmoothResized("image", (4, 4))(LoadPictured("image")({"image": path}))["image"], "mask": path}
    item["label"] = torch.tensor([1.0, 0.2])
    truth = LoadTruthd("mask", names="truth", as_image=True)(item)["truth"]
    expected = torch.zeros(1, 4, 4)
    expected[0, 2:, :2] = 1  # MONAI's (C, W, H)
    assert torch.equal(truth.as_tensor(), expected)
    assert LoadTruthd("mask", names="truth", as_image=True, enabled=False)(item) == item
    with pytest.raises(InputError, match="pixel_labels must be True or False; got 'false'"):
        LoadTruthd("mask", enabled="false")


def test_a_picture_is_rgb_and_a_copy_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write_mask(tmp_path / "grey.png", np.array([[0, 51], [102, 255]], np.uint8))
    item = LoadPictured("image")({"image": path, "label": 1})
    assert item["label"] == 1
    assert set(item) == {"image", "label"}
    for channel in item["image"]:
        torch.testing.assert_close(channel.as_tensor(), torch.tensor([[0.0, 0.4], [0.2, 1.0]]))
    kept = LoadPictured("image", picture="kept")({"image": path})["kept"]
    assert kept.dtype == torch.uint8
    assert kept.as_tensor()[2].tolist() == [[0, 102], [51, 255]]
