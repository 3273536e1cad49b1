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
The included recommended model on a CPU in ONNX Runtime (`inference_onnx.json`), and in OpenVINO where it is installed.

    python tests/benchmarks/backends.py [--images FOLDER] [--size 224] [--count 4] [--rounds 5]

Times as fast as PyTorch, by turns, in the processor's seconds; and how many pixels of the masks differ. Images are
phantoms unless a folder is given.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from time import process_time

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset
from scripts.networks import MapNetwork, PyramidNet, in_onnx_runtime

MODEL = Path(bundle_root()) / "models" / "area_ranked.pt"
Answer = Callable[[torch.Tensor], torch.Tensor]


def network() -> MapNetwork:
    made = PyramidNet().eval()
    made.load_state_dict(torch.load(MODEL, weights_only=True))
    return made.to(memory_format=torch.channels_last)


def openvino_answer(image: torch.Tensor, folder: str) -> Answer:
    import openvino

    names = {"input_names": ["image"], "output_names": ["map"]}
    torch.onnx.export(network(), (image,), f"{folder}/model.onnx", dynamo=False, **names)
    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(f"{folder}/model.onnx", "CPU", options)
    return lambda image: torch.from_numpy(compiled(image.contiguous().numpy())[0].copy())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size = (arguments.size, arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        counts = {"training": max(2, arguments.count)}
        where = arguments.images or make_demo_dataset(f"{folder}/data", counts=counts, size=size).parent / "images"
        images = []
        for path in sorted(where.glob("*.png"))[: arguments.count]:
            pixels = np.asarray(Image.open(path).convert("RGB").resize(size), np.float32) / 255
            pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
            image = torch.from_numpy(pixels.transpose(2, 1, 0)[None].astype(np.float32))
            images.append(image.to(memory_format=torch.channels_last))
        answers: dict[str, Answer] = {"PyTorch": network(), "ONNX Runtime": in_onnx_runtime(network())}
        if find_spec("openvino"):
            answers["OpenVINO"] = openvino_answer(images[0], folder)
        times: dict[str, list[float]] = {name: [] for name in answers}
        maps: dict[str, list[torch.Tensor]] = {}
        for _ in range(arguments.rounds + 1):  # the first one warms up
            for name, answer in answers.items():
                start = process_time()
                maps[name] = [answer(image) for image in images]
                times[name].append(process_time() - start)
    print(f"{len(images)} images of {arguments.size} x {arguments.size}, {torch.get_num_threads()} threads")
    print("| | times as fast | pixels that differ | in the worst image |\n| --- | --- | --- | --- |")
    for name, seconds in times.items():
        gain = median(a / b for a, b in zip(times["PyTorch"][1:], seconds[1:], strict=True))
        off = [
            ((a >= 0.5) != (b >= 0.5)).float().mean().item() for a, b in zip(maps[name], maps["PyTorch"], strict=True)
        ]
        print(f"| {name} | {gain:.2f} | {mean(off):.4%} | {max(off):.4%} |")


if __name__ == "__main__":
    main()
