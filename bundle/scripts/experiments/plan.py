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


"""What the experiments are: of each the rows of its table, and of each row the runs it is made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import cycle
from typing import Any

from scripts.experiments.variants import forget_areas, make_folds, noisy_areas, stepped_areas, take_subset
from scripts.runtime.errors import InputError

__all__ = ["EXPERIMENTS", "METHODS", "SUPERVISED", "Cell", "Plan", "Row", "Study", "area_candidates"]


@dataclass(frozen=True)
class Method:
    """Overlays after ``train.json``, and settings that differ from theirs."""

    overlays: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 1
    """Trainings, of which each but the first learns from what the one before says of the pixels."""
    shifted: bool = False
    """Whether ``model.pt`` has its maps shifted by the areas of the validation images, as they are to be used."""


METHODS: dict[str, Method] = {
    "baseline": Method(("baseline",)),
    "baseline_ac": Method(("baseline_ac",)),
    "dws": Method(("dws",)),
    "cdws": Method(("cdws",)),
    "cdws, relative": Method(("cdws",), {"penalty": "relative"}),
    "cdws, relative, weights x 0.1": Method(("cdws",), {"penalty": "relative", "area_weight_scale": 0.1}),
    "cdws, two_sided": Method(("cdws",), {"constraint": "two_sided"}),
    "cdws, log_barrier": Method(("cdws", "log_barrier")),
}
METHODS |= {
    f"{name} + superpixels": Method((*method.overlays, "superpixels"), method.settings)
    for name, method in METHODS.items()
}
SUPERVISED: dict[str, Method] = {  # learn from masks
    **{name: Method((name,)) for name in ("vgg_supervised", "fcn32s", "fcn16s", "fcn8s", "unet", "dcan")},
    "dcan, contour": Method(("dcan",), {"contour": True}),
    "recommended_supervised": Method(("recommended", "recommended_supervised"), shifted=True),
}
METHODS |= {
    "recommended": Method(("recommended",), rounds=2, shifted=True),  # what `cdws train` does
    "recommended, one round": Method(("recommended",), shifted=True),
    "cam": Method(("cam",)),
    # as large in the image as 64 pixels at 500, the paper's; a tree is not an epoch
    "mil_boosting": Method(("mil_boosting",), {"max_epochs": 100, "val_interval": 100, "patch_size": 16}),
    **SUPERVISED,
}
SIDES = ("side 1", "side 2", "side 3")
AREA_STEPS = (0.05, 0.1, 0.25)
AREA_NOISE = 0.15  # standard deviation, of the image
PAPER_AREA_WEIGHTS = (2.5, 5.0, 10.0, 10.0)  # of the three sides and the fusion


@dataclass(frozen=True)
class Cell:
    """
    One training, and the evaluations of what it learned.

    Args:
        method: one of `METHODS`.
        data: name of a variant of the data set.
        seed: of the training.
        settings: that differ from the method's.
        maps: of the network to evaluate beside its answer.
    """

    method: str
    data: str = "base"
    seed: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    maps: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder; cells of one name are one, whichever experiments they belong to."""
        settings = (f"{key} {value}" for key, value in self.settings)
        words = " ".join((self.method, self.data, *settings, f"seed{self.seed}"))
        return re.sub(r"[^a-z0-9.]+", "_", words.lower()).strip("_")


@dataclass(frozen=True)
class Row:
    """A row of a table: cells that differ in seed or fold alone; and the map that is scored, empty for the answer."""

    name: str
    cells: tuple[Cell, ...]
    map: str = ""
    series: str = ""
    """Rows of one series are points of one curve, at `x`."""
    x: float | None = None


@dataclass(frozen=True)
class Plan:
    """An experiment: its rows, and the row that the others are tested against."""

    title: str
    question: str
    rows: tuple[Row, ...]
    reference: str
    x_label: str = ""


@dataclass
class Study:
    """
    What all experiments of a command share.

    Args:
        base: the data set's splits, see `load_base`.
        compared: methods of `comparison` where `methods` names none.
        methods: of `comparison`, `less_data`, `cross_validation` and `area_noise`; none for those of each.
        seeds: each a run of every row, but for folds.
        folds: number of folds.
        fractions: of the training images in `less_data`.
        area_weights: candidates of `area_weight`, each three sides and the fusion.
        fusion_step: of the grid of `fusion_weights`.
    """

    base: Mapping[str, list]
    compared: Sequence[str]
    seeds: Sequence[int]
    methods: Sequence[str] = ()
    folds: int = 5
    fractions: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)
    area_weights: Sequence[tuple[float, ...]] = ()
    fusion_step: float = 0.05
    variants: dict[str, Mapping[str, list]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.variants["base"] = self.base

    def variant(self, name: str, **changed: list[dict]) -> str:
        """Enter a variant by its changed splits; where none differs from the data set as it is, that is its name."""
        splits = self.base | changed
        if splits == self.base:
            return "base"
        self.variants[name] = splits
        return name

    def fold_names(self) -> list[str]:
        """Variants in which one fold of the training images is the test."""
        folds = make_folds(self.base["training"], self.folds, seed=0)
        names = []
        for number, test in enumerate(folds):
            training = [item for other in folds if other is not test for item in other]
            names.append(self.variant(f"fold{number + 1}of{self.folds}", training=training, test=test))
        return names


def comparison(study: Study) -> Plan:
    methods = study.methods or study.compared
    rows = [Row(name, tuple(Cell(name, seed=seed) for seed in study.seeds)) for name in methods]
    return Plan(
        "Comparison of methods",
        "Which method segments best? Tables II and VII of the paper.",
        tuple(rows),
        reference="cdws" if "cdws" in methods else methods[0],
    )


def less_data(study: Study) -> Plan:
    rows = []
    for method in study.methods or ("dws", "cdws"):
        for fraction in study.fractions:
            cells = []
            for seed in study.seeds:
                subset = take_subset(study.base["training"], fraction, seed)
                cells.append(Cell(method, study.variant(f"{fraction:.0%} seed{seed}", training=subset), seed))
            rows.append(Row(f"{method}, {fraction:.0%}", tuple(cells), series=method, x=100 * fraction))
    return Plan(
        "Less training data",
        "How much do fewer training images cost, with and without area? Tables III and IV of the paper. The images are "
        "drawn by group and class, anew for each seed; a larger part holds the smaller one.",
        tuple(rows),
        reference=rows[-1].name,
        x_label="training images, %",
    )


def side_outputs(study: Study) -> Plan:
    cells = tuple(Cell("cdws", seed=seed, maps=SIDES) for seed in study.seeds)
    rows = [Row(side, cells, map=side) for side in SIDES]
    return Plan(
        "Side outputs",
        "What does each side output find alone, and what the fusion? Tables V and VI of the paper.",
        (*rows, Row("fusion", cells)),
        reference="fusion",
    )


def cross_validation(study: Study) -> Plan:
    folds = study.fold_names()
    rows = [Row(name, tuple(Cell(name, fold) for fold in folds)) for name in study.methods or ("cdws",)]
    return Plan(
        "Cross-validation",
        f"{study.folds} folds of the training images, by group; each is the test of a network that was trained on the "
        "others, as with the paper's data set B. The spread is that over folds.",
        tuple(rows),
        reference=rows[0].name,
    )


def area_weight(study: Study) -> Plan:
    folds = study.fold_names()
    rows = []
    for weights in study.area_weights:
        settings: tuple = ()
        if weights != PAPER_AREA_WEIGHTS:
            settings = (("side_area_weights", list(weights[:-1])), ("fusion_area_weight", weights[-1]))
        rows.append(Row(area_name(weights), tuple(Cell("cdws", fold, settings=settings) for fold in folds)))
    return Plan(
        "Weight of the area",
        "Weights of the area term for the three sides and the fusion, chosen by cross-validation on training images: "
        "the highest mean of F+ and F-. The paper's are 2.5, 5, 10 and 10.",
        tuple(rows),
        reference=rows[0].name,
    )


def area_name(weights: Sequence[float]) -> str:
    return " / ".join(f"{weight:g}" for weight in weights)


def area_candidates() -> list[tuple[float, ...]]:
    """The paper's weights, the same with equal weights, and multiples of the paper's."""
    scaled = [tuple(factor * weight for weight in PAPER_AREA_WEIGHTS) for factor in (0.1, 0.3, 3.0)]
    return [PAPER_AREA_WEIGHTS, (5.0, 5.0, 5.0, 5.0), *scaled]


def fusion_weights(study: Study) -> Plan:
    cells = tuple(Cell("cdws", fold, maps=SIDES) for fold in study.fold_names())
    return Plan(
        "Weights of the fusion",
        f"Fixed weights of the three sides in evaluation, chosen on a grid of {study.fusion_step:g} by "
        "cross-validation on training images: the highest mean of F+ and F-. Nothing is trained for it: side maps of "
        "held-out folds are averaged. The paper's are 0.2, 0.35, 0.45.",
        (*(Row(side, cells, map=side) for side in SIDES), Row("fusion", cells)),
        reference="fusion",
    )


def area_noise(study: Study) -> Plan:
    # of validation images too, whose areas may set thresholds; those of test images say nothing
    base = {split: study.base[split] for split in ("training", "validation")}
    exact = {split: stepped_areas(items, 0.1) for split, items in base.items()}

    def enter(name: str, splits: Mapping[str, list], alter: Callable[[list[dict]], list[dict]]) -> str:
        return study.variant(f"area {name}", **{split: alter(items) for split, items in splits.items()})

    steps = {f"steps of {step:g}": step for step in AREA_STEPS}
    noise, half = f"noise of {AREA_NOISE:g}", "missing for half"
    noisy = [
        enter(f"{noise} seed{seed}", base, partial(noisy_areas, deviation=AREA_NOISE, seed=seed))
        for seed in study.seeds
    ]
    halved = [
        enter(f"{half} seed{seed}", exact, partial(forget_areas, fraction=0.5, seed=seed)) for seed in study.seeds
    ]
    variants = {  # a variant for each seed, or one for all
        **{name: [enter(name, base, partial(stepped_areas, step=step))] for name, step in steps.items()},
        noise: noisy,
        half: halved,
        "no area": [enter("missing", exact, partial(forget_areas, fraction=1, seed=0))],
    }
    settings = {name: (("area_step", step),) for name, step in steps.items() if step != 0.1}
    rows = []
    for method in study.methods or ("cdws",):
        for name, data in variants.items():
            cells = zip(cycle(data), study.seeds, strict=False)
            own = settings.get(name, ())
            rows.append(Row(f"{method}, {name}", tuple(Cell(method, variant, seed, own) for variant, seed in cells)))
    return Plan(
        "Noise of the area",
        "How rough may the area be? True areas from the masks, rounded up to steps of 0.05, 0.1 and 0.25; with normal "
        f"noise of standard deviation {AREA_NOISE:g} of the image, to the nearest 0.1; and in steps of 0.1, missing "
        "for half of the positive images or for all. Those of training and validation images alike.",
        tuple(rows),
        reference=rows[AREA_STEPS.index(0.1)].name,
    )


EXPERIMENTS: dict[str, Callable[[Study], Plan]] = {
    function.__name__: function
    for function in (comparison, less_data, side_outputs, cross_validation, area_weight, fusion_weights, area_noise)
}


def merge_cells(plans: Sequence[Plan]) -> list[Cell]:
    """The cells of all plans, each once, with all the maps that any plan asks for."""
    merged: dict[str, Cell] = {}
    for cell in (cell for plan in plans for row in plan.rows for cell in row.cells):
        maps = merged[cell.name].maps if cell.name in merged else ()
        merged[cell.name] = replace(cell, maps=tuple(dict.fromkeys((*maps, *cell.maps))))
    return list(merged.values())


def check_methods(names: Sequence[str]) -> None:
    """Raises InputError for a name that is no method."""
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise InputError(f"There is no method '{unknown[0]}'; the methods are: {'; '.join(METHODS)}.")
