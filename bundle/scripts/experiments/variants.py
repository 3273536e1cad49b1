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


"""Variants of a data set for experiments: subsets by group and class, folds by group, and altered areas; all seeded."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from scripts.data.datalist import load_datalist
from scripts.data.rough_area import rough_area
from scripts.images.loading import load_mask
from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing

__all__ = ["forget_areas", "load_base", "make_folds", "noisy_areas", "stepped_areas", "take_subset", "write_variant"]

CLASSES = (0, 1)


def load_base(dataset_dir: str | Path, training: int | None = None, validation: int | None = None) -> dict[str, list]:
    """
    The splits that every experiment starts from, after the checks of `load_datalist`.

    A data set without a split ``test`` is tested on its ``validation``; thresholds then need images of their own, which
    are taken from ``training``.

    Args:
        dataset_dir: folder of ``dataset.json``.
        training: train on so many images, half of them of each class; None for all.
        validation: take so many training images, half of each class, for thresholds, and train on those of other
            groups. None for the split ``validation`` as it is, or, where that is the test, for a fifth of ``training``.

    Returns:
        ``training``, ``validation`` and ``test``, lists of items with absolute paths.

    Raises:
        InputError: for a data set or a number that can't be used.
    """
    content = load_datalist(Path(dataset_dir).resolve())
    masks = [item["label"] for items in content.values() for item in items if isinstance(item["label"], str)]
    if masks:
        raise InputError(
            f"Experiments need labels of 0 or 1, and masks under 'mask'; the label '{masks[0]}' is a mask."
        )
    if validation is None and "test" not in content:
        validation = max(2, len(content["training"]) // 5)
    groups = _by_group(content["training"])
    order = list(groups)
    random.Random(0).shuffle(order)
    splits = {"validation": content["validation"], "test": content.get("test", content["validation"])}
    remaining = iter([groups[name] for name in reversed(order)])
    if validation is not None:
        splits["validation"] = _take(remaining, dict.fromkeys(CLASSES, validation // 2))
    if training is not None:
        splits["training"] = _take(remaining, dict.fromkeys(CLASSES, training // 2))
    else:
        chosen = {id(item) for group in remaining for item in group}
        splits["training"] = [item for item in content["training"] if id(item) in chosen]
    for split in ("training", "validation"):
        if {item["label"] for item in splits[split]} != set(CLASSES):
            raise InputError(
                f"Too few images of other groups are left for '{split}': ask for fewer by --training and --validation."
            )
    return {split: splits[split] for split in ("training", "validation", "test")}


def _by_group(items: Sequence[dict]) -> dict[str, list[dict]]:
    """An item without a group is a group of its own."""
    groups = defaultdict(list)
    for item in items:
        groups[item.get("group", item["image"])].append(item)
    return dict(groups)


def _take(groups: Iterator[list[dict]], counts: Mapping[int, int]) -> list[dict]:
    """So many items of each class, from as few groups as the order allows."""
    missing = Counter(counts)
    taken = []
    while any(missing.values()) and (group := next(groups, None)):
        for item in group:
            if missing[item["label"]]:
                missing[item["label"]] -= 1
                taken.append(item)
    return taken


def take_subset(items: Sequence[dict], fraction: float, seed: int, spread: bool = False) -> list[dict]:
    """
    A part of each class, from as few groups as possible. A larger part of the same seed holds the smaller one.

    Args:
        items: with labels 0 and 1.
        fraction: of each class, in (0, 1], rounded to whole images, at least one.
        seed: of the order in which groups are taken.
        spread: from as many groups as possible instead: one item of each, then a second, and so on.
    """
    if fraction == 1:
        return list(items)
    groups = _by_group(items)
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    taken = [groups[name] for name in order]
    if spread:
        taken = [[item for item in group if item["label"] == c] for group in taken for c in CLASSES]
        taken = [[item for item in turn if item is not None] for turn in zip_longest(*taken)]
    sizes = Counter(item["label"] for item in items)
    return _take(iter(taken), {c: max(1, round(fraction * n)) for c, n in sizes.items()})


def make_folds(items: Sequence[dict], count: int, seed: int) -> list[list[dict]]:
    """
    Folds that no group is split across, with about the same number of each class in all.

    The largest groups come first, each into the fold that then deviates least; among equals a seeded order.

    Raises:
        InputError: when there are too few groups for each fold to have both classes.
    """
    groups = list(_by_group(items).values())
    random.Random(seed).shuffle(groups)
    folds: list[list[dict]] = [[] for _ in range(count)]
    sizes = np.zeros((count, len(CLASSES)))
    share = np.maximum([sum(item["label"] == c for item in items) / count for c in CLASSES], 1e-9)
    for group in sorted(groups, key=len, reverse=True):
        added = np.array([sum(item["label"] == c for item in group) for c in CLASSES])
        # squares of the sizes, relative to a fold's share: least where all folds are alike
        cost = [(((size + added) / share) ** 2 - (size / share) ** 2).sum() for size in sizes]
        chosen = int(np.argmin(cost))
        folds[chosen] += group
        sizes[chosen] += added
    if (sizes == 0).any():
        raise InputError(f"The training images can't be split into {count} folds by group with both classes in each.")
    return folds


def stepped_areas(items: Sequence[dict], step: float) -> list[dict]:
    """
    The true area of each positive image, rounded up to the next step.

    Raises:
        InputError: when a positive image has no mask to take it from.
    """
    return [item | {"area": rough_area(_mask(item), step)} if item["label"] else item for item in items]


def noisy_areas(items: Sequence[dict], deviation: float, seed: int, step: float = 0.1) -> list[dict]:
    """True areas with normal noise of a standard deviation added, rounded to the nearest step, in step..1."""
    rng = np.random.default_rng(seed)
    altered = []
    for item in items:
        if item["label"]:
            area = float(_mask(item).mean()) + rng.normal(0, deviation)
            item = item | {"area": float(np.clip(round(round(area / step) * step, 6), step, 1))}
        altered.append(item)
    return altered


def forget_areas(items: Sequence[dict], fraction: float, seed: int) -> list[dict]:
    """Without the area of a part of the positive images, chosen at random."""
    positives = [i for i, item in enumerate(items) if item["label"]]
    forgotten = set(random.Random(seed).sample(positives, round(fraction * len(positives))))
    return [{k: v for k, v in item.items() if k != "area" or i not in forgotten} for i, item in enumerate(items)]


def _mask(item: dict) -> np.ndarray:
    if not item.get("mask"):
        raise InputError(f"'{item['image']}' has no mask: its area can't be known exactly; add one.")
    return np.asarray(load_mask(item["mask"]))


def write_variant(splits: Mapping[str, list], folder: Path) -> Path:
    """Write ``dataset.json`` into a folder, where it isn't already there as it is; return the folder."""
    text = json.dumps(splits, indent=4)
    path = folder / "dataset.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        with replacing(path) as file:
            file.write(text)
    return folder
