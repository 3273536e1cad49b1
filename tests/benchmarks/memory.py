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
Memory of a training step against the image's size and the micro-batch, beside what the layers must keep in theory.

    python tests/benchmarks/memory.py [--sizes 112 224 500] [--micro_batches 1 4]

Kept: bytes of all tensors that the forward pass saves for the backward pass, each storage once. Peak: on a GPU the
allocator's, on the CPU the growth of the process's largest resident size; each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import sys
from multiprocessing import get_context
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet

MEGABYTE = 2**20


def measure(size: int, micro_batch: int) -> tuple[float, float]:
    """Megabytes kept for the backward pass, and at the peak of two steps beside the network."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = CDWSNet().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    loss = CDWSLoss()
    image = torch.rand(micro_batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.tensor([[1.0, 0.3]] * micro_batch, device=device)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    before = peak(device)
    for _ in range(2):
        kept.clear()
        optimizer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total = loss(network(image), target)
        total.backward()
        optimizer.step()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(b for place, b in kept.items() if place not in weights) / MEGABYTE, (peak(device) - before) / MEGABYTE


def peak(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224, 500])
    parser.add_argument("--micro_batches", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    print("GPU" if torch.cuda.is_available() else "CPU")
    print("| pixels | images at once | kept, MB | peak, MB | ratio |\n| --- | --- | --- | --- | --- |")
    for size in arguments.sizes:
        for micro_batch in arguments.micro_batches:
            with get_context("spawn").Pool(1) as pool:
                kept, most = pool.apply(measure, (size, micro_batch))
            print(f"| {size} x {size} | {micro_batch} | {kept:.0f} | {most:.0f} | {most / kept:.2f} |", flush=True)


if __name__ == "__main__":
    main()
