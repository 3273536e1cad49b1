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
"""Make the picture of docs/labelling.md: phantoms with the area that one would give them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.data.rough_area import rough_area
from scripts.demo.phantoms import draw_phantom
from scripts.images.outline import OutlineOverlay

SHOWN = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7)
SIZE = (224, 224)


def main() -> None:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(2, len(SHOWN))
    found: dict[float, tuple[np.ndarray, np.ndarray]] = {}
    for seed in range(200):
        image, mask = draw_phantom(np.random.default_rng(seed), SIZE)
        found.setdefault(rough_area(mask), (image, mask))
        if all(area in found for area in SHOWN):
            break
    outline = OutlineOverlay()
    for column, area in zip(axes.T, SHOWN, strict=True):
        image, mask = found[area]
        drawn = outline(image.transpose(2, 0, 1) / 255, mask[None]).transpose(1, 2, 0)
        for axis, picture, title in zip(
            column, (image, drawn), (f"key {round(area * 10)}", f"{mask.mean():.0%}"), strict=True
        ):
            axis.imshow(picture)
            axis.set_title(title, fontsize=11)
            axis.axis("off")
    path = Path(__file__).parent / "images" / "labelling.jpg"
    figure.savefig(path, dpi=75, pil_kwargs={"quality": 80})
    print(path)


if __name__ == "__main__":
    main()
