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
"""The labelling page's server: images of one folder, and answers to them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, Field, StrictInt

from scripts.labelling.journal import Answer, Journal, Subject
from scripts.labelling.local_page import KEPT, STATIC, add_files, add_tiles, displayed, local_app, read_or_refuse
from scripts.labelling.subjects import Pictures, SlideFields
from scripts.labelling.tiles import TilesCache
from scripts.runtime.errors import InputError, first_line

__all__ = ["is_complete", "make_app"]

LONGEST_COMMENT = 600  # characters, of up to six bytes each
logger = logging.getLogger(__name__)


class Given(BaseModel):
    """An answer from the page."""

    image: int = Field(ge=0)
    label: Literal[0, 1] | None
    area: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)


class Placed(BaseModel):
    """A field that was drawn, moved or, without a region, taken away."""

    source: int = Field(ge=0)
    region: tuple[StrictInt, StrictInt, StrictInt, StrictInt] | None
    replaced: int | None = Field(default=None, ge=0)


class Comment(BaseModel):
    """What the page's annotator says of an image."""

    image: int = Field(ge=0)
    text: str = Field(max_length=LONGEST_COMMENT)


def is_complete(given: Answer) -> bool:
    """Whether nothing has to be asked of an image of which this is known."""
    return given.label != 1 or given.area is not None


def make_app(
    shown: Pictures | SlideFields,
    journal: Journal,
    saved: Callable[[], str],
    token: str,
    title: str = "",
    hide_names: bool = False,
    is_local: bool = True,
    given: Mapping[Subject, Answer] = MappingProxyType({}),
    area_title: str = "",
    following: Callable[[], str] = str,
) -> FastAPI:
    """
    The application.

    Args:
        shown: what is labelled. Nothing else is served.
        journal: takes the answers.
        saved: called after each answer; says in a sentence where things stand.
        token, is_local: see `local_app`.
        title: shown above the images.
        hide_names: whether the page learns numbers in the place of the images' names.
        given: what is known of images that nobody has answered. Of positive ones without an area that is asked.
        area_title: shown above these in the place of `title`.
        following: the command to give next when all are answered; nothing where there is none yet.
    """
    app = local_app(token, journal.path.name, is_local)
    tiles = TilesCache(shown.open)
    small = lru_cache(2048)(shown.thumbnail)
    name_of = shown.hidden_name if hide_names else shown.name
    positions = {subject: k for k, subject in enumerate(shown.subjects)}
    complete = {subject: answer for subject, answer in given.items() if is_complete(answer)}

    def state(message: str = "") -> dict:
        said, noted = dict(journal.answers), list(journal.comments.items())  # at once: others may be adding
        known = complete | said
        answers = {positions[subject]: vars(answer) for subject, answer in known.items() if subject in positions}
        positive = [positions[subject] for subject in given if subject not in complete and subject in positions]
        comments = {positions[subject]: displayed(text) for subject, text in noted if subject in positions}
        told = {"message": displayed(message), "next": displayed(following())}
        return {"answers": answers, "positive": positive, "comments": comments} | told

    def everything(message: str = "") -> dict:
        count = range(len(shown.subjects))
        return {
            "title": displayed(title),
            "asked": displayed(area_title or title),
            "kind": shown.kind,
            "images": [displayed(name_of(k)) for k in count],
            "sources": [shown.source(k) for k in count],
            "regions": [shown.region(k) for k in count],
            "order": shown.order(),
        } | state(message)

    def outcome() -> str:
        try:
            return saved()
        except Exception as error:  # whatever it is, the answer has been saved
            logger.warning(f"The answer is saved in '{journal.path}', and nowhere else ({first_line(error)}).")
            return f"Saved in {journal.path.name}, and nowhere else ({first_line(error)})."

    def source(position: int) -> tuple[int, str]:
        if not 0 <= position < len(shown.sources):
            raise HTTPException(404, "There is no such image.")
        return position, shown.sources[position]

    def subject_at(position: int) -> Subject:
        if not 0 <= position < len(shown.subjects):
            raise HTTPException(404, "There is no such image.")
        return shown.subjects[position]

    add_files(app, token, STATIC / "page.html", STATIC)
    add_tiles(app, token, tiles, source)

    @app.get(f"/{token}/state")
    def current() -> dict:
        return everything()

    @app.get(f"/{token}/thumbnail/{{position}}")
    def overview(position: int) -> Response:
        subject = subject_at(position)
        return read_or_refuse(subject, lambda: Response(small(position), media_type="image/jpeg", headers=KEPT))

    @app.post(f"/{token}/answer")
    def answer(given: Given) -> dict:
        if given.area is not None and given.label != 1:
            raise HTTPException(422, "Only a positive image has an area.")
        subject = subject_at(given.image)
        with journal.alone():  # until the data set is written too: of two answers the later one's is to stand
            if not shown.is_shown(given.image):
                raise InputError("This field was moved or taken away, in another window.")
            journal.give(subject, Answer(given.label, given.area))
            return state(outcome())

    @app.post(f"/{token}/comment")
    def comment(given: Comment) -> dict:
        journal.comment(subject_at(given.image), given.text.strip())
        return state(f"Comment saved in {journal.path.name}.")

    @app.post(f"/{token}/field")
    def field(given: Placed) -> dict:
        if not isinstance(shown, SlideFields):
            raise HTTPException(422, "Only slides have fields.")
        if given.replaced is not None:
            subject_at(given.replaced)
        if given.source >= len(shown.sources) or (given.region is None and given.replaced is None):
            raise HTTPException(422, "There is no such field.")
        with journal.alone():
            position = shown.place(given.source, given.region, given.replaced)
            positions[shown.subjects[position]] = position
            return everything(outcome()) | {"placed": position}

    @app.post(f"/{token}/undo")
    def undo() -> dict:
        with journal.alone():
            subject = journal.undo(positions)
            undone = {"undone": -1 if subject is None else positions[subject]}
            return (everything if isinstance(shown, SlideFields) else state)(outcome()) | undone

    return app
