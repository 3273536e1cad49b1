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
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

from filelock import FileLock

from scripts.runtime.errors import InputError

__all__ = ["ANSWERS", "Answer", "Field", "Journal", "Subject", "place_of", "read_answers", "subject_of", "written"]

logger = logging.getLogger(__name__)
ANSWERS = "labels.jsonl"  # without an annotator's name
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # of some network file systems


@dataclass(frozen=True)
class Answer:
    """What was said of an image, or a field. Without a label it was seen, and left undecided."""

    label: int | None
    area: float | None = None


@dataclass(frozen=True)
class Field:
    """
    A part of a slide that is labelled, as an item of ``dataset.json`` has it.

    Args:
        image: path of the slide, relative to the folder.
        region: left, top, width and height in pixels of level 0; the whole slide where None.
        mpp: micrometres per pixel at which it is to be read; level 0 as it is where None.
    """

    image: str
    region: tuple[int, int, int, int] | None = None
    mpp: float | None = None


Subject = str | Field  # a picture, by its path, or a part of a slide


def written(subject: Subject) -> dict[str, Any]:
    """A picture, or a field, as the keys of JSON that say which."""
    if isinstance(subject, str):
        return {"image": subject}
    region = {} if subject.region is None else {"region": list(subject.region)}
    return {"image": subject.image} | region | {"mpp": subject.mpp}


def place_of(subject: Subject) -> tuple:
    """By which pictures and fields are sorted."""
    part = written(subject)
    return part["image"], part.get("region") or [], part.get("mpp") or 0


def subject_of(record: Mapping[str, Any]) -> Subject:
    """What `written` has written. Raises ValueError, KeyError or TypeError where it is nothing like that."""
    image, region, mpp = record["image"], record.get("region"), record.get("mpp")
    if not isinstance(image, str):
        raise ValueError("no path")
    if "region" not in record and "mpp" not in record:
        return image
    _check_region(region)
    if mpp is not None and (isinstance(mpp, bool) or not 0 < float(mpp) < float("inf")):
        raise ValueError("no resolution")
    return Field(image, None if region is None else tuple(region), mpp)


def _check_region(region: Any) -> None:
    """ValueError where it is neither None nor four whole numbers that a region can have."""
    if region is not None:
        whole = isinstance(region, list) and len(region) == 4 and all(type(value) is int for value in region)
        if not whole or min(region[:2]) < 0 or min(region[2:]) < 1:
            raise ValueError("no region")


@dataclass(frozen=True)
class _Step:
    """What an undo takes back: an answer, or, with `change`, the placing of a field in the place of another."""

    subject: Subject | None
    before: Answer | None = None
    change: bool = False
    replaced: Subject | None = None


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
        self.answers: dict[Subject, Answer] = {}
        self.comments: dict[Subject, str] = {}
        self.placed: dict[Field, bool] = {}  # fields that were drawn, or moved to a place; False: taken away
        self._undo: list[_Step] = []
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

    def give(self, subject: Subject, answer: Answer) -> None:
        """
        Note an answer, in the place of an earlier one.

        Raises:
            OSError: when it can't be written; it is not noted then.
            InputError: when what is in the file is no longer what was read, see `undo` as well.
        """
        with self.alone():
            self._append(written(subject) | asdict(answer))

    def comment(self, subject: Subject, text: str) -> None:
        """Note what is said of an image, in the place of what was said before; nothing where it is empty."""
        with self.alone():
            if text != self.comments.get(subject, ""):
                self._append(written(subject) | {"comment": text})

    def place(self, field: Field | None, replaced: Field | None = None) -> None:
        """
        Note a field that was drawn, or moved; or taken away.

        Args:
            field: where it is now; None where it was taken away.
            replaced: where it was; it is shown no longer, and its answer, which was of another place, stands no longer.
        """
        with self.alone():
            known = written(field if field is not None else replaced)
            region = None if field is None else list(field.region)
            self._append(known | {"region": region, "replaces": None if replaced is None else list(replaced.region)})

    def taken_away(self) -> list[Field]:
        """Fields that were shown once, and are no longer."""
        return [field for field, is_there in self.placed.items() if not is_there]

    def undo(self, subjects: Container[Subject]) -> Subject | None:
        """
        Take back the last answer, or placing of a field, that stands to one of the images or fields; which that is,
        None where there is none. Of a placing it is where the field was before, if it was. Comments stay.
        """
        with self.alone():
            for step in reversed(self._undo):
                if step.change and (step.subject in subjects or step.replaced in subjects):
                    known = written(step.subject or step.replaced)
                    region = None if step.subject is None else list(step.subject.region)
                    replaces = None if step.replaced is None else list(step.replaced.region)
                    self._append(known | {"region": region, "replaces": replaces, "undo": True})
                    return step.replaced or step.subject
                if not step.change and step.subject in subjects:
                    self._append(
                        written(step.subject) | {"undo": True} | ({} if step.before is None else asdict(step.before))
                    )
                    return step.subject
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
        line = json.dumps(record | {"time": datetime.now(UTC).isoformat(timespec="seconds")}) + "\n"
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
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"Line {self._lines} of '{self.path}' is not an answer; remove it, or move the file away."
            ) from error

    def _apply(self, record: dict) -> None:
        if "replaces" in record:
            self._apply_change(record)
            return
        subject = subject_of(record)
        if "comment" in record:
            self.comments.pop(subject, None)
            self.comments.update({subject: record["comment"]} if record["comment"] else {})
            return
        if record.get("undo"):
            self._take_step(lambda step: not step.change and step.subject == subject)
        else:
            self._undo.append(_Step(subject, self.answers.get(subject)))
        if "label" in record:
            self.answers[subject] = self.answer_of(record)
        else:
            self.answers.pop(subject, None)

    def _apply_change(self, record: dict) -> None:
        places = [record["region"], record["replaces"]]
        for region in places:
            _check_region(region)
        field, replaced = (
            None if region is None else subject_of({"image": record["image"], "region": region, "mpp": record["mpp"]})
            for region in places
        )
        if field is None and replaced is None:
            raise ValueError("no field")
        if record.get("undo"):
            step = self._take_step(lambda step: step.change and (step.subject, step.replaced) == (field, replaced))
            if field is not None:
                self.placed[field] = False
            if replaced is not None:
                self.placed[replaced] = True
                self.answers.update({} if step.before is None else {replaced: step.before})
            return
        self._undo.append(_Step(field, self.answers.pop(replaced, None), True, replaced))
        if replaced is not None:
            self.placed[replaced] = False
        if field is not None:
            self.placed[field] = True

    def _take_step(self, fits: Callable[[_Step], bool]) -> _Step:
        # a ValueError where there is none: a damaged file can't take back what was never given
        return self._undo.pop(max(k for k, step in enumerate(self._undo) if fits(step)))


def read_answers(path: str | PathLike) -> dict[Subject, Answer]:
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
    kinds = [name in record for name in ("label", "comment", "replaces")]
    sound = isinstance(record["image"], str) and isinstance(undo, bool)
    sound &= sum(kinds) == 1 or (undo and not any(kinds))
    sound &= "comment" not in record or (isinstance(record["comment"], str) and not undo and area is None)
    sound &= label is None or (type(label) is int and label in (0, 1))
    sound &= area is None or (label == 1 and isinstance(area, (int, float)) and 0 < area <= 1)
    if not sound:
        raise ValueError("not an answer")
    return record


def _cut_off(line: bytes) -> bool:
    """Whether it is the beginning of an answer, what a crash leaves, and not a whole one that is damaged."""
    start = b'{"image": '
    return (line.startswith(start) and not line.endswith(b'"}')) or start.startswith(line)
