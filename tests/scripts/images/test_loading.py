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
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Resized
from PIL import Image
from scripts.data.targets import LoadTruthd, WeakTarget, WeakTargetd
from scripts.images.loading import (
    BinaryMask,
    KeepPictured,
    LabelMapd,
    OutlineOverlay,
    OutlineOverlayd,
    ToRGB,
    ToRGBd,
    load_image,
    load_mask,
    load_preview,
)
from scripts.images.reading import PictureReader

GREEN = [0.0, 1.0, 0.2]


def pixel(*channels: float, dtype: type = np.float32) -> np.ndarray:
    """An image of one pixel, (C, 1, 1)."""
    return np.array(channels, dtype).reshape(-1, 1, 1)


def write_mask(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array).save(path)
    return str(path)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (pixel(0.3), [0.3, 0.3, 0.3]),
        (pixel(0.3, 1.0), [0.3, 0.3, 0.3]),
        (pixel(0.3, 0.0), [1.0, 1.0, 1.0]),  # transparent is white
        (pixel(0.3, 0.25), [0.825, 0.825, 0.825]),  # .3 * .25 + .75
        (pixel(0.1, 0.2, 0.3), [0.1, 0.2, 0.3]),
        (pixel(0.1, 0.2, 0.3, 1.0), [0.1, 0.2, 0.3]),
        (pixel(0.1, 0.2, 0.3, 0.0), [1.0, 1.0, 1.0]),
        (pixel(0.1, 0.2, 0.3, 0.5), [0.55, 0.6, 0.65]),
        (pixel(0.0, 0.5, 1.0, dtype=np.float64), [0.0, 0.5, 1.0]),
        (pixel(51, 102, 255, dtype=np.uint8), [0.2, 0.4, 1.0]),
        (pixel(51, 102, 255, 0, dtype=np.uint8), [1.0, 1.0, 1.0]),
        (pixel(13107, dtype=np.uint16), [0.2, 0.2, 0.2]),
        (pixel(13107, 65535, dtype=np.uint16), [0.2, 0.2, 0.2]),
        (torch.tensor([51, 102, 255], dtype=torch.uint8).view(3, 1, 1), [0.2, 0.4, 1.0]),
        (torch.tensor([13107], dtype=torch.uint16).view(1, 1, 1), [0.2, 0.2, 0.2]),
        (torch.tensor([True]).view(1, 1, 1), [1.0, 1.0, 1.0]),
        (pixel(False, dtype=bool), [0.0, 0.0, 0.0]),
    ],
)
def test_to_rgb_by_hand(image: np.ndarray | torch.Tensor, expected: list[float]) -> None:
    rgb = ToRGB()(image)
    assert rgb.dtype == torch.float32
    assert rgb.shape == (3, 1, 1)
    assert rgb.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((5, 4, 4)), r"expected an image of shape \(1 to 4 channels, H, W\), got \(5, 4, 4\)"),
        (np.zeros((0, 4, 4)), r"got \(0, 4, 4\)"),
        (np.zeros((4, 4)), r"got \(4, 4\)"),
        (np.zeros((1, 4, 4, 4)), r"got \(1, 4, 4, 4\)"),
        (pixel(0.5, math.nan, 0.5), "values that are not finite"),
        (pixel(math.inf), "values that are not finite"),
        (pixel(0.0, 1 + 2**-23), r"goes from 0 to 1\.0000001;"),
        (pixel(0.0, 3e38), r"goes from 0 to 3e\+38;"),
        (pixel(1.5), r"must be in 0..1, this one goes from 1.5 to 1.5; rescale it"),
        (pixel(-0.25, 0.0, 0.5), r"goes from -0.25 to 0.5"),
        (pixel(0, 128, 255), r"goes from 0 to 255"),
    ],
)
def test_to_rgb_refuses(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ToRGB()(image)


def test_to_rgbd_keeps_the_rest_and_the_metadata() -> None:
    data = {"image": MetaTensor(pixel(0.3), meta={"filename_or_obj": "a.png"}), "label": 1}
    result = ToRGBd("image")(data)
    assert result["image"].flatten().tolist() == pytest.approx([0.3] * 3)
    assert result["image"].meta["filename_or_obj"] == "a.png"
    assert result["label"] == 1
    assert data["image"].shape == (1, 1, 1)  # the input is not modified


@pytest.mark.parametrize("factor", [1, 255])
def test_binary_mask_of_any_foreground_value(factor: int) -> None:
    mask = BinaryMask()(np.array([[[0, 1], [1, 0]]], np.uint8) * factor)
    assert torch.equal(mask, torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        ((3,), 1.0),  # the third of several classes
        ((0.004,), 1.0),
        ((0, 0, 0), 0.0),
        ((0, 0, 1), 1.0),  # a colour on black
        ((0, 255), 0.0),  # opaque black: alpha does not count
        ((255, 255), 1.0),
        ((0, 0, 0, 255), 0.0),
        ((0, 7, 0, 255), 1.0),
        ((255, 0), 0.0),  # nothing is to be seen there
        ((0, 7, 0, 0), 0.0),
        ((0, 7, 0, 1), 1.0),
    ],
)
def test_binary_mask_of_classes_colours_and_alpha(channels: tuple[float, ...], expected: float) -> None:
    mask = BinaryMask()(pixel(*channels))
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[[expected]]]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_mask_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="the mask has values that are not finite"):
        BinaryMask()(np.array([[[0, 1], [value, 0]]], np.float32))


@pytest.mark.parametrize("shape", [(5, 4, 4), (4, 4)])
def test_binary_mask_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a mask of shape"):
        BinaryMask()(np.zeros(shape))


def test_masks_and_images_load_in_one_orientation(tmp_path: Path) -> None:
    array = np.zeros((3, 5), np.uint8)
    array[2, 1] = 255  # row 2, column 1
    path = write_mask(tmp_path / "mask.png", array)
    expected = torch.zeros(1, 5, 3)
    expected[0, 1, 2] = 1.0
    assert torch.equal(load_mask(path).as_tensor(), expected)
    assert torch.equal(load_image(path).as_tensor(), expected)


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


def test_a_picture_is_kept_in_8_bit_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 6, 5), np.uint8)
    image = MetaTensor(torch.as_tensor(picture / np.float32(255)), meta={"filename_or_obj": "a.png"})
    item = KeepPictured("image")({"image": image})
    np.testing.assert_array_equal(np.asarray(item["picture"]), picture)
    assert item["picture"].dtype == torch.uint8
    assert item["picture"].meta["filename_or_obj"] == "a.png"
    mask = np.zeros((1, 6, 5), np.float32)
    mask[0, 2:5, 1:4] = 1
    drawn = OutlineOverlay(1)(item["picture"], mask)
    expected = picture.copy()
    expected[:, 2:5, 1:4] = np.array([0, 255, 51], np.uint8)[:, None, None]  # green
    expected[:, 3, 2] = picture[:, 3, 2]  # its middle is no outline
    np.testing.assert_array_equal(drawn, expected)


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


def loaded(tmp_path: Path, item: dict) -> dict:
    """An item of a 3x5 image after the transforms that the config runs before the truth, resized to 8x8."""
    item = item | {"image": write_mask(tmp_path / "image.png", np.zeros((3, 5, 3), np.uint8))}
    return Compose(
        [
            WeakTargetd("label"),
            LoadImaged("image", reader=PictureReader, dtype=None, ensure_channel_first=True),
            ToRGBd("image"),
            Resized("image", spatial_size=(8, 8)),
            LoadTruthd("mask"),
        ]
    )(item)


def test_truth_of_a_negative_is_zeros_at_the_size_of_the_file(tmp_path: Path) -> None:
    result = loaded(tmp_path, {"label": 0})
    assert result["image"].shape == (3, 8, 8)
    assert torch.equal(result["mask"], torch.zeros(1, 5, 3))


def test_truth_may_have_a_name_of_its_own() -> None:
    image = MetaTensor(torch.zeros(3, 2, 2), meta={"spatial_shape": [5, 3]})
    result = LoadTruthd("mask", names="truth")({"image": image, "label": torch.tensor([0.0, math.nan])})
    assert torch.equal(result["truth"], torch.zeros(1, 5, 3))
    assert "mask" not in result


@pytest.mark.parametrize("as_label", [False, True])
def test_truth_of_a_positive_is_its_mask(as_label: bool, tmp_path: Path) -> None:
    array = np.zeros((3, 5), np.uint8)
    array[2, 1] = 255
    path = write_mask(tmp_path / "mask.png", array)
    result = loaded(tmp_path, {"label": path} if as_label else {"label": 1, "mask": path})
    assert result["mask"].shape == (1, 5, 3)
    assert result["mask"].as_tensor().nonzero().tolist() == [[0, 1, 2]]


def test_a_positive_without_a_mask_stays_without(tmp_path: Path) -> None:
    assert "mask" not in loaded(tmp_path, {"label": 1})


def bits(*rows: str) -> np.ndarray:
    """(1, H, W) from rows of '.' and '#'."""
    return np.array([[[character == "#" for character in row] for row in rows]])


SQUARE = bits(".......", ".#####.", ".#####.", ".#####.", ".#####.", ".#####.", ".......")
FULL = bits("#####", "#####", "#####", "#####", "#####")


@pytest.mark.parametrize(
    ("mask", "width", "outline"),
    [
        (SQUARE, 1, bits(".......", ".#####.", ".#...#.", ".#...#.", ".#...#.", ".#####.", ".......")),
        (SQUARE, 2, bits(".......", ".#####.", ".#####.", ".##.##.", ".#####.", ".#####.", ".......")),
        (SQUARE, 9, SQUARE),
        (FULL, 1, bits("#####", "#...#", "#...#", "#...#", "#####")),  # closed where it touches the frame
        (  # a pixel that touches the ground with its corner only belongs to the outline
            bits("#####", "#####", "#####", "###..", "###.."),
            1,
            bits("#####", "#...#", "#.###", "#.#..", "###.."),
        ),
        (bits("##...", "##...", "....."), 1, bits("##...", "##...", ".....")),
        (bits("...", "...", "..."), 2, bits("...", "...", "...")),
    ],
)
def test_outline_by_hand(mask: np.ndarray, width: int, outline: np.ndarray) -> None:
    image = np.random.default_rng(0).random((3, *mask.shape[1:]), dtype=np.float32)
    before_image, before_mask = image.copy(), mask.copy()
    drawn = OutlineOverlay(width)(image, mask)
    expected = np.where(outline, np.array(GREEN, np.float32).reshape(3, 1, 1), image)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(image, before_image)
    np.testing.assert_array_equal(mask, before_mask)


def test_a_mask_of_another_size_is_stretched_over_the_picture() -> None:
    image, right = np.zeros((3, 4, 6), np.float32), np.zeros((1, 4, 6), np.float32)
    right[..., 3:] = 1
    np.testing.assert_array_equal(OutlineOverlay(1)(image, right[:, ::2, ::3]), OutlineOverlay(1)(image, right))


def test_label_map_is_the_first_channel_in_whole_numbers() -> None:
    mask = MetaTensor(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), meta={"filename_or_obj": "a.png"})
    label_map = LabelMapd("pred")({"pred": mask})["pred"]
    assert label_map.dtype == torch.uint8
    assert label_map.tolist() == [[0, 1]]
    assert label_map.meta["filename_or_obj"] == "a.png"


def test_outlined_draws_into_a_copy_with_the_metadata() -> None:
    data = {"image": MetaTensor(torch.zeros(3, 5, 5), meta={"name": "a"}), "pred": torch.from_numpy(FULL).float()}
    result = OutlineOverlayd("image", width=1)(data)
    assert result["image"].as_tensor()[1].sum().item() == 16  # the frame of 5x5 in full green
    assert result["image"].meta["name"] == "a"
    assert data["image"].sum() == 0
    assert torch.equal(data["pred"], torch.from_numpy(FULL).float())
