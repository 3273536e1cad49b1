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
Review on a local page the labels that a trained model doubts, after inference with the overlay review.json.

    cdws review RUN DATA [--area_step 0.1] [--port 8765] [--no_browser]
"""

from __future__ import annotations

import argparse
import logging
import secrets
from pathlib import Path

from scripts.runtime.command_line import Parser
from scripts.runtime.errors import InputError, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()


from scripts.data.datalist import data_error, first_names, read_splits
from scripts.data.dataset_file import dataset_file
from scripts.data.targets import WeakTarget
from scripts.images.slide_parts import source_of
from scripts.labelling.dataset import check_replaceable
from scripts.labelling.local_page import listening, run_program, serve
from scripts.review.corrections import WRITER, Corrections, reviewed_path, write_reviewed
from scripts.review.doubt import doubt_of
from scripts.review.findings import Findings, read_findings, reviewed_name
from scripts.review.server import Entry, make_review_app

logger = logging.getLogger("scripts.review")
JOURNAL = "review.jsonl"


def entries_of(dataset: Path, findings: Findings, area_step: float = 0.1) -> list[Entry]:
    """
    The images of a data set that a model has something to say of, those that it doubts most first.

    Args:
        dataset: file of the data set, or its folder.
        findings: of the model.
        area_step: to which its areas are rounded up.

    Raises:
        InputError: when the data set can't be used, or none of its images has been looked at.
    """
    path, splits, problems = read_splits(dataset.absolute(), (), allow_outside=True)  # see `reviewed_name`
    if problems:
        raise data_error(path, problems)
    target, entries, missing = WeakTarget(area_step), [], []
    for split, item in ((split, item) for split, items in splits.items() if split != "test" for item in items):
        name = reviewed_name(item, path.parent)
        if name not in findings.of:
            missing.append(name)
            continue
        label, area = target(item["label"], item.get("area")).tolist()
        stated = int(label), None if area != area else round(area, 6)  # NaN: not known
        doubt = doubt_of(findings.of[name], *stated, area_step)
        entries.append(Entry(name, source_of(item), split, *stated, findings.of[name], doubt, findings.sizes[name]))
    if not entries:
        raise InputError(f"The model has looked at none of the images of '{path}'; run cdws review RUN DATA on it.")
    if missing:
        logger.warning(f"Images that the model has not looked at are not shown: {first_names(missing)}.")
    return sorted(entries, key=lambda entry: -entry.doubt.total)


def run_page(arguments: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    dataset = dataset_file(arguments.data)
    folder = arguments.run / "review"
    findings = read_findings(folder)
    entries = entries_of(dataset, findings, arguments.area_step)
    reviewed = reviewed_path(dataset)
    check_replaceable(reviewed, WRITER)
    journal = Corrections(dataset.with_name(JOURNAL))

    def save() -> str:
        with journal.alone():
            counts = write_reviewed(dataset, journal.answers, findings.sizes)
        named = ", ".join(f"{count} {what}" for what, count in counts.items())
        return f"Saved. {reviewed.name}: {named}."

    token = secrets.token_urlsafe(16)
    app = make_review_app(entries, folder, findings.made, journal, save, token)
    with listening("127.0.0.1", arguments.port) as local:
        address = f"http://127.0.0.1:{local.getsockname()[1]}/{token}/"
        print(f"{len(entries)} images, those in doubt first.\nOpen {address}\nStop with Ctrl+C.", flush=True)
        serve(app, local, address, arguments.no_browser)
    if journal.answers:
        print(f"{save()}\nTrain from it: cdws train {reviewed} --output_dir {arguments.run}-reviewed")
    else:
        print("Nothing has been corrected.")


def main() -> None:
    parser = Parser(prog="cdws review", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the training")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of dataset.json, or that file")
    parser.add_argument("--area_step", type=float, default=0.1, help="to which areas are rounded up (0.1)")
    parser.add_argument("--port", type=int, default=0, help="(any free one)")
    parser.add_argument("--no_browser", action="store_true", help="don't open the browser")
    arguments = parser.parse_args()
    run_program(run_page, arguments)


if __name__ == "__main__":
    main()
