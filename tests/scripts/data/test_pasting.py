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

"""Parts of negative images in positive ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.transforms import Compose
from scripts.data.pasting import RandPasteNegatived
from scripts.images.strokes import NEGATIVE, POSITIVE
from scripts.runtime.errors import InputError

SIZE = (20, 30)
ITEMS = [{"label": 1, "image": 7.0}, {"label": 0, "image": -1.0}, {"label": 0, "image": -2.0}]  # an image of that value


def load(item: dict[str, Any]) -> dict[str, Any]:
    return {"image": torch.full((3, *SIZE), item["image"])}


def paste(seed: int = 0, prob: float | str = 1.0, items: list = ITEMS, **changes: Any) -> dict[str, Any]:
    """A positive image of ones, half of it cancer."""
    item = {"image": torch.ones(3, *SIZE), "label": torch.tensor([1.0, 0.5])}
    item |= {"strokes": torch.full((1, *SIZE), POSITIVE, dtype=torch.uint8)} | changes
    transform = Compose([RandPasteNegatived("image", items, [load], prob)])
    transform.set_random_state(seed)
    return transform(item)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_pasted_is_of_a_negative_image_and_known_to_be(seed: int) -> None:
    found = paste(seed, truth=torch.ones(1, *SIZE))
    pasted = found["image"][0] != 1
    assert torch.equal(found["image"] != 1, pasted.expand(3, *SIZE))
    assert found["image"][:, pasted].unique().tolist() in ([-1], [-2])
    assert torch.equal(found["strokes"][0] == NEGATIVE, pasted)
    assert torch.equal(found["truth"][0] == 0, pasted)
    kept = 1 - int(pasted.sum()) / math.prod(SIZE)
    torch.testing.assert_close(found["label"], torch.tensor([1, 0.5 * kept]))
    rectangle = (pasted if pasted[[0, 0, -1, -1], [0, -1, 0, -1]].sum() < 3 else ~pasted).nonzero()
    sides = rectangle.amax(dim=0) - rectangle.amin(dim=0) + 1
    assert len(rectangle) == sides.prod()
    assert 0.25 < len(rectangle) / math.prod(SIZE) < 0.65


def test_both_the_rectangle_and_what_is_around_it_are_pasted() -> None:
    corners = [bool((paste(seed)["image"][0, [0, 0, -1, -1], [0, -1, 0, -1]] != 1).all()) for seed in range(30)]
    assert 5 < sum(corners) < 25


@pytest.mark.parametrize(
    "changes",
    [
        {"label": torch.tensor([0.0, math.nan])},
        {"label": torch.tensor([1.0, math.nan])},
        {"superpixels": torch.zeros(1, *SIZE)},
        {"valid": torch.ones(1, *SIZE)},
        {"prob": 0.0},
        {"items": ITEMS[:1]},
    ],
    ids=["negative", "no area", "superpixels", "padding", "never", "no negatives"],
)
def test_others_stay_as_they_are(changes: dict[str, Any]) -> None:
    found = paste(**changes)
    assert (found["image"] == 1).all()
    assert (found["strokes"] == POSITIVE).all()
    torch.testing.assert_close(found["label"], changes.get("label", torch.tensor([1.0, 0.5])), equal_nan=True)


@pytest.mark.parametrize("prob", [0.5, "auto"])
def test_every_second_image_where_they_are_few(prob) -> None:
    changed = [bool((paste(seed, prob, [*ITEMS, *ITEMS[:1] * 96])["image"] != 1).any()) for seed in range(60)]
    assert 15 < sum(changed) < 45


def test_none_of_a_hundred() -> None:
    assert all((paste(seed, "auto", [*ITEMS, *ITEMS[:1] * 97])["image"] == 1).all() for seed in range(20))


def test_the_same_from_a_seed_and_the_given_image_untouched() -> None:
    image = torch.ones(3, *SIZE)
    first, again = (paste(3, image=image)["image"] for _ in range(2))
    assert torch.equal(first, again)
    assert (image == 1).all()


def test_a_part_of_all_images_is_a_fraction() -> None:
    with pytest.raises(InputError, match="paste"):
        paste(prob=1.5)
