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

"""The table of predictions, written image by image."""

from __future__ import annotations

import logging
from pathlib import Path

from ignite.engine import Engine, Events

from scripts.losses.instances import instances_of
from scripts.losses.pooling import Pooling
from scripts.runtime.files import is_table, refuse_to_replace, write_rows

__all__ = ["PredictionTable", "image_probability"]

logger = logging.getLogger(__name__)

RESULTS = tuple(
    f"_{kind}{suffix}" for kind in ("mask", "probability", "overlay") for suffix in (".png", ".nii.gz", ".dcm")
)


class PredictionTable:
    """
    Writes ``predictions.csv`` during inference: image, image-level probability, predicted area fraction.

    Expects ``probability`` and ``pred``, (1, H, W), in each output; and ``instances``, the superpixels, where there are
    some. A row is on disk as soon as its image is done, in ``predictions.csv.part`` until all of them are.

    Args:
        output_dir: folder of the table.
        pool: gives the image-level probability; the paper's generalized mean by default.
    """

    columns = ("image", "probability", "area_fraction")

    def __init__(self, output_dir: str, pool: Pooling | None = None) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.partial = self.path.with_name(f"{self.path.name}.part")
        self.pool = pool or Pooling()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.complete)

    def complete(self, engine: Engine) -> None:
        self.partial.replace(self.path)
        logger.info(f"Written: {self.path.parent}")

    def start(self, engine: Engine) -> None:
        """Raises InputError when files called as results, or the table, lie there and no table says they are some."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        if not (is_table(self.path, PredictionTable.columns) or self.partial.exists()):
            called = sorted(path for path in folder.iterdir() if path.name.endswith(RESULTS))
            refuse_to_replace([*called, self.path], f"there is no {self.path.name} of an inference beside it")
        self._write("w", [self.columns])

    def __call__(self, engine: Engine) -> None:
        rows = []
        for item in engine.state.output:
            probability = image_probability(item, self.pool)
            area = float(item["pred"].float().mean())
            rows.append((item["image"].meta["filename_or_obj"], f"{probability:.6g}", f"{area:.6g}"))
        self._write("a", rows)

    def _write(self, mode: str, rows: list[tuple]) -> None:
        with self.partial.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
            write_rows(file, rows)


def image_probability(item: dict, pool: Pooling) -> float:
    """Pooled ``probability``, (1, H, W), of an evaluator's output; over its ``instances`` where it has some."""
    superpixels = item.get("instances")
    return float(pool(*instances_of(item["probability"][None], None if superpixels is None else superpixels[None])))
