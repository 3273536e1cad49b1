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
        [--config recommended] [--slide FILE]

A slide of phantoms, JPEG-compressed as scanners do it, all of it tissue; or a file. Ours: the shipped `slides.json`,
once through: reading, network, stitching, polygons, both pyramids, thumbnail. Bare: the network on as many tiles of
noise in memory, margins included ("same pixels"), and without them ("slide's pixels", which no tiling can reach). The
two take turns, so that other work on the machine slows both alike; the median of the ratios is shown; for a network
other than CDWS-MIL's also the bare network against CDWS-MIL's, each on its own tiles and without flips.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from contextlib import closing, redirect_stderr
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
from scripts.images.slide import Slide
from scripts.networks import CDWSNet, MapNetwork
from scripts.slides import SlideInference
from scripts.slides.tiling import TileGrid, exact_margin

BUNDLE = Path(bundle_root())
PHANTOM = 512
DRAWN = 17  # of a large slide, repeated
MPP = 1.0


def write_slide(path: Path, size: int) -> None:
    """A square slide at `MPP` with a second level at a quarter."""
    rng = np.random.default_rng(0)
    count = -(-size // PHANTOM)
    drawn = [draw_phantom(rng, (PHANTOM, PHANTOM), cancer=bool(i % 2))[0] for i in range(min(DRAWN, count * count))]
    phantoms = [drawn[i % len(drawn)] for i in range(count * count)]
    rows = [np.hstack(phantoms[i : i + count]) for i in range(0, len(phantoms), count)]
    picture = np.vstack(rows)[:size, :size]
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for factor in (1, 4):
            resolution = {"resolution": (10_000 / MPP / factor,) * 2, "resolutionunit": 3}
            writer.write(picture[::factor, ::factor], subfiletype=int(factor > 1), **options, **resolution)


@torch.inference_mode()
def bare_seconds(network: MapNetwork, shapes: list[tuple[int, int]], device: torch.device) -> float:
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
    parser.add_argument("--slide", type=Path, help="a file instead, mapped at its own resolution")
    parser.add_argument("--tile_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", nargs="*", default=[], help="overlays of inference.json")
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        path = arguments.slide or Path(folder) / "slide.tif"
        if arguments.slide is None:
            write_slide(path, arguments.size)
        with closing(Slide(path)) as slide:
            mpp = slide.mpp_x
            view = slide.at(mpp)
        configs = ConfigParser()
        names = ("inference", *arguments.config, "slides")
        configs.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
        changes = {"dataset_dir": str(path), "mpp": mpp, "tissue": "all", "tile_size": arguments.tile_size}
        configs.update({**changes, "output_dir": folder, "bundle_root": str(BUNDLE)})
        ours, same, slide_alone, plain, paper = [], [], [], [], []
        for count in range(arguments.rounds + 1):  # the first one warms up
            configs.update({"prediction_dir": f"{folder}/{count}"})
            configs.parse(reset=True)
            evaluator: SlideInference = configs.get_parsed_content("evaluator")
            network, device = configs.get_parsed_content("network").eval(), evaluator.device
            start = perf_counter()
            evaluator.run()
            ours.append(perf_counter() - start)

            def shapes(network: MapNetwork, margins: bool = True) -> list[tuple[int, int]]:
                grid = TileGrid(view.width, view.height, arguments.tile_size, *exact_margin(network)[:2])
                tiles = [grid.with_margin(tile) if margins else tile for tile in grid]
                return [(tile.right - tile.left, tile.bottom - tile.top) for tile in tiles]

            same.append(bare_seconds(network, shapes(network), device))
            slide_alone.append(bare_seconds(network, shapes(network, margins=False), device))
            if not isinstance(network, CDWSNet):
                trunk = CDWSNet().to(device, memory_format=torch.channels_last).eval()
                plain.append(bare_seconds(network.averaging_flips(False), shapes(network), device))
                paper.append(bare_seconds(trunk, shapes(trunk), device))
    threads = torch.get_num_threads()
    print(f"{device}, slide of {view.width} x {view.height}, tiles of {arguments.tile_size}, {threads} threads", *names)
    print(f"{view.width * view.height / median(ours[1:]) / 1e6:.3f} million pixels a second")
    for name, bare in (("same pixels, margins included", same), ("slide's pixels", slide_alone)):
        ratio = median(b / full for b, full in zip(bare[1:], ours[1:], strict=True))
        print(f"of the bare network's throughput on the {name}: {ratio:.3f} (goal: 0.90)")
    if paper:
        ratio = median(b / a for a, b in zip(plain[1:], paper[1:], strict=True))
        print(f"bare, without flips, times as fast as CDWS-MIL's bare network: {ratio:.2f}")


if __name__ == "__main__":
    main()
