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
from pydantic import BaseModel, Field

from scripts.labelling.journal import Answer, Journal
from scripts.labelling.tiles import PictureTiles, TilesCache, thumbnail
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
    folder: Path,
    images: Sequence[str],
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
        folder: of the images. Nothing outside of `images` is served.
        images: paths relative to the folder, in the order in which they are shown.
        journal: takes the answers.
        saved: called after each answer; says in a sentence where things stand.
        token, is_local: see `local_app`.
        title: shown above the images.
        hide_names: whether the page learns numbers in the place of the images' names.
    """
    app = local_app(token, journal.path.name, is_local)
    tiles = TilesCache(lambda image: PictureTiles(_inside(folder, image)))
    small = lru_cache(2048)(lambda image: thumbnail(_inside(folder, image)))
    positions = {name: k for k, name in enumerate(images)}
    names = [f"Image {k}" if hide_names else displayed(name) for k, name in enumerate(images, start=1)]

    def state(message: str = "") -> dict:
        given, said = list(journal.answers.items()), list(journal.comments.items())  # at once: others may be adding
        answers = {positions[name]: vars(answer) for name, answer in given if name in positions}
        comments = {positions[name]: displayed(text) for name, text in said if name in positions}
        return {"answers": answers, "comments": comments, "message": displayed(message)}

    def outcome() -> str:
        try:
            return saved()
        except Exception as error:  # whatever it is, the answer has been saved
            logger.warning(f"The answer is saved in '{journal.path}', and nowhere else ({first_line(error)}).")
            return f"Saved in {journal.path.name}, and nowhere else ({first_line(error)})."

    def shown(position: int, read: Callable[[str], Response | dict]) -> Response | dict:
        """What is read of an image; a sentence where there is none, or it can't be read."""
        if not 0 <= position < len(images):
            raise HTTPException(404, "There is no such image.")
        try:
            return read(images[position])
        except IndexError as error:
            raise HTTPException(404, "There is no such tile.") from error
        except Exception as error:  # a decoder may raise anything on a damaged file
            logger.warning(f"'{images[position]}' can't be read ({first_line(error)}).")
            return JSONResponse({"detail": f"can't be read: {displayed(first_line(error))}"}, status_code=422)

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
        return {"title": displayed(title), "images": names} | state()

    @app.get(f"/{token}/image/{{position}}")
    def image(position: int) -> Response:
        return shown(position, lambda name: JSONResponse(tiles.get(name).layout(), headers=KEPT))

    @app.get(f"/{token}/image/{{position}}/{{level}}/{{column}}/{{row}}")
    def tile(position: int, level: int, column: int, row: int) -> Response:
        def read(name: str) -> Response:
            content, kind = tiles.get(name).tile(level, column, row)
            return Response(content, media_type=kind, headers=KEPT)

        return shown(position, read)

    @app.get(f"/{token}/thumbnail/{{position}}")
    def overview(position: int) -> Response:
        return shown(position, lambda name: Response(small(name), media_type="image/jpeg", headers=KEPT))

    @app.post(f"/{token}/answer")
    def answer(given: Given) -> dict:
        if given.image >= len(images):
            raise HTTPException(404, "There is no such image.")
        if given.area is not None and given.label != 1:
            raise HTTPException(422, "Only a positive image has an area.")
        with journal.alone():  # until the data set is written too: of two answers the later one's is to stand
            journal.give(images[given.image], Answer(given.label, given.area))
            return state(outcome())

    @app.post(f"/{token}/comment")
    def comment(given: Comment) -> dict:
        if given.image >= len(images):
            raise HTTPException(404, "There is no such image.")
        journal.comment(images[given.image], given.text.strip())
        return state(f"Comment saved in {journal.path.name}.")

    @app.post(f"/{token}/undo")
    def undo() -> dict:
        with journal.alone():
            image = journal.undo(positions)
            return state(outcome()) | {"undone": -1 if image is None else positions[image]}

    return app


def displayed(name: str) -> str:
    """A file's name, or a sentence with one, as text that a browser can be sent: not every name is UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _inside(folder: Path, image: str) -> Path:
    """The image's path. Raises InputError for a link out of the folder, put there after the images were listed."""
    path = folder / image
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError("lies outside the folder of the images")
    return path
