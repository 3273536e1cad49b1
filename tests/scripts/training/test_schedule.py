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

"""How many epochs a number of steps is, and how many of them are warm-up, by hand."""

from __future__ import annotations

import pytest
from scripts.runtime.errors import InputError
from scripts.training.schedule import epochs_for, warm_up_epochs


@pytest.mark.parametrize(
    ("steps", "images", "batch_size", "epochs"),
    [(420, 545, 8, 7), (414, 545, 8, 6), (420, 110, 8, 30), (1, 5, 8, 1), (12, 5, "all", 12)],  # 69 and 14 steps each
)
def test_epochs_have_at_least_so_many_steps(steps: int, images: int, batch_size: int | str, epochs: int) -> None:
    assert epochs_for(steps, range(images), batch_size) == epochs


@pytest.mark.parametrize(("images", "epochs"), [(110, 30), (1120, 3), (1681, 3), (4000, 3)])  # 140, 211, 500 steps each
def test_by_default_many_images_are_seen_three_times(images: int, epochs: int) -> None:
    """So that areas are used in two epochs of them."""
    assert epochs_for("auto", range(images), 8) == epochs


def test_the_warm_up_is_three_tenths_and_one_at_least() -> None:
    assert [warm_up_epochs(epochs) for epochs in (1, 2, 7, 10, 30)] == [1, 1, 2, 3, 9]


@pytest.mark.parametrize("value", [0, 1.5, "abc", True])
def test_what_is_no_number_of_steps_images_or_epochs(value) -> None:
    with pytest.raises(InputError, match="steps must be 'auto' or an integer of 1 or more"):
        epochs_for(value, range(5), 8)
    with pytest.raises(InputError, match="batch_size must be 'all' or an integer of 1 or more"):
        epochs_for(10, range(5), value)
    with pytest.raises(InputError, match="max_epochs must be an integer of 1 or more"):
        warm_up_epochs(value)
