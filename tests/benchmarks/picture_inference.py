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
Throughput of inference of pictures, from files to all their results, against the bare network on as many tensors.

    python tests/benchmarks/picture_inference.py [--size 500] [--images 8] [--rounds 3] [--config recommended]

Ours: the shipped `inference.json`, once through: reading, network, mask, map, heat map, overlay, table and page. The
two take turns, so that other work on the machine slows both alike; the median of the ratios is shown; for a network
other than CDWS-MIL's also the bare network against CDWS-MIL's, both without flips.
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

import torch
from monai.bundle import ConfigParser
from slide_inference import bare_seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset
from scripts.networks import CDWSNet

BUNDLE = Path(bundle_root())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", nargs="*", default=[], help="overlays of inference.json")
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        size = (arguments.size, arguments.size)
        data = make_demo_dataset(folder + "/data", counts={"training": arguments.images}, size=size).parent
        configs = ConfigParser()
        names = ("inference", *arguments.config)
        configs.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
        changes = {"dataset_dir": str(data / "images"), "output_dir": folder, "bundle_root": str(BUNDLE)}
        configs.update(changes | {"spatial_size": list(size)})
        ours, bare, plain, paper = [], [], [], []
        for count in range(arguments.rounds + 1):  # the first one warms up
            configs.update({"prediction_dir": f"{folder}/{count}"})
            configs.parse(reset=True)
            evaluator = configs.get_parsed_content("evaluator")
            network, device = configs.get_parsed_content("network").eval(), configs.get_parsed_content("device")
            start = perf_counter()
            evaluator.run()
            ours.append(perf_counter() - start)
            shapes = [size] * arguments.images
            bare.append(bare_seconds(network, shapes, device))
            if not isinstance(network, CDWSNet):
                trunk = CDWSNet().to(device, memory_format=torch.channels_last).eval()
                plain.append(bare_seconds(network.averaging_flips(False), shapes, device))
                paper.append(bare_seconds(trunk, shapes, device))
    print(f"{device}, {arguments.size} x {arguments.size}, {torch.get_num_threads()} threads", *names)
    print(f"{median(ours[1:]) / arguments.images:.4f} s a picture")
    ratio = median(b / a for a, b in zip(ours[1:], bare[1:], strict=True))
    print(f"of the bare network's throughput: {ratio:.3f}")
    if paper:
        ratio = median(b / a for a, b in zip(plain[1:], paper[1:], strict=True))
        print(f"bare, without flips, times as fast as CDWS-MIL's bare network: {ratio:.2f}")


if __name__ == "__main__":
    main()
