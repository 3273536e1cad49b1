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

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from PIL import Image
from pydantic import BaseModel, Field

from scripts.errors import first_line
from scripts.labelling.journal import Answer, Journal
from scripts.transforms import ToRGB, load_image

__all__ = ["make_app"]

LONGEST_SIDE = 2000  # pixels of what is shown; larger images are scaled down
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
    area: float | None = Field(default=None, gt=0, le=1)


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
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        origin = request.headers.get("origin")
        same = origin is None or origin.removeprefix("http://") == request.headers.get("host")
        given = request.url.path.split("/")[1]
        if host not in LOCAL_NAMES or not same or not secrets.compare_digest(given.encode(), token.encode()):
            return PlainTextResponse("Open the address that the program has printed.", status_code=403)
        response = await answer(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @lru_cache(8)
    def picture(image: str) -> bytes:
        return _picture(folder / image)

    positions = {name: k for k, name in enumerate(images)}

    def state(message: str = "") -> dict:
        answers = {positions[name]: vars(a) for name, a in journal.answers.items() if name in positions}
        return {"title": title, "images": list(images), "answers": answers, "message": message}

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
            return JSONResponse({"detail": f"can't be read: {first_line(error)}"}, status_code=422)

    @app.post(f"/{token}/answer")
    def answer(given: Given) -> dict:
        if given.image >= len(images):
            raise HTTPException(404, "There is no such image.")
        if given.area is not None and given.label != 1:
            raise HTTPException(422, "Only a positive image has an area.")
        journal.give(images[given.image], Answer(given.label, given.area))
        return state(saved())

    @app.post(f"/{token}/undo")
    def undo() -> dict:
        image = journal.undo(positions)
        return state(saved()) | {"undone": -1 if image is None else positions[image]}

    return app


def _picture(path: Path) -> bytes:
    """PNG of an image of any kind that the bundle reads."""
    array = np.asarray(ToRGB()(load_image(path))).transpose(2, 1, 0)  # MONAI's pictures are (C, W, H)
    picture = Image.fromarray((array * 255).round().astype(np.uint8))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
