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
"""From answers to ``dataset.json``: areas and labels of the images, split by group."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from scripts.labelling.given import WRITER, GivenData, read_content
from scripts.labelling.journal import Answer, Subject, place_of, written
from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing

__all__ = ["check_replaceable", "split_by_group", "write_dataset"]

SPLITS = ("training", "validation")
ATTEMPTS = 20  # orders of the groups
CLASSES = {1: "with the finding", 0: "without the finding"}


def split_by_group(items: list[dict], validation: float, seed: int = 0) -> dict[str, list[dict]]:
    """
    Training and validation split in which no group is on both sides, and both have both classes.

    Groups are taken in an order drawn by the seed, as long as validation lacks images of a class that they have, and
    training keeps both classes without them. Where that leads nowhere, other orders are tried.

    Args:
        items: with ``label`` and ``group``.
        validation: part of each class that goes there, at least one image.
        seed: of the order.

    Raises:
        InputError: when there are too few images or groups of a class.
    """
    missing = ""
    for attempt in range(ATTEMPTS):
        splits = _split(items, validation, f"{seed} {attempt}")
        missing = _missing_class(splits)
        if not missing:
            return splits
    raise InputError(
        f"There are too few images {missing}, or too few patients that have any: label more, or group them otherwise "
        "(--group)."
    )


def _split(items: list[dict], validation: float, order: str) -> dict[str, list[dict]]:
    groups = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item)
    left = Counter(item["label"] for item in items)
    lacking = {label: max(1, round(validation * left[label])) for label in CLASSES}
    splits: dict[str, list[dict]] = {"training": [], "validation": []}
    for group in sorted(groups, key=lambda name: _digest(f"{order} {name}")):
        counts = Counter(item["label"] for item in groups[group])
        taken = any(lacking[label] > 0 for label in counts) and all(left[label] > counts[label] for label in CLASSES)
        if taken:
            left -= counts
            lacking = {label: lacking[label] - counts[label] for label in CLASSES}
        splits["validation" if taken else "training"] += groups[group]
    return splits


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()  # the name of a file may be no text


def _missing_class(splits: dict[str, list[dict]]) -> str:
    """Name of a class that a split lacks; empty where none does."""
    for items in splits.values():
        for label, name in CLASSES.items():
            if not any(item["label"] == label for item in items):
                return name
    return ""


def check_replaceable(path: str | PathLike, writer: str) -> None:
    """Raise InputError when there is a data set that this program hasn't written, or that can't be read."""
    path = Path(path)
    if path.exists() and read_content(path).get("written_by") != writer:
        raise InputError(f"'{path}' was not written by {writer}, which would replace it; move it away first.")


def write_dataset(
    path: str | PathLike,
    answers: Mapping[Subject, Answer],
    groups: Mapping[str, str],
    validation: float = 0.2,
    seed: int = 0,
    removed: Collection[Subject] = (),
) -> dict[str, int]:
    """
    Write ``dataset.json`` of all images with a label.

    Args:
        path: of the file; one that this page hasn't written is taken up, see `GivenData`, with its splits and groups.
        answers: of each image, by its path relative to the file, or field of a slide.
        groups: of each image, and slide; its own where it is left out. Fields of one slide alone are a group each:
            nothing could be split.
        validation, seed: see `split_by_group`.
        removed: fields of a data set that is taken up that have been taken away.

    Returns:
        Number of images of each split.

    Raises:
        InputError: when the images can't be split, or the file is no data set. An older file of this page's is gone in
            the first case.
    """
    given = GivenData.find(Path(path))
    if given is not None:
        content = given.updated(answers, removed, groups)
        given.keep()
        _write(path, content)
        return {split: len([item for item in content.get(split, []) if _is_used(item)]) for split in SPLITS}
    items = []
    for subject, answer in sorted(answers.items(), key=lambda given: place_of(given[0])):
        if answer.label is None:
            continue
        part = {key: value for key, value in written(subject).items() if value is not None}
        area = {"area": answer.area} if answer.label == 1 and answer.area is not None else {}
        items.append(part | {"label": answer.label} | area | {"group": groups.get(part["image"], part["image"])})
    if len({item["group"] for item in items}) == 1 and all("region" in item for item in items):
        items = [item | {"group": "{} {},{},{},{}".format(item["group"], *item["region"])} for item in items]
    try:
        splits = split_by_group(items, validation, seed)
    except InputError:
        Path(path).unlink(missing_ok=True)  # of labels that have been taken back
        raise
    _write(path, {"written_by": WRITER, **splits})
    return {split: len(members) for split, members in splits.items()}


def _write(path: str | PathLike, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        json.dump(content, file, indent=4)


def _is_used(item: Any) -> bool:
    return isinstance(item, dict) and item.get("excluded") is not True
