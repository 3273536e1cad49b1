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

"""
The data contract: what a user's data set must be, checked as a whole before anything runs.

Pictures of the usual kinds are checked without MONAI and PyTorch, whose imports take longer than most checks.
"""

from __future__ import annotations

import json
import logging
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from scripts.data.dataset_file import dataset_file
from scripts.data.items import (
    QUOTED,
    area_problems,
    chance_of_none,
    check_item,
    is_item,
    mask_path,
    shortened,
)
from scripts.images.masks import load_positive
from scripts.images.slide_parts import PART_KEYS
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.paths import file_identity, file_problem
from scripts.runtime.values import truth_value

__all__ = [
    "SHOWN",
    "SPLITS",
    "check_datalist",
    "class_problems",
    "data_error",
    "few_images",
    "first_names",
    "has_masks",
    "load_datalist",
    "read_splits",
    "repeated_images",
    "report_datalist",
]

SPLITS = ("training", "validation", "test")
logger = logging.getLogger(__name__)
KEYS = ("image", "label", "area", "mask", "group", "strokes", "excluded", *PART_KEYS)
ORIGIN = ("source", "field")  # of a field: the picture that it was cut from, and where; nothing depends on them
FEW = 150  # images: of three trainings on 109 colon biopsies one failed, see docs/results.md
MAY_MISS = 0.05  # of slides, by chance
SHOWN = 20  # problems, or names, in one message


def load_datalist(
    dataset_dir: str | PathLike,
    splits: Sequence[str] = ("training", "validation"),
    pixel_labels: bool = False,
    allow_outside: bool = False,
) -> dict[str, list]:
    """`check_datalist` by the first process, for all."""
    from scripts.runtime.processes import by_first_process

    return by_first_process(check_datalist)(dataset_dir, splits, pixel_labels, allow_outside)


def check_datalist(
    dataset_dir: str | PathLike,
    splits: Sequence[str] = ("training", "validation"),
    pixel_labels: bool = False,
    allow_outside: bool = False,
    opened: bool = True,
) -> dict[str, list]:
    """
    Read and check ``dataset.json``, a MONAI datalist.

    Args:
        dataset_dir: folder of ``dataset.json``, to which its paths are relative; or that file itself.
        splits: the splits that must be there. Those of `SPLITS` that are there as well are checked with them.
        pixel_labels: whether every positive image of these splits must have a mask.
        allow_outside: whether paths may lead out of the folder, by ``..``, an absolute path or a symbolic link. A data
            set from somebody else could read what it should not otherwise.
        opened: whether the files that it names are opened, or but looked for.

    Returns:
        For each split found a list of items with absolute paths. ``label`` is 0 or 1, or the path of a mask.

    Raises:
        InputError: naming every item that breaks the contract, with what is wrong with it.
    """
    truth_value("pixel_labels", pixel_labels)
    path, datalist, problems = read_splits(dataset_dir, splits, allow_outside)
    entries = [(split, f"{split}[{i}]", item) for split, items in datalist.items() for i, item in enumerate(items)]
    labels: dict[str, list] = {split: [] for split in datalist}
    doubtful = []
    with ThreadPoolExecutor() as pool:  # decoding pictures releases the interpreter
        checks = pool.map(lambda entry: check_item(*entry[1:], opened), entries)
        progress = Bar(checks, total=len(entries), desc="checking data", unit="image", leave=False, disable=not opened)
        for (split, _, _), (found_problems, label, doubts) in zip(entries, progress, strict=True):
            problems += found_problems
            doubtful += doubts
            labels[split].append(label)
    if doubtful:
        logger.warning(f"Areas that disagree with their masks (the areas are used): {first_names(doubtful)}.")
    for split, items in datalist.items():
        problems += repeated_images(split, items, labels[split], path.parent)
    problems += [problem for split, found in labels.items() for problem in class_problems(split, set(found))]
    if pixel_labels:
        problems += [
            f"{where} '{item['image']}': has no mask, which this method learns from; add one, or take a weak method"
            for split, where, item in entries
            if split in splits and _is_positive_without_mask(item)
        ]
    if problems:
        raise data_error(path, problems)
    missed = [f"{where} {chance:.0%}" for _, where, item in entries if (chance := chance_of_none(item)) > MAY_MISS]
    if missed:
        logger.warning(
            f"Slides whose fields may by chance hold nothing of the area: {first_names(missed)}. Give more 'fields' "
            "or regions."
        )
    if "training" in splits and (note := few_images(len(datalist["training"]))):
        logger.warning(note)
    return datalist


def few_images(count: int) -> str | None:
    """What the user should know of a training on so few images, if they are few."""
    if count >= FEW:
        return None
    return (
        f"Few training images, {count}: a training may mark the wrong part of them. Look at its maps, compare two "
        "seeds, and label more, of as many slides as you can; a few hundred are usual."
    )


def report_datalist(datalist: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Log what is in a data set that has been checked, a line for each split."""
    for split, items in datalist.items():
        positive = [item for item in items if _is_positive(item)]
        areas = sum(item.get("area") is not None or mask_path(item) is not None for item in positive)
        groups = len({_plain(item["group"]) for item in items if item.get("group") is not None})
        logger.info(
            f"{split}: {len(positive)} positive images ({areas} with an area or a mask), {len(items) - len(positive)} "
            f"negative ones" + (f", of {groups} groups." if groups else ".")
        )
    logger.info("The data set can be used.")


def read_splits(
    dataset_dir: str | PathLike,
    splits: Sequence[str],
    allow_outside: bool = False,
    paths: Sequence[str] = ("image", "mask", "label", "strokes"),
) -> tuple[Path, dict[str, list], list[str]]:
    """
    Read ``dataset.json``, and check it as far as no file that it names must be opened.

    Args:
        dataset_dir: folder of ``dataset.json``, or that file.
        splits: the splits that must be there. Those of `SPLITS` that are there as well are read with them.
        allow_outside: see `check_datalist`.
        paths: keys of an item that are paths, relative to the file.

    Returns:
        The file, the items of each split found with absolute paths, without those that are excluded, and what is wrong.

    Raises:
        InputError: when the file is missing or isn't an object in JSON, or a path leads out of its folder.
    """
    truth_value("allow_outside", allow_outside)
    path = dataset_file(dataset_dir)
    content = _read_json(path)
    splits = list(dict.fromkeys(splits))
    present = {s: content[s] for s in dict.fromkeys((*SPLITS, *splits)) if isinstance(content.get(s), list)}
    found = ", ".join(present) or "none"
    present, misstated = _without_excluded(present)
    missing = [split for split in splits if content.get(split) is None]
    problems = [f"there is no split '{split}' (found: {found}); add it, or ask for another" for split in missing]
    problems += misstated
    no_lists = [s for s in dict.fromkeys((*SPLITS, *splits)) if content.get(s) is not None and s not in present]
    problems += [f"the split '{split}' must be a list of items" for split in no_lists]
    known = dict.fromkeys((*KEYS, *paths, *(("range",) if "slices" in paths else ())))
    problems += _unknown_keys(content, present, list(known))
    groups = {s: [i.get("group") for i in items if isinstance(i, dict)] for s, items in present.items()}
    problems += _shared("group", {s: [(_plain(group), group) for group in named] for s, named in groups.items()})
    for leak in _alike(groups):
        logger.warning(f"{leak} if they are the same")
    datalist = {s: [_absolute(item, path.parent, paths, known) for item in items] for s, items in present.items()}
    images = {s: [i["image"] for i in items if is_item(i)] for s, items in datalist.items()}
    files = {s: [(file_identity(name), _shown(name, path.parent)) for name in names] for s, names in images.items()}
    for leak in _shared("image", files):
        logger.warning(f"{leak}, or results on it say nothing about new images")
    if not allow_outside:
        outside = _outside(datalist, path.parent, paths)
        if outside:
            raise data_error(path, outside)
    return path, datalist, problems


def _is_positive(item: Mapping[str, Any]) -> bool:
    """Of an item that has been checked; a label may be a mask."""
    label = item["label"]
    return bool(load_positive(label).any()) if isinstance(label, str) else label == 1


def has_masks(items: Iterable[dict]) -> bool:
    """Whether the pixel truth of all items is known: by a mask, by a label that is one, or by a negative label."""
    return all(item.get("mask") or isinstance(item["label"], str) or item["label"] == 0 for item in items)


def _is_positive_without_mask(item: object) -> bool:
    return is_item(item) and item.get("label") == 1 and not has_masks([item])


def _read_json(path: Path) -> dict:
    problem = file_problem(path)
    if problem and problem.startswith(("there is no", "is a folder")):
        raise InputError(
            f"There is no data set at '{path}'; give the folder of a dataset.json (DATA of cdws, or --dataset_dir)."
        )
    if problem:
        raise InputError(f"The data set '{path}' {problem}.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """The object; Python's own keeps the last of values that are given under one key."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            where = f" of {shortened(found['image'])}" if "image" in found else ""
            raise InputError(f"'{path}' has the key {shortened(twice)}{where} twice; keep one.")
        return found

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"The data set '{path}' can't be read ({error.strerror}).") from error
    except RecursionError as error:
        raise InputError(f"'{path}' is nested too deeply for a list of items.") from error
    except ValueError as error:  # of the syntax, the encoding, or a number of thousands of digits
        raise InputError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' must hold an object with the lists 'training', 'validation' and 'test'.")
    return content


def _without_excluded(splits: dict[str, list]) -> tuple[dict[str, list], list[str]]:
    """The splits without the items that say ``"excluded": true``, which are counted; and what says something else."""
    kept: dict[str, list] = {split: [] for split in splits}
    problems = []
    for split, items in splits.items():
        for i, item in enumerate(items):
            excluded = isinstance(item, dict) and item.get("excluded")
            if excluded not in (None, True, False):
                shown = f"{split}[{i}] '{item.get('image')}': excluded is {shortened(excluded)}"
                problems.append(f"{shown}, must be true or false")
            elif excluded is not True:
                kept[split].append(item)
    counts = {split: len(items) - len(kept[split]) for split, items in splits.items()}
    if any(counts.values()) and not problems:
        named = ", ".join(f"{count} of {split}" for split, count in counts.items() if count)
        logger.info(f"Excluded items are left out: {named}.")
    return kept, problems


def _absolute(item: object, folder: Path, keys: Sequence[str], known: Container[str]) -> object:
    """
    The item with its paths made absolute, without anybody's notes, which may be called what the transforms call theirs;
    what is not an item is left for the check to name.
    """
    if not isinstance(item, dict):
        return item
    paths = {k: str(folder / v) for k, v in item.items() if k in keys and isinstance(v, str)}
    if item.get("label") in QUOTED and "label" in paths:
        del paths["label"]  # a number in quotes
    # JSON has no NaN, but Python's writes it: it means 'not known', as an absent key does, but of what must be known
    absent = {k for k, v in item.items() if v is None or (isinstance(v, float) and math.isnan(v) and k != "label")}
    return {k: v for k, v in (item | paths).items() if k in known and k not in absent and k != "excluded"}


def _outside(datalist: dict[str, list], folder: Path, paths: Sequence[str]) -> list[str]:
    """The items whose files are not in the folder, before any is opened."""
    root = os.path.realpath(folder)
    values = [
        (f"{split}[{i}]", item.get(key))
        for split, items in datalist.items()
        for i, item in enumerate(items)
        if isinstance(item, dict)
        for key in paths
    ]
    return [
        f"{where} '{value}': lies outside the folder of dataset.json; move it there, or give "
        "--allow_outside True if you trust the data set"
        for where, value in values
        if isinstance(value, str) and value not in QUOTED and not _is_inside(value, root)
    ]


def _is_inside(path: str, root: str) -> bool:
    try:
        return os.path.commonpath([root, os.path.realpath(path)]) == root
    except ValueError:  # no name of a file, which the check of the item says
        return True


def _unknown_keys(content: dict, splits: dict[str, list], known: Sequence[str]) -> list[str]:
    """
    Keys that are likely misspelt, each with the nearest known one. Others are anybody's notes, and warned of once.
    """
    problems, notes = [], {}
    for split, items in splits.items():
        for i, item in enumerate(items):
            for key in item if isinstance(item, dict) else ():
                if key not in known and key not in ORIGIN:
                    near = _nearest(key, known)
                    if near is None:
                        notes.setdefault(key, f"{split}[{i}]")
                    else:
                        problems.append(f"{split}[{i}] '{item.get('image')}': unknown key '{key}'; write '{near}'")
    problems += _unused_lists(content, splits)
    if notes:
        named = first_names([f"'{key}' (first in {where})" for key, where in notes.items()])
        logger.warning(f"Unknown keys are ignored: {named}. Known are {', '.join(known)}.")
    return problems


def _unused_lists(content: dict, splits: dict[str, list]) -> list[str]:
    """Lists that are likely a misspelt split; others that may be one are warned of."""
    problems = []
    for key, value in content.items():
        if key in splits or not isinstance(value, list):
            continue
        near = _nearest(key, SPLITS)
        if near is not None and near not in splits:
            problems.append(f"unknown split '{key}'; write '{near}'")
            continue
        word = key.strip().lower()
        near = near or next((s for s in SPLITS if len(word) > 2 and (s.startswith(word) or word.startswith(s))), None)
        if near is not None:
            logger.warning(f"The list '{key}' is not used (did you mean '{near}'?).")
        elif any(map(is_item, value)):
            logger.warning(f"The list '{key}' is not used (the splits are {', '.join(SPLITS)}).")
    return problems


def _nearest(key: str, known: Sequence[str]) -> str | None:
    exact = [name for name in known if name == key.strip().lower()]
    return next(iter(exact or get_close_matches(key.strip().lower()[:40], known, n=1, cutoff=0.75)), None)


def _shown(path: str, folder: Path) -> str:
    """The name of a file as it is in the list."""
    return path.removeprefix(f"{folder}{os.sep}")


def repeated_images(split: str, items: Sequence[Any], labels: Sequence[bool | None], folder: Path) -> list[str]:
    """
    Images that are listed twice in one split with two labels, areas or masks; others listed twice are warned of.

    Args:
        split: its name.
        items: of the split, of whatever kind; with a ``slice``, each is one of its volume.
        labels: of each, also where it is that of a mask.
        folder: of ``dataset.json``.
    """
    first: dict[tuple, tuple] = {}
    seen, repeated, problems = set(), [], []
    for item, label in zip(items, labels, strict=True):
        if not is_item(item):
            continue
        name, mask, index = _shown(item["image"], folder), mask_path(item), item.get("slice")
        part = tuple(str(item.get(key)) for key in PART_KEYS)
        image, masked = (file_identity(item["image"]), index, part), isinstance(mask, str)
        repeated += [name] if image in seen else []
        seen.add(image)
        facts = {
            "label": None if label is None else (int(label), int(label)),
            "area": None if item.get("area") is None or area_problems(item) else (item["area"],) * 2,
            "mask": (file_identity(mask), f"'{_shown(mask, folder)}'") if masked else None,
        }
        for key, fact in facts.items():
            if fact is not None:
                other, before, stated = first.setdefault((image, key), (name, *fact))
                if before != fact[0]:
                    same = "" if name == other else f" (as '{other}')"
                    of = "" if index is None else f", slice {index},"
                    text = f"image '{name}'{of} has {key} {stated}{same} and {key} {fact[1]} in '{split}'; keep one"
                    problems.append(text)
    if repeated and not problems:
        names = first_names(list(dict.fromkeys(repeated)))
        logger.warning(f"Listed more than once in '{split}', and counted so: {names}.")
    return problems


def class_problems(split: str, labels: set) -> list[str]:
    """Of the labels found in a split, None for those that could not be read, which are problems of their own."""
    if None in labels or labels == {False, True}:
        return []
    found = f"has only {'positive' if True in labels else 'negative'} images" if labels else "is empty"
    return [f"the split '{split}' {found}; it needs positive and negative ones"]


def _shared(key: str, splits: dict[str, list[tuple]]) -> list[str]:
    """
    A patient, slide or image in two splits makes the results on one of them worthless.

    Args:
        key: of which the values are.
        splits: of each split what identifies the values, and their names.
    """
    first: dict = {}
    problems = []
    for split, values in splits.items():
        named = {str(value): name for value, name in values if value is not None}
        for value, name in named.items():
            if value in first:
                other, there = first[value]
                spelled = "" if str(name) == str(there) else f" (as '{there}')"
                problems.append(f"{key} '{name}' is in '{other}'{spelled} and in '{split}'; keep it in one")
        first = {value: (split, name) for value, name in named.items()} | first
    return problems


def _plain(group: object) -> str | None:
    """A group's name without what nobody sees: surrounding space, how its letters are composed, and 1.0 for 1."""
    group = int(group) if isinstance(group, float) and group.is_integer() else group
    return None if group is None else unicodedata.normalize("NFC", str(group).strip())


def _alike(groups: dict[str, list]) -> list[str]:
    """Groups in two splits whose names differ in case alone; those that are the same are a problem already."""
    plain = {split: {_plain(group) for group in named if group is not None} for split, named in groups.items()}
    splits_of = Counter(name for names in plain.values() for name in names)
    alone = {
        split: [(name.casefold(), name) for name in names if splits_of[name] == 1] for split, names in plain.items()
    }
    return _shared("group", alone)


def data_error(where: str | PathLike, problems: list[str]) -> InputError:
    """One error that names all that is wrong with the data."""
    count, those = ("1 problem", "it") if len(problems) == 1 else (f"{len(problems)} problems", "them")
    rest = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return InputError(
        "\n  - ".join([f"{count} in {where}; correct {those} and start again:", *problems[:SHOWN], *rest])
    )


def first_names(names: Sequence[str]) -> str:
    """The first of many names, and their number."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
