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
Pen and blur put on a slide and found again, for the table in slides.md; and the same of the colon images, as one slide.

    python docs/slide_quality.py SLIDE FOLDER_OF_DATASET_JSON OUTPUT_FOLDER

OUTPUT_FOLDER gets the slides, and for each a picture: red is left out as pen, blue as blur, grey is no tissue.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))
from scripts.images.quality import find_blur, find_pen
from scripts.images.slide import Slide
from scripts.images.tissue import OVERVIEW, find_tissue

INKS = {
    "black": (20, 20, 20),
    "navy": (25, 25, 128),
    "blue": (30, 60, 180),
    "green": (13, 102, 38),
    "light green": (60, 160, 80),
    "red": (153, 13, 26),
    "bright red": (220, 40, 50),
}
LINE = 150  # micrometres, of a pen's line


def write_slide(path: Path, picture: np.ndarray, mpp: float) -> None:
    """A slide (H, W, 3) uint8 of one level, as JPEG."""
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 80}}
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, picture, **options, **resolution)


def drawn(picture: np.ndarray, ink: tuple[int, int, int], strength: float, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """The picture with a winding line through which light passes as through the ink, and where the line is."""
    height, width = picture.shape[:2]
    line = Image.new("L", (width, height))
    along = np.linspace(0, 1, 100)
    places = np.stack([width * (0.45 + 0.25 * np.sin(6 * along)), height * along], axis=1)
    ImageDraw.Draw(line).line([tuple(place) for place in places], fill=255, width=round(LINE / mpp), joint="curve")
    where = np.asarray(line) > 0
    passed = (np.array(ink) / 255) ** strength
    return np.where(where[..., None], (picture * passed).round().astype(np.uint8), picture), where


def blurred(picture: np.ndarray, where: np.ndarray, sigma: float) -> np.ndarray:
    smooth = gaussian_filter(picture.astype(np.float32), (sigma, sigma, 0)).round().astype(np.uint8)
    return np.where(where[..., None], smooth, picture)


def measure(path: Path, where: np.ndarray, tissue: np.ndarray | None = None) -> str:
    """What is left out of the tissue in a place, as pen and as blur, and what of the other."""
    slide = Slide(path)
    view = slide.at(1.0).fitting(OVERVIEW)
    overview = view.read(0, view.height, 0, view.width)
    tissue = find_tissue(overview) if tissue is None else tissue
    pen = find_pen(overview, view.mpp[0])
    blur = find_blur(slide, tissue & ~pen) & ~pen
    slide.close()
    shown = np.where(tissue[..., None], overview, overview / 2 + 0.25)
    shown[pen & tissue] = shown[pen & tissue] / 2 + (0.5, 0, 0)
    shown[blur & tissue] = shown[blur & tissue] / 2 + (0, 0, 0.5)
    small = Image.fromarray((shown * 255).round().astype(np.uint8))
    small.thumbnail((1000, 1000))
    small.save(path.with_suffix(".png"))
    at = np.asarray(Image.fromarray(where).resize(tissue.shape[::-1], Image.Resampling.NEAREST))
    shares = [
        (found & part).sum() / max(1, part.sum()) for part in (tissue & at, tissue & ~at) for found in (pen, blur)
    ]
    return " | ".join(f"{100 * share:.1f}" for share in shares) + " |"


def tissue_of(path: Path) -> np.ndarray:
    slide = Slide(path)
    view = slide.at(1.0).fitting(OVERVIEW)
    found = find_tissue(view.read(0, view.height, 0, view.width))
    slide.close()
    return found


def mosaic(folder: Path) -> np.ndarray:
    """All images of the data set, side by side."""
    content = json.loads((folder / "dataset.json").read_text())
    items = content["training"] + content["validation"]
    side = int(len(items) ** 0.5)
    images = [np.asarray(Image.open(folder / item["image"]).convert("RGB")) for item in items[: side**2]]
    return np.concatenate([np.concatenate(images[k * side : (k + 1) * side], axis=1) for k in range(side)])


def main(source: Path, folder: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    print("| change | there: pen % | blur % | elsewhere: pen % | blur % |\n| --- | --- | --- | --- | --- |")
    slide = Slide(source)
    view = slide.at(slide.mpp_x)
    pixels = (view.read(0, view.height, 0, view.width) * 255).round().astype(np.uint8)
    colon = mosaic(folder)
    for name, picture, mpp in (("slide", pixels, slide.mpp_x), ("colon", colon, 1.0)):
        nowhere = np.zeros(picture.shape[:2], bool)
        write_slide(output / f"{name}.tif", picture, mpp)
        tissue = tissue_of(output / f"{name}.tif")
        print(f"| {name}, nothing | {measure(output / f'{name}.tif', nowhere)}", flush=True)
        for ink, colour in INKS.items():
            for strength in (1.0, 0.5) if name == "slide" else (1.0,):
                path = output / f"{name}_{ink.replace(' ', '_')}_{strength}.tif"
                changed, where = drawn(picture, colour, strength, mpp)
                write_slide(path, changed, mpp)
                print(
                    f"| {name}, {ink}{'' if strength == 1 else ', pale'} | {measure(path, where, tissue)}", flush=True
                )
        half = nowhere.copy()
        half[: len(half) // 2] = True
        parts = {"upper half": half, "all": ~nowhere} if name == "slide" else {"upper half": half}
        for part, where in parts.items():
            for sigma in (1, 2, 4, 8):
                path = output / f"{name}_{part.replace(' ', '_')}_{sigma}.tif"
                write_slide(path, blurred(picture, where, sigma / mpp), mpp)
                print(f"| {name}, {part} blurred by {sigma} um | {measure(path, where, tissue)}", flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
