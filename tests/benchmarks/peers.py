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
Slide inference and the boundary metric side by side with those of other programs, all in one run.

    python tests/benchmarks/peers.py [--sizes 1024 2048 4096] [--bare 2048 4096 8192] [--maps 500] [--thresholds 99]

By `make bench-peers`, which makes an environment with the other programs. Slides: synthetic ones as in
`slide_inference.py`, mapped by the recommended network without flips, in windows of 512 pixels with margins of 96, one
at a time. TIAToolbox takes the middle of each window; MONAI averages overlapping windows. Then a network that costs
next to nothing (`--bare`), which shows what reading, stitching and writing cost. What each writes differs: ours is all
of `slides.json`'s results (two pyramids, polygons, thumbnail, page), TIAToolbox's a map and a mask as Zarr, MONAI's a
map. Boundaries: the maps of `boundary.py`; the reference is the Berkeley benchmark's C++ matching by pyEdgeEval, which
allows some matches to be missed for speed; the plain version is that of `boundary.py`.

Seconds are the processor's, which other work on the machine disturbs less than those of the clock. Memory: the largest
resident size of a process that maps one slide, and how much of it came after the program and the network were loaded.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from scripts.networks import MapNetwork

# Nothing large is imported here, since a process's largest size counts from that of the one which starts it.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TILE, MARGIN = 512, 96
WINDOW = TILE + 2 * MARGIN
MEGABYTE = 2**20
WHOLE = 2048  # pixels of a side up to which a slide goes through the network at once
Mapper = Callable[[Path, Path], None]


def make_network(bare: bool) -> MapNetwork:
    from backends import network
    from scripts.networks import MapNetwork
    from torch.nn import functional as F

    class Blurred(MapNetwork):
        def maps(self, image: torch.Tensor) -> torch.Tensor:
            cells = F.avg_pool2d(image[:, :1].sigmoid(), 16, ceil_mode=True)
            return F.interpolate(cells, image.shape[2:], mode="bilinear")  # smooth, so that it has few outlines

    return Blurred().eval() if bare else network()


def window_answer(network: MapNetwork) -> Callable[[torch.Tensor], torch.Tensor]:
    """From windows (B, 3, H, W), 0..255, to maps (B, 1, H, W) in 0..1."""
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def answer(windows: torch.Tensor) -> torch.Tensor:
        images = (windows.transpose(2, 3).float() / 255 - mean) / std  # the network has learned from (W, H)
        return network(images.to(memory_format=torch.channels_last)).transpose(2, 3)

    return answer


def ours(bare: bool) -> Mapper:
    from scripts.slides import SlideInference

    network = make_network(bare)

    def run(slide: Path, folder: Path) -> None:
        SlideInference(
            slides={"slide": slide},
            output_dir=str(folder),
            network=network,
            loader=lambda _: None,
            mpp=1.0,
            mean=MEAN,
            std=STD,
            tissue="all",
            tile_size=TILE,
            tile_margin=MARGIN,
        ).run()

    return run


def tiatoolbox(bare: bool) -> Mapper:
    import numpy as np
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    answer = window_answer(make_network(bare))

    class Model(ModelABC):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return answer(image)

        @staticmethod
        def infer_batch(model: ModelABC, batch_data: torch.Tensor, *, device: str) -> np.ndarray:
            """(B, H, W, 3) to the middle of (B, H, W, 1)."""
            maps = model(batch_data.permute(0, 3, 1, 2))[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
            return maps.permute(0, 2, 3, 1).numpy()

        @staticmethod
        def postproc(image: np.ndarray) -> np.ndarray:
            return (image[..., 0] >= 0.5).astype(np.uint8)

    scale = [{"units": "baseline", "resolution": 1.0}]
    io = IOSegmentorConfig(
        input_resolutions=scale,
        output_resolutions=scale,
        save_resolution=scale[0],
        patch_input_shape=(WINDOW, WINDOW),
        patch_output_shape=(TILE, TILE),
        stride_shape=(TILE, TILE),
    )
    segmentor = SemanticSegmentor(Model(), batch_size=1, verbose=False)

    def run(slide: Path, folder: Path) -> None:
        segmentor.run(
            [slide],
            patch_mode=False,
            ioconfig=io,
            save_dir=folder / "out",
            output_type="zarr",
            auto_get_mask=False,
            return_probabilities=True,
        )

    return run


def monai_loaded(bare: bool) -> Mapper:
    import numpy as np
    import torch
    from monai.data import WSIReader
    from monai.inferers import SlidingWindowInferer

    answer = window_answer(make_network(bare))
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=1, overlap=2 * MARGIN / WINDOW, mode="gaussian")

    def run(slide: Path, folder: Path) -> None:
        reader = WSIReader("openslide", level=0)
        pixels, _ = reader.get_data(reader.read(slide))
        with torch.inference_mode():
            probability = inferer(torch.from_numpy(pixels)[None].float(), answer)[0, 0]
            np.save(folder / "map.npy", probability.mul_(255).round_().byte().numpy())

    return run


def monai_from_file(bare: bool) -> Mapper:
    from monai.inferers import PatchInferer, WSISlidingWindowSplitter, ZarrAvgMerger

    answer = window_answer(make_network(bare))

    def run(slide: Path, folder: Path) -> None:
        splitter = WSISlidingWindowSplitter(WINDOW, overlap=2 * MARGIN, reader="OpenSlide", level=0)
        inferer = PatchInferer(splitter, ZarrAvgMerger, batch_size=1, store=str(folder / "map.zarr"))
        inferer(str(slide), answer)

    return run


MAPPERS = {
    "ours": ours,
    "TIAToolbox, SemanticSegmentor": tiatoolbox,
    "MONAI, SlidingWindowInferer, slide loaded": monai_loaded,
    "MONAI, PatchInferer, from the file": monai_from_file,
}


def read_mask(folder: Path) -> np.ndarray:
    """Where the written map is at least 0.5, (H, W)."""
    import numpy as np
    import tifffile
    import zarr

    if (path := folder / "slide_probability.ome.tif").exists():
        return tifffile.imread(path) >= 128
    if (folder / "map.npy").exists():
        return np.load(folder / "map.npy") >= 128
    if (folder / "map.zarr").exists():
        return zarr.open(str(folder / "map.zarr"), mode="r")[0, 0] >= 0.5
    (written,) = (folder / "out").glob("*.zarr")
    return zarr.open(str(written), mode="r")["probabilities"][:][..., 0] >= 0.5


def quiet() -> None:
    import torch

    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def write(folder: Path, sizes: list[int]) -> None:
    from slide_inference import write_slide

    for size in sizes:
        write_slide(folder / f"{size}.tif", size)


def mapped(run: Mapper, slide: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds of the processor; megabytes at the peak, and of those before the slide."""
    import torch
    from memory import peak

    device = torch.device("cpu")
    before, start = peak(device), process_time()
    run(slide, folder)
    return process_time() - start, peak(device) / MEGABYTE, before / MEGABYTE


def in_copy(task: Callable[..., Any], *arguments: object) -> Any:
    """In a copy of this process, with what it has loaded."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(task(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def all_mapped(name: str, tasks: list[tuple[bool, Path, Path]]) -> list[tuple[float, float, float]]:
    """Of each task, whether the network is the bare one, the slide, and a new folder: see `mapped`."""
    quiet()
    runs = {bare: MAPPERS[name](bare) for bare in {task[0] for task in tasks}}
    measured = []
    for bare, slide, folder in tasks:
        folder.mkdir()
        measured.append(in_copy(mapped, runs[bare], slide, folder))
    return measured


def whole(slide: Path, bare: bool) -> np.ndarray:
    """The mask of a slide that goes through the network at once."""
    import numpy as np
    import tifffile
    import torch

    quiet()
    pixels = tifffile.imread(slide, key=0)
    return window_answer(make_network(bare))(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0, 0] >= 0.5


def differing(folders: list[Path], slide: Path | None, bare: bool) -> list[float]:
    """Part of the pixels of each mask that differ from the whole slide's, or where there is none from the first's."""
    import numpy as np

    masks = [read_mask(folder) for folder in folders]
    reference = masks[0] if slide is None else np.asarray(whole(slide, bare))
    return [float((mask != reference).mean()) for mask in masks]


def all_differing(written: list[list[Path]], slides: list[Path | None], bare: list[bool]) -> list[list[float]]:
    return [differing(*task) for task in zip(written, slides, bare, strict=True)]


def alone(task: Callable[..., Any], *arguments: object) -> Any:
    """In a process of its own, which starts small."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def compare_slides(sizes: list[int], bare_sizes: list[int]) -> None:
    tasks = [(False, size) for size in sizes] + [(True, size) for size in bare_sizes]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        alone(write, root, sorted({*sizes, *bare_sizes}))
        rows, masks = {}, {}
        slides = [root / f"{size}.tif" for _, size in tasks]
        for number, name in enumerate(MAPPERS):
            masks[name] = [root / f"{number}_{task}" for task in range(len(tasks))]
            wanted = [(bare, slide, mask) for (bare, _), slide, mask in zip(tasks, slides, masks[name], strict=True)]
            try:
                rows[name] = alone(all_mapped, name, wanted)
            except Exception as error:  # the others are worth having
                print(f"{name} failed: {error!r}", flush=True)
                continue
            for (bare, size), (seconds, most, before) in zip(tasks, rows[name], strict=True):
                print(f"{name}, {size}, {bare=}: {seconds:.1f} s, {most:.0f} MB, from {before:.0f}", file=sys.stderr)
        wholes = [slide if size <= WHOLE else None for slide, (_, size) in zip(slides, tasks, strict=True)]
        written = [[masks[name][i] for name in rows] for i in range(len(tasks))]
        off = alone(all_differing, written, wholes, [bare for bare, _ in tasks])
    print("\n| network | slide | program | s | times ours | peak, MB | more than before the slide, MB | mask differs |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    winners = []
    for i, (bare, size) in enumerate(tasks):
        network = "none" if bare else "recommended"
        for name, part in zip(rows, off[i], strict=True):
            seconds, most, before = rows[name][i]
            print(
                f"| {network} | {size} | {name} | {seconds:.1f} | {seconds / rows['ours'][i][0]:.2f} | {most:.0f} "
                f"| {most - before:.0f} | {part:.4%} |"
            )
        fastest = min(rows, key=lambda name: rows[name][i][0])
        least = min(rows, key=lambda name: rows[name][i][1] - rows[name][i][2])
        winners.append(f"{network}, {size}: fastest {fastest}; least additional memory {least}.")
    print("", *winners, sep="\n", flush=True)


def reference_counts(probability: np.ndarray, mask: np.ndarray, thresholds: int) -> np.ndarray:
    """As `plain_counts`, matched by the Berkeley benchmark's own code."""
    import numpy as np
    from boundary import plain_boundary
    from pyEdgeEval._lib import correspond_pixels
    from scripts.metrics.boundary_counts import boundary_thresholds

    truth, rows = plain_boundary(mask), []
    for threshold in boundary_thresholds(thresholds):
        prediction = plain_boundary(probability >= threshold)
        ours, theirs = (np.zeros(mask.shape),) * 2
        if prediction.any() and truth.any():
            ours, theirs, _, _ = correspond_pixels(prediction, truth, max_dist=0.0075)
        rows.append([(theirs > 0).sum(), truth.sum(), (ours > 0).sum(), prediction.sum()])
    return np.array(rows)


def best_f(counts: np.ndarray) -> float:
    import numpy as np

    recall, precision = counts[:, 0] / np.maximum(counts[:, 1], 1), counts[:, 2] / np.maximum(counts[:, 3], 1)
    return float((2 * recall * precision / np.maximum(recall + precision, 1e-9)).max())


def compare_boundaries(size: int, thresholds: int) -> None:
    import numpy as np
    from boundary import maps, plain_counts
    from scripts.metrics.boundary_counts import compute_boundary_counts

    quiet()
    compute_boundary_counts(np.zeros((8, 8)), np.ones((8, 8)))  # loads or compiles
    counters = {
        "ours": compute_boundary_counts,
        "scikit-image and SciPy": plain_counts,
        "Berkeley's by pyEdgeEval": reference_counts,
    }
    print("\n| map | program | s | times ours | best F | matches missed |\n| --- | --- | --- | --- | --- | --- |")
    for name, probability, mask in maps(size):
        seconds, counts = {}, {}
        for program, count in counters.items():
            start = process_time()
            counts[program] = count(probability, mask, thresholds)
            seconds[program] = process_time() - start
        most = counts["ours"][:, 0].sum()
        for program in counters:
            missed = (most - counts[program][:, 0].sum()) / max(most, 1)
            ratio = seconds[program] / seconds["ours"]
            print(
                f"| {name} | {program} | {seconds[program]:.2f} | {ratio:.1f} | {best_f(counts[program]):.4f} "
                f"| {missed:.3%} |",
                flush=True,
            )
        print(f"| | fastest: {min(seconds, key=seconds.get)} | | | | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 2048, 4096])
    parser.add_argument("--bare", type=int, nargs="*", default=[2048, 4096, 8192])
    parser.add_argument("--maps", type=int, default=500, help="height and width of the maps with boundaries; 0: none")
    parser.add_argument("--thresholds", type=int, default=99)
    arguments = parser.parse_args()
    names = ("tiatoolbox", "monai", "pyEdgeEval", "torch", "scikit-image", "scipy")
    print("Versions:", ", ".join(f"{name} {version(name)}" for name in names))
    if arguments.sizes or arguments.bare:
        compare_slides(arguments.sizes, arguments.bare)
    if arguments.maps:
        alone(compare_boundaries, arguments.maps, arguments.thresholds)


if __name__ == "__main__":
    main()
