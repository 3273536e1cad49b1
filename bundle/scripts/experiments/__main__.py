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
Run an experiment, or all of them, and write its report.

An experiment trains and evaluates with the bundle's own configs, each run in a folder of its own. A run that has
finished is not repeated, so the same command goes on with an interrupted study, and only writes the report of a
finished one. Options that are not named below are settings of the configs, as --spatial_size [112,112], for all runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts import bundle_root
from scripts.runtime.errors import InputError, report_input_errors

if __name__ == "__main__":  # before imports that take seconds, in which a signal would be a traceback
    report_input_errors()

from fire.parser import DefaultParseValue

from scripts.data.datalist import has_masks
from scripts.demo.dataset import make_demo_dataset
from scripts.experiments.plan import (
    EXPERIMENTS,
    METHODS,
    SUPERVISED,
    Study,
    area_candidates,
    check_methods,
    merge_cells,
)
from scripts.experiments.report import make_section, write_report
from scripts.experiments.runner import prepare_cells, run_cells
from scripts.experiments.variants import load_base
from scripts.runtime.command_line import NAMES, PATHS, Parser, did_you_mean

DEMO_COUNTS = {"training": 64, "validation": 16, "test": 32}
DEMO_SIZE = [64, 64]
DEMO_SETTINGS = {"spatial_size": DEMO_SIZE, "max_epochs": 10, "val_interval": 10}
DEMO = {  # what --demo sets where nothing else is asked for
    "overlays": ["demo"],
    "seeds": [0, 1],
    "folds": 3,
    "fractions": [0.25, 0.5, 1.0],
    "area_weights": 3,
    "compared": [
        *("baseline", "baseline_ac", "dws", "cdws"),
        *("dws + superpixels", "cdws + superpixels", "cam", "vgg_supervised"),
    ],
}
FULL = {
    "overlays": ["minibatch"],
    "seeds": [0, 1, 2],
    "folds": 5,
    "fractions": [0.2, 0.4, 0.6, 0.8, 1.0],
    "area_weights": 5,
}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m scripts.experiments", description=__doc__, epilog="Methods: " + "; ".join(METHODS))
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "all"])
    parser.add_argument("--dataset_dir", type=Path, help="folder of dataset.json")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the study, its runs and reports")
    parser.add_argument("--demo", action="store_true", help="small: phantoms, fewer methods, seeds, folds and steps")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="of comparison (all that the masks allow), less_data (dws cdws), cross_validation and area_noise (cdws)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="(0 1 2)")
    parser.add_argument("--folds", type=int, help="(5)")
    parser.add_argument("--fractions", type=float, nargs="+", help="of the images in less_data (0.2 0.4 0.6 0.8 1)")
    parser.add_argument("--overlays", nargs="*", help="under all methods (minibatch); none for the paper's full batch")
    parser.add_argument("--training", type=int, help="train on so many images, half of each class (all)")
    parser.add_argument(
        "--validation",
        type=int,
        help="so many training images for thresholds (the split validation; "
        "where there is no split test, that is the test, and a fifth of training is taken)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    parser.add_argument("--devices", type=lambda text: text.split(","), default=[], help="as cuda:0,cuda:1; in turn")
    parser.add_argument("--shard", metavar="I/N", help="run the I-th of N parts, from 1, and write no report")
    parser.add_argument("--anew", action="store_true", help="replace runs of other settings instead of refusing")
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    return parser


def _settings(words: Sequence[str], overlays: Sequence[str]) -> dict[str, Any]:
    """``--name value`` pairs as MONAI reads them. Raises InputError for what no config has."""
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        raise InputError(f"Settings must be pairs of --name and value; got: {' '.join(words)}.")
    typed = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
    exact = {*PATHS, *NAMES}
    settings = {name: value if name in exact else DefaultParseValue(value) for name, value in typed.items()}
    configs = Path(bundle_root()) / "configs"
    missing = [overlay for overlay in overlays if not (configs / f"{overlay}.json").is_file()]
    if missing:
        near = did_you_mean(missing[0], [path.stem for path in configs.glob("*.json")])
        raise InputError(f"There is no overlay '{missing[0]}' in {configs}{near}.")
    used = {"train", "evaluate", *overlays, *(name for method in METHODS.values() for name in method.overlays)}
    known = {key for name in used for key in json.loads((configs / f"{name}.json").read_text(encoding="utf-8"))}
    unknown = [name for name in settings if name.replace("::", "#").split("#")[0] not in known]
    if unknown:
        near = did_you_mean(unknown[0], known)
        raise InputError(f"There is no setting '{unknown[0]}' in the configs{near}; `cdws settings` lists all.")
    return settings


def _study(options: argparse.Namespace, settings: dict[str, Any]) -> Study:
    defaults = FULL | DEMO if options.demo else FULL
    chosen = {name: getattr(options, name, None) for name in defaults}
    chosen = {name: defaults[name] if value is None else value for name, value in chosen.items()}
    dataset_dir = options.dataset_dir
    if dataset_dir is None and options.demo:
        dataset_dir = make_demo_dataset(
            options.output_dir / "data" / "phantoms", counts=DEMO_COUNTS, size=settings["spatial_size"]
        ).parent
    if dataset_dir is None:
        raise InputError(
            "Name the folder of a dataset.json (cdws study DATA, or --dataset_dir), or use phantoms with --demo."
        )
    base = load_base(dataset_dir, options.training, options.validation)
    masked = has_masks(base["training"]) and has_masks(base["validation"])
    check_methods(options.methods or [])
    compared = defaults.get("compared") or [m for m in METHODS if masked or m not in SUPERVISED]
    if not has_masks(base["test"]):
        raise InputError("Every positive test image needs a mask: experiments score masks.")
    return Study(
        base,
        compared,
        chosen["seeds"],
        options.methods or (),
        chosen["folds"],
        chosen["fractions"],
        area_candidates()[: chosen["area_weights"]],
    )


def _check(options: argparse.Namespace) -> tuple[int, int]:
    """The shard, counted from 0, and their number. Raises InputError for numbers out of range."""
    shard = (0, 1)
    if options.shard:
        parts = options.shard.split("/")
        if len(parts) != 2 or not all(p.isdigit() for p in parts) or not 1 <= int(parts[0]) <= int(parts[1]):
            raise InputError(f"--shard must be like 1/4, the first of four; got '{options.shard}'.")
        shard = int(parts[0]) - 1, int(parts[1])
    for name, least in (("jobs", 1), ("folds", 2), ("training", 2), ("validation", 2)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be {least} or more; got {value}.")
    if options.fractions and not all(0 < fraction <= 1 for fraction in options.fractions):
        raise InputError(f"--fractions must be above 0 and up to 1; got {options.fractions}.")
    return shard


def run(arguments: Sequence[str]) -> None:
    """Run the command line `arguments`. Raises InputError for what can't be used."""
    options, rest = _parser().parse_known_args(arguments)
    shard, shards = _check(options)
    options.output_dir = options.output_dir.resolve()
    overlays = options.overlays if options.overlays is not None else (DEMO if options.demo else FULL)["overlays"]
    settings = (DEMO_SETTINGS if options.demo else {}) | _settings(rest, overlays)
    study = _study(options, settings)
    names = list(EXPERIMENTS) if options.experiment == "all" else [options.experiment]
    plans = {name: EXPERIMENTS[name](study) for name in names}
    cells = merge_cells(list(plans.values()))
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return
    prepare_cells(options.output_dir, study, cells, overlays, settings, options.anew)
    run_cells(options.output_dir, cells[shard::shards], options.jobs, options.devices)
    if shards > 1:
        print(f"Part {shard + 1} of {shards} has finished; the same command without --shard writes the report.")
        return
    sections = [make_section(options.output_dir, name, plan, study) for name, plan in plans.items()]
    written = write_report(options.output_dir, sections, "python -m scripts.experiments " + shlex.join(arguments))
    print("\n\n".join(table.markdown() for section in sections for table in section.tables[:1]))
    print("Written: " + ", ".join(str(path) for path in written))


def main() -> None:
    try:
        run(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
