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

"""The table of predictions and their page, written image by image."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events

from scripts.data.listing import COLUMNS, PARTIAL, RESULTS, TABLE, told_names
from scripts.evaluation.page import SIDE, Column, ResultsPage, View, draw_view, is_page, shown_side
from scripts.evaluation.scores import is_rough
from scripts.losses.instances import instances_of
from scripts.losses.pooling import Pooling
from scripts.runtime.command_line import typed_setting
from scripts.runtime.files import is_table, refuse_to_replace, result_name, write_rows
from scripts.runtime.values import fraction, is_number, is_whole

__all__ = ["ImageThreshold", "PredictionTable", "image_probability"]

logger = logging.getLogger(__name__)

SHOWN = 5  # names in a line of the log


class ImageThreshold:
    """
    The probability from which on an image counts as positive, and where it comes from.

    Args:
        value: itself; or ``"auto"``: what evaluation has chosen, else 0.5.
        metrics: file that an evaluation may have written.
        spatial_size: height and width of the network's images; what was chosen at another size is not used.
        model: see `used_model`; what was chosen for another model is not used.

    Raises:
        InputError: when the value is neither a fraction nor ``"auto"``.
    """

    def __init__(
        self,
        value: float | str = "auto",
        metrics: str | None = None,
        spatial_size: Sequence[int] | None = None,
        model: Mapping[str, str] | None = None,
    ) -> None:
        self.value, self.origin = 0.5, "no evaluation has chosen another"
        self.model = (model or {}).get("model", "")
        found = _read_metrics(metrics)
        other = _other(found, spatial_size, model)
        self.compared = is_number(found.get("f_pos")) and not other  # with masks
        if value == "auto":
            chosen = found.get("image_threshold")
            if is_number(chosen) and 0 <= chosen <= 1:
                if other:
                    self.origin = f"the evaluation in {metrics} {other}"
                else:
                    self.value, self.origin = float(chosen), f"chosen by the evaluation in {metrics}"
                    images = found.get("calibration_images")
                    if is_whole(images) and is_rough(images):
                        self.origin += f", roughly: on {images} images alone"
        else:
            fraction("image_threshold", value)
            self.value, self.origin = value, "as given"

    def __call__(self, probability: float) -> str:
        """``yes`` or ``no``."""
        return "yes" if probability >= self.value else "no"

    def __str__(self) -> str:
        return f"Yes: probability {self.value:.3g} or more ({self.origin})."

    def note(self, line: str, threshold: float) -> str:
        """What a page says of how its results came about, with a name for the line at such a probability."""
        said = f"{self} {line} is where the map reaches {threshold:g}, which a no may have too." + (
            f" Model: {self.model}." if self.model else ""
        )
        return said if self.compared else f"{said} On your images no evaluation has compared its outlines with masks."


def _read_metrics(metrics: str | None) -> dict[str, Any]:
    """A file of `EvaluationReport`; nothing where there is none."""
    try:
        found = json.loads(Path(metrics or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _other(found: Mapping[str, Any], spatial_size: Sequence[int] | None, model: Mapping[str, str] | None) -> str:
    """In what an evaluation is of something else, and what to do; nothing where it isn't."""
    if model and found.get("model_checksum") != model["model_checksum"]:
        if "model_checksum" in found and typed_setting("ckpt_path"):
            return "is of another model than --ckpt_path"  # as somebody wants it
        said = "is of another model" if "model_checksum" in found else "does not say of which model it is"
    elif spatial_size is not None and found.get("spatial_size") != list(spatial_size):
        said = f"is of images resized to {found.get('spatial_size')}, not {list(spatial_size)}"
    else:
        return ""
    return f"{said}: evaluate again"


class PredictionTable:
    """
    Writes ``predictions.csv`` and ``index.html`` during inference: of each image the image-level probability, whether
    it is positive, and the predicted area fraction.

    Expects ``probability`` and ``pred``, (1, H, W), in each output; and ``instances``, the superpixels, where there are
    some. In the batch ``picture``, (3, H, W) uint8, for the page; and ``tissue`` of a picture mapped in tiles. A row is
    on disk as soon as its image is done, in ``predictions.csv.part`` until all of them are. Then the results of an
    earlier run's images that are not in this one are removed: those in the folder that the earlier table has told of.

    Args:
        output_dir: folder of the table.
        pool: gives the image-level probability; the paper's generalized mean by default.
        threshold: probability from which on a pixel counts as positive, for the outlines of the page.
        is_positive: probability from which on an image is a yes; 0.5 by default.
    """

    columns: tuple[str, ...] = (*COLUMNS, "positive")
    shown: tuple[Column, ...] = (
        Column("probability", "probability", "fraction"),
        Column("positive", "yes/no", "text"),
        Column("area_fraction", "area", "percent"),
    )

    def __init__(
        self,
        output_dir: str,
        pool: Pooling | None = None,
        threshold: float = 0.5,
        is_positive: ImageThreshold | None = None,
    ) -> None:
        self.path = Path(output_dir) / TABLE
        self.partial = self.path.with_name(PARTIAL)
        self.pool = pool or Pooling()
        self.threshold = threshold
        self.is_positive = is_positive or ImageThreshold()
        note = self.is_positive.note("The outline", threshold)
        self.page = ResultsPage(self.path.with_name("index.html"), self.shown, note)
        self.earlier: set[str] = set()
        self.names: set[str] = set()
        self.large = 0  # pictures of the page

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def complete(self, engine: Engine) -> None:
        self.page.write()
        self.partial.replace(self.path)
        self._remove(self.earlier - self.names)
        logger.info(f"Written: {self.path.parent}; look at {self.page.path}. {self.is_positive}")

    def start(self, engine: Engine) -> None:
        """Raises InputError when files called as results, or the table, lie there and no table says they are some."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not (is_table(self.path, COLUMNS) or self.partial.exists()):
            called = sorted(path for path in folder.iterdir() if path.name.endswith(RESULTS))
            refuse_to_replace([*called, self.path], f"there is no {self.path.name} of an inference beside it")
        if not is_page(self.page.path):
            refuse_to_replace([self.page.path], "it has no mark of an inference")
        self.earlier = told_names(folder)
        self.names.clear()
        self.large = 0
        self.page.clear()
        self._write("w", [self.columns])

    def __call__(self, engine: Engine) -> None:
        if not engine.state.output:  # an image that can't be read
            return
        for item, source in zip(engine.state.output, engine.state.batch, strict=True):
            probability = image_probability(item, self.pool, source.get("tissue"))
            area = float(item["pred"].float().mean())
            picture, values = (np.asarray(part.cpu()) for part in (source["picture"], item["probability"]))
            side = shown_side(max(values.shape[1:]), self.large)
            self.large += side > SIDE
            # from MONAI's (C, W, H)
            view = draw_view(picture.transpose(2, 1, 0), values[0].T, self.threshold, side=side)
            meta = item["image"].meta
            self.add(meta["filename_or_obj"], probability, area, [view], results=meta.get("results"))

    def add(
        self,
        path: str,
        probability: float,
        area: float,
        views: Sequence[View],
        *more: str,
        shown: int = 0,
        results: str | None = None,
    ) -> None:
        """
        Write the row of an image, and its place in the page.

        Args:
            path: of the image.
            probability, area: of the image, and the fraction of it that is marked.
            views, shown: see `ResultsPage.add`.
            more: cells of further columns.
            results: what its results are called, if not as its file.
        """
        row = (path, f"{probability:.6g}", f"{area:.6g}", self.is_positive(probability), *more)
        self._write("a", [row])
        name = results or result_name(path)
        self.names.add(name)
        files = {
            ending[1:]: f"{name}{ending}" for ending in RESULTS if self.path.with_name(f"{name}{ending}").is_file()
        }
        cells = dict(zip(self.columns, row, strict=True))
        title = Path(path).name if results is None else f"{results}{Path(path).suffix}"
        self.page.add(title, cells, views, shown, files)

    def _remove(self, names: Iterable[str]) -> None:
        """Remove the results of these names from the folder, and say so."""
        removed = set()
        for name in sorted(names):
            for path in (self.path.with_name(f"{name}{ending}") for ending in RESULTS):
                if path.is_file():
                    path.unlink()
                    removed.add(name)
        if removed:
            told = ", ".join(sorted(removed)[:SHOWN]) + (", ..." if len(removed) > SHOWN else "")
            logger.warning(
                f"Removed from '{self.path.parent}': an earlier run's results of {len(removed)} images that are not "
                f"in this one ({told})."
            )

    def _write(self, mode: str, rows: list[tuple]) -> None:
        with self.partial.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
            write_rows(file, rows)


def image_probability(item: dict, pool: Pooling, tissue: torch.Tensor | None = None) -> float:
    """
    Pooled ``probability``, (1, H, W), of an evaluator's output; over its ``instances`` where it has some.

    Args:
        item: of the output.
        pool: that pools.
        tissue: bool, (1, H, W): pixels over which is pooled, where there are no instances; all where it is None.
    """
    superpixels = item.get("instances")
    if tissue is not None and superpixels is None:
        return float(pool(item["probability"][tissue.to(item["probability"].device)][None, None]))
    return float(pool(*instances_of(item["probability"][None], None if superpixels is None else superpixels[None])))
