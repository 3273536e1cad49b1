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

"""What a model says of the images of a data set, kept in a folder for their review."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha1
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from scripts.data.datalist import data_error, read_splits
from scripts.data.listing import ImageList
from scripts.evaluation.page import draw_view
from scripts.evaluation.predictions import image_probability
from scripts.images.slide_parts import PART_KEYS, item_name
from scripts.losses.pooling import Pooling
from scripts.review.doubt import Finding, outline_entropy
from scripts.review.record import FINDINGS, record_of
from scripts.runtime.errors import InputError, first_line
from scripts.runtime.files import replacing

__all__ = ["Findings", "FindingsWriter", "list_items", "read_findings", "reviewed_name", "view_path"]

VIEWS = "views"
SIDE = 720  # pixels of the longer side of an outline and a map, as they are shown


@dataclass(frozen=True)
class Findings:
    """Of one model."""

    made: str
    """When, as ISO 8601: what tells one round of a review from another."""
    of: Mapping[str, Finding]
    """By the names of the items."""
    sizes: Mapping[str, tuple[int, int]]
    """Width and height of their pictures."""


def reviewed_name(item: Mapping[str, Any], folder: Path) -> str:
    """
    What an item is called in a review: its image's path from the folder on, or the name of its part of a slide.

    Args:
        item: as it is in the file of the data set, or with an absolute path.
        folder: of the data set, absolute where that is.

    Examples:
        >>> reviewed_name({"image": "a.svs", "region": [0, 0, 9, 9], "label": 1}, Path("data"))
        'a_x0_y0_w9_h9.svs'
    """
    return item_name({**item, "image": str(folder / item["image"])}).removeprefix(f"{folder}/")


def list_items(dataset_dir: str | PathLike, allow_outside: bool = False) -> ImageList:
    """
    The images of a data set to be reviewed, of all its splits but ``test``; each with its ``name``.

    Raises:
        InputError: when the file is none, or says what it must not.
    """
    path, splits, problems = read_splits(Path(dataset_dir).absolute(), (), allow_outside)  # see `reviewed_name`
    if problems:
        raise data_error(path, problems)
    found = ImageList()
    for split, items in splits.items():
        for item in items if split != "test" else ():
            if isinstance(item, dict) and isinstance(item.get("image"), str):
                which = {key: item[key] for key in ("image", *PART_KEYS) if key in item}
                found.append(which | {"name": reviewed_name(item, path.parent)})
    if not found:
        raise InputError(f"There is no image to review in '{path}'.")
    return found


class FindingsWriter:
    """
    Writes what a model says of each image during inference, for `read_findings`, and its outline and map to be shown.

    Expects in each output ``probability``, (1, W, H), and in the batch ``picture`` and ``name``. What there is of
    earlier findings is removed at the start: of a run that is cut off nothing is taken for theirs.

    Args:
        output_dir: folder of the findings.
        ckpt_path: checkpoint of the model, for the record of the findings, see `record_of`.
        pool: gives the image-level probability; the paper's generalized mean by default.
        threshold: probability from which on a pixel counts as positive.
    """

    def __init__(self, output_dir: str, ckpt_path: str, pool: Pooling | None = None, threshold: float = 0.5) -> None:
        self.folder = Path(output_dir)
        self.ckpt_path = ckpt_path
        self.pool = pool or Pooling()
        self.threshold = threshold
        self._images: dict[str, dict[str, Any]] = {}
        self._made = ""
        self._record: dict[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def start(self, engine: Engine) -> None:
        self._images.clear()
        self._made = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._record = record_of(sys.argv[1:], self.ckpt_path)  # now: what changes until the end isn't what is seen
        for path in (self.folder / FINDINGS, *(self.folder / VIEWS).glob("*.json")):
            path.unlink(missing_ok=True)

    def __call__(self, engine: Engine) -> None:
        if not engine.state.output:  # an image that can't be read
            return
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            name = source["name"]
            values = np.asarray(item["probability"].cpu())[0].T  # from MONAI's (C, W, H)
            picture = np.asarray(source["picture"].cpu()).transpose(2, 1, 0)
            finding = Finding(
                image_probability(item, self.pool),
                float((values >= self.threshold).mean()),
                outline_entropy(values, self.threshold),
            )
            self._images[name] = asdict(finding) | {"width": values.shape[1], "height": values.shape[0]}
            view = draw_view(picture, values, self.threshold, side=SIDE)
            with replacing(view_path(self.folder, self._made, name)) as file:
                json.dump(
                    {"width": view.width, "height": view.height, "outline": view.outline, "heat": view.heat}, file
                )

    def complete(self, engine: Engine) -> None:
        with replacing(self.folder / FINDINGS) as file:
            json.dump({"made": self._made, "record": self._record, "images": self._images}, file, indent=1)


def view_path(folder: Path, made: str, name: str) -> Path:
    """The file of an item's outline and map, another in each round: an open page shows none of a later one."""
    return folder / VIEWS / f"{sha1(f'{made} {name}'.encode(errors='surrogatepass')).hexdigest()[:16]}.json"


def read_findings(folder: Path) -> Findings:
    """
    What `FindingsWriter` has written.

    Raises:
        InputError: when there is no such file, or it is none.
    """
    path = folder / FINDINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = content["images"].items()
        found = {n: Finding(*(float(i[key]) for key in ("probability", "area", "outline"))) for n, i in images}
        sizes = {name: (int(image["width"]), int(image["height"])) for name, image in images}
        return Findings(str(content["made"]), found, sizes)
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' can't be read ({first_line(error)}); cdws review RUN DATA writes it.") from error
