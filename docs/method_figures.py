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
Make the pictures of docs/method.md, and print the numbers that stand beside them.

Everything is computed here with the bundle's own poolings, constraints, losses and phantoms, on one CPU core; nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from skimage.segmentation import find_boundaries
from torch import nn
from torchvision.models.vgg import make_layers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bundle"))

from scripts.data.rough_area import rough_area
from scripts.data.superpixels import Superpixels
from scripts.demo.phantoms import draw_phantom
from scripts.losses.cdws import CDWSLoss
from scripts.losses.constraints import AreaConstraint, barrier_sharpness
from scripts.losses.instances import SuperpixelMean
from scripts.losses.pooling import Pooling
from scripts.networks import CDWSNet

IMAGES = Path(__file__).resolve().parent / "images"
# Okabe and Ito's colours, which the colour-blind can tell apart
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE, YELLOW = "#0072B2", "#D55E00", "#CC79A7", "#F0E442"
TOLERANCE, R = 0.05, 4.0  # of train.json

# the small experiment
SIDE = 96  # pixels
STEPS, BATCH, LEARNING_RATE = 200, 8, 2e-3
TRAINING = (16, 64)  # images
TEST = 100
CONSTRAINTS = {  # kind, penalty, weight; those of the fused map in train.json and the overlay log_barrier.json, or less
    "MIL only": ("none", "absolute", 10.0),
    "one-sided": ("one_sided", "absolute", 10.0),
    "two-sided": ("two_sided", "absolute", 10.0),
    "one-sided, relative": ("one_sided", "relative", 1.0),
    "log-barrier": ("log_barrier", "absolute", 0.2),
    "one-sided, relative, weight 10": ("one_sided", "relative", 10.0),
    "log-barrier, weight 10": ("log_barrier", "absolute", 10.0),
}
SHOWN = list(CONSTRAINTS)[:5]
SMALL, LARGE = 0.25, 0.45  # of the image: under and above it a lesion counts as small and as large


class Phantoms(NamedTuple):
    """Images (B, 3, H, W) in 0..1 less 0.5, masks (B, H, W), and weak targets (B, 2)."""

    images: torch.Tensor
    masks: torch.Tensor
    targets: torch.Tensor


def pooling_figure() -> Figure:
    """What poolings make of a bag, and how they share the gradient out among its instances."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    value_axes, share_axes, pull_axes = figure.subplots(1, 3)
    bag = torch.full((1, 1, 100), 0.1)
    bag[..., :10] = 0.9
    sharpness = np.geomspace(0.25, 64, 60)
    for kind, colour, style in (("generalized_mean", BLUE, "-"), ("log_sum_exp", ORANGE, "--")):
        results = [_pooled(bag, Pooling(kind, r=float(r))) for r in sharpness]
        for axes, values in zip((value_axes, share_axes), zip(*results, strict=True), strict=True):
            axes.plot(sharpness, values, style, color=colour, label=f"{kind}, r")
    for kind, colour, style in (("mean", BLACK, ":"), ("top_fraction", GREEN, "-."), ("max", PURPLE, ":")):
        value, share = _pooled(bag, Pooling(kind))
        value_axes.axhline(value, color=colour, linestyle=style, label=f"{kind}{' 0.1' * (kind == 'top_fraction')}")
        share_axes.axhline(share, color=colour, linestyle=style)
    value, share = _pooled(bag, Pooling())
    for axes, y in ((value_axes, value), (share_axes, share)):
        axes.plot([R], [y], "o", color=BLUE)
        axes.annotate(f"r = 4: {y:.2f}", (R, y), (8, -14), textcoords="offset points", color=BLUE)
        axes.set(xscale="log", xlabel="sharpness r", ylim=(0, 1.04))
        axes.set_xticks([0.25, 1, 4, 16, 64], ["1/4", "1", "4", "16", "64"])
    print(f"bag of 10 x 0.9 and 90 x 0.1: generalized mean {value:.3f}, {100 * share:.1f} % of the gradient on the ten")
    value_axes.set_title("pooled value of\n10 pixels of 0.9 and 90 of 0.1", fontsize=10)
    value_axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, 0.86))
    share_axes.set_title("part of the gradient\nthat the ten pixels get", fontsize=10)

    spread = torch.linspace(0.0005, 0.9995, 1000)
    for name, pool, colour, style in (
        ("mean", Pooling("mean"), BLACK, ":"),
        ("generalized_mean, r = 4", Pooling(), BLUE, "-"),
        ("generalized_mean, r = 16", Pooling(r=16), SKY, "-"),
        ("log_sum_exp, r = 4", Pooling("log_sum_exp"), ORANGE, "--"),
        ("top_fraction 0.1", Pooling("top_fraction"), GREEN, "-."),
    ):
        logits = torch.logit(spread).requires_grad_()
        pool.log(torch.sigmoid(logits)[None, None]).sum().backward()
        pull_axes.plot(spread, len(spread) * logits.grad, style, color=colour, label=name)
    pull_axes.set_title("pull on each logit, times N,\nin a bag of all probabilities", fontsize=10)
    pull_axes.set(xlabel="probability of the pixel", ylim=(0, None))
    pull_axes.legend(frameon=False, fontsize=8)
    return figure


def _pooled(bag: torch.Tensor, pool: Pooling) -> tuple[float, float]:
    """Pooled value, and the part of its gradient on the instances that are above one half."""
    p = bag.clone().requires_grad_()
    value = pool(p).sum()
    value.backward()
    return value.item(), (p.grad[bag > 0.5].sum() / p.grad.sum()).item()


def equilibrium_figure() -> Figure:
    """Where the area of a crisp mask comes to rest, by formula and by trying all areas with the bundle's loss."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    weights_axes, kinds_axes, push_axes = figure.subplots(1, 3)
    area = np.linspace(0.005, 1, 200)
    tried = np.linspace(0.1, 1, 10)
    largest = 0.0
    for eta, colour, marker in ((2.5, VERMILION, "s"), (5.0, SKY, "^"), (10.0, BLUE, "o")):
        formula = partial(resting_area, eta=eta)
        found = best_areas(tried, eta, AreaConstraint("one_sided"))
        largest = max(largest, np.abs(found - formula(tried)).max())
        weights_axes.plot(area, formula(area), color=colour, label=f"$\\eta$ = {eta:g}")
        weights_axes.plot(tried, found, marker, color=colour, markersize=5)
    print(f"one-sided: formula and loss differ by at most {largest:.4f} of the image")
    weights_axes.set_title("one-sided: formula (lines)\nand loss (points)", fontsize=10)

    kinds = {
        "one-sided, 10": (AreaConstraint("one_sided"), 10.0, BLUE, "o-"),
        "one-sided, relative, 1": (AreaConstraint("one_sided", penalty="relative"), 1.0, GREEN, "^--"),
        "two-sided, 10": (AreaConstraint("two_sided", TOLERANCE), 10.0, VERMILION, "s-."),
        "log-barrier, t = 5, 0.2": (AreaConstraint("log_barrier", TOLERANCE, sharpness=5.0), 0.2, PURPLE, "v:"),
        "log-barrier, t = 50, 0.2": (AreaConstraint("log_barrier", TOLERANCE, sharpness=50.0), 0.2, BLACK, "x:"),
    }
    for axes, push in ((kinds_axes, 0.0), (push_axes, 0.5)):
        for name, (constraint, eta, colour, style) in kinds.items():
            found = best_areas(tried, eta, constraint, push)
            print(f"{name:24s} push {push}: v* " + " ".join(f"{v:.3f}" for v in found))
            axes.plot(tried, found, style, color=colour, markersize=4, label=name)
    kinds_axes.set_title("all constraints and their $\\eta$\n(loss)", fontsize=10)
    push_axes.set_title("the same, with a push of 0.5 down\nas if from negative images (loss)", fontsize=10)
    for axes in (weights_axes, kinds_axes, push_axes):
        axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        axes.set(xlabel="area a that was given", ylabel="area v of the mask", xlim=(0, 1.02), ylim=(0, 1.04))
        axes.legend(frameon=False, fontsize=8, loc="lower right" if axes is not push_axes else "upper left")
    return figure


def resting_area(area: np.ndarray, eta: float, r: float = R) -> np.ndarray:
    """Area at which the pull 1 / (r v) of the MIL term and the push 2 eta (v - a) of the one-sided area are equal."""
    return np.minimum((area + np.sqrt(area**2 + 2 / (eta * r))) / 2, 1)


def best_areas(areas: np.ndarray, eta: float, constraint: AreaConstraint, push: float = 0.0) -> np.ndarray:
    """For each given area that of the crisp mask, of all numbers of marked pixels, with the least loss + push v."""
    side = 40
    masks = torch.ones(side**2, side**2).tril().view(-1, 1, side, side)  # 1, 2 ... all pixels marked
    v = masks.mean(dim=(1, 2, 3))
    loss = CDWSLoss(side_area_weights=(), fusion_area_weight=eta, constraint=constraint, reduction="none")
    found = [loss(masks, torch.tensor([[1.0, a]]).expand(len(masks), 2)) + push * v for a in areas]
    return np.array([v[losses.argmin()].item() for losses in found])


def draw_set(seed: int, count: int, side: int = SIDE) -> Phantoms:
    """So many phantoms, half of them with cancer, and the rough areas a pathologist would have given."""
    rng = np.random.default_rng(seed)
    pictures, masks = zip(*(draw_phantom(rng, (side, side), cancer=i % 2 == 0) for i in range(count)), strict=True)
    targets = [[float(mask.any()), rough_area(mask) or np.nan] for mask in masks]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255 - 0.5
    return Phantoms(images.contiguous(), torch.from_numpy(np.stack(masks)), torch.tensor(targets))


class SmallNet(nn.Module):
    """The trunk of CDWSNet with an eighth of the channels and the deepest side output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.features = make_layers([8, 8, "M", 16, 16, "M", 32, 32, 32])
        self.side = nn.Conv2d(32, 1, kernel_size=1)
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(self.side.weight)
        nn.init.zeros_(self.side.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to probabilities (B, 1, H, W)."""
        p = torch.sigmoid(self.side(self.features(image)))
        return F.interpolate(p, size=image.shape[-2:], mode="bilinear", align_corners=False)


def train_small(data: Phantoms, kind: str, penalty: str, weight: float, seed: int) -> SmallNet:
    """Train with one of the constraints; weights at the start and order of the images depend on the seed alone."""
    torch.manual_seed(seed)
    network = SmallNet()
    constraint = AreaConstraint(kind, TOLERANCE, penalty)
    loss = CDWSLoss(side_area_weights=(), fusion_area_weight=weight, constraint=constraint)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=5e-4)
    epochs = STEPS * BATCH // len(data.images)
    for epoch in range(1, epochs + 1):
        # t grows from 5 to 50 in the first half
        constraint.set_sharpness(barrier_sharpness(epoch, start=5.0, growth=10 ** (2 / epochs), maximum=50.0))
        for batch in torch.randperm(len(data.images)).split(BATCH):
            optimizer.zero_grad()
            loss(network(data.images[batch]), data.targets[batch]).backward()
            optimizer.step()
    return network.eval()


def predict(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Probabilities (B, H, W)."""
    with torch.no_grad():
        return network(images)[:, 0]


def measure(probability: torch.Tensor, data: Phantoms) -> dict[str, float]:
    """What the masks at 0.5 are like."""
    masks, truth, positive = probability >= 0.5, data.masks, data.targets[:, 0] > 0.5
    found, true = (m.float().mean(dim=(1, 2)) for m in (masks, truth))
    f_measure = 2 * (masks & truth).float().mean(dim=(1, 2)) / (found + true).clamp(min=1e-9)
    groups = {"small": positive & (true < SMALL), "large": positive & (true > LARGE), "all": positive}
    return {
        "F+": f_measure[positive].mean().item(),
        **{f"area / truth, {name}": (found[g].mean() / true[g].mean()).item() for name, g in groups.items()},
        "marked in negatives": found[~positive].mean().item(),
    }


def experiment(seeds: list[int]) -> tuple[Figure, SmallNet]:
    """Train all, print a table of means and ranges over the seeds; the masks of the first seed, and a network."""
    test = draw_set(10_000, TEST)
    cells = list(product(TRAINING, CONSTRAINTS))
    maps, networks = {}, {}
    scores: dict[tuple[int, str], list[dict[str, float]]] = {cell: [] for cell in cells}
    for seed, (count, name) in tqdm(list(product(seeds, cells)), desc="trainings"):
        network = train_small(draw_set(seed, count), *CONSTRAINTS[name], seed=seed)
        probability = predict(network, test.images)
        scores[count, name].append(measure(probability, test))
        maps.setdefault((count, name), probability)
        networks.setdefault((count, name), network)
    columns = list(scores[cells[0]][0])
    print(f"\n{TEST} test images, seeds {seeds}\n| images | loss | " + " | ".join(columns) + " |")
    for (count, name), runs in scores.items():
        print(f"| {count} | {name} | " + " | ".join(_spread([run[c] for run in runs]) for c in columns) + " |")
    return masks_figure(test, maps), networks[TRAINING[-1], "two-sided"]


def _spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def masks_figure(test: Phantoms, maps: dict[tuple[int, str], torch.Tensor]) -> Figure:
    """Masks of three test images that are chosen by their true area, for each loss and size of the training set."""
    true = test.masks.float().mean(dim=(1, 2))
    chosen = [int((true - wanted).abs().argmin()) for wanted in (0.12, 0.6, 0.0)]
    figure = Figure(figsize=(9, 10), layout="constrained")
    blocks = figure.subfigures(len(TRAINING), 1)
    for block, count in zip(blocks, TRAINING, strict=True):
        block.suptitle(f"trained on {count} images", fontsize=11)
        grid = block.subplots(len(chosen), 1 + len(SHOWN))
        for row, i in zip(grid, chosen, strict=True):
            outline = find_boundaries(test.masks[i].numpy(), mode="inner")
            picture = test.images[i].permute(1, 2, 0).numpy() + 0.5
            picture[outline] = 0
            row[0].imshow(picture)
            row[0].set_ylabel(f"truth {100 * true[i]:.0f} %", fontsize=9)
            for axes, name in zip(row[1:], SHOWN, strict=True):
                mask = maps[count, name][i].numpy() >= 0.5
                canvas = np.repeat(np.where(mask, 1.0, 0.25)[..., None], 3, axis=2)
                canvas[outline] = to_rgb(VERMILION)
                axes.imshow(canvas)
                axes.set_xlabel(f"{100 * mask.mean():.0f} %", fontsize=9)
            for axes in row:
                axes.set(xticks=[], yticks=[])
        for axes, name in zip(grid[0], ["image", *SHOWN], strict=True):
            axes.set_title(name.replace(", ", ",\n"), fontsize=9)
    return figure


def superpixels_figure(network: SmallNet) -> Figure:
    """A phantom with its superpixels, a map of its pixels, and the map's means over the superpixels."""
    data = draw_set(20_000, 16, side=200)
    chosen = int((data.masks.float().mean(dim=(1, 2)) - 0.3).abs().argmin())
    image, truth = data.images[chosen], data.masks[chosen].numpy()
    labels = Superpixels()(image + 0.5)
    pixels = predict(network, image[None])
    means = SuperpixelMean()(pixels, labels)
    number = int(labels.max()) + 1
    picture = image.permute(1, 2, 0).numpy() + 0.5
    picture[find_boundaries(labels[0].numpy(), mode="inner")] = to_rgb(YELLOW)
    shown = {
        f"phantom, {number} superpixels": picture,
        "probability of the pixels": pixels[0].numpy(),
        "probability of the superpixels": means[0].numpy(),
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (title, panel) in zip(figure.subplots(1, 3), shown.items(), strict=True):
        drawn = axes.imshow(panel, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
        axes.contour(truth, [0.5], colors=["white" if panel is not picture else BLACK], linewidths=1.5)
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=figure.axes, shrink=0.85)
    print(f"\nsuperpixels: {number} in {truth.shape[0]} x {truth.shape[1]} pixels")
    for title, panel in list(shown.items())[1:]:
        mask = panel >= 0.5
        print(f"{title}: F {2 * (mask & truth).sum() / (mask.sum() + truth.sum()):.3f} at 0.5")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=IMAGES, help="folder (docs/images)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings; the first is drawn (0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fields = CDWSNet(stages=5, fusion_weights=[0.2] * 5).receptive_fields().values()
    print("receptive field and stride of the sides: " + ", ".join(f"{field}/{stride}" for field, stride in fields))
    masks, network = experiment(arguments.seeds)
    figures = {
        "pooling.png": pooling_figure(),
        "equilibrium.png": equilibrium_figure(),
        "masks.jpg": masks,
        "superpixels.jpg": superpixels_figure(network),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = arguments.output / f"method_{name}"
        figure.savefig(path, dpi=100, **({"pil_kwargs": {"quality": 88}} if path.suffix == ".jpg" else {}))
        print(f"written: {path}")


if __name__ == "__main__":
    main()
