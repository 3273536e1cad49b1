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
Make the picture of docs/labelling.md, phantoms with the area that one would give them, and the labelling page's
pictures of areas to compare with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.data.rough_area import rough_area
from scripts.demo.phantoms import draw_phantom
from scripts.images.outline import OutlineOverlay

SHOWN = (0.1, 0.2, 0.3, 0.4, 0.6, 0.7)
SIZE = (224, 224)
STATIC = Path(__file__).resolve().parents[1] / "bundle" / "scripts" / "labelling" / "static"
COMPARED = (10, 30, 50, 70)  # percent
SIDE = 144
COLOURS = [242, 221, 230, 122, 62, 143]  # of the ground, and of what is to be estimated


def draw_area(percent: int, pieces: str) -> Image.Image:
    """Blobs that fill this part of a square, in one piece or scattered, to the pixel."""
    noise = np.random.default_rng(percent).standard_normal((SIDE, SIDE))
    ground = gaussian_filter(noise, 5 if pieces == "many" else 9, mode="wrap")
    ground /= ground.std()
    if pieces == "one":
        rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
        ground = 0.6 * ground - 16 * (rows**2 + columns**2)
    mask = np.zeros(SIDE**2, np.uint8)
    mask[np.argsort(ground, axis=None)[::-1][: round(percent / 100 * SIDE**2)]] = 1
    picture = Image.fromarray(mask.reshape(SIDE, SIDE), mode="P")
    picture.putpalette(COLOURS)
    return picture


def main() -> None:
    for percent in COMPARED:
        for pieces in ("one", "many"):
            draw_area(percent, pieces).save(STATIC / f"area_{percent}_{pieces}.png", optimize=True, bits=1)
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
