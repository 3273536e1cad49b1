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
A folder of the bioimage.io model format, version 0.5: TorchScript, test tensors, and ``rdf.yaml`` that describes them.

The network takes RGB in 0..255 through the normalisation that the description states, and gives its map.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from scripts import bundle_metadata, bundle_version
from scripts.demo.phantoms import draw_phantom
from scripts.exports.trained import TrainedModel, write_torchscript

__all__ = ["write_bioimageio"]

FORMAT = "0.5.3"
MULTIPLE = 32  # sides that every network of the bundle takes as they are
PREPRINT = "https://arxiv.org/abs/1701.00794"


def write_bioimageio(folder: Path, model: TrainedModel) -> None:
    """``rdf.yaml``, ``weights.pt``, ``test_input.npy``, ``test_output.npy`` and ``README.md`` into a folder."""
    height, width = (-(-n // MULTIPLE) * MULTIPLE for n in model.spatial_size)
    picture, _ = draw_phantom(np.random.default_rng(0), (height, width))  # (H, W, 3) uint8
    image = picture.transpose(2, 0, 1)[None].astype(np.float32)  # normalised as uint8, it would stay that
    mean, std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) * 255 for v in (model.mean, model.std))
    scripted = model.scripted()
    write_torchscript(folder / "weights.pt", scripted)
    np.save(folder / "test_input.npy", image)
    output = scripted(torch.from_numpy(((image - mean) / std).astype(np.float32)))
    np.save(folder / "test_output.npy", output.numpy())
    (folder / "README.md").write_text(_readme(model), encoding="utf-8")
    with (folder / "rdf.yaml").open("w", encoding="utf-8") as file:
        yaml.safe_dump(_description(folder, model), file, sort_keys=False, allow_unicode=True)


def _description(folder: Path, model: TrainedModel) -> dict[str, Any]:
    metadata = bundle_metadata()
    smallest = -(-model.network.smallest_size // MULTIPLE) * MULTIPLE
    sizes = {axis: {"min": smallest, "step": MULTIPLE} for axis in "yx"}
    return {
        "type": "model",
        "format_version": FORMAT,
        "name": f"CDWS-MIL {model.network.method or type(model.network).__name__}",
        "description": f"Segments {model.class_name}; trained on image labels and rough areas (CDWS-MIL).",
        "version": bundle_version(),
        "authors": [{"name": metadata["authors"]}],
        "cite": [{"text": metadata["references"][0], "url": PREPRINT}],
        # whoever has trained a network says under which licence it is
        **({"license": "Apache-2.0"} if model.shipped else {}),
        "documentation": "README.md",
        "tags": ["segmentation", "histopathology", "weakly-supervised", "pytorch"],
        "inputs": [
            {
                "id": "image",
                "description": "RGB",
                "axes": _axes(["red", "green", "blue"], sizes, model.mpp),
                "data": {"type": "float32", "range": [0.0, 255.0]},
                "test_tensor": _file(folder, "test_input.npy"),
                "preprocessing": [
                    {
                        "id": "fixed_zero_mean_unit_variance",
                        "kwargs": {
                            "mean": [round(255 * value, 6) for value in model.mean],
                            "std": [round(255 * value, 6) for value in model.std],
                            "axis": "channel",
                        },
                    }
                ],
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "description": f"of {model.class_name}; {model.threshold:g} and above is marked",
                "axes": _axes(
                    [model.class_name], {axis: {"tensor_id": "image", "axis_id": axis} for axis in "yx"}, model.mpp
                ),
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": _file(folder, "test_output.npy"),
            }
        ],
        "weights": {"torchscript": {**_file(folder, "weights.pt"), "pytorch_version": torch.__version__.split("+")[0]}},
    }


def _axes(channels: list[str], sizes: dict[str, Any], mpp: float) -> list[dict[str, Any]]:
    # the format's size of an output is int(n * scale / scale), which is n for a scale of so few digits alone
    scale = float(np.float32(mpp))
    space = [{"type": "space", "id": axis, "size": sizes[axis], "unit": "micrometer", "scale": scale} for axis in "yx"]
    return [{"type": "batch"}, {"type": "channel", "channel_names": channels}, *space]


def _file(folder: Path, name: str) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}


def _readme(model: TrainedModel) -> str:
    metadata = bundle_metadata()
    height, width = model.spatial_size
    scores = ", ".join(f"{name} {value}" for name, value in metadata["eval_metrics"].items()) if model.shipped else ""
    return (
        f"# {metadata['name']}\n\n{metadata['description']}\n\n{metadata['intended_use']}.\n\n"
        f"Input: RGB at {model.mpp:g} micrometres per pixel, as in the training on images of {height} x {width} "
        f"pixels. Output: probability of {model.class_name}.\n\n"
        f"# Validation\n\n{scores or 'Not stated.'}\n"
    )
