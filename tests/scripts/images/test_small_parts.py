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


def holed(hole: int) -> torch.Tensor:
    """(1, 10, 10): a block of 8 x 8 with a hole of so many pixels."""
    probability = torch.zeros(1, 10, 10)
    probability[0, 1:9, 1:9] = 1.0
    for pixel in range(hole):
        probability[0, 3 + pixel % 2, 2 + pixel // 2] = 0.0
    return probability


def islands(small: int) -> torch.Tensor:
    """(1, 10, 10): an island of 40 pixels, and one of so many."""
    probability = torch.zeros(1, 10, 10)
    probability[0, :4] = 1.0
    probability[0, 6, :small] = 1.0
    return probability


def test_what_would_change_an_eighth_of_the_map_stays() -> None:
    """Filled: 7 of 57, 8 of 56 pixels; levelled: 5 of 45, 6 of 46. An eighth lies between them."""
    assert torch.equal(without_small_parts(holed(7), 9), holed(0))
    assert torch.equal(without_small_parts(holed(8), 9), holed(8))
    assert torch.equal(without_small_parts(islands(5), 7), islands(0))
    assert torch.equal(without_small_parts(islands(6), 7), islands(6))


def test_small_structures_stay_where_there_are_no_others() -> None:
    probability = torch.zeros(1, 10, 10)
    probability[0, ::3, ::3] = 0.9
    torch.testing.assert_close(without_small_parts(probability, 5), probability, atol=1e-4, rtol=0)


def test_parts_are_measured_against_the_training_images_not_the_picture() -> None:
    """A tenth of 20 pixels is 2: of a map of 1600 pixels an island of two stays, and one pixel goes."""
    probability = torch.zeros(1, 40, 40)
    probability[0, :20] = 1.0
    probability[0, 34, 3:5] = 0.7
    probability[0, 37, 7] = 0.7
    item = {"pred": MetaTensor(probability, meta={"filename_or_obj": "a.png"})}
    found = WithoutSmallPartsd("pred", 0.1, (4, 5))(item)["pred"]
    assert found.meta["filename_or_obj"] == "a.png"
    assert found[0, 34, 3:5].tolist() == pytest.approx([0.7, 0.7], abs=1e-4)
    assert found[0, 37].max() == 0


@pytest.mark.parametrize(("island", "kept"), [(2, False), (3, True)])
def test_a_part_that_is_much_of_what_is_found_stays(island: int, kept: bool) -> None:
    """Beside 250 pixels: a hundredth of all is 2.52 or 2.53, which 2 are below. A tenth of the image is 90."""
    probability = torch.zeros(1, 30, 30)
    probability[0, :10, :25] = 1.0
    expected = probability.clone()
    probability[0, 20, :island] = 1.0
    found = WithoutSmallPartsd("pred", 0.1, (30, 30))({"pred": probability})["pred"]
    assert torch.equal(found, probability if kept else expected)


def test_each_slice_of_a_volume_has_its_own_parts() -> None:
    """An island of one pixel, in the second slice at the same place as the first's many."""
    probability = torch.zeros(1, 30, 30, 2)
    probability[0, :15, :, 0] = 1.0
    probability[0, 15:, :, 1] = 1.0
    probability[0, 2, 2, 1] = 1.0
    found = WithoutSmallPartsd("pred", 0.05, (30, 30))({"pred": probability})["pred"]
    expected = probability.clone()
    expected[0, 2, 2, 1] = 0
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_nothing_changes_by_default() -> None:
    probability = torch.rand(1, 6, 6)
    assert torch.equal(WithoutSmallPartsd("pred", 0.0, (6, 6))({"pred": probability})["pred"], probability)


def test_what_is_no_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"min_part must be a fraction from 0 to 1; got 6"):
        WithoutSmallPartsd("pred", 6, (10, 10))
