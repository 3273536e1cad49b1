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
What it brings to have the recommended network's normalisation in its convolutions, see `scripts.networks.folding`.

    python tests/benchmarks/folding.py [--rounds 10]

The network with timm's encoder as it is, and as the bundle has it, by turns: forward and backward pass of a batch of 8
of 224 x 224 pixels, as in training; answer to one such picture, and to a slide's tile with its margins. Medians of the
ratios of the processor's seconds, and the bytes that are kept for the backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from time import process_time

import torch
from backends import network
from memory import MEGABYTE
from scripts.networks import MapNetwork


def pass_of(model: MapNetwork, images: torch.Tensor, training: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.set_grad_enabled(training):
            maps = model.train(training)(images)
        if training:
            model.zero_grad()
            maps.mean().backward()

    return run


def seconds(run: Callable[[], None]) -> float:
    start = process_time()
    run()
    return process_time() - start


def kept(model: MapNetwork, images: torch.Tensor) -> float:
    """Megabytes, each storage once."""
    stored: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        maps = model.train()(images)
    del maps
    return sum(stored.values()) / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    folded = network()
    plain = deepcopy(folded)
    plain.encoder.register_forward_hook(lambda *_: None)  # for which the encoder is called as it is
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    print("| what | of the time | seconds, timm's encoder as it is | seconds |\n| --- | --- | --- | --- |")
    for name, shape, training in (
        ("forward and backward, 8 images of 224 x 224", (8, 3, 224, 224), True),
        ("answer to a picture of 224 x 224", (1, 3, 224, 224), False),
        ("answer to a tile of 704 x 704", (1, 3, 704, 704), False),
    ):
        images = torch.randn(shape).to(memory_format=torch.channels_last)
        runs = [pass_of(model, images, training) for model in (plain, folded)]
        times = [[seconds(run) for run in runs] for _ in range(rounds + 1)][1:]
        before, after = map(median, zip(*times, strict=True))
        ratio = median(b / a for a, b in times)
        print(f"| {name} | {ratio:.2f} | {before:.3f} | {after:.3f} |", flush=True)
        if training:
            print(f"kept for the backward pass: {kept(plain, images):.0f} and {kept(folded, images):.0f} MB")


if __name__ == "__main__":
    main()
