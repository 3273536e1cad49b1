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

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scripts.images.loading import in_8_bit
from scripts.images.outline import OutlineOverlay, OutlineOverlayd

GREEN = [0.0, 1.0, 0.2]


def test_a_picture_is_kept_in_8_bit_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (3, 6, 5), np.uint8)
    image = MetaTensor(torch.as_tensor(picture / np.float32(255)), meta={"filename_or_obj": "a.png"})
    item = {"picture": in_8_bit(image)}
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


def test_outlined_draws_into_a_copy_with_the_metadata() -> None:
    data = {"image": MetaTensor(torch.zeros(3, 5, 5), meta={"name": "a"}), "pred": torch.from_numpy(FULL).float()}
    result = OutlineOverlayd("image", width=1)(data)
    assert result["image"].as_tensor()[1].sum().item() == 16  # the frame of 5x5 in full green
    assert result["image"].meta["name"] == "a"
    assert data["image"].sum() == 0
    assert torch.equal(data["pred"], torch.from_numpy(FULL).float())
