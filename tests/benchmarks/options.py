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
What each means of speed or memory brings, and what it does to the masks.

    python tests/benchmarks/options.py [--size 224] [--micro_batch 4] [--rounds 5] [--images 40]

Network: a training step with all maps and their loss, in turns with plain float32 in PyTorch's order (NCHW); the median
of the ratios of times, and each one's peak of memory in a process of its own, see `memory.py`. Masks: the shipped
model's on phantoms; how many pixels differ from float32's, on average and in the worst image, and the time of the
prediction. Loader: milliseconds per image, with all transforms.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from time import perf_counter

import torch
from memory import MEGABYTE, peak
from monai.bundle import ConfigParser
from monai.data import DataLoader
from torch import nn
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset
from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet

BUNDLE = Path(bundle_root())
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
OPTIONS = {
    "plain": [],
    "channels-last": ["channels_last"],
    "channels-last, bfloat16": ["channels_last", "bfloat16"],
    "channels-last, compiled": ["channels_last", "compiled"],
    "channels-last, bfloat16, compiled": ["channels_last", "bfloat16", "compiled"],
    "channels-last, activation checkpoints": ["channels_last", "checkpoints"],
}


class CheckpointedStage(nn.Sequential):
    """Layers whose inner activations are computed again in the backward pass instead of kept."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def training_step(options: list[str], size: int, micro_batch: int) -> Callable[[], None]:
    """A step of the network with these options, ready to be run."""
    order = torch.channels_last if "channels_last" in options else torch.contiguous_format
    network = CDWSNet().to(DEVICE, memory_format=order).train()
    if "checkpoints" in options:
        layers, ends = list(network.features), [0, *(end + 1 for end in network.stage_ends)]
        stages = [layers[a:b] for a, b in pairwise(ends)]
        network.features = nn.Sequential(*(CheckpointedStage(*stage) for stage in stages))
        network.stage_ends = range(len(stages))
    loss, optimizer = CDWSLoss(), torch.optim.Adam(network.parameters())
    forward = torch.compile(network) if "compiled" in options else network
    image = torch.rand(micro_batch, 3, size, size, device=DEVICE)
    target = torch.tensor([[1.0, 0.3]] * micro_batch, device=DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled="bfloat16" in options):
            maps = forward(image)
        loss(maps, target).backward()
        optimizer.step()

    return step


def seconds(run: Callable[[], None]) -> float:
    start = perf_counter()
    run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def peak_of(options: list[str], size: int, micro_batch: int) -> float:
    """Megabytes that two steps add to the process; to be called in one of its own."""
    before = peak(DEVICE)
    step = training_step(options, size, micro_batch)
    step()
    step()
    return (peak(DEVICE) - before) / MEGABYTE


def compare_steps(size: int, micro_batch: int, rounds: int) -> None:
    # first of all: on Linux, a process's peak begins at the size of the one that started it
    peaks = {}
    for name, options in OPTIONS.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_of, options, size, micro_batch).result()
    steps = {name: training_step(options, size, micro_batch) for name, options in OPTIONS.items()}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):  # the first one warms up, and compiles
        for name, step in steps.items():
            times[name].append(seconds(step))
    print(f"\nTraining step, {size} x {size}, {micro_batch} images")
    print("| option | times as fast | peak, MB |\n| --- | --- | --- |")
    for name, most in peaks.items():
        gain = median(a / b for a, b in zip(times["plain"][1:], times[name][1:], strict=True))
        print(f"| {name} | {gain:.2f} | {most:.0f} |", flush=True)


@torch.inference_mode()
def compare_masks(folder: str, images: int) -> None:
    """Half precision in the shipped model, at the size it was trained at."""
    files = make_demo_dataset(folder + "/masks", counts={"training": images}, size=(224, 224)).parent
    configs = ConfigParser()
    configs.read_config(BUNDLE / "configs" / "inference.json")
    configs.update({"dataset_dir": str(files / "images"), "bundle_root": str(BUNDLE), "device": DEVICE})
    network = configs.get_parsed_content("network").eval()
    network.load_state_dict(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))
    inputs = [item["image"].as_tensor()[None].to(DEVICE) for item in configs.get_parsed_content("dataset")]

    def predict(dtype: torch.dtype | None) -> list[torch.Tensor]:
        with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype is not None):
            return [network(image)[:, :1] for image in inputs]

    expected = predict(None)
    plain = seconds(partial(predict, None))
    marked = mean((maps > 0.5).float().mean().item() for maps in expected)
    print(f"\nMasks of {len(inputs)} phantoms, {marked:.2f} of whose pixels are marked")
    print("| precision | times as fast | pixels that differ | in the worst image |\n| --- | --- | --- | --- |")
    for dtype in (torch.bfloat16, torch.float16):
        maps = predict(dtype)
        gain = plain / seconds(partial(predict, dtype))
        off = [((a > 0.5) != (b > 0.5)).float().mean().item() for a, b in zip(maps, expected, strict=True)]
        print(f"| {str(dtype).removeprefix('torch.')} | {gain:.2f} | {mean(off):.4%} | {max(off):.4%} |", flush=True)


def compare_loaders(folder: str, size: int) -> None:
    sides = (size, size)
    data = make_demo_dataset(folder + "/loader", counts={"training": 48, "validation": 2}, size=sides).parent
    print(f"\nLoader, {size} x {size}")
    print("| loader | ms per image |\n| --- | --- |")
    for name, changes, pinned in (
        ("nothing cached", {"cache_rate": 0.0}, False),
        ("deterministic transforms cached (the default)", {}, False),
        ("cached, 2 processes", {"num_workers": 2}, False),
        ("cached, 2 processes, pinned", {"num_workers": 2}, True),
    ):
        if pinned and DEVICE.type != "cuda":
            print(f"| {name} | not measured: there is no GPU |")
            continue
        configs = ConfigParser()
        configs.read_config([str(BUNDLE / "configs" / f"{config}.json") for config in ("train", "minibatch")])
        configs.update({"dataset_dir": str(data), "output_dir": folder, "ckpt_dir": folder, "bundle_root": str(BUNDLE)})
        configs.update({"spatial_size": list(sides), "pretrained": "random", **changes})
        given: DataLoader = configs.get_parsed_content("train#dataloader")
        sampler = given.batch_sampler
        loader = DataLoader(given.dataset, batch_sampler=sampler, num_workers=given.num_workers, pin_memory=pinned)

        def epoch(loader: DataLoader = loader) -> None:
            for batch in loader:
                batch["image"].as_tensor().to(DEVICE, non_blocking=True)

        seconds(epoch)
        print(f"| {name} | {median(seconds(epoch) for _ in range(5)) / 48 * 1000:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--micro_batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=40, help="whose masks are compared")
    arguments = parser.parse_args()
    logging.disable()
    print(f"{DEVICE}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    compare_steps(arguments.size, arguments.micro_batch, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        compare_masks(folder, arguments.images)
        compare_loaders(folder, arguments.size)


if __name__ == "__main__":
    main()
