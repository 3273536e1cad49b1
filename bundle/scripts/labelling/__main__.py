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
Label images on a local page, or merge what two annotators have given.

    cdws label FOLDER [--annotator NAME] [--group PATTERN] [--validation 0.2] [--only FILE]
        [--shuffle] [--hide_names] [--host 0.0.0.0]
    cdws label SLIDES [--fields 10] [--field_size 256] [--mpp 1.0] [--whole]
        [--leave_out pen blur]
    cdws merge FOLDER NAME NAME [--third NAME]
    cdws merge_masks FOLDER FOLDER OUTPUT [--third FOLDER]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import secrets
import shlex
import socket
from contextlib import suppress
from pathlib import Path

from scripts.runtime.command_line import Parser
from scripts.runtime.errors import InputError, first_line, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()

import numpy as np
from PIL import Image

from scripts.data.datalist import few_images
from scripts.images.masks import load_positive
from scripts.images.pictures import SUFFIXES
from scripts.images.quality import KINDS
from scripts.labelling.dataset import write_dataset
from scripts.labelling.given import KEPT, GivenData
from scripts.labelling.images import find_images, find_slides, groups_of, holds_slides, read_names
from scripts.labelling.journal import ANSWERS, Field, Journal, read_answers, written
from scripts.labelling.local_page import listening, run_program, serve
from scripts.labelling.merge import merge_answers, merge_masks
from scripts.labelling.server import is_complete, make_app
from scripts.labelling.subjects import Pictures, SlideFields
from scripts.runtime.files import claim, replacing

logger = logging.getLogger("scripts.labelling")
UNDECIDED = "undecided.json"
TITLE = "Is there cancer in this image, and in how much of it?"
FIELD_TITLE = "Is there cancer in this field, and in how much of it?"
WHOLE_TITLE = "Is there cancer on this slide, and in how much of its tissue?"
AREA_TITLE = "In how much of this image is there cancer?"
FIELD_AREA_TITLE = "In how much of this field is there cancer?"
WHOLE_AREA_TITLE = "In how much of this slide's tissue is there cancer?"
LOCAL_HOSTS = ("127.0.0.1", "::1")


def journal_path(folder: Path, annotator: str | None) -> Path:
    if annotator and not re.fullmatch(r"[\w-]+", annotator):
        raise InputError(f"--annotator must consist of letters, digits, - and _; got '{annotator}'.")
    return folder / (f"labels-{annotator}.jsonl" if annotator else ANSWERS)


def names_of(host: str) -> list[str]:
    """What this computer is called in an address under which it listens, for itself first."""
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
        with suppress(OSError):
            own = {found[4][0] for found in socket.getaddrinfo(name, None, socket.AF_INET)}
            return ["127.0.0.1", name, *sorted(own - {"127.0.0.1"})]
        return ["127.0.0.1", name]
    return [f"[{host}]" if ":" in host else host]


def given_data(folder: Path, group: str | None) -> GivenData | None:
    """The data set of a folder that is taken up. Raises InputError where a pattern would group its images anew."""
    given = GivenData.find(folder / "dataset.json")
    if given is not None and group is not None:
        raise InputError(f"'{given.path}' has its own groups and splits; give --group to the command that writes it.")
    return given


def run_page(arguments: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    folder, only = arguments.folder, arguments.only
    is_slides = arguments.slides or arguments.whole or holds_slides(folder)
    given = given_data(folder.parent if folder.is_file() else folder, arguments.group)
    listed = [] if given is None else given.subjects()
    fields = [subject for subject in listed if isinstance(subject, Field) and subject.region is not None]
    is_slides = bool(fields) if listed else is_slides
    if not is_slides:
        images = find_images(folder, only, listed)
    elif fields and folder.is_dir():
        images = sorted({field.image for field in fields})
    else:
        folder, images = find_slides(folder)
    shown_fields = [field for field in fields if field.image in images and not arguments.whole]
    answers = journal_path(folder, arguments.annotator)
    groups = groups_of(images, arguments.group)
    claim([folder], f"labelling-{arguments.annotator}" if arguments.annotator else "labelling")
    journal = Journal(answers)
    dataset = folder / "dataset.json"
    counts: dict[str, int] = {}  # of what was saved last

    def save() -> str:
        counts.clear()
        if arguments.annotator:
            return f"Saved in {journal.path.name}."
        try:
            with journal.alone():
                removed = journal.taken_away()
                counts.update(
                    write_dataset(dataset, journal.answers, groups, arguments.validation, arguments.seed, removed)
                )
        except InputError as error:
            return f"Saved in {journal.path.name}. No dataset.json yet. {error}"
        return f"Saved. dataset.json: {counts['training']} for training, {counts['validation']} for validation."

    # the same for one annotator at every start, another for each
    order = random.Random(f"{arguments.seed} {arguments.annotator}") if arguments.shuffle else None
    if is_slides:
        what = "Looking at" if arguments.whole or shown_fields else "Choosing fields on"
        print(f"{what} {len(images)} slides; the page opens after that.", flush=True)
        shown = SlideFields(
            folder,
            images,
            journal,
            None if arguments.whole else arguments.fields,
            arguments.field_size,
            arguments.mpp or None,
            arguments.seed,
            (shown_fields or None) if only is None else read_names(only),
            order,
            arguments.leave_out,
        )
    else:
        if order is not None:
            order.shuffle(images)
        shown = Pictures(folder, images)
    said = {} if given is None else given.answers()
    asked = (TITLE, AREA_TITLE)
    if is_slides:
        asked = (WHOLE_TITLE, WHOLE_AREA_TITLE) if arguments.whole else (FIELD_TITLE, FIELD_AREA_TITLE)
    title, area_title = (arguments.title or text for text in asked)

    def following() -> str:
        if arguments.annotator:
            return shlex.join(["cdws", "merge", str(folder), arguments.annotator, "OTHER"])
        return shlex.join(["cdws", "train", str(folder)]) if dataset.is_file() else ""

    token = secrets.token_urlsafe(16)
    with listening(arguments.host, arguments.port) as local:
        host, port = local.getsockname()[:2]
        is_local = host in LOCAL_HOSTS
        app = make_app(shown, journal, save, token, title, arguments.hide_names, is_local, said, area_title, following)
        addresses = [f"http://{name}:{port}/{token}/" for name in names_of(host)]
        if given is not None:
            print(told_of(given))
        known = {subject for subject, answer in said.items() if is_complete(answer)}.union(journal.answers)
        done = sum(shown.subjects[position] in known for position in shown.order())
        count = f"{len(shown.order())} {'fields' if is_slides and not arguments.whole else 'images'}"
        print(f"{count}, {done} of them answered.\nOpen {addresses[0]}")
        if len(addresses) > 1:
            print(f"On other computers {' or '.join(addresses[1:])}")
        if not is_local:
            print("Whoever has the address can label. It is not encrypted: use a network that you trust.")
        print("Stop with Ctrl+C.", flush=True)
        serve(app, local, addresses[0], arguments.no_browser)
    print(save() if journal.path.exists() else "Nothing has been answered; nothing is written.")
    if counts and (few := few_images(counts["training"])):
        print(few)


def told_of(given: GivenData) -> str:
    """What becomes of the data set that is taken up."""
    told = f"Labels, splits and groups are those of '{given.path}', which will be kept as {KEPT}."
    if given.path.name == KEPT:
        told = f"Your answers so far are kept; all else is as in '{given.path}', the data set before them."
    elsewhere = given.elsewhere()
    left = f" {elsewhere} of its images are not shown: outside the folder, or labelled by masks." if elsewhere else ""
    return told + left


def run_merge(arguments: argparse.Namespace) -> None:
    """Merge two journals into dataset.json; list what a third must decide."""
    folder = arguments.folder
    names = [*arguments.annotators, *([arguments.third] if arguments.third else [])]
    if len(set(names)) < len(names):
        raise InputError(f"These are answers of one annotator: {', '.join(names)}; give different names.")
    answers = [read_answers(journal_path(folder, name)) for name in names]
    claim([folder], "labelling")  # the page without --annotator writes the same dataset.json
    given_data(folder, arguments.group)
    if (folder / UNDECIDED).exists():
        read_names(folder / UNDECIDED)  # what is no such list is somebody else's
    merged, undecided = merge_answers(*answers)
    with replacing(folder / UNDECIDED) as file:
        json.dump([name if isinstance(name, str) else written(name) for name in undecided], file, indent=4)
    groups = groups_of(sorted({written(name)["image"] for name in merged}), arguments.group)
    print(f"{len(merged)} images agreed on, {len(undecided)} undecided: {folder / UNDECIDED}")
    if undecided and not arguments.third:
        where, only = shlex.quote(str(folder)), shlex.quote(str(folder / UNDECIDED))
        print(f"A third decides: cdws label {where} --annotator NAME --only {only}")
    counts = write_dataset(folder / "dataset.json", merged, groups, arguments.validation, arguments.seed)
    print(f"dataset.json: {counts['training']} for training, {counts['validation']} for validation")


def run_merge_masks(arguments: argparse.Namespace) -> None:
    """
    Merge two folders of masks, file by file; what a third must decide is written as a mask beside the merged one.

    Raises:
        InputError: when the folders don't fit, or a mask would be written over a file that is there, before anything
            is written; and naming each mask that can't be merged, when the others are.
    """
    names = _mask_names(arguments)
    undecided, failed = [], []
    for name in names:
        folders = [arguments.first, arguments.second]
        folders += [arguments.third] if arguments.third and (arguments.third / name).is_file() else []
        try:
            merged, disputed = merge_masks(*(load_positive(folder / name)[0].T for folder in folders))
        except Exception as error:  # a decoder may raise anything on a damaged file
            failed.append(f"'{name}' ({first_line(error)})")
            continue
        undecided += [name] if disputed.any() else []
        for mask, path in zip((merged, disputed), _merged_paths(arguments.output, name), strict=True):
            if mask is merged or disputed.any():
                with replacing(path, binary=True) as file:
                    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    count = len(names) - len(failed)
    print(f"{count} masks merged, {len(undecided)} with regions to decide: {', '.join(undecided) or 'none'}")
    if failed:
        raise InputError(f"These masks can't be merged (all others are): {', '.join(failed)}.")


def _merged_paths(output: Path, name: str) -> tuple[Path, Path]:
    """Where the merged mask goes, and the regions to decide."""
    return output / f"{Path(name).stem}.png", output / f"{Path(name).stem}_undecided.png"


def _mask_names(arguments: argparse.Namespace) -> list[str]:
    """Names of the masks to merge, once it is known that nothing is in the way of a result."""
    folders = [folder for folder in (arguments.first, arguments.second, arguments.third) if folder]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"There is no folder '{folder}' of masks.")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"These are masks of one annotator: {', '.join(map(str, folders))}; give different folders.")
    first, second = (
        {p.name for p in folder.iterdir() if p.suffix[1:].lower() in SUFFIXES and p.is_file()} for folder in folders[:2]
    )
    names = sorted(first)
    if not names:
        raise InputError(f"There are no masks in '{arguments.first}'; both folders need masks of the same names.")
    if first != second:
        name = min(first ^ second)
        lacking = arguments.second if name in first else arguments.first
        raise InputError(f"There is no '{name}' in '{lacking}'; both folders need masks of the same names.")
    writers: dict[Path, str] = {}
    for name in names:
        for path in _merged_paths(arguments.output, name):
            if path in writers:
                raise InputError(f"'{writers[path]}' and '{name}' would both be merged into '{path}'; rename one.")
            if os.path.lexists(path):
                raise InputError(f"'{path}' exists, and may have been drawn by hand; give an OUTPUT without masks.")
            writers[path] = name
    return names


def main() -> None:
    parser = Parser(prog="cdws", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    split = argparse.ArgumentParser(add_help=False)
    split.add_argument("folder", type=Path, help="of the images")
    split.add_argument("--group", help="regular expression: what of a file's path is the patient or slide")
    split.add_argument("--validation", type=float, default=0.2, help="part of the images for validation (0.2)")
    split.add_argument("--seed", type=int, default=0, help="of the split, and of the order (0)")
    label = commands.add_parser("label", parents=[split], help="open the page")
    label.add_argument("--annotator", help="name, where several label the same images; merge them afterwards")
    label.add_argument("--only", type=Path, help="JSON list of the images to show")
    label.add_argument("--title", help="the question")
    label.add_argument("--slides", action="store_true", help="FOLDER has slides, whatever their names end in")
    label.add_argument("--fields", type=int, default=10, help="proposed for each slide (10)")
    label.add_argument("--field_size", type=int, default=256, help="sides of fields in pixels as they are read (256)")
    label.add_argument("--mpp", type=float, default=1.0, help="micrometres per pixel as read (1.0; 0: as in the file)")
    label.add_argument(
        "--leave_out",
        nargs="*",
        choices=KINDS,
        default=KINDS,
        help="where no field is proposed (pen blur)",
    )
    label.add_argument("--whole", action="store_true", help="label whole slides, and the share of their tissue")
    label.add_argument("--shuffle", action="store_true", help="show the images in an order drawn by --seed")
    label.add_argument("--hide_names", action="store_true", help="show numbers in the place of names")
    label.add_argument("--host", default="127.0.0.1", help="address to serve other computers too: 0.0.0.0 is all")
    label.add_argument("--port", type=int, default=0, help="(any free one)")
    label.add_argument("--no_browser", action="store_true", help="don't open the browser")
    label.set_defaults(run=run_page)
    merge = commands.add_parser("merge", parents=[split], help="merge the answers of two annotators")
    merge.add_argument("annotators", nargs=2, metavar="NAME")
    merge.add_argument("--third", metavar="NAME", help="who decides where they don't agree")
    merge.set_defaults(run=run_merge)
    masks = commands.add_parser("merge_masks", help="merge the masks of two annotators")
    for name in ("first", "second", "output"):
        masks.add_argument(name, type=Path, metavar="FOLDER" if name != "output" else "OUTPUT")
    masks.add_argument("--third", type=Path, metavar="FOLDER", help="masks of who decides")
    masks.set_defaults(run=run_merge_masks)
    arguments = parser.parse_args()
    if not 0 < getattr(arguments, "validation", 0.2) < 1:
        parser.error("--validation must be between 0 and 1")
    if getattr(arguments, "fields", 1) < 1 or getattr(arguments, "field_size", 16) < 16:
        parser.error("--fields must be 1 or more, --field_size 16 or more")
    if not 0 <= getattr(arguments, "mpp", 1.0) < 1e6:
        parser.error("--mpp must be micrometres per pixel, or 0")
    run_program(arguments.run, arguments)


if __name__ == "__main__":
    main()
