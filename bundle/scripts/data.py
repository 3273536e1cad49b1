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

"""The data contract: what a user's data set must be, checked as a whole before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.errors import InputError, first_line
from scripts.readers import SUFFIXES
from scripts.transforms import ToRGB, load_image, load_mask

__all__ = ["has_masks", "list_images", "load_datalist"]

SPLITS = ("training", "validation", "test")
MIN_SIZE = 4  # pixels; smaller images vanish in the network's pooling


def load_datalist(dataset_dir: str | PathLike, splits: Sequence[str] = ("training", "validation")) -> dict[str, list]:
    """
    Read and check ``dataset.json``, a MONAI datalist.

    Args:
        dataset_dir: folder of ``dataset.json``, to which its paths are relative; or that file itself.
        splits: the splits that must be there. Those of `SPLITS` that are there as well are checked with them.

    Returns:
        For each split found a list of items with absolute paths. ``label`` is 0 or 1, or the path of a mask.

    Raises:
        InputError: naming every item that breaks the contract, with what is wrong with it.
    """
    path = Path(dataset_dir)
    path = path / "dataset.json" if path.suffix != ".json" else path
    content = _read_json(path)
    splits = list(dict.fromkeys(splits))
    present = {s: content[s] for s in dict.fromkeys((*SPLITS, *splits)) if isinstance(content.get(s), list)}
    found = ", ".join(present) or "none"
    problems = [f"there is no split '{split}' (found: {found})" for split in splits if split not in present]
    problems += _group_problems(present)
    datalist = {split: [_absolute(item, path.parent) for item in items] for split, items in present.items()}
    entries = [(f"{split}[{i}]", item) for split, items in datalist.items() for i, item in enumerate(items)]
    with ThreadPoolExecutor() as pool:  # decoding pictures releases the interpreter
        checks = pool.map(lambda entry: _item_problems(*entry), entries)
        for found in tqdm(checks, total=len(entries), desc="checking data", unit="image", leave=False):
            problems += found
    if not problems:
        problems += [p for split, items in datalist.items() for p in _class_problems(split, items)]
    if problems:
        raise InputError(_message(path, problems))
    return datalist


def has_masks(items: Iterable[dict]) -> bool:
    """Whether the pixel truth of all items is known: by a mask, by a label that is one, or by a negative label."""
    return all(item.get("mask") or isinstance(item["label"], str) or item["label"] == 0 for item in items)


def list_images(images: str | PathLike | Sequence[str]) -> list[dict[str, str]]:
    """
    The images to infer on.

    Args:
        images: a folder, whose pictures are taken (not those of its subfolders); a file; or a list of files.

    Returns:
        One item ``{"image": path}`` each, sorted by name for a folder.

    Raises:
        InputError: naming everything that is missing, can't be read, or would overwrite another's results.
    """
    if isinstance(images, (str, PathLike)):
        folder = Path(images)
        paths = sorted(p for p in folder.iterdir() if p.suffix[1:].lower() in SUFFIXES) if folder.is_dir() else [folder]
    else:
        paths = [Path(image) for image in images]
    if not paths:
        raise InputError(f"There is no picture ({', '.join(SUFFIXES)}) in '{images}'.")
    problems = []
    seen: dict[str, Path] = {}
    for path in paths:
        problems += [f"'{path}': {problem}" for problem in _image_problems(path)]
        if path.stem in seen:
            problems.append(f"'{path}': its results would have the same name as those of '{seen[path.stem]}'")
        seen[path.stem] = path
    if problems:
        raise InputError(_message("the images", problems))
    return [{"image": str(path)} for path in paths]


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"There is no data set at '{path}'; give the folder of a dataset.json with --dataset_dir.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{path}' must hold an object with the lists 'training', 'validation' and 'test'.")
    return content


def _absolute(item: object, folder: Path) -> object:
    """The item with its paths made absolute; what is not an item is left for the check to name."""
    if not isinstance(item, dict):
        return item
    paths = {k: str(folder / v) for k, v in item.items() if k in ("image", "mask", "label") and isinstance(v, str)}
    # JSON has no NaN, but Python's writes it: it means 'not known', as an absent key does
    absent = {k for k, v in item.items() if v is None or (isinstance(v, float) and math.isnan(v))}
    return {k: v for k, v in (item | paths).items() if k not in absent}


def _item_problems(where: str, item: object) -> list[str]:
    """What breaks the contract in one item, each problem beginning with its place."""
    if not isinstance(item, dict) or not isinstance(item.get("image"), str):
        return [f"{where}: must be an object with an 'image'"]
    problems = [*_label_problems(item), *_image_problems(Path(item["image"]))]
    if not problems:
        problems += _mask_problems(item)
    return [f"{where} '{item['image']}': {problem}" for problem in problems]


def _label_problems(item: dict) -> list[str]:
    label, area = item.get("label"), item.get("area")
    if isinstance(label, str):
        return []
    if label not in (0, 1):
        return [f"label is {label!r}, must be 0 or 1 (or the path of a mask)"]
    if area is None or (label == 0 and area == 0):
        return []
    if label == 0:
        return [f"label is 0, but an area of {area!r} is given; remove one"]
    if not isinstance(area, (int, float)) or isinstance(area, bool) or not 0 < area <= 1:
        hint = f"; did you mean {area / 100:g}?" if isinstance(area, (int, float)) and 1 < area <= 100 else ""
        return [f"area is {area!r}, must be a fraction of the image above 0 and up to 1{hint}"]
    return []


def _image_problems(path: Path) -> list[str]:
    if not path.is_file():
        return ["there is no such file"]
    try:
        image = ToRGB()(load_image(path))
    except Exception as error:  # a decoder may raise anything on a damaged file
        return [f"can't be read as an image ({first_line(error)})"]
    height, width = image.shape[2], image.shape[1]  # MONAI's pictures are (C, W, H)
    return [f"is {width}x{height}, smaller than {MIN_SIZE}x{MIN_SIZE}"] if min(width, height) < MIN_SIZE else []


def _mask_problems(item: dict) -> list[str]:
    from_label = isinstance(item["label"], str)
    path = item["label"] if from_label else item.get("mask")
    if path is None:
        return []
    if not isinstance(path, str):
        return [f"mask is {path!r}, must be the path of a mask"]
    if not Path(path).is_file():
        return [f"there is no mask '{path}'"]
    try:
        mask = np.asarray(load_mask(path))
    except Exception as error:
        return [f"the mask '{path}' can't be read ({first_line(error)})"]
    shape = load_image(item["image"]).shape
    if mask.shape[1:] != tuple(shape[1:]):
        sizes = "{1}x{2}, the image {4}x{5}".format(*mask.shape, *shape)
        return [f"the mask '{path}' is {sizes}; they must be of one size"]
    if not from_label and bool(mask.any()) != bool(item["label"]):
        found = "has positive pixels" if mask.any() else "is empty"
        return [f"label is {item['label']}, but the mask '{path}' {found}"]
    return []


def _class_problems(split: str, items: list[dict]) -> list[str]:
    labels = [load_mask(i["label"]).any().item() if isinstance(i["label"], str) else bool(i["label"]) for i in items]
    if len(set(labels)) == 2:
        return []
    found = "is empty" if not labels else f"has only {'positive' if labels[0] else 'negative'} images"
    return [f"the split '{split}' {found}; it needs positive and negative ones"]


def _group_problems(splits: dict[str, list]) -> list[str]:
    """A patient or slide in two splits makes the results on one of them worthless."""
    first: dict = {}
    problems = []
    for split, items in splits.items():
        groups = dict.fromkeys(str(i["group"]) for i in items if isinstance(i, dict) and i.get("group") is not None)
        problems += [f"group '{g}' is in '{first[g]}' and in '{split}'; keep it in one" for g in groups if g in first]
        first.update(dict.fromkeys(groups, split) | {g: first[g] for g in groups if g in first})
    return problems


def _message(where: str | PathLike, problems: list[str]) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n  - ".join([f"{count} in {where}; correct it and start again:", *problems])
