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
The least time of a full-batch step on a GPU, from arithmetic and memory traffic; and, on a GPU, the time it takes.

    python tests/benchmarks/full_batch.py [--images 750] [--size 500] [--micro_batch 16] [--device cuda]

Floor of a layer: the larger of its arithmetic at the GPU's peak for bf16 and its memory traffic at the bandwidth; the
layers' floors are summed. Arithmetic: two operations a multiplication, forward once, backward twice (weights and
inputs; the first layer has no gradient of its input). Traffic, in bf16: a layer's output is written and read in the
forward pass and read again in the backward pass, its gradient is written once and read twice. Peak and bandwidth are
those of NVIDIA's data sheet for the H100 SXM5. With `--device cpu` the measurement can be rehearsed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.losses.cdws import CDWSLoss
from scripts.networks import CDWSNet

PEAK = 989.4e12  # operations a second, bf16, dense
BANDWIDTH = 3.35e12  # bytes a second
BYTES = 2
PASSES = 6  # over each layer's output or its gradient


def floors(size: int) -> list[tuple[str, float, float]]:
    """Of each convolution and pooling of the trunk: name, seconds of arithmetic, seconds of traffic, for one image."""
    rows = []

    def note(name: str, layer: nn.Module, output: torch.Tensor) -> None:
        outputs = output[0].numel()
        operations = 0
        if isinstance(layer, nn.Conv2d):
            passes = 2 if layer.in_channels == 3 else 3
            operations = 2 * passes * outputs * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        rows.append((name, operations / PEAK, PASSES * BYTES * outputs / BANDWIDTH))

    trunk = CDWSNet().features.to("meta")
    for name, layer in trunk.named_children():
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            layer.register_forward_hook(lambda layer, _, output, name=name: note(f"features.{name}", layer, output))
    trunk(torch.empty(1, 3, size, size, device="meta"))
    return rows


def measure(images: int, size: int, micro_batch: int, device: str) -> float:
    """Seconds of a step on the GPU: bf16, channels last, gradients of all images, one step of the optimiser."""
    network = CDWSNet().to(device, memory_format=torch.channels_last).train()
    optimizer, loss = torch.optim.Adam(network.parameters(), fused=True), CDWSLoss()
    image = torch.rand(micro_batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.tensor([[1.0, 0.3]] * micro_batch, device=device)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(-(-images // micro_batch)):
            with torch.autocast(device, dtype=torch.bfloat16):
                prediction = network(image)
            loss(prediction, target).backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    start = perf_counter()
    step()
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=750)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--micro_batch", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    print("| layer | arithmetic, us per image | traffic, us per image |\n| --- | --- | --- |")
    rows = floors(arguments.size)
    for name, arithmetic, traffic in rows:
        print(f"| {name} | {arithmetic * 1e6:.1f} | {traffic * 1e6:.1f} |")
    floor = arguments.images * sum(max(arithmetic, traffic) for _, arithmetic, traffic in rows)
    print(f"floor of a step over {arguments.images} images of {arguments.size} x {arguments.size}: {floor:.3f} s")
    device = arguments.device
    if device != "cuda" or torch.cuda.is_available():
        seconds = measure(arguments.images, arguments.size, arguments.micro_batch, device)
        name = torch.cuda.get_device_name() if device == "cuda" else device
        print(f"{name}: {seconds:.3f} s, {seconds / floor:.2f} times the floor (goal: 2.5)")
    else:
        print("not measured: there is no GPU")


if __name__ == "__main__":
    main()
