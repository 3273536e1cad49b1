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

"""Strokes follow their image: through its size, its padding, its turns, and into a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, SpatialPadd
from PIL import Image
from scripts.data.augmentation import random_changes
from scripts.data.strokes import LoadStrokesd, fit_strokes, load_pixel_labels
from scripts.data.targets import ValidRegiond
from scripts.images.loading import LoadPictured
from scripts.images.resizing import SmoothResized
from scripts.images.strokes import read_strokes, write_strokes
from scripts.runtime.errors import InputError

STROKES = np.array([[0, 2, 2, 0], [1, 0, 0, 0]], np.uint8)  # (H, W)


def scaled(factor: float) -> np.ndarray:
    """As MONAI resizes: pixels are squares, their places those of the centres."""
    to = np.diag([factor, factor, 1, 1]).astype(float)
    to[:2, 3] = (factor - 1) / 2
    return to


def test_a_larger_image_repeats_them() -> None:
    expected = STROKES.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(fit_strokes(STROKES, scaled(2), (4, 8)), expected)
    assert np.array_equal(fit_strokes(STROKES, np.eye(4), (2, 4)), STROKES)


@pytest.mark.parametrize("column", range(9))
def test_a_thin_stroke_survives_a_smaller_image(column: int) -> None:
    """Of 9 x 9 pixels, a line one pixel wide becomes one of three."""
    line = np.zeros((9, 9), np.uint8)
    line[:, column] = 2
    expected = np.zeros((3, 3))
    expected[:, column // 3] = 2
    assert np.array_equal(fit_strokes(line, scaled(1 / 3), (3, 3)), expected)


def test_of_two_strokes_in_one_pixel_the_larger_counts_and_of_equals_none() -> None:
    strokes = np.array([[1, 2, 2, 0], [2, 0, 1, 0]], np.uint8)
    assert fit_strokes(strokes, scaled(0.5), (1, 2)).tolist() == [[2, 0]]


@pytest.fixture
def painted(tmp_path: Path) -> dict:
    Image.fromarray(np.full((2, 4, 3), 90, np.uint8)).save(tmp_path / "image.png")
    write_strokes(tmp_path / "strokes.png", STROKES)
    return {"image": str(tmp_path / "image.png"), "strokes": str(tmp_path / "strokes.png"), "label": 1}


def test_files_come_back_grey_or_with_a_palette(painted: dict, tmp_path: Path) -> None:
    assert np.array_equal(read_strokes(painted["strokes"]), STROKES)
    Image.fromarray(STROKES).save(tmp_path / "grey.png")
    assert np.array_equal(read_strokes(tmp_path / "grey.png"), STROKES)
    Image.fromarray(STROKES * 100).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="an 8-bit PNG of 0"):
        read_strokes(tmp_path / "grey.png")


def test_they_are_of_the_size_of_the_resized_and_padded_image(painted: dict) -> None:
    """8 x 8 pixels, of which an image of twice the size fills the rows in the middle."""
    load = Compose(
        [
            LoadPictured("image"),
            SmoothResized("image", (8, 8), "longest"),
            ValidRegiond("image"),
            SpatialPadd(["image", "valid"], (8, 8)),
            *load_pixel_labels(truth=False),
        ]
    )
    item = load(painted)
    expected = np.zeros((8, 8))
    expected[2:6] = STROKES.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(item["strokes"][0].T, expected)
    assert np.array_equal(item["valid"][0, 0], [0, 0, 1, 1, 1, 1, 0, 0])


def test_they_turn_with_the_image() -> None:
    image = torch.arange(16).reshape(1, 4, 4).float()
    augment = Compose(random_changes(["image", "strokes"], (4, 4)))
    for seed in range(20):
        augment.set_random_state(seed=seed)
        item = augment({"image": image.clone(), "strokes": (image % 3).to(torch.uint8), "label": 1})
        assert torch.equal(item["strokes"].as_tensor(), (item["image"].as_tensor() % 3).to(torch.uint8))


def test_items_with_and_without_strokes_make_a_batch(painted: dict) -> None:
    without = {key: value for key, value in painted.items() if key != "strokes"}
    data = Dataset([without, painted], Compose([LoadPictured("image"), LoadStrokesd()]))
    [batch] = DataLoader(data, batch_size=2)
    assert batch["strokes"].shape == (2, 1, 4, 2)
    assert not batch["strokes"][0].any()
    assert np.array_equal(batch["strokes"][1, 0].T, STROKES)
