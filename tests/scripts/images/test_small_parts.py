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

"""Maps without small holes and islands."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from scripts.images.small_parts import WithoutSmallPartsd, without_small_parts
from scripts.runtime.errors import InputError


def test_small_holes_are_filled_and_small_islands_levelled_at_every_level() -> None:
    """Of one or two pixels: a hole in 0.9, one at 0.5's side, and an island in 0.1."""
    probability = torch.tensor(
        [
            [0.9, 0.9, 0.9, 0.1, 0.1],
            [0.9, 0.2, 0.9, 0.1, 0.7],
            [0.9, 0.9, 0.9, 0.1, 0.1],
            [0.3, 0.5, 0.3, 0.1, 0.1],
        ]
    )
    expected = probability.clone()
    expected[1, 1] = 0.9
    expected[1, 4] = 0.1
    expected[3, 0] = 0.5
    for pixels in (2.5, 3):
        found = without_small_parts(probability[None], pixels)
        torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=0)


def test_a_part_is_small_up_to_a_quarter_of_what_is_positive() -> None:
    """Of a sum of 10, an island of 3 is more than a quarter, one of 2 is not; no other is looked at."""
    probability = torch.zeros(1, 10, 10)
    probability[0, 1:3, 1:4] = 1.0
    probability[0, 5, 1:4] = 0.8
    probability[0, 7, 1:3] = 0.8
    found = WithoutSmallPartsd("pred", 0.2, (10, 10))({"pred": probability})["pred"]
    expected = probability.clone()
    expected[0, 7] = 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_is_marked_alone_stays_however_small() -> None:
    probability = torch.zeros(1, 10, 10)
    probability[0, 4, 4] = 0.9
    found = WithoutSmallPartsd("pred", 0.5, (10, 10))({"pred": probability})["pred"]
    torch.testing.assert_close(found, probability, atol=1e-4, rtol=0)


def test_parts_are_measured_against_the_training_images_not_the_picture() -> None:
    """A tenth of 20 pixels is 2: of a map of 400 pixels an island of two stays, and one pixel goes."""
    probability = torch.zeros(1, 20, 20)
    probability[0, :10] = 1.0
    probability[0, 14, 3:5] = 0.7
    probability[0, 17, 7] = 0.7
    item = {"pred": MetaTensor(probability, meta={"filename_or_obj": "a.png"})}
    found = WithoutSmallPartsd("pred", 0.1, (4, 5))(item)["pred"]
    assert found.meta["filename_or_obj"] == "a.png"
    assert found[0, 14, 3:5].tolist() == pytest.approx([0.7, 0.7], abs=1e-4)
    assert found[0, 17].max() == 0


def test_each_slice_of_a_volume_has_its_own_parts() -> None:
    """An island of one pixel, in the second slice at the same place as the first's many."""
    probability = torch.zeros(1, 8, 8, 2)
    probability[0, :4, :, 0] = 1.0
    probability[0, 6:, :, 1] = 1.0
    probability[0, 2, 2, 1] = 1.0
    found = WithoutSmallPartsd("pred", 0.05, (8, 8))({"pred": probability})["pred"]
    expected = probability.clone()
    expected[0, 2, 2, 1] = 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_nothing_changes_by_default() -> None:
    probability = torch.rand(1, 6, 6)
    assert torch.equal(WithoutSmallPartsd("pred", 0.0, (6, 6))({"pred": probability})["pred"], probability)


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"min_part must be a fraction from 0 to 1; got 6"):
        WithoutSmallPartsd("pred", 6, (10, 10))
