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
"""
A ``dataset.json`` that the page hasn't made, and takes up: what it says stands until somebody answers otherwise.

It is kept beside ``dataset.json`` as it was, so that the file there is always this one with the answers given so far.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from scripts.labelling.journal import Answer, Subject, subject_of, written
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing

__all__ = ["KEPT", "WRITER", "GivenData", "read_content"]

WRITER = "scripts.labelling"
KEPT = "dataset-given.json"


def read_content(path: Path) -> dict[str, Any]:
    """What a ``dataset.json`` holds. Raises InputError where that is no object in JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, RecursionError, ValueError) as error:
        raise InputError(
            f"'{path}' is no data set of this program, or is damaged ({first_line(error)}); move it away first."
        ) from error
    return content


class GivenData:
    """
    Items, splits and whatever else there is in a data set that is taken up.

    Args:
        path: where it is, `KEPT` or ``dataset.json``.
        content: of it.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self._content = path, content
        self._items: dict[Subject, list[dict[str, Any]]] = {}  # which may be listed more than once
        for items in self._splits().values():
            for item in items:
                subject = self._subject(item)
                if subject is not None:
                    self._items.setdefault(subject, []).append(item)

    @classmethod
    def find(cls, path: Path) -> GivenData | None:
        """
        What is taken up where the page is to write; None where it makes a data set of its own.

        Args:
            path: of ``dataset.json``.

        Raises:
            InputError: when there is something else than a data set.
        """
        kept = path.with_name(KEPT)
        if path.exists():
            content = read_content(path)
            if content.get("written_by") != WRITER:
                given = cls(path, content)
                if not given.subjects():
                    raise InputError(
                        f"'{path}' was not written by this page, which would replace it, and lists no image to label; "
                        "move it away first."
                    )
                return given
        return cls(kept, read_content(kept)) if kept.exists() else None

    def keep(self) -> None:
        """Keep it, where that hasn't been done, before ``dataset.json`` is replaced."""
        if self.path.name != KEPT:
            with replacing(self.path.with_name(KEPT), binary=True) as file:
                file.write(self.path.read_bytes())

    @property
    def writer(self) -> str | None:
        """The program that has written it, if it says so."""
        return self._content.get("written_by")

    def subjects(self) -> list[Subject]:
        """Images and fields that can be labelled: those in the folder whose label isn't a mask, as they are listed."""
        return list(self._items)

    def elsewhere(self) -> int:
        """The number of all others."""
        return sum(map(len, self._splits().values())) - sum(map(len, self._items.values()))

    def answers(self) -> dict[Subject, Answer]:
        """What it says of them; a positive one without an area is one of which that is to be asked."""
        return {subject: answer for subject, items in self._items.items() if (answer := _said(items[0])) is not None}

    def updated(
        self, answers: Mapping[Subject, Answer], removed: Collection[Subject] = (), groups: Mapping[str, str] = {}
    ) -> dict[str, Any]:
        """
        All of it, with what has been answered.

        An item whose answer is that nobody knows is excluded. What it hasn't got is in the split of its group, or else
        for training.

        Args:
            answers: of images and fields.
            removed: fields that have been taken away.
            groups: of images that it hasn't got; each its own where it is left out.
        """
        splits: dict[str, list] = {}
        split_of: dict[str, str] = {}
        group_of: dict[str, Any] = {}
        for split, items in self._splits().items():
            splits[split] = []
            for item in items:
                subject = self._subject(item)
                if subject is not None and item.get("group") is not None:
                    split_of.setdefault(str(item["group"]), split)
                    group_of.setdefault(written(subject)["image"], item["group"])
                if subject is None or subject not in removed:
                    splits[split].append(_answered(item, answers[subject]) if subject in answers else item)
        for subject, answer in answers.items():
            if subject in self._items or answer.label is None:
                continue
            part = {key: value for key, value in written(subject).items() if value is not None}
            group = group_of.get(part["image"], groups.get(part["image"], part["image"]))
            split = splits.setdefault(split_of.get(str(group), "training"), [])
            split.append(_answered(part | {"group": group}, answer))
        return self._content | {"written_by": WRITER} | splits

    def _splits(self) -> dict[str, list]:
        return {name: items for name, items in self._content.items() if isinstance(items, list)}

    def _subject(self, item: Any) -> Subject | None:
        """The item's image or field, if it is one that can be labelled."""
        if not isinstance(item, dict) or not isinstance(item.get("image"), str) or isinstance(item.get("label"), str):
            return None
        image = Path(os.path.relpath(self.path.parent / item["image"], self.path.parent)).as_posix()
        if image.startswith("../"):
            return None
        part = {key: item[key] for key in ("region", "mpp") if key in item}
        try:
            return subject_of({"image": image} | part)
        except (KeyError, TypeError, ValueError):
            return None


def _said(item: Mapping[str, Any]) -> Answer | None:
    label, area = item.get("label"), item.get("area")
    if item.get("excluded") is True:
        return Answer(None)
    if type(label) is not int or label not in (0, 1):
        return None
    known = label == 1 and isinstance(area, (int, float)) and 0 < area <= 1
    return Answer(label, area if known else None)


def _answered(item: dict[str, Any], answer: Answer) -> dict[str, Any]:
    if answer.label is None:
        return item | {"excluded": True}
    kept = {key: value for key, value in item.items() if key not in ("label", "area", "excluded")}
    return kept | {"label": answer.label} | ({} if answer.area is None else {"area": answer.area})
