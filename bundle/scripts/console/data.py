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
"""``cdws data``: from what people have to ``dataset.json``."""

from __future__ import annotations

import os
import shlex
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.console.configs import UsageError, config_files, top_of
from scripts.console.running import HELP, say_starting
from scripts.data.dataset_file import dataset_file
from scripts.runtime.command_line import Parser, did_you_mean
from scripts.runtime.errors import InputError

__all__ = ["main"]

KINDS = {  # what each asks for, and is made from
    "from-folders": (("POSITIVE", "NEGATIVE"), "pictures with the finding in one folder, without it in another"),
    "from-csv": (("FILE",), "a table with a row for each image: image, label, and area, group, mask, split"),
    "from-masks": (("IMAGES", "MASKS"), "pictures, and masks of the same names"),
    "from-geojson": (("SLIDES",), "a slide or a folder of them, and annotations of QuPath: rectangles are fields"),
}


def main(arguments: Sequence[str]) -> int:
    """Run ``cdws data``; returns the exit status. Raises UsageError for a kind that there is not."""
    kind, rest = (arguments[0], arguments[1:]) if arguments else ("-h", [])
    if kind in HELP:
        rows = "\n".join(f"  cdws data {k:13}{' '.join(asked):20}{text}" for k, (asked, text) in KINDS.items())
        print(f"Write dataset.json, split into training and validation:\n\n{rows}\n\nEach has its own -h.")
        return 0
    if kind not in KINDS:
        raise UsageError(f"There is no 'cdws data {kind}'{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}.")
    options = _parser(kind).parse_args(rest)
    try:
        return _write(kind, options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _path(typed: str) -> Path:
    """Raises ArgumentTypeError for no name at all, which is the folder one is in to `Path`."""
    if not typed:
        raise ArgumentTypeError("is empty; name a file or a folder")
    return Path(typed)


def _parser(kind: str) -> Parser:
    asked, source = KINDS[kind]
    parser = Parser(prog=f"cdws data {kind}", description=f"Write dataset.json from {source}.")
    for name in asked:
        parser.add_argument(name.lower(), type=_path, metavar=name)
    own_group = "(each image is its own group)"
    if kind == "from-folders":
        parser.add_argument("--area", type=float, help="rough area of every positive image, a fraction (none)")
    if kind == "from-csv":
        for key in ("image", "label", "area", "mask", "group", "split"):
            form = ", fractions of the image as 0.3, or 30%%" if key == "area" else ""
            parser.add_argument(f"--{key}", metavar="HEADING", help=f"of the column with the {key}s{form} ({key})")
        parser.add_argument("--positive", metavar="LABEL", help="what a positive label is (1, yes, true, positive)")
    elif kind == "from-geojson":
        parser.add_argument(
            "--annotations", type=_path, metavar="FOLDER", help="of the files NAME.geojson, or one file"
        )
        parser.add_argument("--positive", action="append", metavar="CLASS", help="of QuPath, again for each (Tumor)")
        parser.add_argument("--mpp", type=float, help="micrometres per pixel at which fields are read (level 0's)")
        parser.add_argument("--masks", type=_path, metavar="FOLDER", help="to write masks of the outlined fields into")
        parser.add_argument("--slide_mpp", type=float, help="of level 0, where the slides state none")
    else:
        parser.add_argument(
            "--group", metavar="PATTERN", help=f"regular expression: the patient or slide in a path {own_group}"
        )
    if kind == "from-masks":
        parser.add_argument(
            "--suffix", default="_mask", help="what a mask's name may have behind its picture's (_mask)"
        )
        choices = ("refuse", "negative", "leave_out")
        parser.add_argument(
            "--without_mask",
            choices=choices,
            default="refuse",
            help="pictures without a mask: refuse (the default), negative, leave_out",
        )
    if kind in ("from-masks", "from-geojson"):
        parser.add_argument("--area_step", type=float, default=0.1, help="to which areas are rounded up (0.1)")
    if kind != "from-geojson":
        parser.add_argument("--field", type=int, metavar="PIXELS", help="cut larger pictures into fields of this side")
    parser.add_argument(
        "--validation", type=float, default=0.2, help="part of the images that is kept for validation (0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the split (0)")
    parser.add_argument("--test", action="store_true", help="no split: all images are to score a model that is trained")
    parser.add_argument("--output", type=_path, metavar="FOLDER", help="of dataset.json (that which holds all images)")
    return parser


def _write(kind: str, options: Namespace) -> int:
    if kind == "from-geojson" or getattr(options, "field", None) is not None:  # with MONAI, which takes seconds
        say_starting()
    from scripts.data.datalist import few_images
    from scripts.labelling import existing

    if not 0 < options.validation < 1:
        raise InputError(f"--validation must be above 0 and below 1; got {options.validation}.")
    notes, group = [], getattr(options, "group", None) if kind != "from-csv" else None
    if kind == "from-folders":
        items = existing.from_folders(options.positive, options.negative, options.area)
        folders = [options.positive, options.negative]
    elif kind == "from-masks":
        found = existing.from_masks(
            options.images, options.masks, options.suffix, options.without_mask, options.area_step
        )
        items, folders = found[0], [options.images, options.masks]
        notes += [f"Left out, without a mask: {len(found[1])} pictures."] if found[1] else []
    elif kind == "from-geojson":
        items, notes = _fields(options)
        folders = [options.slides if options.slides.is_dir() else options.slides.parent]
    else:
        columns = {key: getattr(options, key) for key in existing.COLUMNS}
        items, unused = existing.from_csv(options.file, columns, options.positive)
        folders = [options.file.parent]
        if existing.is_outside(items, folders[0]):
            folders = [item["image"].parent for item in items]
        notes += [f"Columns that are not used: {', '.join(unused)}."] if unused else []
    if kind != "from-geojson":  # whose fields have been looked at
        existing.check_pictures(items)
    path = dataset_file(options.output or _common(folders))
    notes += [] if options.test else _group_notes(kind, items, bool(group))
    items = existing.grouped(items, path.parent, group)
    if options.test:
        items = [item | {"split": "test"} for item in items]
    if getattr(options, "field", None) is not None:
        from scripts.labelling.fields import cut_items

        existing.check_listed(path)  # before hours of cutting
        cut = cut_items(items, options.field, path.parent, getattr(options, "area_step", 0.1))
        items = cut.items
        notes += [f"{cut.cut} of the pictures were cut into fields of {options.field} pixels."]
        if cut.waiting:
            told = (
                f"{cut.waiting} fields of positive pictures have no label: what is in the picture need not be in a "
                f"field of it. Label them, and give this command again:\n  cdws label {shlex.quote(str(cut.to_label))}"
            )
            if not any(item["label"] for item in items):
                print("\n".join([*notes, told, "No dataset.json yet: there is no positive image."]))
                return 0
            notes += [told]
    splits = existing.write_items(items, path, options.validation, options.seed)
    notes += filter(None, [_answers_note(items, path, splits)])
    positive = [item for items in splits.values() for item in items if item["label"]]
    unknown = sum("area" not in item for item in positive)
    to_score = set(splits) == {"test"}
    if not to_score:
        notes += _area_notes(kind, unknown, len(positive))
        notes += filter(None, [_size_note(items), few_images(len(splits["training"]))])
    _report(path, splits, notes)
    outside = " --allow_outside True" if existing.is_outside(items, path.parent) else ""
    data = shlex.quote(str(path if path.name != "dataset.json" else path.parent))
    if to_score:
        print(f"Next: cdws evaluate {data} --split test{outside}  # --ckpt_path included: by the included model")
    elif unknown and path.name == "dataset.json" and not outside:
        print(f"Next: cdws label {data}  # asks for areas; or leave that out:")
        print(f"      cdws train {data}")
    else:
        print(f"Next: cdws train {data}{outside}")
    return 0


def _fields(options: Namespace) -> tuple[list[dict], list[str]]:
    """Fields of slides, and what the user should know of them."""
    from scripts.labelling.annotated import POSITIVE, from_geojson

    items, missing = from_geojson(
        options.slides,
        options.annotations,
        options.positive or POSITIVE,
        options.mpp,
        options.slide_mpp,
        options.area_step,
        options.masks,
    )
    notes = [f"Left out, without annotations: {', '.join(missing)}."] if missing else []
    if len({item["group"] for item in items}) == 1 and not options.test:  # or there would be no validation
        items = [item | {"group": f"{item['group']} {place}"} for place, item in enumerate(items, 1)]
        notes.append("Warning: one slide alone is in both splits, so validation says nothing about other slides.")
    return items, notes


def _common(folders: Sequence[Path]) -> Path:
    """The folder that holds them all, as short as it was typed. Raises InputError where only the disk does."""
    common = Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
    if common == Path(common.anchor):
        raise InputError(f"'{folders[0]}' and the others have no folder in common; name one by --output FOLDER.")
    short = common.is_relative_to(Path.cwd()) or not folders[0].is_absolute()
    return Path(os.path.relpath(common)) if short else common


def _area_notes(kind: str, unknown: int, positive: int) -> list[str]:
    """What the user should know of positive images without an area."""
    if not unknown:
        return []
    which = "No positive image has" if unknown == positive else f"{unknown} of {positive} positive images don't have"
    known = {"from-csv": "a column of areas, or cdws label", "from-geojson": "a polygon, or cdws label"}
    how = known.get(kind, "cdws label")
    return [f"{which} a rough area: these are learned from their label alone, with coarser masks ({how} gives areas)."]


def _answers_note(items: Sequence[dict], path: Path, splits: Mapping[str, Sequence[dict]]) -> str | None:
    """What the user should know of images whose label the labelling page has told otherwise."""
    from scripts.data.datalist import first_names

    said = {item["image"]: item["label"] for item in items if "region" not in item}
    written = {path.parent / item["image"]: item["label"] for listed in splits.values() for item in listed}
    other = [image.name for image, label in written.items() if said.get(image, label) != label]
    if not other:
        return None
    return f"The page of cdws label gives another label, which counts, to {first_names(other)}; correct it there."


def _size_note(items: Sequence[dict]) -> str | None:
    """What the user should know of large pictures, which the recommended training shrinks; none of parts of slides."""
    from scripts.images.originals import originals_of, shrunk_far
    from scripts.images.pictures import is_picture, picture_size

    sizes = [picture_size(item["image"])[::-1] for item in items if is_picture(item["image"]) and "region" not in item]
    usual, size = originals_of(sizes), top_of(config_files("train", "recommended"))["spatial_size"]
    return shrunk_far(usual, size) if usual else None


def _group_notes(kind: str, items: Sequence[dict], grouped: bool) -> list[str]:
    """What the user should know of the groups."""
    notes = []
    if not grouped and not all("group" in item for item in items):
        how = "a column of groups" if kind == "from-csv" else "--group PATTERN"
        notes.append(
            "Warning: each image counts as a patient of its own; if some are of one patient or slide, say so by "
            f"{how}, or the scores will be too good."
        )
    return notes


def _report(path: Path, splits: dict[str, list[dict]], notes: Sequence[str]) -> None:
    print(f"Written: {path}\n\n{'':12}{'positive':>10}{'negative':>10}{'groups':>10}")
    for split, items in splits.items():
        positive, groups = sum(item["label"] for item in items), len({item["group"] for item in items})
        print(f"{split:12}{positive:>10}{len(items) - positive:>10}{groups:>10}")
    print("\n" + "\n".join(notes) if notes else "")
