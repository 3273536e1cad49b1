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

"""Writing files so that an interrupted run leaves no half of one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO
from uuid import uuid4

__all__ = ["replacing", "report_written"]

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | PathLike, binary: bool = False) -> Iterator[IO]:
    """
    Open a file for writing that takes its name, or the place of an older one, only when it is complete.

    Any number of threads, processes and machines may write one path at a time: the last that is complete stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.part")
    text = {} if binary else {"newline": "", "encoding": "utf-8"}
    try:
        with temporary.open("wb" if binary else "w", **text) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def report_written(paths: Mapping[str, str | PathLike]) -> None:
    """Log where a run has put what; what it didn't write is left out."""
    for what, path in paths.items():
        if Path(path).exists():
            logger.info(f"{what}: {path}")
