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

import io
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from PIL import Image
from pydantic import BaseModel, Field

from scripts.images.loading import load_preview
from scripts.labelling.journal import Answer, Journal
from scripts.runtime.errors import InputError, first_line

__all__ = ["make_app"]

LONGEST_SIDE = 2000  # pixels of what is shown; larger images are scaled down
LARGEST_BODY = 4096  # bytes; an answer has a tenth of that
PAGE = Path(__file__).parent / "static" / "page.html"
LOCAL_NAMES = ("127.0.0.1", "localhost")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
logger = logging.getLogger(__name__)


class Given(BaseModel):
    """An answer from the page."""

    image: int = Field(ge=0)
    label: Literal[0, 1] | None
    area: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)


def make_app(
    folder: Path, images: Sequence[str], journal: Journal, saved: Callable[[], str], token: str, title: str = ""
) -> FastAPI:
    """
    The application.

    Args:
        folder: of the images. Nothing outside of `images` is served.
        images: paths relative to the folder, in the order in which they are shown.
        journal: takes the answers.
        saved: called after each answer; says in a sentence where things stand.
        token: part of every address, so that no other page in the browser can guess one.
        title: shown above the images.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def only_from_here(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        # another site can make a browser ask this server, under a name of its own or from a page of its own
        host = request.headers.get("host", "")
        same = request.headers.get("origin", f"http://{host}") == f"http://{host}"
        given = request.scope["path"].split("/")[1:2]  # as it is routed: that of `request.url` has the host in it
        known = given and secrets.compare_digest(given[0].encode(errors="replace"), token.encode())
        if host.rsplit(":", 1)[0] not in LOCAL_NAMES or not same or not known:
            return PlainTextResponse("Open the address that the program has printed.", status_code=403)
        size = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers or not size.isdecimal() or int(size) > LARGEST_BODY:
            return PlainTextResponse(f"An answer has at most {LARGEST_BODY} bytes, and says how many.", status_code=413)
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
        reason = f"{journal.path.name} can't be written ({error.strerror or error})."
        return JSONResponse({"detail": reason}, status_code=507)

    @lru_cache(8)
    def picture(image: str) -> bytes:
        return _picture(folder, image)

    positions = {name: k for k, name in enumerate(images)}
    names = [displayed(name) for name in images]

    def state(message: str = "") -> dict:
        given = list(journal.answers.items())  # at once: another tab may be adding to them
        answers = {positions[name]: vars(answer) for name, answer in given if name in positions}
        return {"title": displayed(title), "images": names, "answers": answers, "message": displayed(message)}

    def outcome() -> str:
        try:
            return saved()
        except Exception as error:  # whatever it is, the answer has been saved
            logger.warning(f"The answer is saved in '{journal.path}', and nowhere else ({first_line(error)}).")
            return f"Saved in {journal.path.name}, and nowhere else ({first_line(error)})."

    @app.get(f"/{token}/", response_class=HTMLResponse)
    def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @app.get(f"/{token}/state")
    def current() -> dict:
        return state()

    @app.get(f"/{token}/image/{{position}}")
    def image(position: int) -> Response:
        if not 0 <= position < len(images):
            raise HTTPException(404, "There is no such image.")
        try:
            content = picture(images[position])
            return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})
        except Exception as error:  # a decoder may raise anything on a damaged file
            logger.warning(f"'{images[position]}' can't be read ({first_line(error)}).")
            return JSONResponse({"detail": f"can't be read: {displayed(first_line(error))}"}, status_code=422)

    @app.post(f"/{token}/answer")
    def answer(given: Given) -> dict:
        if given.image >= len(images):
            raise HTTPException(404, "There is no such image.")
        if given.area is not None and given.label != 1:
            raise HTTPException(422, "Only a positive image has an area.")
        with journal.alone():  # until the data set is written too: of two answers the later one's is to stand
            journal.give(images[given.image], Answer(given.label, given.area))
            return state(outcome())

    @app.post(f"/{token}/undo")
    def undo() -> dict:
        with journal.alone():
            image = journal.undo(positions)
            return state(outcome()) | {"undone": -1 if image is None else positions[image]}

    return app


def displayed(name: str) -> str:
    """A file's name, or a sentence with one, as text that a browser can be sent: not every name is UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def _picture(folder: Path, image: str) -> bytes:
    """PNG of an image of any kind that the bundle reads."""
    path = folder / image
    if not path.resolve().is_relative_to(folder.resolve()):  # a link that was put there after the images were listed
        raise InputError("lies outside the folder of the images")
    picture = Image.fromarray(load_preview(path, LONGEST_SIDE))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
