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

"""The review's server: images with what a model says of them, and corrections, for the browser on this machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from scripts.labelling.local_page import STATIC as SHARED
from scripts.labelling.local_page import add_files, add_tiles, displayed, local_app
from scripts.labelling.tiles import PictureTiles, TilesCache
from scripts.review.corrections import Correction, Corrections
from scripts.review.doubt import Doubt, Finding
from scripts.review.findings import view_path
from scripts.runtime.errors import InputError, first_line

__all__ = ["Entry", "make_review_app"]

LARGEST_BODY = 2**20  # bytes; many long strokes have a tenth of that
STATIC = Path(__file__).parent / "static"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """An image to review."""

    name: str
    path: str | PathLike
    """Of its picture; or the part of a slide, see `source_of`."""
    split: str
    label: int
    """As it is in the data set."""
    area: float | None
    finding: Finding
    doubt: Doubt
    size: tuple[int, int]


class Given(BaseModel):
    """A correction from the page."""

    image: int = Field(ge=0)
    correction: dict[str, Any]


def make_review_app(
    entries: Sequence[Entry],
    findings: Path,
    made: str,
    journal: Corrections,
    saved: Callable[[], str],
    token: str,
) -> FastAPI:
    """
    The application.

    Args:
        entries: images in the order in which they are shown.
        findings: folder of the model's findings.
        made: round of the review, see `Findings`.
        journal: takes the corrections.
        saved: called after each correction; says in a sentence where things stand.
        token: part of every address.
    """
    app = local_app(token, journal.path.name, largest_body=LARGEST_BODY)
    positions = {entry.name: k for k, entry in enumerate(entries)}
    images = [
        {
            "name": displayed(entry.name),
            "split": entry.split,
            "stated": {"label": entry.label, "area": entry.area},
            "finding": asdict(entry.finding),
            "doubt": asdict(entry.doubt) | {"total": entry.doubt.total},
            "size": entry.size,
        }
        for entry in entries
    ]

    def corrections() -> dict[int, dict]:
        given = list(journal.answers.items())  # at once: another tab may be adding to them
        return {
            positions[name]: asdict(correction) | {"now": correction.made == made}
            for name, correction in given
            if name in positions
        }

    def outcome() -> dict:
        try:
            message = saved()
        except Exception as error:  # whatever it is, the correction has been saved
            message = f"Saved in {journal.path.name}, and nowhere else ({first_line(error)})."
            logger.warning(message)
        return {"corrections": corrections(), "message": displayed(message)}

    def source(position: int) -> tuple[str | PathLike, str]:
        entry = entry_at(position)
        return entry.path, entry.name

    add_files(app, token, STATIC / "review.html", SHARED, STATIC)
    add_tiles(app, token, TilesCache(PictureTiles), source)

    @app.get(f"/{token}/state")
    def current() -> dict:
        return {"images": images, "corrections": corrections()}

    @app.get(f"/{token}/view/{{position}}")
    def view(position: int) -> Response:
        path = view_path(findings, made, entry_at(position).name)
        if not path.is_file():
            raise HTTPException(404, "There is no map of this image.")
        return FileResponse(path, media_type="application/json")

    @app.post(f"/{token}/correct")
    def correct(given: Given) -> dict:
        entry = entry_at(given.image)
        try:
            correction = Correction.of(given.correction | {"made": made})
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise HTTPException(422, f"This is no correction ({first_line(error)}).") from error
        with journal.alone():  # until the data set is written too: of two corrections the later one's is to stand
            journal.give(entry.name, correction)
            return outcome()

    @app.post(f"/{token}/undo")
    def undo() -> dict:
        with journal.alone():
            name = journal.undo(positions)
            return outcome() | {"undone": -1 if name is None else positions[name]}

    def entry_at(position: int) -> Entry:
        if not 0 <= position < len(entries):
            raise HTTPException(404, "There is no such image.")
        return entries[position]

    return app
