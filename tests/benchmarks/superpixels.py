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
Superpixels of this bundle against a plain grid, scikit-image's SLIC and, if installed, OpenCV's, on images with masks.

    python tests/benchmarks/superpixels.py DATASET_DIR [--images 40] [--sizes 500 224]

For each method, on positive training images resized to a square: superpixels made, seconds per image, boundary recall
(part of the truth's boundary that has one of a superpixel within 2 of 500 pixels), and the best F that a mask of whole
superpixels can have. All are measured at 500 x 500 pixels, to which the superpixels are enlarged. OpenCV's are in the
package opencv-contrib-python-headless.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import find_boundaries, slic

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts.data.superpixels import AUTO_DENSITY, Superpixels

try:
    from cv2 import COLOR_RGB2LAB, cvtColor, setNumThreads, ximgproc
except ImportError:
    ximgproc = None
    print("OpenCV's ximgproc is not installed; its row is left out.", file=sys.stderr)

COMPARED_AT = 500  # pixels
REACH = 2  # pixels at this size
Method = Callable[[np.ndarray, int], np.ndarray]  # picture (H, W, 3) uint8 and number to labels (H, W)


def grid(picture: np.ndarray, n: int) -> np.ndarray:
    height, width = picture.shape[:2]
    rows = round(n**0.5)
    return (np.arange(height) * rows // height)[:, None] * rows + np.arange(width) * rows // width


def scikit_image(picture: np.ndarray, n: int, compactness: float, zero: bool = False) -> np.ndarray:
    return slic(picture, n, compactness, slic_zero=zero, start_label=0)


def opencv(picture: np.ndarray, n: int) -> np.ndarray:
    setNumThreads(1)
    side = max(2, round((picture.shape[0] * picture.shape[1] / n) ** 0.5))
    superpixels = ximgproc.createSuperpixelSLIC(cvtColor(picture, COLOR_RGB2LAB), ximgproc.SLIC, side, 20.0)
    superpixels.iterate(10)
    superpixels.enforceLabelConnectivity(25)
    return superpixels.getLabels()


def ours(picture: np.ndarray, n: int) -> np.ndarray:
    return Superpixels(n)(picture.transpose(2, 0, 1).astype(np.float32) / 255)[0].numpy()


METHODS: dict[str, Method] = {
    "plain grid": grid,
    "scikit-image `slic`, compactness 10": partial(scikit_image, compactness=10),
    "the same, compactness 20": partial(scikit_image, compactness=20),
    "scikit-image `slic_zero`": partial(scikit_image, compactness=10, zero=True),
    **({"OpenCV SLIC, ruler 20": opencv} if ximgproc else {}),
    "**this bundle**, compactness 20": ours,
}


def read_examples(folder: Path, count: int) -> list[tuple[Image.Image, Image.Image]]:
    """Pictures and masks of positive training images, spread over the list, whose mask has an outline."""
    items = json.loads((folder / "dataset.json").read_text())["training"]
    positives = [item for item in items if item["label"] == 1 and item.get("mask")]
    examples = []
    for item in positives[:: max(1, len(positives) // (count + count // 4))]:
        mask = Image.open(folder / item["mask"]).convert("L").point(lambda value: 255 * (value > 0))
        if 0.05 < np.mean(np.asarray(mask) > 0) < 0.95:
            examples.append((Image.open(folder / item["image"]).convert("RGB"), mask))
    return examples[:count]


def measure(method: Method, examples: list[tuple[Image.Image, Image.Image]], size: int, n: int) -> list[float]:
    """Means over the images: superpixels made, seconds, boundary recall, best F."""
    rows = []
    for image, mask in examples:
        picture = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
        start = process_time()
        labels = np.asarray(method(picture, n))
        seconds = process_time() - start
        index = np.arange(COMPARED_AT) * size // COMPARED_AT
        enlarged = labels[index][:, index]
        truth = np.asarray(mask.resize((COMPARED_AT, COMPARED_AT), Image.Resampling.NEAREST)) > 0
        near = distance_transform_edt(~find_boundaries(enlarged, mode="thick")) <= REACH
        recall = near[find_boundaries(truth, mode="inner")].mean()
        pixels, positive = np.bincount(enlarged.ravel()), np.bincount(enlarged.ravel(), truth.ravel())
        best = (positive > pixels / 2)[enlarged]
        rows.append((len(np.unique(labels)), seconds, recall, 2 * (best & truth).sum() / (best.sum() + truth.sum())))
    return np.mean(rows, axis=0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 224])
    arguments = parser.parse_args()
    examples = read_examples(arguments.dataset_dir, arguments.images)
    print(f"{len(examples)} images")
    print("| pixels (asked) | superpixels | made, mean | seconds per image | boundary recall | best F |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for size in arguments.sizes:
        n = round(AUTO_DENSITY * size * size)
        for name, method in METHODS.items():
            made, *rest = measure(method, examples, size, n)
            print(f"| {size} x {size} ({n}) | {name} | {made:.0f} | " + " | ".join(f"{v:.3f}" for v in rest) + " |")


if __name__ == "__main__":
    main()
