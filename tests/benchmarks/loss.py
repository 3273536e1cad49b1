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
Time of the loss against the network, forward and backward, on one image: how much each kind of instance costs.

    python tests/benchmarks/loss.py [--size 500] [--repeats 5]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data.superpixels import Superpixels
from scripts.demo.phantoms import draw_phantom
from scripts.losses.cdws import CDWSLoss
from scripts.losses.constraints import AreaConstraint
from scripts.losses.pooling import Pooling
from scripts.networks import CDWSNet


def seconds(step: Callable[[], torch.Tensor], repeats: int, device: torch.device) -> float:
    """Median time of the forward pass in `step` and the backward pass of what it gives."""
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = perf_counter()
        step().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    size = arguments.size
    picture = torch.as_tensor(draw_phantom(np.random.default_rng(0), (size, size))[0]).movedim(-1, 0).float() / 255
    superpixels = Superpixels()(picture)[None].to(device)
    image = picture[None].to(device, memory_format=torch.channels_last)
    network = CDWSNet().to(device, memory_format=torch.channels_last).train()
    target = torch.tensor([[1.0, 0.3]], device=device)
    maps = torch.rand(1, 4, size, size, device=device, requires_grad=True)

    network_time = seconds(lambda: network(image).sum(), arguments.repeats, device)
    print(f"{device}, {size} x {size}, {torch.get_num_threads()} threads, network {network_time:.4f} s an image")
    print("| loss | s | share of the network |\n| --- | --- | --- |")
    options = {
        "default": {},
        "two_sided": {"constraint": AreaConstraint("two_sided")},
        "log_barrier": {"constraint": AreaConstraint("log_barrier")},
        **{kind: {"pool": Pooling(kind)} for kind in ("log_sum_exp", "top_fraction", "mean", "max")},
    }
    for name, arguments_of_loss in options.items():
        loss = CDWSLoss(**arguments_of_loss)
        for instances, extra in {"pixels": {}, "superpixels": {"superpixels": superpixels}}.items():
            time = seconds(partial(loss, maps, target, **extra), arguments.repeats, device)
            print(f"| {name}, {instances} | {time:.5f} | {time / network_time:.2%} |")


if __name__ == "__main__":
    main()
