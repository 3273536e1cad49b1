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


"""What an inference writes of slides once their maps are there: other formats, a picture, a record, table and page."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from scripts.evaluation.page import Column, ResultsPage, View, draw_view, is_page
from scripts.evaluation.predictions import ImageThreshold
from scripts.images.outline import OutlineOverlay
from scripts.images.slide import SlideView
from scripts.runtime.errors import first_line, lack_of
from scripts.runtime.files import is_table, refuse_to_replace, replacing, write_rows
from scripts.slides.listing import MAPS, SEGMENTATION
from scripts.slides.ome_zarr import require_zarr, write_ome_zarr
from scripts.slides.segmentation import write_slide_segmentations

__all__ = ["ResultsFolder", "SlideResult", "thumbnail"]

logger = logging.getLogger(__name__)
THUMBNAIL_SIDE = 1024  # pixels
TABLE = "slides.csv"
PAGE = "index.html"
SHOWN_SIDE = 640  # pixels of the longer side of a slide in the page
COLUMNS = (
    Column("probability", "probability", "fraction"),
    Column("positive", "yes/no", "text"),
    Column("area_mm2", "mm\N{SUPERSCRIPT TWO}", "number"),
    Column("fraction_of_tissue", "of the tissue", "percent"),
    Column("regions", "regions", "number"),
    Column("pen", "left out: pen", "percent"),
    Column("blur", "left out: blur", "percent"),
)
ZARRS = {kind: f"_{kind}.ome.zarr" for kind in MAPS}
THUMBNAIL = "_thumbnail.png"
FILES = (".geojson", *MAPS.values(), THUMBNAIL)  # of every slide, beside its record
ENDINGS = (".json", *FILES, SEGMENTATION, *ZARRS.values())  # of a slide's results


@dataclass(frozen=True)
class SlideResult:
    """A row of ``slides.csv``. What is not known, as without tissue, is None, and empty in the table."""

    slide: str
    probability: float | None
    area_mm2: float
    tissue_mm2: float
    fraction_of_tissue: float | None
    regions: int
    width: int  # of the map in pixels
    height: int
    mpp_x: float  # of the map
    mpp_y: float
    pen: float | None = None  # of what looked like tissue, the part that was left out
    blur: float | None = None


class ResultsFolder:
    """
    The folder of an inference's results, in which each slide has a record once it is finished.

    Args:
        folder: of the results.
        names: of the slides, in the order of the table.
        threshold: probability from which on a pixel counts as cancer.
        is_positive: whether a slide is a yes.
        class_name: of the segment in DICOM.
        ome_zarr: whether both maps are written as OME-Zarr as well.

    Raises:
        InputError: when zarr, which is asked for, is not installed.
    """

    def __init__(
        self,
        folder: str | PathLike,
        names: Sequence[str],
        threshold: float,
        is_positive: ImageThreshold,
        class_name: str,
        ome_zarr: bool,
    ) -> None:
        if ome_zarr:
            require_zarr()
        self.folder, self.names = Path(folder), list(names)
        self.threshold, self.is_positive = threshold, is_positive
        self.class_name, self.ome_zarr = class_name, ome_zarr

    @property
    def page(self) -> Path:
        """Path of the page of all slides."""
        return self.folder / PAGE

    def path(self, name: str, ending: str) -> Path:
        """Path of one of a slide's results, by its ending."""
        return self.folder / f"{name}{ending}"

    def refuse_others_files(self) -> None:
        """Raises InputError for a table or a page of somebody else."""
        if not is_table(self.folder / TABLE, [field.name for field in fields(SlideResult)][:2]):
            refuse_to_replace([self.folder / TABLE], "it doesn't begin like a table of results")
        if not is_page(self.page):
            refuse_to_replace([self.page], "it has no mark of an inference")

    def refuse_others_results(self, name: str) -> None:
        """Raises InputError for files of a slide without a record."""
        if self._read_record(name) is None:
            paths = (self.path(name, ending) for ending in ENDINGS)
            refuse_to_replace(paths, f"there is no {name}.json of an inference")

    def is_finished(self, name: str, key: str) -> bool:
        """
        Whether there are the results of a slide that depend on this: the record, and all files that every slide has.

        OME-Zarr is of `complete_zarr`.
        """
        record = self._read_record(name)
        paths = (self.path(name, ending) for ending in FILES)
        return record is not None and record["key"] == key and all(p.is_file() and p.stat().st_size for p in paths)

    def begin(self, name: str) -> None:
        """Remove a slide's record."""
        self.path(name, ".json").unlink(missing_ok=True)

    def finish(self, result: SlideResult, key: str) -> None:
        """Write the record of a slide, all of whose results are there."""
        with replacing(self.path(result.slide, ".json")) as file:
            json.dump({"result": asdict(result), "key": key}, file, indent=4)

    def write_rest(self, name: str, view: SlideView, picture: np.ndarray, mask: np.ndarray) -> None:
        """
        Write what else there is of a slide whose maps are there.

        Args:
            name: of the slide.
            view: of it, on which the maps are.
            picture: (H, W, 3) uint8, see `thumbnail`.
            mask: (h, w) boolean, stretched over it.
        """
        self._draw_thumbnail(name, picture, mask)
        self._write_zarr(name, view.mpp)
        if view.slide.path.suffix.lower() == ".dcm":
            self._write_dicom(name, view)

    def complete_zarr(self, name: str, mpp: tuple[float, float]) -> None:
        """Write the OME-Zarr of a finished slide that is asked for now."""
        if self.ome_zarr and not all(self.path(name, ending).is_dir() for ending in ZARRS.values()):
            self._write_zarr(name, mpp)

    def result(self, name: str) -> SlideResult | None:
        """What the record of a slide says; None where there is none, or it is somebody else's."""
        record = self._read_record(name)
        return None if record is None else record["row"]

    def write_table(self) -> None:
        """Write a table of the finished slides, a row each."""
        columns = [*(field.name for field in fields(SlideResult)), "positive"]
        with replacing(self.folder / TABLE) as file:
            write_rows(file, [columns, *([row[column] for column in columns] for row in self._rows())])

    def write_page(self) -> None:
        """Write a page of the finished slides: their pictures, maps and rows."""
        note = self.is_positive.note("The green line", self.threshold)
        page = ResultsPage(self.page, COLUMNS, note)
        for row in self._rows():
            name = row["slide"]
            values = {key: "" if value is None else str(value) for key, value in row.items()}
            files = {ending.lstrip("_."): f"{name}{ending}" for ending in ENDINGS if self.path(name, ending).is_file()}
            page.add(name, values, self._views(name), files=files)
        page.write()

    def tell_of_others(self) -> None:
        """Say which results of other slides are there: slides take hours, so that none are removed."""
        others = [path.stem for path in sorted(self.folder.glob("*.json")) if path.stem not in self.names]
        others = [name for name in others if self.result(name) is not None]
        if others:
            logger.warning(
                f"'{self.folder}' has results of {len(others)} other slides too, the first is {others[0]}: they "
                f"stay, and are neither in {TABLE} nor in {PAGE}."
            )

    def _read_record(self, name: str) -> dict[str, Any] | None:
        """What ``NAME.json`` says, with the result as ``row``; None where there is none, or it is somebody else's."""
        try:
            record = json.loads(self.path(name, ".json").read_text(encoding="utf-8"))
            return {"key": str(record["key"]), "row": SlideResult(**record["result"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Of each finished slide the cells of its row."""
        for name in self.names:
            if (result := self.result(name)) is not None:
                cells = {column: _cell(value) for column, value in asdict(result).items()}
                yield cells | {"positive": None if result.probability is None else self.is_positive(result.probability)}

    def _views(self, name: str) -> list[View]:
        """The thumbnail, which has the outline, with the smallest level of the map; none where they can't be read."""
        try:
            with Image.open(self.path(name, THUMBNAIL)) as image:
                picture = np.asarray(image.convert("RGB"))
            with tifffile.TiffFile(self.path(name, MAPS["probability"])) as file:
                probability = file.series[0].levels[-1].asarray() / np.float32(255)
        except Exception as error:  # a decoder may raise anything on a file that somebody has changed
            logger.warning(f"{name}: can't be shown ({first_line(error)}).")
            return []
        return [draw_view(picture, probability, None, side=SHOWN_SIDE)]

    def _draw_thumbnail(self, name: str, picture: np.ndarray, mask: np.ndarray) -> None:
        size = picture.shape[1::-1]
        small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))  # one that can be written to
        drawn = OutlineOverlay()(picture.transpose(2, 0, 1) / 255, small[None])
        with replacing(self.path(name, THUMBNAIL), binary=True) as file:
            Image.fromarray(np.rint(drawn * 255).astype(np.uint8).transpose(1, 2, 0)).save(file, "png")

    def _write_zarr(self, name: str, mpp: tuple[float, float]) -> None:
        for kind, ending in ZARRS.items():
            folder = self.path(name, ending)
            if folder.is_dir():
                shutil.rmtree(folder)  # of an earlier map
            if self.ome_zarr:
                write_ome_zarr(folder, self.path(name, MAPS[kind]), mpp)

    def _write_dicom(self, name: str, view: SlideView) -> None:
        scale = view.scale_x, view.scale_y
        folder, mask = self.path(name, SEGMENTATION), self.path(name, MAPS["mask"])
        try:
            write_slide_segmentations(folder, mask, view.slide.path, scale, self.class_name)
        except ImportError as error:
            logger.warning(f"{name}: no DICOM segmentation: install highdicom ({error}).")
        except Exception as error:  # of highdicom, for slides that DICOM does not let segmentations refer to
            if lack_of(error) is not None:
                raise
            logger.warning(f"{name}: no DICOM segmentation: {first_line(error)}.")


def thumbnail(overview: np.ndarray) -> np.ndarray:
    """A picture (h, w, 3) uint8, whose longer side is 1024 at most, of (H, W, 3) in 0..1."""
    height, width = overview.shape[:2]
    factor = min(1.0, THUMBNAIL_SIDE / max(height, width))
    size = [max(1, round(n * factor)) for n in (width, height)]
    return np.asarray(Image.fromarray(np.rint(overview * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX))


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
