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
Throughput of slide inference, from the file to all its results, against the bare network on the same pixels.

    python tests/benchmarks/slide_inference.py [--size 2048] [--tile_size 512] [--rounds 3]

A slide of phantoms, JPEG-compressed as scanners do it, all of it tissue. Ours: the shipped `slides.json`, once through:
reading, network, stitching, polygons, both pyramids, thumbnail. Bare: the network on as many tiles of noise in memory,
margins included ("same pixels"), and without them ("slide's pixels", which no tiling can reach). The two take turns, so
that other work on the machine slows both alike; the median of the ratios is shown.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import tifffile
import torch
from monai.bundle import ConfigParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.phantoms import draw_phantom
from scripts.networks import CDWSNet
from scripts.slides import SlideInference
from scripts.slides.tiling import TileGrid, exact_margin

BUNDLE = Path(bundle_root())
PHANTOM = 512
MPP = 1.0


def write_slide(path: Path, size: int) -> None:
    """A square slide at `MPP` with a second level at a quarter."""
    rng = np.random.default_rng(0)
    count = -(-size // PHANTOM)
    phantoms = [draw_phantom(rng, (PHANTOM, PHANTOM), cancer=bool(i % 2))[0] for i in range(count * count)]
    rows = [np.hstack(phantoms[i : i + count]) for i in range(0, len(phantoms), count)]
    picture = np.vstack(rows)[:size, :size]
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4):
            resolution = {"resolution": (10_000 / MPP / factor,) * 2, "resolutionunit": 3}
            writer.write(picture[::factor, ::factor], subfiletype=int(factor > 1), **options, **resolution)


@torch.inference_mode()
def bare_seconds(network: CDWSNet, shapes: list[tuple[int, int]], device: torch.device) -> float:
    tiles = [torch.randn(1, 3, *shape).to(device, memory_format=torch.channels_last) for shape in set(shapes)]
    by_shape = dict(zip(set(shapes), tiles, strict=True))
    start = perf_counter()
    for shape in shapes:
        network(by_shape[shape])
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, help="of the slide's sides, in pixels")
    parser.add_argument("--tile_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        write_slide(Path(folder) / "slide.tif", arguments.size)
        configs = ConfigParser()
        configs.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("inference", "slides")])
        changes = {"dataset_dir": folder, "mpp": MPP, "tissue": "all", "tile_size": arguments.tile_size}
        configs.update({**changes, "bundle_root": str(BUNDLE)})
        ours, same, slide = [], [], []
        for count in range(arguments.rounds + 1):  # the first one warms up
            configs.update({"prediction_dir": f"{folder}/{count}"})
            configs.parse(reset=True)
            evaluator: SlideInference = configs.get_parsed_content("evaluator")
            network, device = configs.get_parsed_content("network").eval(), evaluator.device
            grid = TileGrid(arguments.size, arguments.size, arguments.tile_size, *exact_margin(network)[:2])
            start = perf_counter()
            evaluator.run()
            ours.append(perf_counter() - start)
            for seconds, tiles in ((same, [grid.with_margin(t) for t in grid]), (slide, list(grid))):
                shapes = [(t.right - t.left, t.bottom - t.top) for t in tiles]
                seconds.append(bare_seconds(network, shapes, device))
    size, threads = arguments.size, torch.get_num_threads()
    print(f"{device}, slide of {size} x {size}, tiles of {arguments.tile_size}, {threads} threads")
    print(f"{size**2 / median(ours[1:]) / 1e6:.3f} million pixels a second")
    for name, bare in (("same pixels, margins included", same), ("slide's pixels", slide)):
        ratio = median(plain / full for plain, full in zip(bare[1:], ours[1:], strict=True))
        print(f"of the bare network's throughput on the {name}: {ratio:.3f} (goal: 0.90)")


if __name__ == "__main__":
    main()
