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

import json
import os
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path

from scripts.errors import InputError

__all__ = ["Answer", "Journal", "read_answers"]


@dataclass(frozen=True)
class Answer:
    """What was said of an image. Without a label it was seen, and left undecided."""

    label: int | None
    area: float | None = None


class Journal:
    """
    Answers of one annotator, in a file to which lines are only ever added.

    Args:
        path: of the file; made with the first answer. A last line that a crash has cut off is left out.

    Raises:
        InputError: when the file holds something else.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.path = Path(path)
        self.answers: dict[str, Answer] = {}
        self._undo: list[tuple[str, Answer | None]] = []
        for record in _records(self.path):
            self._apply(record)

    def give(self, image: str, answer: Answer) -> None:
        """Note an answer, in the place of an earlier one."""
        self._append({"image": image, **asdict(answer)})

    def undo(self, images: Container[str]) -> str | None:
        """Take back the last answer that stands to one of the images; its image, or None where there is none."""
        for image, before in reversed(self._undo):
            if image in images:
                self._append({"image": image, "undo": True} | ({} if before is None else asdict(before)))
                return image
        return None

    def _append(self, record: dict) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_line(file):
                line = "\n" + line  # after a line that a crash has cut off
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._apply(record)

    def _apply(self, record: dict) -> None:
        image, known = record["image"], "label" in record
        if record.get("undo"):
            last = max(k for k, (given, _) in enumerate(self._undo) if given == image)
            del self._undo[last]
        else:
            self._undo.append((image, self.answers.get(image)))
        if known:
            self.answers[image] = Answer(record["label"], record.get("area"))
        else:
            self.answers.pop(image, None)


def read_answers(path: str | PathLike) -> dict[str, Answer]:
    """The answers of a journal. Raises InputError when there is no such file, or it is no journal."""
    if not Path(path).is_file():
        raise InputError(f"There are no answers '{path}'; label with this name first, or give another.")
    return Journal(path).answers


def _ends_line(file: object) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _records(path: Path) -> Iterator[dict]:
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    given: Counter[str] = Counter()  # so that a damaged file can't take back what was never given
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            given[record["image"]] += -1 if record.get("undo") else 1
            sound = isinstance(record["image"], str) and given[record["image"]] >= 0
            sound &= record.get("label") in (None, 0, 1)
        except (AttributeError, KeyError, TypeError, ValueError):
            record, sound = None, False
        if sound:
            yield record
        elif record is not None or not _cut_off(line):
            raise InputError(f"Line {number} of '{path}' is not an answer; remove it, or move the file away.")


def _cut_off(line: bytes) -> bool:
    """Whether it is the beginning of an answer: what a crash leaves."""
    start = b'{"image": '
    return line.startswith(start) or start.startswith(line)
