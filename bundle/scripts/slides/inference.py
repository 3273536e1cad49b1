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


"""Inference on whole slides: from files to maps, outlines and a table."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.evaluation.predictions import ImageThreshold
from scripts.images.quality import KINDS as QUALITIES
from scripts.images.quality import check_kinds, leave_out
from scripts.images.slide import Slide, SlideView
from scripts.images.tissue import OVERVIEW
from scripts.losses.pooling import Pooling
from scripts.networks import MapNetwork, check_finite
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError, first_line, lack_of
from scripts.runtime.paths import file_version
from scripts.runtime.processes import launched_processes
from scripts.runtime.values import fraction, number, rgb, truth_value
from scripts.slides.listing import MAPS, slide_files
from scripts.slides.polygons import trace, write_geojson
from scripts.slides.pyramid import write_pyramid
from scripts.slides.results import ResultsFolder, SlideResult, thumbnail
from scripts.slides.store import AwaitedRows, TileStore
from scripts.slides.tiling import Tile, TileGrid, exact_margin
from scripts.slides.tissue import TissueMask, tissue_of
from scripts.slides.value_counts import ValueCounts

__all__ = ["SlideInference"]

logger = logging.getLogger(__name__)
FULL = 65535  # of probability 1 in the unfinished map
UNFINISHED = ".unfinished"  # folder of those maps
OTHER_MPP = 0.01  # by how much of slide_mpp a slide may state another resolution without a word
AHEAD = 3  # tiles read before the network takes them, and mapped before they are on disk


@dataclass(frozen=True)
class _Job:
    """A slide while it is mapped."""

    name: str
    view: SlideView
    grid: TileGrid
    tissue: TissueMask
    left_out: Mapping[str, float]  # parts of the tissue, by their kinds
    overview: tuple[int, int]  # height and width of the picture in which tissue was found
    thumbnail: np.ndarray  # (H, W, 3) uint8
    store: TileStore
    rows: AwaitedRows


class SlideInference:
    """
    Maps slides tile by tile. What there is of a slide on disk is used by the next run with the same settings.

    Of each slide it writes ``NAME_probability.ome.tif`` (probability x 255), ``NAME_mask.ome.tif`` (255 is cancer),
    ``NAME_thumbnail.png``, ``NAME.geojson``; and ``slides.csv`` of all. ``NAME.json`` is written last: with it a slide
    is finished. Of a DICOM slide there is ``NAME_seg`` too, see `write_slide_segmentations`. Beside the tissue all maps
    are 0. In memory are a few tiles, one row of tiles and the overview.

    Under ``torchrun`` the slides are dealt out to the processes, from large to small files.

    Args:
        slides: by their names, see `list_slides`.
        left_out: what is wrong with slides that are not among them, to be reported at the end.
        output_dir: folder of the results.
        network: from (1, 3, W, H) to a map (1, 1, W, H) in evaluation.
        loader: loads the network's weights, called with None before the first slide.
        mpp: micrometres per pixel at which the network sees the slides.
        mean, std: normalisation of the network's input.
        pool: gives the probability of the whole slide, see `ValueCounts.pooled`.
        threshold: probability from which on a pixel counts as cancer.
        tissue: see `tissue_of`.
        leave_out: of the tissue that was found, not of one that is given: see `leave_out`.
        slide_mpp: micrometres per pixel at level 0, instead of what the slides say.
        tile_size: side of the tiles in pixels of the map, a multiple of 16.
        tile_margin: of what the network sees around a tile; ``"auto"``: see `exact_margin`.
        superpixels: must be False.
        class_name, class_colour: of the polygons, for QuPath.
        min_region_um2, min_hole_um2: smaller regions have no polygon, smaller holes are filled in it.
        ome_zarr: whether both maps are written as OME-Zarr as well.
        is_positive: probability from which on a slide is a yes; 0.5 by default.
        device, amp: for the network.

    Raises:
        InputError: for a setting that can't be used.
    """

    def __init__(
        self,
        *,
        slides: Mapping[str, Path],
        left_out: Sequence[str] = (),
        output_dir: str,
        network: MapNetwork,
        loader: Callable[[Any], None],
        mpp: float,
        mean: Sequence[float],
        std: Sequence[float],
        pool: Pooling | None = None,
        threshold: float = 0.5,
        tissue: str = "auto",
        leave_out: Sequence[str] = QUALITIES,
        slide_mpp: float | None = None,
        tile_size: int = 512,
        tile_margin: int | str = "auto",
        superpixels: bool = False,
        class_name: str = "Cancer",
        class_colour: Sequence[int] = (200, 0, 0),
        min_region_um2: float = 0,
        min_hole_um2: float = 0,
        ome_zarr: bool = False,
        is_positive: ImageThreshold | None = None,
        device: str | torch.device = "cpu",
        amp: bool = False,
    ) -> None:
        if superpixels:
            raise InputError("Superpixels are not supported on whole slides; leave superpixels.json out.")
        for name, value in (("mpp", mpp), ("slide_mpp", 1.0 if slide_mpp is None else slide_mpp)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
                raise InputError(f"{name} must be micrometres per pixel, above 0; got {value!r}.")
        fraction("threshold", threshold)
        truth_value("amp", amp)
        truth_value("ome_zarr", ome_zarr)
        if not isinstance(tile_size, int) or tile_size % 16:
            raise InputError(f"tile_size must be a multiple of 16, as TIFF requires; got {tile_size!r}.")
        self.slides, self.left_out, self.output_dir = dict(slides), list(left_out), Path(output_dir)
        self.network, self.loader = network, loader
        self.mpp, self.slide_mpp, self.tissue = float(mpp), slide_mpp, str(tissue)
        self.leave_out = check_kinds(leave_out) if self.tissue == "auto" else []
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))
        self.pool, self.threshold = pool or Pooling(), threshold
        rgb("class_colour", class_colour)
        self.class_name, self.class_colour = class_name, list(class_colour)
        number("min_region_um2", min_region_um2)
        number("min_hole_um2", min_hole_um2)
        self.min_region_um2, self.min_hole_um2 = min_region_um2, min_hole_um2
        self.results = ResultsFolder(
            output_dir, list(slides), threshold, is_positive or ImageThreshold(), class_name, ome_zarr
        )
        self.device, self.amp = torch.device(device), amp
        self.tile_size = tile_size
        margin, self.stride, exact = exact_margin(network)
        self.margin = margin if tile_margin == "auto" else tile_margin
        if not exact or (isinstance(self.margin, int) and self.margin < margin):
            logger.warning(
                f"With a margin of {self.margin} pixels the map of this network depends on the tiles a little, and "
                "may have seams; those of the recommended method and of the paper have none with --tile_margin auto."
            )
        TileGrid(1, 1, self.tile_size, self.margin, self.stride)  # checks both

    def run(self) -> list[SlideResult]:
        """
        Map all slides, and write the table.

        Raises:
            InputError: at once, for a ``slides.csv`` of somebody else; at the end, naming the slides that can't be
                used; all others are done. Any other error that comes of one slide is raised at the end as well; a lack
                of memory, or of room on a disk, at once.
        """
        self.results.refuse_others_files()
        self.loader(None)
        self.network.eval()
        problems: list[str] = []
        unexpected: list[Exception] = []
        with launched_processes() as (rank, count):
            problems += self.left_out if rank == 0 else []
            for name in self._dealt(rank, count):
                path = self.slides[name]
                try:
                    self._finish(name, path)
                except Exception as error:
                    if lack_of(error) is not None:
                        raise
                    if isinstance(error, (InputError, OSError)):
                        reason = str(error) if isinstance(error, InputError) else f"{first_line(error)}."
                        logger.error(f"{name}: {reason}")
                        problems.append(reason if str(path) in reason else f"'{path}': {reason}")
                    else:
                        logger.exception(f"{name}: '{path}' failed.")
                        unexpected.append(error)
                self.results.write_table()
        with suppress(OSError):  # none, or not empty
            (self.output_dir / UNFINISHED).rmdir()
        self.results.write_page()  # by each process: whichever is the last has them all
        if rank == 0:
            self.results.write_table()
            self.results.tell_of_others()
            logger.info(f"Written: {self.output_dir}; look at {self.results.page}.")
        if unexpected:
            raise unexpected[0]
        if problems:
            slides = "1 slide" if len(problems) == 1 else f"{len(problems)} slides"
            others = "" if count == 1 else "; see the other processes for theirs"
            if count == 1 and len(self.slides) + len(self.left_out) > len(problems):
                others = "; the others are done"
            raise InputError("\n  - ".join([f"{slides} can't be used{others}:", *problems]))
        return [result for name in self.slides if (result := self.results.result(name)) is not None]

    def map_tiles(self, view: SlideView, grid: TileGrid, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, torch.Tensor]]:
        """Tiles with their maps (H, W), float32 in 0..1, while the next ones are read in another thread."""
        with ThreadPoolExecutor(1) as reader:
            for tile, image in _ahead(reader, lambda tile: (tile, self._read(view, grid, tile)), tiles):
                yield tile, grid.without_margin(tile, check_finite(self._map(image), str(view.slide.path)))

    def _read(self, view: SlideView, grid: TileGrid, tile: Tile) -> torch.Tensor:
        """(1, 3, W, H), as MONAI has pictures and the network has learned from them."""
        outer = grid.with_margin(tile)
        pixels = torch.from_numpy(view.read(outer.top, outer.bottom, outer.left, outer.right))  # (H, W, 3)
        image = pixels.permute(2, 1, 0)[None].contiguous(memory_format=torch.channels_last)
        return image.sub_(self.mean).div_(self.std)

    @torch.inference_mode()
    def _map(self, image: torch.Tensor) -> torch.Tensor:
        batch = image.to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, enabled=self.amp and self.device.type == "cuda"):
            return self.network(batch)[0, 0].float().cpu().T  # (H, W)

    def _finish(self, name: str, path: Path) -> None:
        # all slides of a run have one slide_mpp
        source = path.parent if path.suffix.lower() == ".dcm" else path
        alone = f"of this slide alone (cdws infer {shlex.quote(str(source))} --overlay slides --slide_mpp ...)"
        with closing(Slide(path, self.slide_mpp, alone)) as slide:
            view = slide.at(self.mpp)
            overview_view = view.fitting(OVERVIEW)
            overview = overview_view.read(0, overview_view.height, 0, overview_view.width)
            found, left_out = self._usable(name, overview, overview_view)
            picture = thumbnail(overview)
            del overview  # 50 MB
            tissue = TissueMask(found, view.width, view.height)
            key = self._key(path, view, tissue)
            unfinished = self.output_dir / UNFINISHED / name
            if self.results.is_finished(name, key):
                logger.info(f"{name}: is finished already")
                self.results.complete_zarr(name, view.mpp)
                return
            if not TileStore.is_in(unfinished):
                self.results.refuse_others_results(name)
            stated = None if self.slide_mpp is None else slide.stated()
            if stated is not None and max(abs(mpp / self.slide_mpp - 1) for mpp in stated) > OTHER_MPP:
                logger.warning(
                    f"{name}: states {stated[0]:.4g} x {stated[1]:.4g} micrometres per pixel, and is mapped with "
                    f"--slide_mpp {self.slide_mpp:g} instead"
                )
            if min(view.scale_x, view.scale_y) < 0.99:
                logger.warning(
                    f"{name}: was scanned at {slide.mpp_x:g} micrometres per pixel, coarser than {self.mpp:g}"
                )
            grid = TileGrid(view.width, view.height, self.tile_size, self.margin, self.stride)
            store = TileStore(unfinished, key, self.tile_size, np.uint16)
            with closing(store):
                self.results.begin(name)
                wanted = [tile for tile in grid if tissue.meets(*_bounds(grid, tile))]
                missing = [tile for tile in wanted if (tile.row, tile.column) not in store]
                if len(missing) < len(wanted):
                    logger.info(f"{name}: goes on after {len(wanted) - len(missing)} of {len(wanted)} tiles")
                # the thread first: it ends when the rows say that no more will come
                with ThreadPoolExecutor(1) as writer, AwaitedRows(tile.row for tile in missing) as rows:
                    job = _Job(name, view, grid, tissue, left_out, found.shape, picture, store, rows)
                    written = writer.submit(self._write, job)
                    self._fill(job, missing, len(wanted))
                result = written.result()
                self.results.finish(result, key)
                store.remove()

    def _usable(self, name: str, overview: np.ndarray, view: SlideView) -> tuple[np.ndarray, dict[str, float]]:
        """Tissue in the overview, and which parts of it have been left out, as a word in the log says."""
        tissue = tissue_of(self.tissue, overview, view, name)
        usable, parts = leave_out(tissue, overview, view, self.leave_out)
        if tissue.any():
            said = f"{name}: {1 - tissue.mean():.0%} of the slide is glass"
            if any(parts.values()):
                named = ", ".join(f"{part:.1%} as {kind}" for kind, part in parts.items() if part)
                said += f"; left out of the tissue: {named} (--leave_out [] keeps it)"
            logger.info(f"{said}.")
            if not usable.any():
                kinds = " and ".join(kind for kind, part in parts.items() if part)
                logger.warning(
                    f"All tissue of '{view.slide.path}' is left out as {kinds}: nothing is marked, and its "
                    "probability is left empty. Give --leave_out [] to map it nevertheless."
                )
        return usable, parts

    def _fill(self, job: _Job, missing: Sequence[Tile], total: int) -> None:
        """Map the tiles, of all that have tissue, that are not in the store yet."""

        def keep(tile: Tile, values: np.ndarray) -> None:
            job.store.put(tile.row, tile.column, values * job.tissue.region(*_bounds(job.grid, tile)))
            job.rows.arrived(tile.row)

        done = total - len(missing)
        progress = Bar(total=total, initial=done, desc=job.name, unit="tile", mininterval=0.5)
        with progress, ThreadPoolExecutor(1) as writer:
            pending: deque[Future] = deque()
            for tile, probability in self.map_tiles(job.view, job.grid, missing):
                # a copy: what waits to be written must not hold the network's memory
                values = np.rint(probability.numpy() * FULL).astype(np.uint16)
                pending.append(writer.submit(keep, tile, values))
                if len(pending) > AHEAD:
                    pending.popleft().result()
                progress.update()
            for future in pending:
                future.result()

    def _write(self, job: _Job) -> SlideResult:
        """All results but the record, row by row as the map grows."""
        name, view, grid, store = job.name, job.view, job.grid, job.store
        least = max(1, int(np.ceil(self.threshold * FULL)))  # 0 is no tissue

        counts = ValueCounts()
        small = np.zeros(job.overview, bool)  # the mask in the overview

        def strips() -> Iterator[np.ndarray]:
            rows = ((np.arange(small.shape[0]) + 0.5) * view.height / small.shape[0]).astype(int)
            columns = ((np.arange(small.shape[1]) + 0.5) * view.width / small.shape[1]).astype(int)
            for row in range(grid.rows):
                job.rows.wait(row)
                top, bottom = row * grid.size, min((row + 1) * grid.size, view.height)
                strip = np.zeros((bottom - top, grid.columns * grid.size), np.uint16)
                for column in range(grid.columns):
                    tile = grid.tile(row, column)
                    if not job.tissue.meets(*_bounds(grid, tile)):
                        continue
                    inside = job.tissue.region(*_bounds(grid, tile))
                    values = store.get(row, column)[: inside.shape[0], : inside.shape[1]]
                    counts.add(values[inside])
                    strip[: inside.shape[0], tile.left : tile.left + inside.shape[1]] = values
                strip = strip[:, : view.width]
                here = (rows >= top) & (rows < bottom)
                small[here] = strip[np.ix_(rows[here] - top, columns)] >= least
                yield strip

        def write_map(kind: str, to_bytes: Callable[[np.ndarray], np.ndarray]) -> None:
            def read_tile(row: int, column: int) -> np.ndarray | None:
                job.rows.wait(row)
                return None if store.is_zero(row, column) else to_bytes(store.get(row, column))

            path, title = self.results.path(name, MAPS[kind]), f"{name} {kind}"
            size = (view.height, view.width, self.tile_size)
            write_pyramid(path, *size, read_tile, view.mpp, title, nearest=kind == "mask")

        def probability_bytes(values: np.ndarray) -> np.ndarray:
            return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255, rounded

        def mask_bytes(values: np.ndarray) -> np.ndarray:
            return np.where(values >= least, np.uint8(255), np.uint8(0))

        with ThreadPoolExecutor(2) as writers:
            maps = {"probability": probability_bytes, "mask": mask_bytes}
            written = [writers.submit(write_map, *item) for item in maps.items()]
            pixel = view.mpp[0] * view.mpp[1]
            smallest = {"min_region": self.min_region_um2, "min_hole": self.min_hole_um2}
            regions = write_geojson(
                self.results.path(name, ".geojson"),
                trace(strips(), view.width, least, pixel=pixel, **smallest),
                (view.scale_x, view.scale_y),
                self.class_name,
                self.class_colour,
                pixel_um2=pixel,
                full=FULL,
                **smallest,
            )
            for future in written:
                future.result()
        self.results.write_rest(name, view, job.thumbnail, small)
        area = counts.at_least(least)
        probability = counts.pooled(self.pool) if counts.total else None
        if counts.total and probability is None:
            logger.warning(
                f"{name}: its probability is left empty: {type(self.pool).__name__} takes no weights, without which "
                "slides of so much tissue can't be pooled."
            )
        return SlideResult(
            slide=name,
            probability=probability,
            area_mm2=area * pixel / 1e6,
            tissue_mm2=counts.total * pixel / 1e6,
            fraction_of_tissue=area / counts.total if counts.total else None,
            regions=regions,
            width=view.width,
            height=view.height,
            mpp_x=view.mpp[0],
            mpp_y=view.mpp[1],
            **job.left_out,
        )

    def _key(self, path: Path, view: SlideView, tissue: TissueMask) -> str:
        """All that the results of a slide depend on, as text."""
        weights = hashlib.sha256(repr(self.network).encode())
        for name, values in [*self.network.named_parameters(), *self.network.named_buffers()]:
            weights.update(name.encode() + values.detach().cpu().contiguous().numpy().tobytes())
        return json.dumps(
            {
                "slide": [file_version(file) for file in slide_files(path)],
                "view": [view.width, view.height, *view.mpp],
                "network": weights.hexdigest(),
                "extra": hashlib.sha256(repr(self.network.state_dict().get("_extra_state")).encode()).hexdigest(),
                "tissue": hashlib.sha256(np.packbits(tissue.mask).tobytes()).hexdigest(),
                "tiles": [self.tile_size, self.margin],
                "normalisation": [self.mean.tolist(), self.std.tolist()],
                "threshold": self.threshold,
                # by what it does: a subclass is known by more than its settings, and may be changed
                "pool": self.pool(torch.linspace(0, 1, 101)[None, None]).tolist(),
                "class": [self.class_name, self.class_colour],
                "smallest": [self.min_region_um2, self.min_hole_um2],
                "amp": self.amp,
            }
        )

    def _dealt(self, rank: int, count: int) -> list[str]:
        """The names of this process's slides."""

        def size(path: Path) -> int:
            try:
                return sum(file.stat().st_size for file in slide_files(path))
            except OSError:  # it will be told of when it is its turn
                return 0

        by_size = sorted(self.slides, key=lambda name: (-size(self.slides[name]), name))
        mine = by_size[rank::count]
        return [name for name in self.slides if name in mine]


def _bounds(grid: TileGrid, tile: Tile) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a tile, cut at the end of the view."""
    return tile.top, min(tile.bottom, grid.height), tile.left, min(tile.right, grid.width)


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator:
    """`map` whose results are computed in a pool, only a few before they are taken."""
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
