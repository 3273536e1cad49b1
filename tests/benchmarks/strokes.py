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
Do strokes help? A reviewer is simulated from the masks of the images that a first model doubts most.

    PYTHONPATH=bundle python tests/benchmarks/strokes.py DATA [--images 100] [--painted 10] [--positive]

DATA has masks of its training and validation images. Of each painted image the largest region that the model has missed
gets a positive stroke, the largest that it has wrongly marked a negative one: a line along it, a thirtieth of the image
wide. The same images without strokes are the control, and so are as many strokes on images drawn at random. A small
network, which takes a minute on a free core, learns from scratch by `AreaRankedLoss` at 64 x 64 pixels, from the same
seed each time. Scores are F+ and F- of the validation images at 0.5; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from monai.networks.layers import Norm
from monai.networks.nets import UNet
from PIL import Image, ImageDraw
from scripts.data.datalist import read_splits
from scripts.images.loading import load_mask
from scripts.images.strokes import NEGATIVE, POSITIVE
from scripts.losses.area_ranking import AreaRankedLoss
from scripts.losses.pooling import generalized_mean
from scripts.metrics import compute_region_f_measure
from scripts.review.doubt import Finding, doubt_of, outline_entropy
from skimage.measure import label as connected_regions
from skimage.measure import regionprops
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

SIZE = 64


def read(items: list[dict]) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Images (N, 3, H, W), targets (N, 2), masks (N, H, W)."""
    images, targets, masks = [], [], []
    for item in items:
        picture = Image.open(item["image"]).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - 0.6)
        targets.append([item["label"], item.get("area", np.nan)])
        mask = np.zeros((SIZE, SIZE), bool)
        if item.get("mask"):
            whole = Image.fromarray(np.asarray(load_mask(item["mask"]))[0].T)
            mask = np.array(whole.resize((SIZE, SIZE), Image.Resampling.BOX)) >= 0.5
        masks.append(mask)
    return torch.stack(images), torch.tensor(targets, dtype=torch.float32), np.stack(masks)


def train(images: torch.Tensor, targets: torch.Tensor, strokes: torch.Tensor, seed: int, options: argparse.Namespace):
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    network = UNet(2, 3, 1, (16, 32, 64), (2, 2), norm=Norm.BATCH)
    loss = AreaRankedLoss(warm_up=options.epochs // 4, stroke_weight=options.weight, reduction="none")
    teacher = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True).eval()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    steps = options.epochs * -(-len(images) // 8)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
    for epoch in range(1, options.epochs + 1):
        loss.set_epoch(epoch)
        network.train()
        for chosen in np.array_split(draw.permutation(len(images)), steps // options.epochs):
            turn, flip = int(draw.integers(4)), bool(draw.integers(2))
            image, painted = (
                torch.rot90(part[chosen].flip(3) if flip else part[chosen], turn, (2, 3)) for part in (images, strokes)
            )
            with torch.no_grad():
                ranking = teacher(image).sigmoid() if loss.needs_ranking else None
            cost = loss(network(image).sigmoid(), targets[chosen], ranking=ranking, strokes=painted).mean()
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            schedule.step()
            teacher.update_parameters(network)
    return deepcopy(teacher.module).eval()


def maps(network: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([network(part).sigmoid() for part in images.split(32)])[:, 0].numpy()


def scores(probability: np.ndarray, targets: torch.Tensor, masks: np.ndarray) -> tuple[float, float, float]:
    values = [compute_region_f_measure(p >= 0.5, m)[0] for p, m in zip(probability, masks, strict=True)]
    positive = targets[:, 0].numpy() == 1
    f_pos, f_neg = float(np.mean(np.array(values)[positive])), float(np.mean(np.array(values)[~positive]))
    return f_pos, f_neg, (f_pos + f_neg) / 2


def paint(region: np.ndarray, value: int, strokes: np.ndarray) -> None:
    """A line through the middle of the largest connected part of a region (H, W), along it, and only in it."""
    parts = regionprops(connected_regions(region))
    if parts:
        part = max(parts, key=lambda p: p.area)
        (y, x), length = part.centroid, part.axis_major_length / 3
        dy, dx = length * np.cos(part.orientation), length * np.sin(part.orientation)
        line = Image.new("L", region.shape[::-1])
        ImageDraw.Draw(line).line((x - dx, y - dy, x + dx, y + dy), fill=1, width=max(1, SIZE // 30))
        strokes[(np.array(line) > 0) & region] = value


def painted(chosen: np.ndarray, probability: np.ndarray, masks: np.ndarray) -> torch.Tensor:
    """Strokes of all images, (N, 1, H, W), of which the chosen ones have some."""
    strokes = np.zeros(masks.shape, np.uint8)
    for k in chosen:
        paint(masks[k] & (probability[k] < 0.5), POSITIVE, strokes[k])
        paint(~masks[k] & (probability[k] >= 0.5), NEGATIVE, strokes[k])
    return torch.from_numpy(strokes)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=100, help="training images, half of each class (100)")
    parser.add_argument("--painted", type=int, default=10, help="images that get strokes (10)")
    parser.add_argument("--positive", action="store_true", help="paint positive images alone")
    parser.add_argument("--weight", type=float, default=1.0, help="of the strokes (1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=24, help="of a training (24)")
    options = parser.parse_args()
    _, splits, _ = read_splits(options.data, ("training", "validation"), allow_outside=True)
    seen = read(splits["validation"])
    results: dict[str, list] = {}
    for seed in options.seeds:
        draw, items = np.random.default_rng(seed), []
        for label in (1, 0):
            of_class = [item for item in splits["training"] if item["label"] == label]
            items += [of_class[i] for i in draw.permutation(len(of_class))[: options.images // 2]]
        images, targets, masks = read(items)
        first = train(images, targets, torch.zeros(len(items), 1, SIZE, SIZE, dtype=torch.uint8), seed, options)
        probability = maps(first, images)
        pooled = generalized_mean(torch.from_numpy(probability)[:, None])[:, 0].tolist()
        doubts = [
            doubt_of(Finding(pooled[k], float((p >= 0.5).mean()), outline_entropy(p)), item["label"], item.get("area"))
            for k, (p, item) in enumerate(zip(probability, items, strict=True))
        ]
        usable = np.flatnonzero([item["label"] == 1 or not options.positive for item in items])
        order = usable[np.argsort([-doubts[k].total for k in usable], kind="stable")]
        print(f"seed {seed}  {sum(items[k]['label'] == 1 for k in order[: options.painted])} of them are positive")
        arms = {
            "no strokes": order[:0],
            "in most doubt": order[: options.painted],
            "at random": draw.permutation(usable)[: options.painted],
        }
        for name, chosen in arms.items():
            strokes = painted(chosen, probability, masks)
            network = first if name == "no strokes" else train(images, targets, strokes, seed, options)
            results.setdefault(name, []).append(scores(maps(network, seen[0]), *seen[1:]))
            marked = float((strokes > 0).float().mean()) * len(items) / max(1, len(chosen))
            numbers = "".join(f"{value:>8.3f}" for value in results[name][-1])
            print(f"seed {seed}  {name:16}{numbers}   {marked:.1%} of each painted image", flush=True)
    print(f"\n{'':24}{'F+':>8}{'F-':>8}{'mean':>8}")
    for name, rows in results.items():
        print(f"{name:24}" + "".join(f"{value:>8.3f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
