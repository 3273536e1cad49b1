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

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Resized
from PIL import Image
from scripts.data.targets import LoadTruthd, WeakTargetd
from scripts.images.colours import ToRGB
from scripts.images.loading import LoadPictured


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
        (np.zeros((1, 5, 4, 7)), r"it is a volume, of 5 x 4 x 7 voxels; volumes need the overlay slices\.json"),
        (np.zeros((5, 4, 4)), r"expected an image of shape \(1 to 4 channels, H, W\), got \(5, 4, 4\)"),
        (np.zeros((0, 4, 4)), r"got \(0, 4, 4\)"),
        (np.zeros((4, 4)), r"got \(4, 4\)"),
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


def test_what_belongs_to_an_image_stays_with_it() -> None:
    image = MetaTensor(pixel(0.3), meta={"filename_or_obj": "a.png"})
    result = ToRGB()(image)
    assert result.flatten().tolist() == pytest.approx([0.3] * 3)
    assert result.meta["filename_or_obj"] == "a.png"
    assert image.shape == (1, 1, 1)  # the input is not modified


def loaded(tmp_path: Path, item: dict) -> dict:
    """An item of a 3x5 image after the transforms that the config runs before the truth, resized to 8x8."""
    item = item | {"image": write_mask(tmp_path / "image.png", np.zeros((3, 5, 3), np.uint8))}
    return Compose(
        [
            WeakTargetd("label"),
            LoadPictured("image"),
            Resized("image", spatial_size=(8, 8)),
            LoadTruthd("mask"),
        ]
    )(item)


def test_truth_of_a_negative_is_zeros_at_the_size_of_the_file(tmp_path: Path) -> None:
    result = loaded(tmp_path, {"label": 0})
    assert result["image"].shape == (3, 8, 8)
    assert torch.equal(result["mask"], torch.zeros(1, 5, 3))


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
