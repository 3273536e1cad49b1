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
"""Labels that people have already: two folders, a table, or masks."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any

from scripts.data.datalist import SPLITS, class_problems, data_error, first_names
from scripts.data.items import check_picture
from scripts.data.rough_area import rough_area
from scripts.images.masks import load_positive
from scripts.images.pictures import SUFFIXES
from scripts.labelling.dataset import check_replaceable, split_by_group, write_dataset
from scripts.labelling.given import KEPT, GivenData, read_content
from scripts.labelling.given import WRITER as PAGE
from scripts.labelling.images import find_pictures, groups_of, is_cut
from scripts.labelling.journal import ANSWERS, Journal
from scripts.runtime.bars import Bar
from scripts.runtime.command_line import did_you_mean
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing
from scripts.runtime.values import positive_fraction

__all__ = [
    "COLUMNS",
    "WITHOUT_MASK",
    "check_listed",
    "check_pictures",
    "from_csv",
    "from_folders",
    "from_masks",
    "grouped",
    "is_outside",
    "write_items",
]

WRITER = "cdws data"
COLUMNS = ("image", "label", "area", "mask", "group", "split")
SPLIT_NAMES = {**{split: split for split in SPLITS}, "train": "training", "val": "validation", "valid": "validation"}
WITHOUT_MASK = ("refuse", "negative", "leave_out")
TRUE, FALSE = ("1", "1.0", "true", "yes", "positive"), ("0", "0.0", "false", "no", "negative")


def from_folders(positive: Path, negative: Path, area: float | None = None) -> list[dict]:
    """
    Pictures with the finding in one folder, without it in another; subfolders too.

    Args:
        positive, negative: the folders.
        area: rough area of every positive image, where one number fits them; a fraction of the image.

    Returns:
        An item ``{"image": path, "label": 0 or 1}`` for each, positive ones with ``area`` if it is given.

    Raises:
        InputError: when a folder is missing, empty or in the other.
    """
    if area is not None:
        positive_fraction("--area", area)
    found = {1: _pictures(positive), 0: _pictures(negative)}
    if _is_in(positive, negative) or _is_in(negative, positive):
        raise InputError(f"'{positive}' and '{negative}' lie in each other; give two folders beside each other.")
    for folder, label in ((positive, 1), (negative, 0)):
        if not found[label]:
            raise _no_picture(folder)
    return [
        {"image": _absolute(image), "label": label} | ({"area": area} if label and area is not None else {})
        for label, images in found.items()
        for image in images
    ]


def _pictures(folder: Path, with_results: bool = False) -> list[Path]:
    """
    See `find_pictures`; without fields that have been cut from them, and their masks.

    Raises:
        InputError: when there are links to pictures that are not there, as well.
    """
    named = (path for path in folder.rglob("*") if path.suffix[1:].lower() in SUFFIXES)
    if lost := sorted(str(path) for path in named if path.is_symlink() and not path.exists()):
        raise InputError(
            f"Links to files that are not there: {first_names(lost)}; bring the files, or remove the links."
        )
    return [path for path in find_pictures(folder, with_results) if not is_cut(path.relative_to(folder))]


def _no_picture(folder: Path) -> InputError:
    return InputError(f"There is no picture ({', '.join(SUFFIXES)}) in '{folder}'; name a folder that has some.")


def from_csv(
    file: Path, columns: Mapping[str, str | None], positive: str | None = None
) -> tuple[list[dict], list[str]]:
    """
    A table with a row for each image.

    Args:
        file: with a line of headings; commas, semicolons or tabs between the columns. Paths are relative to it.
        columns: heading of each of `COLUMNS`; one that is None is called as the key, and may be missing but for
            ``image`` and ``label``.
        positive: what stands in the column of labels of a positive image, in upper or lower case, where that is not 1,
            yes, true or positive.

    Returns:
        An item for each row, with what is known of it, and its ``split`` where a column says that of each; and the
        headings that nothing is called as.

    Raises:
        InputError: when the table can't be read, or naming each line that can't be used.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            sample = opened.read(8192).partition("\n")[0]
            delimiter = max(",;\t", key=sample.count)
            opened.seek(0)
            reader = csv.DictReader(opened, delimiter=delimiter, skipinitialspace=True)
            rows = {reader.line_num: row for row in reader}  # noqa: B035 - it goes on
            headings = [heading for heading in reader.fieldnames or () if heading]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        near = did_you_mean(file.name, os.listdir(file.parent)) if file.parent.is_dir() and not file.exists() else ""
        raise InputError(f"The table '{file}' can't be read ({reason}){near}; give a CSV file in UTF-8.") from error
    if not rows:
        raise InputError(f"The table '{file}' has no row below its headings.")
    chosen = {}
    for key in COLUMNS:
        heading = columns.get(key) or key
        if headings.count(heading) > 1:
            raise InputError(f"The table '{file}' has {headings.count(heading)} columns '{heading}'; keep one.")
        if heading in headings:
            chosen[key] = heading
        elif columns.get(key) or key in ("image", "label"):
            near = did_you_mean(heading, headings)
            raise InputError(
                f"The table '{file}' has no column '{heading}'{near}, but {', '.join(headings)}; name the one with the "
                f"{key}s by --{key}."
            )
    splits = {(row[chosen["split"]] or "").strip().lower() for row in rows.values()} if "split" in chosen else set()
    if splits.isdisjoint(SPLIT_NAMES) and not columns.get("split"):  # a column of something else
        chosen.pop("split", None)
    items, problems, lines = [], [], {}
    for line, row in rows.items():
        item, problem = _item({key: (row[heading] or "").strip() for key, heading in chosen.items()}, file, positive)
        if any(row.get(None, ())):
            problem = f"has more cells than there are headings; quote those that hold a '{delimiter}'"
        image = item.get("image")
        if problem is None and image in lines:
            problem = f"'{image}' is in line {lines[image]} as well; keep one"
        lines.setdefault(image, line)
        problems += [f"line {line}: {problem}"] if problem else []
        items.append(item)
    if problems:
        raise data_error(file, problems)
    return items, [heading for heading in headings if heading not in chosen.values()]


def _item(cells: Mapping[str, str], file: Path, positive: str | None) -> tuple[dict[str, Any], str | None]:
    """The item of a row, and why it is none."""
    item: dict[str, Any] = {}
    if not cells["image"]:
        return item, "has no image"
    item["image"] = _absolute(file.parent / cells["image"])
    if not item["image"].is_file():
        return item, f"there is no file '{item['image']}'"
    label = cells["label"]
    if positive is None and label.lower() not in (*TRUE, *FALSE):
        return item, f"the label '{label}' is neither 1 nor 0; say which label is positive by --positive LABEL"
    if not label:
        return item, "has no label"
    item["label"] = int(label.lower() in (TRUE if positive is None else (positive.strip().lower(),)))
    if cells.get("mask") and item["label"]:
        item["mask"] = _absolute(file.parent / cells["mask"])
        if not item["mask"].is_file():
            return item, f"there is no mask '{item['mask']}'"
    if cells.get("group"):
        item["group"] = cells["group"]
    if "split" in cells:
        item["split"] = SPLIT_NAMES.get(cells["split"].lower())
        if item["split"] is None:
            return item, f"the split '{cells['split']}' is none of {', '.join(SPLITS)}"
    text = cells.get("area", "")
    try:
        area = (
            (float(text[:-1].replace(",", ".")) / 100 if text[-1:] == "%" else float(text.replace(",", ".")))
            if text
            else 0
        )
    except ValueError:
        area = -1.0
    if not 0 <= area <= 1:
        return item, f"the area '{text}' is no fraction of the image from 0 to 1; write 0.3, or 30%"
    if bool(area) > item["label"]:
        return item, f"the label is negative, but the area '{text}'; correct one"
    return item | ({"area": area} if area else {}), None


def from_masks(
    images: Path, masks: Path, suffix: str = "_mask", without_mask: str = "refuse", area_step: float = 0.1
) -> tuple[list[dict], list[str]]:
    """
    Pictures and their masks, above 0 where the finding is.

    Args:
        images: folder of the pictures, and its subfolders.
        masks: folder of the masks, which may be the same or in it. The mask of ``a.png`` is called ``a`` or, with the
            suffix, ``a_mask``, whatever the ending.
        suffix: of the masks' names.
        without_mask: of `WITHOUT_MASK`, what becomes of a picture without one.
        area_step: to which the areas are rounded up.

    Returns:
        An item for each picture, positive where its mask is not empty, with ``area`` and ``mask`` then; and the names
        of what was left out.

    Raises:
        InputError: when a folder is missing or empty, and naming pictures without a mask, with two, or with that of
            another picture, and masks that can't be read or have another size.
    """
    positive_fraction("--area_step", area_step)
    pictures, found = _pictures(images), _pictures(masks, with_results=True)  # which may have been corrected
    masks_of: dict[str, list[Path]] = {}
    for path in found:
        masks_of.setdefault(path.with_suffix("").relative_to(masks).as_posix(), []).append(path)
    if _is_in(masks, images) and not _is_in(images, masks):
        pictures = [path for path in pictures if not _is_in(path, masks)]
    elif _is_in(masks, images):
        pictures = [path for path in pictures if not path.stem.endswith(suffix)]
        own = set(pictures)
        masks_of = {name: paths for name, paths in masks_of.items() if own.isdisjoint(paths)}
    if not pictures or not masks_of:
        raise _no_picture(masks if pictures else images)
    names = {path: path.with_suffix("").relative_to(images).as_posix() for path in pictures}
    known = {
        path: [m for n in dict.fromkeys((name, name + suffix)) for m in masks_of.get(n, ())]
        for path, name in names.items()
    }
    if problems := _ambiguous(known):
        raise data_error(masks, problems)
    chosen = {path: (*of, None)[0] for path, of in known.items()}
    missing = [path.name for path, mask in chosen.items() if mask is None]
    if len(missing) == len(chosen) or (missing and without_mask == "refuse"):
        raise InputError(
            f"There is no mask of {first_names(missing)}. Call each mask in '{masks}' as its picture is, or with "
            f"'{suffix}' behind that (--suffix); or give --without_mask negative, if there is nothing to mark in the "
            "others, or leave_out."
        )
    present = [(path, mask) for path, mask in chosen.items() if mask is not None]
    with ThreadPoolExecutor() as pool:  # decoding pictures releases the interpreter
        read = pool.map(lambda pair: _area(*pair, area_step), present)
        areas = list(Bar(read, total=len(present), desc="reading masks", unit="mask", leave=False))
    problems = [area for area in areas if isinstance(area, str)]
    if problems:
        raise data_error(masks, problems)
    items = [
        {"image": _absolute(path), "label": int(area > 0)} | ({"area": area, "mask": _absolute(mask)} if area else {})
        for (path, mask), area in zip(present, areas, strict=True)
    ]
    if without_mask == "negative":
        items += [{"image": _absolute(path), "label": 0} for path, mask in chosen.items() if mask is None]
        missing = []
    return sorted(items, key=lambda item: item["image"]), missing


def _ambiguous(masks_of: Mapping[Path, Sequence[Path]]) -> list[str]:
    """Which pictures have several masks, and which masks several pictures."""
    pictures_of: dict[Path, list[str]] = {}
    for picture, masks in masks_of.items():
        for mask in masks:
            pictures_of.setdefault(mask, []).append(picture.name)
    return [
        *(
            f"'{picture.name}' has the masks {first_names([mask.name for mask in masks])}; keep one"
            for picture, masks in masks_of.items()
            if len(masks) > 1
        ),
        *(
            f"'{mask.name}' is the mask of {first_names(pictures)}; keep one picture"
            for mask, pictures in pictures_of.items()
            if len(pictures) > 1
        ),
    ]


def _area(picture: Path, mask: Path, step: float) -> float | str:
    """The rough area of a picture's mask, or why there is none."""
    try:
        positive = load_positive(mask)
    except Exception as error:  # a decoder may raise anything on a damaged file
        return f"the mask '{mask}' can't be read ({first_line(error)})"
    size, wrong = check_picture(picture, decoded=False)
    if size is not None and not wrong and positive.shape[1:] != size:
        sizes = "{}x{}, '{}' {}x{}".format(*positive.shape[1:], picture.name, *size)
        return f"the mask '{mask.name}' has {sizes}; they must have the same size"
    return rough_area(positive, step)


def check_pictures(items: Sequence[Mapping[str, Any]]) -> None:
    """Raise InputError naming each image, or mask, that is no picture by its header; see `check_picture`."""
    paths = [item[key] for item in items for key in ("image", "mask") if key in item]
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda path: check_picture(path, decoded=False)[1], paths)
        problems = [f"'{path}': {text}" for path, texts in zip(paths, found, strict=True) for text in texts]
    if problems:
        raise data_error("the pictures", problems)


def is_outside(items: Sequence[Mapping[str, Any]], folder: str | PathLike) -> bool:
    """Whether an image or a mask lies outside a folder, or is a link that leads out of it."""
    return not all(_is_in(item[key], Path(folder)) for item in items for key in ("image", "mask") if key in item)


def _absolute(path: Path) -> Path:
    """Without the '..' that may have been typed: as it is shown, and as `os.path.relpath` sees it."""
    return Path(os.path.abspath(path))


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def grouped(items: Sequence[Mapping[str, Any]], folder: Path, group: str | None = None) -> list[dict[str, Any]]:
    """
    Items with their group: of those that have none, what a regular expression finds in the path, see `groups_of`.

    Args:
        items: as those of this module, with absolute paths.
        folder: to which the pattern sees the paths relative.
        group: the pattern; without it an image is its own group.
    """
    names = [Path(os.path.relpath(item["image"], folder)).as_posix() for item in items]
    ungrouped = [name for name, item in zip(names, items, strict=True) if "group" not in item]
    groups = dict.fromkeys(ungrouped) | groups_of(ungrouped, group)
    return [
        dict(item) | {"group": item.get("group") or groups[name] or name}
        for name, item in zip(names, items, strict=True)
    ]


def write_items(
    items: Sequence[Mapping[str, Any]], path: Path, validation: float = 0.2, seed: int = 0
) -> dict[str, list[dict]]:
    """
    Write ``dataset.json``, split by group, or as the items say.

    Args:
        items: as those of `grouped`, with absolute paths. Where they have a ``split`` each is in it; validation is
            drawn from training where no item is in it, unless all are in ``test``.
        path: of the file, see `check_listed`. Answers that the labelling page has are in it.
        validation, seed: see `split_by_group`.

    Returns:
        The items of each split, as they are in the file.

    Raises:
        InputError: when the images can't be split, or the file can't be written.
    """
    check_listed(path)
    listed, stated = [], []
    for item in items:
        paths = {k: Path(os.path.relpath(item[k], path.parent)).as_posix() for k in ("image", "mask") if k in item}
        stated.append(item.get("split"))
        listed.append({key: value for key, value in item.items() if key != "split"} | paths)
    splits = _as_stated(path, listed, stated) if any(stated) else {"training": listed}
    if "validation" not in splits and set(splits) != {"test"}:
        try:
            splits |= split_by_group(splits.get("training", []), validation, seed)
        except InputError as error:
            found = sorted({item["group"] for item in listed})
            if len(found) == len(listed):
                raise
            raise InputError(f"{error} The groups now: {first_names(found)}.") from error
    splits = {split: splits[split] for split in SPLITS if split in splits}
    try:
        with replacing(path) as file:
            json.dump({"written_by": WRITER, **splits}, file, indent=4)
    except OSError as error:
        raise InputError(f"'{path}' can't be written ({error.strerror}); name another folder by --output.") from error
    if path.name == "dataset.json" and (path.parent / ANSWERS).is_file():
        journal, given = Journal(path.parent / ANSWERS), GivenData.find(path)
        answers = {subject: journal.answers[subject] for subject in given.subjects() if subject in journal.answers}
        if answers:
            write_dataset(path, answers, {}, removed=journal.taken_away())
            content = read_content(path)
            splits = {split: content[split] for split in SPLITS if split in content}
    return splits


def check_listed(path: Path) -> None:
    """
    Raise InputError when there is a data set that this program hasn't written, or that can't be read.

    One that the labelling page has made of this program's, and can make again of its answers, may be replaced.
    """
    kept = path.with_name(KEPT)
    if path.name == "dataset.json" and path.exists() and kept.exists() and (path.parent / ANSWERS).is_file():
        writers = read_content(path).get("written_by"), read_content(kept).get("written_by")
        merged = any(path.parent.glob("labels-*.jsonl"))
        if writers == (PAGE, WRITER) and not merged:
            return
    check_replaceable(path, WRITER)


def _as_stated(path: Path, items: Sequence[dict], stated: Sequence[str]) -> dict[str, list[dict]]:
    """The items of each split. Raises InputError when a group is in two, or a split lacks a class."""
    splits: dict[str, list[dict]] = {}
    first: dict[str, str] = {}
    problems = {}
    for item, split in zip(items, stated, strict=True):
        splits.setdefault(split, []).append(item)
        other = first.setdefault(item["group"], split)
        if other != split:
            problems[item["group"]] = f"group '{item['group']}' is in '{other}' and in '{split}'; keep it in one"
    found = {split: {bool(item["label"]) for item in members} for split, members in splits.items()}
    lacking = [problem for split, labels in found.items() for problem in class_problems(split, labels)]
    if problems or lacking:
        raise data_error(path, [*problems.values(), *lacking])
    return splits
