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
The validation images as another stain, scanner or magnification would show them, for the table in results.md.

    python docs/shifted_images.py FOLDER_OF_DATASET_JSON CHANGE OUTPUT_FOLDER
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage.color import hed2rgb, rgb2hed


def _stain(haematoxylin: float, eosin: float) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        stains = rgb2hed(np.asarray(image)) * (haematoxylin, eosin, 1)
        return Image.fromarray((hed2rgb(stains) * 255).round().astype(np.uint8))

    return change


def _gamma(exponent: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: round(255 * (value / 255) ** exponent))


def _blur(pixels: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.filter(ImageFilter.GaussianBlur(pixels))


def _jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


def _twice(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The middle half of width and height, at the size of the whole."""
    width, height = image.size
    middle = (width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2)
    return image.crop(middle).resize(image.size, resample)


def _half(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The whole at half its size, continued by its mirror images to the size that it had."""
    small = np.asarray(image.resize((image.width // 2, image.height // 2), resample))
    row = np.concatenate([small, small[:, ::-1]], axis=1)
    return Image.fromarray(np.concatenate([row, row[::-1]]))


COLOURS = {
    "none": lambda image: image,
    "more_haematoxylin": _stain(1.3, 0.7),
    "more_eosin": _stain(0.7, 1.3),
    "darker": _gamma(1.4),
    "lighter": _gamma(0.7),
    "blur_1": _blur(1),
    "blur_2": _blur(2),
    "jpeg_50": _jpeg(50),
    "jpeg_15": _jpeg(15),
}
SIZES = {"twice_as_large": _twice, "half_as_large": _half}


def shift(source: Path, change: str, output: Path) -> None:
    """Write images and masks, changed, and their ``dataset.json``; labels without areas."""
    items = json.loads((source / "dataset.json").read_text())["validation"]
    changed = []
    for item in items:
        new = {"image": f"{Path(item['image']).stem}.png", "label": item["label"]}
        new["group"] = item.get("group", item["image"])
        image = Image.open(source / item["image"]).convert("RGB")
        image = SIZES[change](image, Image.Resampling.BICUBIC) if change in SIZES else COLOURS[change](image)
        image.save(output / new["image"])
        if "mask" in item:
            mask = Image.open(source / item["mask"]).convert("L")
            if change in SIZES:
                mask = SIZES[change](mask, Image.Resampling.NEAREST)
            new["mask"] = f"{Path(item['image']).stem}_mask.png"
            mask.save(output / new["mask"])
        changed.append(new)
    (output / "dataset.json").write_text(json.dumps({"validation": changed}, indent=4))


if __name__ == "__main__":
    source, change, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if change not in {*COLOURS, *SIZES}:
        sys.exit(f"CHANGE must be one of {', '.join([*COLOURS, *SIZES])}, got '{change}'.")
    output.mkdir(parents=True, exist_ok=True)
    shift(source, change, output)
