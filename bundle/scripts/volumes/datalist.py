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
"""The data contract of volumes: their slices, with label and area, checked as a whole."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np

from scripts.data.datalist import SPLITS, class_problems, data_error, read_splits, repeated_images
from scripts.data.items import is_item
from scripts.data.listing import ImageList
from scripts.data.rough_area import rough_area
from scripts.images.limits import MIN_SIZE
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.files import result_name
from scripts.runtime.paths import file_identity
from scripts.runtime.processes import by_first_process
from scripts.runtime.values import positive_fraction, truth_value
from scripts.volumes.reading import Volume, find_volumes, volume_name
from scripts.volumes.slices import cut_axis, positive_voxels, to_slices, try_read

__all__ = ["list_slices", "load_slice_datalist"]

MASK_TOLERANCE = 0.1  # voxels by which a mask may lie beside its volume, rounded as affines are


@by_first_process
def load_slice_datalist(
    dataset_dir: str | PathLike,
    splits: Sequence[str] = ("training", "validation"),
    axis: int = 2,
    positive_labels: str | Sequence[int] = "all",
    area_step: float = 0.1,
    pixel_labels: bool = False,
    allow_outside: bool = False,
) -> dict[str, list]:
    """
    Read and check a ``dataset.json`` of volumes, and list their slices.

    An item has an ``image``, and a ``mask`` (label volume on the same voxels), or ``slices``, or both. ``slices`` is
    the path of a CSV table with the columns ``slice`` (counted from 0, from the patient's left, back or feet on),
    ``label`` and ``area`` (may be empty), a row for each slice. Without a table, label and area come from the mask.
    ``range``, the first and the last slice, leaves out the others.

    Args:
        dataset_dir: folder of ``dataset.json``, or that file.
        splits: the splits that must be there.
        axis: across which the volume is cut, whatever the order of the file's voxels: 0 for sagittal slices, 1 coronal,
            2 axial; or the nearest to them in an oblique volume.
        positive_labels: values of the mask that are positive, or ``"all"``: every value but 0.
        area_step: to which areas taken from a mask are rounded up.
        pixel_labels: whether every positive slice of these splits must have a mask.
        allow_outside: see `check_datalist`.

    Returns:
        For each split the slices, ``{"image": path, "slice": index, "label": 0 or 1, ...}``, with ``area``, ``mask``
        and ``group`` where they are known.

    Raises:
        InputError: naming every item that breaks the contract, with what is wrong with it.
    """
    _check_settings(axis, positive_labels)
    truth_value("pixel_labels", pixel_labels)
    positive_fraction("area_step", area_step)
    path, volumes, problems = read_splits(dataset_dir, splits, allow_outside, paths=("image", "mask", "slices"))
    entries = [(split, f"{split}[{i}]", item) for split, items in volumes.items() for i, item in enumerate(items)]
    datalist: dict[str, list] = {split: [] for split in volumes}
    unknown = set()  # splits in which an item could not be read
    with ThreadPoolExecutor(2) as pool:  # a volume is large: no more than two at a time
        found = pool.map(lambda entry: _slices_of(entry[2], axis, positive_labels, area_step), entries)
        progress = Bar(found, total=len(entries), desc="checking volumes", unit="volume", leave=False)
        for (split, where, item), (slices, item_problems) in zip(entries, progress, strict=True):
            name = f" '{item['image']}'" if isinstance(item, dict) and "image" in item else ""
            problems += [f"{where}{name}: {problem}" for problem in item_problems]
            datalist[split] += slices
            unknown |= {split} if item_problems else set()
            if pixel_labels and split in splits and not item_problems and "mask" not in item:
                problems.append(f"{where}{name}: has no mask, which this method learns from; add one")
    for split, items in datalist.items():
        problems += repeated_images(split, items, [bool(item["label"]) for item in items], path.parent)
    for split in [s for s in dict.fromkeys((*SPLITS, *splits)) if s in datalist and s not in unknown]:
        labels = {bool(item["label"]) for item in datalist[split]}
        asked = f" (positive_labels is {positive_labels})" if positive_labels != "all" and True not in labels else ""
        problems += [problem + asked for problem in class_problems(split, labels)]
    if problems:
        raise data_error(path, problems)
    return datalist


def _plane_problem(shape: Sequence[int], axis: int) -> str:
    plane = [size for a, size in enumerate(shape) if a != axis]
    if min(plane) >= MIN_SIZE:
        return ""
    return f"its slices are {plane[0]}x{plane[1]}, smaller than {MIN_SIZE}x{MIN_SIZE}; is slice_axis right?"


def _check_settings(axis: int, positive_labels: str | Sequence[int]) -> None:
    if axis not in (0, 1, 2):
        raise InputError(f"slice_axis must be 0, 1 or 2; got {axis!r}.")
    listed = isinstance(positive_labels, (list, tuple)) and len(positive_labels) > 0
    if positive_labels != "all" and not (listed and all(isinstance(v, int) and v != 0 for v in positive_labels)):
        raise InputError(
            f"positive_labels must be 'all', or a list of label values other than 0; got {positive_labels!r}."
        )


def _slices_of(
    item: object, axis: int, positive_labels: str | Sequence[int], area_step: float
) -> tuple[list[dict], list[str]]:
    """The slices of an item, and what is wrong with it."""
    if not is_item(item):
        return [], ["must be an object with an 'image'"]
    if not item.get("mask") and not item.get("slices"):
        return [], ["needs a 'mask' (label volume), or 'slices' (path of a table)"]
    if item.get("strokes"):
        return [], ["has strokes, which only pictures can have; remove them"]
    volume, problem = try_read("the volume", item["image"])
    if volume is None:
        return [], [problem]
    axis = cut_axis(volume.array.shape, axis)
    count = volume.array.shape[axis]
    problem = _plane_problem(volume.array.shape, axis)
    if problem:
        return [], [problem]
    if isinstance(item.get("mask"), str) and file_identity(item["mask"]) == file_identity(item["image"]):
        return [], [f"the mask '{item['mask']}' is the volume itself"]
    used, problems = _used(item, count)
    areas, rows = None, None
    if item.get("mask"):
        mask, problem = try_read("the mask", item["mask"])
        problem = problem or _mask_problem(item["mask"], mask, volume)
        problems += [problem] if problem else []
        if not problem:
            areas = [rough_area(k, area_step) for k in to_slices(positive_voxels(mask.array, positive_labels), axis)]
    if item.get("slices"):
        rows, table_problems = _read_table(item["slices"], count)
        missing = sorted(set(used) - set(rows)) if not table_problems else []
        if missing:
            table_problems.append(f"the table '{item['slices']}' lacks the slices {_ranges(missing)}")
        problems += table_problems
    if problems:
        return [], problems
    if rows is None:
        rows = {k: {"label": int(areas[k] > 0)} | ({"area": areas[k]} if areas[k] else {}) for k in used}
    elif areas is not None:
        problems = [
            f"slice {k} has label {rows[k]['label']} in '{item['slices']}', but its mask "
            + ("has positive voxels" if areas[k] else "is empty")
            for k in used
            if rows[k]["label"] != (areas[k] > 0)
        ]
    known = {key: item[key] for key in ("image", "mask", "group") if item.get(key) is not None}
    return [known | {"slice": k} | rows[k] for k in used], problems


def _used(item: dict, count: int) -> tuple[range, list[str]]:
    """The slices of a volume that an item is about: all, or those of its ``range``; and what is wrong with that."""
    limits = item.get("range")
    if limits is None:
        return range(count), []
    if (
        not isinstance(limits, list)
        or len(limits) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) for v in limits)
        or not 0 <= limits[0] <= limits[1] < count
    ):
        return range(0), [f"range is {limits!r}, must be its first and last slice, whole numbers from 0 to {count - 1}"]
    return range(limits[0], limits[1] + 1), []


def _ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers as text, neighbours together: 1-3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _mask_problem(path: str, mask: Volume, volume: Volume) -> str:
    if mask.array.shape != volume.array.shape:
        shapes = ["x".join(map(str, v.array.shape)) for v in (mask, volume)]
        return f"the mask '{path}' has {shapes[0]} voxels, the volume {shapes[1]}; they must be the same"
    if not np.array_equal(mask.array, np.round(mask.array)) or mask.array.min() < 0:
        return f"the mask '{path}' has other values than whole numbers from 0 on; save labels, not probabilities"
    places = [v.geometry.ras_affine @ _corners(v.array.shape) for v in (mask, volume)]
    apart = np.linalg.solve(volume.geometry.ras_affine, places[0] - places[1])
    if np.abs(apart).max() > MASK_TOLERANCE:
        return f"the mask '{path}' lies elsewhere in the patient than the volume (other affine); resample it"
    return ""


def _corners(shape: Sequence[int]) -> np.ndarray:
    """(4, 8): homogeneous coordinates of the outermost voxels."""
    return (
        np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]).T * np.array([*(n - 1 for n in shape), 1])[:, None]
    )


def _read_table(path: object, count: int) -> tuple[dict[int, dict], list[str]]:
    """Label and area of each slice in a table of slices, and what is wrong with it."""
    if not isinstance(path, str) or not os.path.isfile(path):
        return {}, [f"there is no table of slices '{path}'"]
    rows, problems = {}, []
    with Path(path).open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if not {"slice", "label"} <= set(reader.fieldnames or ()):
            return {}, [f"the table '{path}' must have the columns slice, label and area"]
        for line, row in enumerate(reader, start=2):
            where = f"line {line} of '{path}'"
            index, label, area = ((row.get(key) or "").strip() for key in ("slice", "label", "area"))
            if not index.isdecimal() or len(index) > 9 or int(index) >= count:
                problems.append(f"{where}: slice is '{index}', must be a whole number from 0 to {count - 1}")
                continue
            if int(index) in rows:
                problems.append(f"{where}: slice {index} is there twice")
            if label not in ("0", "1"):
                problems.append(f"{where}: label is '{label}', must be 0 or 1")
                continue
            rows[int(index)] = {"label": int(label)}
            if area and (label == "1" or area.strip("0.")):
                try:
                    value = float(area)
                except ValueError:
                    value = float("nan")
                if label == "0":
                    problems.append(f"{where}: label is 0, but an area of {area} is given; remove one")
                elif not 0 < value <= 1:
                    problems.append(f"{where}: area is '{area}', must be a fraction of the slice above 0 and up to 1")
                rows[int(index)]["area"] = value
    return rows, problems


def list_slices(images: str | PathLike | Sequence[str], axis: int = 2) -> ImageList:
    """
    All slices of the volumes to infer on, volume by volume, in order: ``{"image": path, "slice": k, "count": n}``.

    Args:
        images: see `find_volumes`.
        axis: along which slices are taken.

    Returns:
        The slices. What can't be read is logged as an error and left out, see `ImageList.report_left_out`.

    Raises:
        InputError: when there is no volume left, naming everything that was left out.
    """
    _check_settings(axis, "all")
    items = ImageList()
    seen: dict[str, str] = {}
    for path in find_volumes(images):
        volume, problem = try_read("the volume", path)
        if volume is not None:
            across = cut_axis(volume.array.shape, axis)
            count, problem = volume.array.shape[across], _plane_problem(volume.array.shape, across)
            problem = f"the volume '{path}': {problem}" if problem else _name_problem(path, seen)
        if problem:
            items.left_out.append(problem)
        else:
            seen[volume_name(path)] = path
            items += [{"image": path, "slice": k, "count": count} for k in range(count)]
    items.log_left_out("the volumes")
    return items


def _name_problem(path: str, seen: Mapping[str, str]) -> str:
    """Why the results of a volume can't have its name, beside those of volumes by theirs."""
    name = volume_name(path)
    try:
        result_name(path, name)
    except InputError as error:
        return str(error)
    return (
        f"the volume '{path}': its results would have the same name as those of '{seen[name]}'" if name in seen else ""
    )
