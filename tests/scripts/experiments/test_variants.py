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


"""Subsets, folds and altered areas."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scripts.experiments.variants import forget_areas, make_folds, noisy_areas, stepped_areas, take_subset
from scripts.runtime.errors import InputError


@pytest.fixture
def items() -> list[dict]:
    """Ten groups of two positives and one negative."""
    return [
        {"image": f"{group}{i}", "label": int(i < 2), "group": f"patient {group}"}
        for group in range(10)
        for i in range(3)
    ]


@pytest.fixture
def masked(tmp_path) -> list[dict]:
    """A positive image of which 11 of 100 pixels are cancer, and a negative one."""
    mask = np.zeros((10, 10), np.uint8)
    mask.flat[:11] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    positive = {"image": "a", "label": 1, "area": 1.0, "mask": str(tmp_path / "mask.png")}
    return [positive, {"image": "b", "label": 0}]


def test_subset_has_the_part_of_each_class_and_is_in_the_larger_one(items) -> None:
    small, large = take_subset(items, 0.2, seed=5), take_subset(items, 0.6, seed=5)
    assert [sum(item["label"] == c for item in small) for c in (1, 0)] == [4, 2]
    assert [sum(item["label"] == c for item in large) for c in (1, 0)] == [12, 6]
    assert {item["image"] for item in small} < {item["image"] for item in large}
    assert len({item["group"] for item in small}) == 2
    assert take_subset(items, 0.2, seed=6) != small
    assert take_subset(items, 1, seed=5) == items


def test_a_spread_subset_is_of_as_many_groups_as_it_can_be(items) -> None:
    groups = {c: {item["group"] for item in items if item["label"] == c} for c in (1, 0)}
    for fraction in (0.2, 0.6):
        taken = take_subset(items, fraction, seed=5, spread=True)
        for c, count in ((1, round(20 * fraction)), (0, round(10 * fraction))):
            of_class = Counter(item["group"] for item in taken if item["label"] == c)
            assert of_class.total() == count
            assert len(of_class) == min(count, len(groups[c]))
            assert max(of_class.values()) - min(of_class.values()) <= 1
    smaller, larger = (take_subset(items, part, seed=5, spread=True) for part in (0.2, 0.6))
    assert {item["image"] for item in smaller} < {item["image"] for item in larger}


def test_folds_split_images_but_no_group_and_are_stratified(items) -> None:
    folds = make_folds(items, 5, seed=0)
    assert sorted(item["image"] for fold in folds for item in fold) == sorted(item["image"] for item in items)
    groups = [{item["group"] for item in fold} for fold in folds]
    assert sum(map(len, groups)) == 10
    assert [[sum(item["label"] == c for item in fold) for c in (1, 0)] for fold in folds] == [[4, 2]] * 5


def test_too_few_groups_for_the_folds_are_refused(items) -> None:
    with pytest.raises(InputError, match="into 5 folds"):
        make_folds(items[:9], 5, seed=0)


@pytest.mark.parametrize(("step", "area"), [(0.05, 0.15), (0.1, 0.2), (0.25, 0.25)])
def test_areas_are_rounded_up_from_the_mask(masked, step, area) -> None:
    assert stepped_areas(masked, step)[0]["area"] == pytest.approx(area)
    assert "area" not in stepped_areas(masked, step)[1]


def test_noise_is_seeded_stays_in_range_and_has_its_size(masked) -> None:
    many = masked[:1] * 400
    areas = np.array([item["area"] for item in noisy_areas(many, 0.15, seed=1)])
    assert areas.tolist() == [item["area"] for item in noisy_areas(many, 0.15, seed=1)]
    assert areas.tolist() != [item["area"] for item in noisy_areas(many, 0.15, seed=2)]
    assert set(np.round(areas * 10, 6)) <= set(range(1, 11))
    assert (areas == 0.1).mean() == pytest.approx(0.605, abs=0.08)  # P(0.11 + 0.15 z < 0.15)


def test_half_of_the_areas_are_forgotten() -> None:
    items = [{"image": str(i), "label": i % 2, **({"area": 0.3} if i % 2 else {})} for i in range(20)]
    forgotten = forget_areas(items, 0.5, seed=3)
    assert sum("area" in item for item in forgotten) == 5
    assert [item["image"] for item in forgotten] == [item["image"] for item in items]


def test_a_missing_mask_is_named() -> None:
    with pytest.raises(InputError, match=r"'x\.png' has no mask"):
        stepped_areas([{"image": "x.png", "label": 1}], 0.1)
