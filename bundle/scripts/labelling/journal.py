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
"""The journal of answers: every answer is on disk before the next image is shown, and a crash loses none."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock

from scripts.runtime.errors import InputError

__all__ = ["Answer", "Journal", "read_answers"]

logger = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # of some network file systems


@dataclass(frozen=True)
class Answer:
    """What was said of an image. Without a label it was seen, and left undecided."""

    label: int | None
    area: float | None = None


class Journal:
    """
    Answers of one annotator, in a file to which lines are only ever added.

    The file is what counts: any number of threads and processes may hold a journal of one file, and each sees what the
    others have written before it writes.

    Args:
        path: of the file; made with the first answer. A last line that a crash has cut off, and the zeros that a power
            cut may leave in its place, are left out.

    Raises:
        InputError: when the file holds something else.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        self.answers: dict[str, Answer] = {}
        self.comments: dict[str, str] = {}
        self._undo: list[tuple[str, Answer | None]] = []
        self._size = self._lines = 0  # of the file, as far as it has been read
        self._threads = threading.RLock()
        self._processes = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        self._catch_up()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other threads and processes from the journal; `answers` is what they have left."""
        with self._threads, self._lock():
            self._catch_up()
            yield

    def give(self, image: str, answer: Answer) -> None:
        """
        Note an answer, in the place of an earlier one.

        Raises:
            OSError: when it can't be written; it is not noted then.
            InputError: when what is in the file is no longer what was read, see `undo` as well.
        """
        with self.alone():
            self._append({"image": image, **asdict(answer)})

    def comment(self, image: str, text: str) -> None:
        """Note what is said of an image, in the place of what was said before; nothing where it is empty."""
        with self.alone():
            if text != self.comments.get(image, ""):
                self._append({"image": image, "comment": text})

    def undo(self, images: Container[str]) -> str | None:
        """
        Take back the last answer that stands to one of the images; its image, or None where there is none.

        Comments stay.
        """
        with self.alone():
            for image, before in reversed(self._undo):
                if image in images:
                    self._append({"image": image, "undo": True} | ({} if before is None else asdict(before)))
                    return image
        return None

    def answer_of(self, record: Mapping[str, Any]) -> Answer:
        """An answer from its line. A subclass may have answers of its own, dataclasses with a label and an area."""
        return Answer(record["label"], record.get("area"))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._processes.acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        try:
            yield
        finally:
            self._processes.release()

    def _append(self, record: dict) -> None:
        line = json.dumps(record | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}) + "\n"
        with self.path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and not _ends_line(file):
                line = "\n" + line  # after a line that a crash has cut off
            try:
                if file.write(line.encode()) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # what is said not to be saved must not be there at the next start
                    file.truncate(size)
                raise
        self._catch_up()

    def _catch_up(self) -> None:
        """Take in what the file holds beyond what was read."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._size:
            raise InputError(f"'{self.path}' has lost answers since it was read; restore it, or start again.")
        if size == self._size:
            return
        with self.path.open("rb") as file:
            file.seek(self._size)
            added = file.read()
        for line in added.split(b"\n"):
            self._lines += 1
            self._take_in(line.strip(b"\0 \t\r"))
        self._lines -= 1  # what follows the last line break is the beginning of a line
        self._size += len(added)

    def _take_in(self, line: bytes) -> None:
        if not line:
            return
        try:
            record = json.loads(line)
        except (RecursionError, ValueError):
            record = None
        if record is None and _cut_off(line):
            logger.warning(f"Line {self._lines} of '{self.path}' was cut off by a crash, and is left out.")
            return
        try:
            self._apply(_checked(record))
        except (AttributeError, KeyError, ValueError) as error:
            raise InputError(
                f"Line {self._lines} of '{self.path}' is not an answer; remove it, or move the file away."
            ) from error

    def _apply(self, record: dict) -> None:
        image = record["image"]
        if "comment" in record:
            self.comments.pop(image, None)
            self.comments.update({image: record["comment"]} if record["comment"] else {})
            return
        if record.get("undo"):
            # a ValueError where there is none: a damaged file can't take back what was never given
            last = max(k for k, (given, _) in enumerate(self._undo) if given == image)
            del self._undo[last]
        else:
            self._undo.append((image, self.answers.get(image)))
        if "label" in record:
            self.answers[image] = self.answer_of(record)
        else:
            self.answers.pop(image, None)


def read_answers(path: str | PathLike) -> dict[str, Answer]:
    """The answers of a journal. Raises InputError when there is no such file, or it is no journal."""
    if not Path(path).is_file():
        raise InputError(f"There is no file of answers '{path}'; label under this name first, or give another.")
    return Journal(path).answers


def _ends_line(file: object) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _checked(record: dict) -> dict:
    """The record, if it is an answer, takes one back, or is a comment; ValueError otherwise."""
    undo, label, area = record.get("undo", False), record.get("label"), record.get("area")
    said = isinstance(record.get("comment"), str) and not {"undo", "label", "area"} & set(record)
    sound = isinstance(record["image"], str) and isinstance(undo, bool)
    sound &= said or ("comment" not in record and (undo or "label" in record))
    sound &= label is None or (type(label) is int and label in (0, 1))
    sound &= area is None or (label == 1 and isinstance(area, (int, float)) and 0 < area <= 1)
    if not sound:
        raise ValueError("not an answer")
    return record


def _cut_off(line: bytes) -> bool:
    """Whether it is the beginning of an answer, what a crash leaves, and not a whole one that is damaged."""
    start = b'{"image": '
    return (line.startswith(start) and not line.endswith(b'"}')) or start.startswith(line)
