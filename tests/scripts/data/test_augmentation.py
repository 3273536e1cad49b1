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

"""Flips and quarter turns: nothing is lost, everything of an image moves together."""

from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose
from scripts.data.augmentation import random_changes


def results(size: tuple[int, int]) -> set[tuple]:
    image = torch.arange(size[0] * size[1]).reshape(1, *size).float()
    augment = Compose(random_changes(["image", "truth"], size))
    found = set()
    for seed in range(80):
        augment.set_random_state(seed=seed)
        item = augment({"image": image.clone(), "truth": image.clone(), "label": 1, "mask": "gone"})
        assert set(item) == {"image", "truth", "label"}
        assert torch.equal(item["image"], item["truth"])
        assert sorted(item["image"].flatten().tolist()) == image.flatten().tolist()
        found.add(tuple(item["image"][0].int().flatten().tolist()))
    return found


@pytest.mark.parametrize(("size", "count"), [((2, 2), 8), ((2, 3), 4)])
def test_a_square_has_eight_positions_and_any_other_size_four(size: tuple[int, int], count: int) -> None:
    found = results(size)
    assert len(found) == count
    if size == (2, 2):  # of 0 1 / 2 3: the first of a corner's two neighbours is either one
        corners = [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 3, 2), (1, 3, 0, 2)]
        assert found == {position for c in corners for position in (c, c[::-1])}


def test_colours_change_and_nothing_else() -> None:
    """A channel of 1 becomes one of (1 + f) + s, both within 0.2."""
    augment = Compose(random_changes(["image", "truth"], (2, 3), colour_shift=0.2))
    augment.set_random_state(seed=0)
    item = augment({"image": torch.ones(3, 2, 3), "truth": torch.ones(1, 2, 3), "label": 1})
    values = item["image"].flatten(1)
    assert torch.equal(values, values[:, :1].expand(-1, 6))
    assert len({round(float(v), 6) for v in values[:, 0]}) == 3
    assert ((values - 1).abs() <= 0.4).all()
    assert torch.equal(item["truth"], torch.ones(1, 2, 3))
