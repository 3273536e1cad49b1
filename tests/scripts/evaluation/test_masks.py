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

"""From maps to masks of the size of the file."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scripts.evaluation.masks import map_to_mask
from scripts.images.resizing import SmoothResized
from scripts.runtime.errors import InputError

PREPROCESSING = Compose([SmoothResized("image", (4, 4))])


def item_of(probability: list[list[float]], **more: torch.Tensor) -> dict:
    """Of an image of 8 x 8 pixels, with a map of 4 x 4: of four equal blocks."""
    item = PREPROCESSING({"image": MetaTensor(torch.zeros(3, 8, 8))})
    return item | {"pred": MetaTensor(blocks(probability), meta=item["image"].meta), **more}


def blocks(values: list[list[float]]) -> torch.Tensor:
    """(1, 4, 4) of 2 x 2 values."""
    return torch.tensor([values]).repeat_interleave(2, 1).repeat_interleave(2, 2)


def test_a_mask_has_the_size_of_the_file_and_its_map_is_kept() -> None:
    found = Compose(map_to_mask(PREPROCESSING, 0.6))(item_of([[0.9, 0.9], [0.3, 0.3]]))
    assert found["pred"].shape == found["probability"].shape == (1, 8, 8)
    assert found["pred"][0].as_tensor().tolist() == [[1.0] * 8] * 4 + [[0.0] * 8] * 4
    bilinear = [0.9, 0.9, 0.9, 0.75, 0.45, 0.3, 0.3, 0.3]
    assert found["probability"][0, :, 0].tolist() == pytest.approx(bilinear)


def test_superpixels_are_taken_or_left_as_a_whole() -> None:
    """Two on the left and right: their means are 0.6 and 0.3."""
    item = item_of([[0.9, 0.1], [0.3, 0.5]])
    item["superpixels"] = MetaTensor(blocks([[0, 1], [0, 1]]), meta=item["image"].meta)
    item["mask"] = torch.ones(1, 8, 8)
    found = Compose(map_to_mask(PREPROCESSING, 0.5, superpixels=True))(item)
    torch.testing.assert_close(found["probability"][0].as_tensor(), torch.tensor([[0.6] * 4 + [0.3] * 4] * 8))
    assert found["pred"][0].as_tensor().tolist() == [[1.0] * 4 + [0.0] * 4] * 8
    assert found["instances"].shape == (1, 8, 8)
    assert torch.equal(found["truth"], item["mask"])


def test_what_is_no_threshold_is_named() -> None:
    with pytest.raises(InputError, match=r"threshold must be a fraction from 0 to 1; got 50 \(did you mean 0\.5\?\)"):
        map_to_mask(PREPROCESSING, 50)
    with pytest.raises(InputError, match="superpixels must be True or False; got 'false'"):
        map_to_mask(PREPROCESSING, 0.5, "false")
