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
import stat
import unicodedata
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np

from scripts.images.limits import MIN_SIZE
from scripts.images.pictures import is_plain, is_tiff, lacks_end, picture_size, read_picture
from scripts.images.room import room_for
from scripts.images.slide_parts import PART_KEYS, SlidePart, source_of
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.values import truth_value

__all__ = [
    "SHOWN",
    "SPLITS",
    "check_datalist",
    "check_picture",
    "class_problems",
    "data_error",
    "few_images",
    "file_identity",
    "file_problem",
    "first_names",
    "has_masks",
    "load_datalist",
    "load_positive",
    "read_splits",
    "repeated_images",
    "report_datalist",
]

SPLITS = ("training", "validation", "test")
logger = logging.getLogger(__name__)
QUOTED = ("0", "1")  # labels written as text
KEYS = ("image", "label", "area", "mask", "group", "strokes", "excluded", *PART_KEYS)
ORIGIN = ("source", "field")  # of a field: the picture that it was cut from, and where; nothing depends on them
AREA_STEP = 0.1  # by which an annotator's area may differ from that of a mask
FEW = 150  # images: of three trainings on 109 colon biopsies one failed, see docs/results.md
MAY_MISS = 0.05  # of slides, by chance
SHOWN = 20  # problems, or names, in one message
_repr = Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80


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
        checks = pool.map(lambda entry: _check_item(*entry[1:], opened), entries)
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
    missed = [f"{where} {chance:.0%}" for _, where, item in entries if (chance := _chance_of_none(item)) > MAY_MISS]
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
        positive = [item for item in items if item["label"] not in (0, *QUOTED[:1])]
        areas = sum(item.get("area") is not None or _mask_path(item) is not None for item in positive)
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
        allow_outside: see `load_datalist`.
        paths: keys of an item that are paths, relative to the file.

    Returns:
        The file, the items of each split found with absolute paths, without those that are excluded, and what is wrong.

    Raises:
        InputError: when the file is missing or isn't an object in JSON, or a path leads out of its folder.
    """
    truth_value("allow_outside", allow_outside)
    path = Path(dataset_dir)
    path = path / "dataset.json" if path.suffix != ".json" or os.path.isdir(path) else path
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
    images = {s: [i["image"] for i in items if _is_item(i)] for s, items in datalist.items()}
    files = {s: [(file_identity(name), _shown(name, path.parent)) for name in names] for s, names in images.items()}
    for leak in _shared("image", files):
        logger.warning(f"{leak}, or results on it say nothing about new images")
    if not allow_outside:
        outside = _outside(datalist, path.parent, paths)
        if outside:
            raise data_error(path, outside)
    return path, datalist, problems


def has_masks(items: Iterable[dict]) -> bool:
    """Whether the pixel truth of all items is known: by a mask, by a label that is one, or by a negative label."""
    return all(item.get("mask") or isinstance(item["label"], str) or item["label"] == 0 for item in items)


def _is_positive_without_mask(item: object) -> bool:
    return (
        isinstance(item, dict)
        and item.get("label") == 1
        and isinstance(item.get("image"), str)
        and not has_masks([item])
    )


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
            where = f" of {_repr.repr(found['image'])}" if "image" in found else ""
            raise InputError(f"'{path}' has the key {_repr.repr(twice)}{where} twice; keep one.")
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
                shown = f"{split}[{i}] '{item.get('image')}': excluded is {_repr.repr(excluded)}"
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
        elif any(map(_is_item, value)):
            logger.warning(f"The list '{key}' is not used (the splits are {', '.join(SPLITS)}).")
    return problems


def _nearest(key: str, known: Sequence[str]) -> str | None:
    exact = [name for name in known if name == key.strip().lower()]
    return next(iter(exact or get_close_matches(key.strip().lower()[:40], known, n=1, cutoff=0.75)), None)


def _is_item(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("image"), str)


def file_identity(path: str) -> object:
    """What is the same for one file, however its name is written."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return os.path.normpath(path)
    return status.st_dev, status.st_ino


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
        if not _is_item(item):
            continue
        name, mask, index = _shown(item["image"], folder), _mask_path(item), item.get("slice")
        part = tuple(str(item.get(key)) for key in PART_KEYS)
        image, masked = (file_identity(item["image"]), index, part), isinstance(mask, str)
        repeated += [name] if image in seen else []
        seen.add(image)
        facts = {
            "label": None if label is None else (int(label), int(label)),
            "area": None if item.get("area") is None or _area_problems(item) else (item["area"],) * 2,
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


def file_problem(path: str | PathLike) -> str | None:
    """Why a path is not that of a file that can be read; None if it is."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            Path(path).open("rb").close()
            return None
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file" + ("; write '/' for '\\'" if "\\" in os.fspath(path) else "")
    except OSError as error:
        return f"can't be read ({error.strerror})"
    except ValueError as error:  # a null byte, or half a character
        return f"is not a valid file name ({first_line(error)})"
    return "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"


def _check_item(where: str, item: object, opened: bool) -> tuple[list[str], bool | None, list[str]]:
    """
    Check one item.

    Returns:
        What breaks the contract, each problem beginning with its place; its label, None if unknown; and, where its mask
        contradicts its area, both.
    """
    if not isinstance(item, dict) or not isinstance(item.get("image"), str):
        return [f"{where}: must be an object with an 'image'"], None, []
    label, label_problems = _read_label(item)
    try:
        source = source_of(item)
    except InputError as error:
        return [f"{where} '{item['image']}': {problem}" for problem in (str(error), *label_problems)], label, []
    area_problems = _area_problems(item)
    if not opened:
        mask = item.get("mask") if label_problems else _mask_path(item)  # what is no label is no mask either
        files = {"": source, "mask": mask, "strokes": item.get("strokes")}
        missing = [
            f"{f'the {key}: ' if key else ''}{problem}"
            for key, path in files.items()
            if isinstance(path, (str, SlidePart)) and (problem := file_problem(path))
        ]
        return [f"{where} '{item['image']}': {p}" for p in (*missing, *label_problems, *area_problems)], label, []
    with room_for(*(path for path in (source, _mask_path(item)) if isinstance(path, (str, SlidePart)))):
        size, problems = check_picture(source)
        mask, mask_problems = _read_mask(item)
    problems += label_problems + mask_problems + area_problems + _stroke_problems(item, size)
    if mask is not None and size is not None and mask.shape[1:] != size:
        sizes = "{}x{}, the image {}x{}".format(*mask.shape[1:], *size)
        problems.append(f"the mask '{_mask_path(item)}' is {sizes}; they must have the same size")
    if mask is not None and isinstance(item["label"], str):
        label = bool(mask.any())
    elif mask is not None and label is not None and bool(mask.any()) != label:
        found = "has positive pixels" if mask.any() else "is empty"
        problems.append(f"label is {item['label']}, but the mask '{item['mask']}' {found}")
    area, doubts = item.get("area"), []
    if mask is not None and area and not area_problems and mask.any():
        covered = float(np.count_nonzero(mask)) / mask.size
        doubts = [f"{where} {area:g} (the mask: {covered:.3g})"] if abs(area - covered) > AREA_STEP + 1e-9 else []
    return [f"{where} '{item['image']}': {problem}" for problem in problems], label, doubts


def _read_label(item: dict) -> tuple[bool | None, list[str]]:
    label = item.get("label")
    if isinstance(label, str):
        quoted = f"label is the text '{label}'; write the number {label}, without quotes"
        if label not in QUOTED and not Path(label).suffix and not os.path.exists(label):
            return None, [f"label is '{Path(label).name}', must be 0 or 1 (or the path of a mask)"]
        return None, [quoted] if label in QUOTED else []
    if label not in (0, 1):
        return None, [f"label is {_repr.repr(label)}, must be 0 or 1 (or the path of a mask)"]
    return bool(label), []


def _area_problems(item: dict) -> list[str]:
    label, area = item.get("label"), item.get("area")
    if area is None or (label == 0 and area == 0):
        return []
    if label == 0:
        return [f"label is 0, but an area of {_repr.repr(area)} is given; remove one"]
    if not isinstance(area, (int, float)) or isinstance(area, bool) or not 0 < area <= 1:
        # below 2 it may be as well one that is a little too large
        is_percent = isinstance(area, (int, float)) and not isinstance(area, bool) and 2 <= area <= 100
        hint = f" ({area / 100:g} for {area:g} %)" if is_percent else ""
        return [f"area is {_repr.repr(area)}, must be a fraction of the image above 0 and up to 1{hint}"]
    return []


def check_picture(path: str | PathLike, decoded: bool = True) -> tuple[tuple[int, int] | None, list[str]]:
    """
    Look into an image, a file or a part of a slide.

    Args:
        path: of the image.
        decoded: whether all of it is read; the header of a picture tells nearly as much in no time. Of what else there
            is, which takes longer to begin with, it is only looked whether it is there.

    Returns:
        Width and height, None where they are not known; and what is wrong with it.
    """
    problem = file_problem(path)
    if problem:
        return None, [problem]
    try:
        if os.stat(path).st_size == 0 and not isinstance(path, SlidePart):  # MIRAX has all in a folder beside it
            return None, ["can't be read as an image (it is empty)"]
        if not decoded and not (is_plain(path) or is_tiff(path)):
            return None, []
        width, height = _size_of(path) if decoded or lacks_end(path) else picture_size(path)
    except Exception as error:  # a decoder may raise anything on a damaged file
        if isinstance(path, SlidePart) and isinstance(error, InputError):
            return None, [str(error).removesuffix(".")]
        return None, [f"can't be read as an image ({first_line(error)})"]
    small = f"is {width}x{height}, smaller than {MIN_SIZE}x{MIN_SIZE}"
    return (width, height), [small] if min(width, height) < MIN_SIZE else []


def _size_of(path: str | PathLike) -> tuple[int, int]:
    """Width and height of what can be read as a picture; raises as `load_image` and `ToRGB`."""
    if not isinstance(path, SlidePart) and is_plain(path):
        height, width = read_picture(path).shape[:2]
        return width, height
    from scripts.images.colours import ToRGB
    from scripts.images.loading import load_image

    image = load_image(path)
    ToRGB()(image)
    return tuple(image.shape[1:])  # MONAI's pictures are (C, W, H)


def load_positive(path: str | PathLike) -> np.ndarray:
    """Where a mask is positive, (1, W, H): what `load_mask` reads, which raises the same."""
    if not is_plain(path):
        from scripts.images.loading import load_mask

        return np.asarray(load_mask(path)) > 0
    pixels = read_picture(path)
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    has_alpha = pixels.shape[-1] in (2, 4)
    positive = (pixels[..., :-1] if has_alpha else pixels).max(axis=-1) > 0
    return (positive & (pixels[..., -1] > 0) if has_alpha else positive).T[np.newaxis]


def _chance_of_none(item: dict) -> float:
    """That none of a positive slide's fields is of its area, which is somewhere on it; 0 of any other image."""
    source, area = source_of(item), item.get("area")
    return (1 - area) ** source.fields if area and isinstance(source, SlidePart) and source.fields else 0.0


def _mask_path(item: dict) -> Any:
    label = item.get("label")
    return label if isinstance(label, str) and label not in QUOTED else item.get("mask")


def _read_mask(item: dict) -> tuple[np.ndarray | None, list[str]]:
    """The mask of an item, (1, W, H), None where there is none to be had; and what is wrong with it."""
    path = _mask_path(item)
    if path is None:
        return None, []
    if getattr(source_of(item), "fields", None):
        return None, ["has a mask, which a slide without a region can't have; add its region, or remove the mask"]
    if not isinstance(path, str):
        return None, [f"mask is {_repr.repr(path)}, must be the path of a mask"]
    other = item.get("mask", path)
    if other != path and not (isinstance(other, str) and file_identity(other) == file_identity(path)):
        shown = f"'{other}'" if isinstance(other, str) else _repr.repr(other)
        return None, [f"label is the mask '{path}', and mask is {shown}; remove one"]
    problem = file_problem(path)
    if problem and item.get("label") == path and not Path(path).suffix:
        return None, []  # the label says it
    if problem:
        missing = problem.startswith("there is no such file")
        return None, [problem.replace("such file", f"mask '{path}'") if missing else f"the mask '{path}' {problem}"]
    if file_identity(path) == file_identity(item["image"]):
        return None, [f"the mask '{path}' is the image itself"]
    try:
        return load_positive(path), []
    except Exception as error:
        return None, [f"the mask '{path}' can't be read ({first_line(error)})"]


def _stroke_problems(item: dict, size: tuple[int, int] | None) -> list[str]:
    """What is wrong with the strokes of an image of this width and height."""
    path = item.get("strokes")
    if path is None:
        return []
    if not isinstance(path, str):
        return [f"strokes is {_repr.repr(path)}, must be the path of a PNG"]
    problem = file_problem(path)
    if problem:
        return [f"the strokes '{path}': {problem}"]
    from scripts.images.strokes import POSITIVE, read_strokes  # with PyTorch

    try:
        strokes = read_strokes(path)
    except Exception as error:  # a decoder may raise anything on a damaged file
        return [f"the strokes '{path}': {first_line(error)}"]
    if size is not None and strokes.T.shape != size:
        sizes = "{}x{}, the image {}x{}".format(*strokes.T.shape, *size)
        return [f"the strokes '{path}' are {sizes}; they must have the same size"]
    if item.get("label") == 0 and (strokes == POSITIVE).any():
        return [f"label is 0, but the strokes '{path}' mark positive pixels; remove one"]
    return []


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
                problems.append(
                    f"{key} '{name}' is in '{other}'{'' if name == there else f' (as {there!r})'} and in '{split}'; "
                    "keep it in one"
                )
        first = {value: (split, name) for value, name in named.items()} | first
    return problems


def _plain(group: object) -> str | None:
    """A group's name without what nobody sees: surrounding space, and how its letters are composed."""
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
