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
Time and memory of MIL-Boosting on as many made-up images as there are to train with, drawn whenever they are asked for.

    python tests/benchmarks/boosting.py [--images 750] [--size 500] [--rounds 20] [--negative_patches 2000]
"""

from __future__ import annotations

import argparse
import resource
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from ignite.engine import Events
from monai.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.boosting.ensemble import MILBoostNet
from scripts.boosting.trainer import BoostingTrainer

GROWTH = 0.15  # of the red in the square that makes an image positive


def draw(index: int, size: int, positive: bool) -> dict[str, torch.Tensor]:
    """Smooth noise (3, H, W) around 0, as if normalised, with a redder square in a positive image."""
    generator = torch.Generator().manual_seed(index)
    coarse = torch.randn(1, 3, size // 16, size // 16, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0]
    image += 0.2 * torch.randn(3, size, size, generator=generator)
    if positive:
        side = size // 3
        top, left = torch.randint(size - side, (2,), generator=generator).tolist()
        image[0, top : top + side, left : left + side] += GROWTH / 0.229
    return {"image": image, "label": torch.tensor([float(positive), 0.1])}


def peak_memory() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=750)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--negative_patches", default=2000, type=lambda text: text if text == "all" else int(text))
    arguments = parser.parse_args()
    items = [{"index": i, "size": arguments.size, "positive": i % 3 == 0} for i in range(arguments.images)]
    trainer = BoostingTrainer(
        max_epochs=arguments.rounds,
        device="cpu",
        network=MILBoostNet(),
        dataset=Dataset(items, transform=lambda item: draw(**item)),
        negative_patches=arguments.negative_patches,
    )
    times, losses = [perf_counter()], []
    trainer.add_event_handler(Events.STARTED, lambda _: times.append(perf_counter()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: times.append(perf_counter()))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.mean_loss))
    before = peak_memory()
    trainer.run()
    rounds = [end - start for start, end in pairwise(times[1:])]
    print(f"{arguments.images} images of {arguments.size} x {arguments.size}, {torch.get_num_threads()} threads")
    print(f"patches kept: {trainer.bags[-1]}")
    print(f"features: {times[1] - times[0]:.0f} s, drawing the images three times included")
    print(f"a round: {median(rounds):.2f} s; loss {losses[0]:.4f} after the first, {losses[-1]:.4f} after the last")
    print(f"peak memory: {peak_memory():.2f} GB, {before:.2f} GB before the training")


if __name__ == "__main__":
    main()
