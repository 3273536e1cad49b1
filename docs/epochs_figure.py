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

"""Maps of a training's validation images epoch by epoch, from its TensorBoard log, as one picture."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def panels(folder: str) -> dict[str, dict[int, np.ndarray]]:
    """Image, truth and map of each image shown in the log, side by side, by its name and by epoch."""
    log = EventAccumulator(folder, size_guidance={"images": 0})
    log.Reload()
    tags = [tag for tag in log.Tags()["images"] if tag.startswith("input, truth, map/")]
    return {
        tag.split("/")[1]: {
            event.step: np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) for event in log.Images(tag)
        }
        for tag in tags
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="output_dir of the training")
    parser.add_argument("--output", type=Path, required=True, help="picture to write")
    arguments = parser.parse_args()
    if not list(arguments.run.glob("events.out.tfevents.*")):
        sys.exit(f"error: there is no TensorBoard log in {arguments.run}")
    shown = panels(str(arguments.run))
    epochs = sorted(next(iter(shown.values())))
    figure = Figure(figsize=(1.3 * (2 + len(epochs)), 1.32 * len(shown)))
    axes = figure.subplots(len(shown), 2 + len(epochs))
    for row, images in zip(axes, shown.values(), strict=True):
        width = images[epochs[0]].shape[1] // 3
        pictures = [images[epochs[0]][:, :width], images[epochs[0]][:, width : 2 * width]]
        pictures += [images[epoch][:, 2 * width :] for epoch in epochs]
        for axis, picture in zip(row, pictures, strict=True):
            axis.imshow(picture)
            axis.axis("off")
    for axis, title in zip(axes[0], ["image", "truth", *(f"epoch {epoch}" for epoch in epochs)], strict=True):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(arguments.output, dpi=110)
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
