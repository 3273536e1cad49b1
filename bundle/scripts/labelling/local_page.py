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
"""What the pages have in common that the browser is shown: who may ask, files, pictures in tiles, and the program."""

from __future__ import annotations

import errno
import logging
import secrets
import signal
import socket
import sys
import threading
import webbrowser
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse

from scripts.labelling.tiles import TilesCache
from scripts.runtime.errors import InputError, first_line

__all__ = [
    "KEPT",
    "STATIC",
    "add_files",
    "add_tiles",
    "displayed",
    "listening",
    "local_app",
    "read_or_refuse",
    "run_program",
    "serve",
]

LARGEST_BODY = 4096  # bytes; an answer has a tenth of that
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


def add_files(app: FastAPI, token: str, page: Path, *folders: Path) -> None:
    """
    Let an application serve its page and what that needs.

    Args:
        app: the application.
        token: see `local_app`.
        page: file of the page.
        folders: all files of these, but for pages, under ``static``.
    """
    assets = {path.name: path for folder in folders for path in folder.iterdir() if path.suffix != ".html"}

    @app.get(f"/{token}/")
    def shown() -> Response:
        return FileResponse(page, headers={"Cache-Control": "no-store"})

    @app.get(f"/{token}/static/{{name}}")
    def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404, "There is no such file.")
        return FileResponse(assets[name], headers=KEPT)


def add_tiles(app: FastAPI, token: str, tiles: TilesCache, source: Callable[[int], tuple[Hashable, str]]) -> None:
    """
    Let an application serve pictures: the layout of their tiles, and the tiles.

    Args:
        app: the application.
        token: see `local_app`.
        tiles: of the pictures.
        source: what `tiles` knows the picture of a number by, and its name; raises `HTTPException` where there is none.
    """

    @app.get(f"/{token}/image/{{position}}")
    def image(position: int) -> Response:
        key, name = source(position)
        return read_or_refuse(name, lambda: JSONResponse(tiles.get(key).layout(), headers=KEPT))

    @app.get(f"/{token}/image/{{position}}/{{level}}/{{column}}/{{row}}")
    def tile(position: int, level: int, column: int, row: int) -> Response:
        def read() -> Response:
            content, kind = tiles.get(key).tile(level, column, row)
            return Response(content, media_type=kind, headers=KEPT)

        key, name = source(position)
        return read_or_refuse(name, read)


def read_or_refuse(name: Any, read: Callable[[], Response]) -> Response:
    """What is read of an image; or a sentence, with its name for the log, where it can't be."""
    try:
        return read()
    except IndexError as error:
        raise HTTPException(404, "There is no such tile.") from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        logger.warning(f"'{name}' can't be read ({first_line(error)}).")
        return JSONResponse({"detail": f"can't be read: {displayed(first_line(error))}"}, status_code=422)


def displayed(name: str) -> str:
    """A file's name, or a sentence with one, as text that a browser can be sent: not every name is UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def listening(host: str, port: int) -> socket.socket:
    """A socket that is open already: whoever asks while the server starts waits, and is not refused."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except socket.gaierror as error:
        raise InputError(f"--host '{host}' is no address of this computer; give 0.0.0.0 for all it has.") from error
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"--host '{host}' is no address of this computer; give 0.0.0.0 for all it has.") from error
        reason = getattr(error, "strerror", error)
        raise InputError(f"Port {port} can't be used ({reason}); give another with --port.") from error


def serve(app: FastAPI, local: socket.socket, address: str, no_browser: bool) -> None:
    """Serve an application on a socket until it is interrupted or told to end, and open its address in the browser."""
    if not no_browser:
        threading.Timer(1, webbrowser.open, [address]).start()
    for number in (signal.SIGINT, signal.SIGTERM):  # of Ctrl+C, which is how one ends this, and of `kill`
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # after which the server has ended what it was at
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[local])


def run_program(run: Callable[[Any], None], arguments: Any) -> None:
    """Run a program with its parsed arguments; what can't be used ends it with a sentence."""
    logging.basicConfig(format="%(message)s")
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    try:
        run(arguments)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: '{error.filename or 'A file'}' can't be read or written ({error.strerror or error}).")
