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
Time of a training step through the bundle, against the bare network on tensors that are in memory already.

    python tests/benchmarks/training_step.py [--size 224] [--images 16] [--rounds 5] [--config minibatch]
        [--num_workers 0] [--ranked]

Bundle: an epoch of the shipped configs, from its first batch asked for to its last step done: loader, transforms,
engine, loss, handlers. Bare: as many steps of the same network and optimiser with a plain PyTorch loss, and with the
forward pass of a teacher where the method has one (`--ranked`: recommended.json after its warm-up). Epochs of the
two take turns, so that other work on the machine slows both alike; the median of the ratios is shown. Also the time
the engine waits for batches after the first epoch, which fills the cache; and, for a network other than CDWS-MIL's,
the bare step against that of CDWS-MIL's at the same size.
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
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.utils import convert_to_tensor
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset
from scripts.networks import CDWSNet

BUNDLE = Path(bundle_root())


class Stopwatch:
    """Seconds of each epoch's iterations, and of the waits for batches in it."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.waits: list[float] = []
        self.asked = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.get)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.stop)

    def start(self, engine: Engine) -> None:
        self.began, self.waited = perf_counter(), 0.0

    def ask(self, engine: Engine) -> None:
        self.asked = perf_counter()

    def get(self, engine: Engine) -> None:
        self.waited += perf_counter() - self.asked

    def stop(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length == 0:
            synchronize(engine.state.device)
            self.epochs.append(perf_counter() - self.began)
            self.waits.append(self.waited)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=16, help="in an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", default="minibatch", help="overlay of train.json")
    parser.add_argument("--num_workers", type=int, default=0, help="loader processes")
    parser.add_argument("--ranked", action="store_true", help="labels are ranked by the teacher from the first step on")
    arguments = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # progress bars
        size = (arguments.size, arguments.size)
        counts = {"training": arguments.images, "validation": 2}
        data = make_demo_dataset(folder + "/data", counts=counts, size=size).parent
        configs = ConfigParser()
        configs.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in ("train", arguments.config)])
        changes = {"dataset_dir": str(data), "output_dir": folder, "ckpt_dir": folder, "bundle_root": str(BUNDLE)}
        changes |= {"spatial_size": list(size), "pretrained": "random", "num_workers": arguments.num_workers}
        configs.update(changes | {"validate#dataset#data": [], "max_epochs": arguments.rounds + 1})  # one warms up
        if configs.get("warm_up") is not None:
            configs.update({"warm_up": 0 if arguments.ranked else arguments.rounds + 1})
        trainer, network = configs.get_parsed_content("train#trainer"), configs.get_parsed_content("network")
        optimizer, device = configs.get_parsed_content("optimizer"), configs.get_parsed_content("device")
        watch = Stopwatch()
        watch.attach(trainer)
        batches = [
            (b["image"].to(device), b["label"].to(device)) for b in configs.get_parsed_content("train#dataloader")
        ]
        batches = [convert_to_tensor(batch, track_meta=False) for batch in batches]  # plain PyTorch's
        trunk = None if isinstance(network, CDWSNet) else CDWSNet().to(device, memory_format=torch.channels_last)
        bare, paper = [], []

        def bare_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, teacher: nn.Module | None) -> float:
            network.train()
            start = perf_counter()
            for image, label in batches:
                optimizer.zero_grad()
                if teacher is not None:
                    with torch.no_grad():
                        teacher(image)
                answer = network(image).mean(dim=(2, 3))
                F.binary_cross_entropy(answer, label[:, :1].expand_as(answer)).backward()
                optimizer.step()
            synchronize(device)
            return perf_counter() - start

        @trainer.on(Events.EPOCH_COMPLETED)
        def take_turns() -> None:
            bare.append(bare_epoch(network, optimizer, trainer.teacher if arguments.ranked else None))
            if trunk is not None:
                paper.append(bare_epoch(trunk, torch.optim.Adam(trunk.parameters()), None))

        trainer.run()
    steps = len(batches)
    ratios = [ours / plain for ours, plain in zip(watch.epochs[1:], bare[1:], strict=True)]
    waits = [wait / epoch for wait, epoch in zip(watch.waits[1:], watch.epochs[1:], strict=True)]
    method = arguments.config + " ranked" * arguments.ranked
    print(f"{device}, {arguments.size} x {arguments.size}, {method}, {torch.get_num_threads()} threads")
    print(f"bundle {median(watch.epochs[1:]) / steps:.3f} s a step, bare {median(bare[1:]) / steps:.3f} s")
    print(f"ratio {median(ratios):.3f} (goal: 1.05 on the CPU at 224 pixels, 1.10 on a GPU)")
    if paper:
        against = median(plain / trunk for plain, trunk in zip(bare[1:], paper[1:], strict=True))
        print(f"bare, of CDWS-MIL's bare step: {against:.3f}")
    print(f"waiting for batches: {median(waits):.2%} of the epoch (goal: 1 %)")


if __name__ == "__main__":
    main()
