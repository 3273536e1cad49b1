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
Time of every method's training and inference, an image and a pass, through the configs that a user runs.

    python tests/benchmarks/methods.py [--size 112] [--repeats 5] [--methods cdws unet ...]

Training is a step over a micro-batch without loading; inference is the network on one image. Rounds are interleaved, so
that other work on the machine slows all methods alike; the medians are shown. MIL-Boosting has no such step: its
training is that of all its trees on the micro-batch's images, divided by their number.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from monai.bundle import ConfigParser

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset

BUNDLE = Path(bundle_root())
METHODS = [
    *("baseline", "baseline_ac", "dws", "cdws", "cam", "mil_boosting"),
    *("vgg_supervised", "fcn32s", "fcn16s", "fcn8s", "unet", "dcan"),
]


class Method:
    """Steps of a method as its configs make them."""

    def __init__(self, name: str, data: Path, size: int, options: dict) -> None:
        self.boosted = name == "mil_boosting"
        self.parser = ConfigParser()
        self.parser.read_config([str(BUNDLE / "configs" / f"{part}.json") for part in ("train", "minibatch", name)])
        changes = {"dataset_dir": str(data), "output_dir": str(data / "runs"), "bundle_root": str(BUNDLE)}
        self.parser.update({**changes, "spatial_size": [size, size], "pretrained": "random"})
        self.parser.update({key: value for key, value in options.items() if key in self.parser.get()})
        self.get = self.parser.get_parsed_content
        if self.boosted:
            self.parser.update({"engine#train_handlers": None})
        self.network, self.device = self.get("network"), self.get("device")
        if not self.boosted:
            self.loss, self.optimizer = self.get("loss"), self.get("optimizer")
            self.batch = next(iter(self.get("train#dataloader")))
        self.image = torch.rand(1, 3, size, size, device=self.device)

    def train(self) -> int:
        """One step; the number of images in it."""
        if self.boosted:
            booster = self.get("engine")
            booster.run()
            return len(booster.dataset)
        self.network.train()
        image = self.batch["image"].to(self.device)
        extra = {name: self.batch[name] for name in self.loss.inputs if name in self.batch}
        self.optimizer.zero_grad()
        self.loss(self.network(image), self.batch["label"].to(self.device), **extra).mean().backward()
        self.optimizer.step()
        return len(image)

    def infer(self) -> int:
        self.network.eval()
        with torch.no_grad():
            self.network(self.image)
        return 1


def seconds(step: Callable[[], int], device: torch.device) -> float:
    """An image."""
    start = perf_counter()
    images = step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (perf_counter() - start) / images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--patch_size", type=int, default=16, help="of MIL-Boosting")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        size = (arguments.size, arguments.size)
        data = make_demo_dataset(folder + "/data", counts={"training": 4, "validation": 2}, size=size).parent
        options = {"patch_size": arguments.patch_size, "superpixel_cache": folder}
        methods = {name: Method(name, data, arguments.size, options) for name in arguments.methods}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
        for _ in range(arguments.repeats + 1):  # the first one warms up
            for name, method in methods.items():
                times[name].append(tuple(seconds(step, method.device) for step in (method.train, method.infer)))
    device = next(iter(methods.values())).device
    print(f"{device}, {arguments.size} x {arguments.size}, {torch.get_num_threads()} threads, seconds per image")
    print("| | training, a pass | inference |\n| --- | --- | --- |")
    for name, measured in times.items():
        train, infer = (median(column) for column in zip(*measured[1:], strict=True))
        print(f"| {name} | {train:.4f} | {infer:.4f} |")


if __name__ == "__main__":
    main()
