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
"""The page's server: images of one folder, and answers to them, for the browser on this machine alone."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field, StrictInt

from scripts.labelling.journal import Answer, Journal, Subject
from scripts.labelling.subjects import Pictures, SlideFields
from scripts.labelling.tiles import TilesCache
from scripts.runtime.errors import InputError, first_line

__all__ = ["KEPT", "displayed", "local_app", "make_app"]

LARGEST_BODY = 4096  # bytes; an answer has a tenth of that
LONGEST_COMMENT = 600  # characters, of up to six bytes each
STATIC = Path(__file__).parent / "static"
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
KEPT = {"Cache-Control": "private, max-age=3600"}  # of what doesn't change under an address, which has the token in it
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


def local_app(token: str, writes: str, is_local: bool = True, largest_body: int = LARGEST_BODY) -> FastAPI:
    """
    An application that answers only those who have its address, and says in a sentence what it refuses.

    Args:
        token: part of every address, so that no other page in the browser, and nobody else, can guess one.
        writes: name of the file into which answers are written.
        is_local: whether it answers only under this computer's own names.
        largest_body: bytes of a request, at most.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def only_from_here(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        # another site can make a browser ask this server, under a name of its own or from a page of its own
        host = request.headers.get("host", "")
        origin = request.headers.get("origin", f"http://{host}")
        same = origin == f"http://{host}" or (origin == f"https://{host}" and not is_local)  # behind a proxy
        named = not is_local or host.rsplit(":", 1)[0] in LOCAL_NAMES
        given = request.scope["path"].split("/")[1:2]  # as it is routed: that of `request.url` has the host in it
        known = given and secrets.compare_digest(given[0].encode(errors="replace"), token.encode())
        if not named or not same or not known:
            return PlainTextResponse("Open the address that the program has printed.", status_code=403)
        size = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not size.isdecimal() or int(size) > largest_body:
            return PlainTextResponse(f"An answer has at most {largest_body} bytes, and says how many.", status_code=413)
        response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(RequestValidationError)
    def not_an_answer(request: Request, error: RequestValidationError) -> JSONResponse:
        # what was sent is not repeated: it may be nothing that JSON can say, such as NaN
        problems = "; ".join(f"{'.'.join(map(str, p['loc'][1:])) or 'answer'}: {p['msg']}" for p in error.errors())
        return JSONResponse({"detail": f"This is no answer ({problems})."}, status_code=422)

    @app.exception_handler(InputError)
    def refused(request: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"detail": displayed(str(error))}, status_code=409)

    @app.exception_handler(OSError)
    def not_written(request: Request, error: OSError) -> JSONResponse:
        reason = f"{writes} can't be written ({error.strerror or error})."
        return JSONResponse({"detail": reason}, status_code=507)

    return app


def make_app(
    shown: Pictures | SlideFields,
    journal: Journal,
    saved: Callable[[], str],
    token: str,
    title: str = "",
    hide_names: bool = False,
    is_local: bool = True,
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
    """
    app = local_app(token, journal.path.name, is_local)
    tiles = TilesCache(shown.open)
    small = lru_cache(2048)(shown.thumbnail)
    name_of = shown.hidden_name if hide_names else shown.name
    positions = {subject: k for k, subject in enumerate(shown.subjects)}

    def state(message: str = "") -> dict:
        given, said = list(journal.answers.items()), list(journal.comments.items())  # at once: others may be adding
        answers = {positions[subject]: vars(answer) for subject, answer in given if subject in positions}
        comments = {positions[subject]: displayed(text) for subject, text in said if subject in positions}
        return {"answers": answers, "comments": comments, "message": displayed(message)}

    def everything(message: str = "") -> dict:
        count = range(len(shown.subjects))
        return {
            "title": displayed(title),
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

    def read(kind: Sequence, position: int, reading: Callable[[int], Response]) -> Response:
        """What is read of a subject, or a source; a sentence where there is none, or it can't be read."""
        if not 0 <= position < len(kind):
            raise HTTPException(404, "There is no such image.")
        try:
            return reading(position)
        except IndexError as error:
            raise HTTPException(404, "There is no such tile.") from error
        except Exception as error:  # a decoder may raise anything on a damaged file
            logger.warning(f"'{kind[position]}' can't be read ({first_line(error)}).")
            return JSONResponse({"detail": f"can't be read: {displayed(first_line(error))}"}, status_code=422)

    def subject_at(position: int) -> Subject:
        if position >= len(shown.subjects):
            raise HTTPException(404, "There is no such image.")
        return shown.subjects[position]

    @app.get(f"/{token}/")
    def page() -> Response:
        return FileResponse(STATIC / "page.html", headers={"Cache-Control": "no-store"})

    assets = {path.name: path for path in STATIC.iterdir() if path.name != "page.html"}

    @app.get(f"/{token}/static/{{name}}")
    def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(assets[name], headers=KEPT)

    @app.get(f"/{token}/state")
    def current() -> dict:
        return everything()

    @app.get(f"/{token}/image/{{source}}")
    def image(source: int) -> Response:
        return read(shown.sources, source, lambda k: JSONResponse(tiles.get(k).layout(), headers=KEPT))

    @app.get(f"/{token}/image/{{source}}/{{level}}/{{column}}/{{row}}")
    def tile(source: int, level: int, column: int, row: int) -> Response:
        def found(source: int) -> Response:
            content, kind = tiles.get(source).tile(level, column, row)
            return Response(content, media_type=kind, headers=KEPT)

        return read(shown.sources, source, found)

    @app.get(f"/{token}/thumbnail/{{position}}")
    def overview(position: int) -> Response:
        return read(shown.subjects, position, lambda k: Response(small(k), media_type="image/jpeg", headers=KEPT))

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


def displayed(name: str) -> str:
    """A file's name, or a sentence with one, as text that a browser can be sent: not every name is UTF-8."""
    return name.encode(errors="backslashreplace").decode()
