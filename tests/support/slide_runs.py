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

"""Inference on slides, as the tests run it."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import run

__all__ = ["SETTINGS", "infer"]

SETTINGS = {"mpp": 1.0, "fusion_weights": [1.0, 0.0, 0.0], "tile_size": 64, "logging_file": False}


def infer(configs: Path, checkpoint: Path, slides: Path, output: Path, **settings: object) -> Path:
    """The folder of the results."""
    run(
        "inferring",
        config_file=[str(configs / "inference.json"), str(configs / "slides.json")],
        dataset_dir=str(slides),
        ckpt_path=str(checkpoint),
        output_dir=str(output),
        **(SETTINGS | settings),
    )
    return output / "predictions"
