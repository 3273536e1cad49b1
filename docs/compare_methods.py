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
Train and evaluate the methods of the paper side by side on one data set, and write a table of them.

Every run is the bundle's own `training` and `evaluating` with the overlays of its method, the same images, epochs and
seeds for all. A run that has been evaluated is not repeated, so that an interrupted study goes on where it stopped.
Options that are not named below go to both, as ``--spatial_size [112,112]``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev

from tqdm import tqdm

CONFIGS = Path(__file__).resolve().parent.parent / "bundle" / "configs"
ROWS: dict[str, tuple[list[str], list[str]]] = {  # overlays and options
    "baseline": (["baseline"], []),
    "baseline_ac": (["baseline_ac"], []),
    "dws": (["dws"], []),
    "cdws": (["cdws"], []),
    "cdws, relative": (["cdws"], ["--penalty", "relative"]),
    "cdws, relative, weights x 0.1": (["cdws"], ["--penalty", "relative", "--area_weight_scale", "0.1"]),
    "cdws, two_sided": (["cdws"], ["--constraint", "two_sided"]),
    "cdws, log_barrier": (["cdws", "log_barrier"], []),
}
ROWS |= {f"{name} + superpixels": ([*overlays, "superpixels"], options) for name, (overlays, options) in ROWS.items()}
ROWS |= {
    "cam": (["cam"], []),
    # as large in the image as 64 pixels at 500, the paper's; a tree is not an epoch
    "mil_boosting": (["mil_boosting"], ["--max_epochs", "100", "--val_interval", "100", "--patch_size", "16"]),
}
SUPERVISED: dict[str, tuple[list[str], list[str]]] = {  # learn from masks
    **{name: ([name], []) for name in ("vgg_supervised", "fcn32s", "fcn16s", "fcn8s", "unet", "dcan")},
    "dcan, contour": (["dcan"], ["--contour", "True"]),
}
ROWS |= SUPERVISED
COLUMNS = {
    "f_pos": "F+",
    "f_neg": "F-",
    "marked": "marked",
    "ods": "ODS",
    "ois": "OIS",
    "px_ap": "pixel AP",
    "auc": "AUC",
}
BASELINES = {"all_ones": "all pixels marked", "disc": "best disc"}


def reduce_dataset(source: Path, folder: Path, training: int, validation: int) -> None:
    """
    Write a smaller data set: of the training split so many images, half of them positive, to train on, and so many of
    other groups for thresholds; and the source's test split, or its validation split if it has none, as the test.
    """
    if not (source / "dataset.json").is_file():
        sys.exit(f"error: there is no dataset.json in '{source}'")
    content = json.loads((source / "dataset.json").read_text())
    if not all(item["label"] in (0, 1) for item in content["training"]):
        sys.exit(f"error: the labels in '{source / 'dataset.json'}' must be 0 or 1, not masks")
    groups = defaultdict(list)
    for item in content["training"]:
        groups[item.get("group", item["image"])].append(item)
    order = list(groups)
    random.Random(0).shuffle(order)
    parts: dict[str, list] = {"validation": [], "training": []}
    for part, size in (("validation", validation), ("training", training)):
        missing = {0: size // 2, 1: size // 2}
        while order and any(missing.values()):
            for item in groups[order.pop()]:
                if missing[item["label"]]:
                    missing[item["label"]] -= 1
                    parts[part].append(item)
    parts["test"] = content.get("test") or content["validation"]
    paths = {"image", "mask"}
    absolute = {
        part: [{k: str((source / v).resolve()) if k in paths else v for k, v in item.items()} for item in items]
        for part, items in parts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(absolute, indent=4))


def run_folder(output: Path, name: str, seed: int) -> Path:
    return output / f"{re.sub('[^a-z0-9_.]+', '_', name)}_seed{seed}"


def run_cell(name: str, seed: int, data: Path, folder: Path, options: list[str]) -> None:
    """Train and evaluate one row of the table with one seed; the output of both is in the run's log.txt."""
    overlays, own_options = ROWS[name]
    output = run_folder(folder, name, seed)
    if (output / "metrics.json").exists():
        return
    output.mkdir(parents=True, exist_ok=True)
    common = [
        "--dataset_dir",
        data,
        "--allow_outside",
        "True",
        "--output_dir",
        output,
        "--ckpt_dir",
        output / "models",
        "--seed",
        seed,
    ]
    common += ["--superpixel_cache", folder / "superpixels", *options, *own_options]
    train = [CONFIGS / f"{overlay}.json" for overlay in ("train", "minibatch", *overlays)]
    evaluate = ["--split", "test", "--ckpt_path", output / "models" / "last.pt"]
    with (output / "log.txt").open("w") as log:
        for run, configs, more in (
            ("training", train, []),
            ("evaluating", [*train, CONFIGS / "evaluate.json"], evaluate),
        ):
            config_file = "[" + ",".join(f"'{path}'" for path in configs) + "]"
            command = [sys.executable, "-m", "monai.bundle", "run", run, "--config_file", config_file, *common, *more]
            done = subprocess.run([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT)
            if done.returncode:
                sys.exit(f"error: {run} of '{name}' with seed {seed} failed; see {log.name}")


def read_metrics(run: Path) -> dict[str, float]:
    """A run's metrics.json, and ``marked``: predicted area of the positive images, mean."""
    with (run / "metrics_per_image.csv").open(newline="") as file:
        areas = [float(row["area_predicted"]) for row in csv.DictReader(file) if row["label"] == "1"]
    return json.loads((run / "metrics.json").read_text()) | {"marked": mean(areas)}


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: a row for each method, mean and standard deviation over the seeds; and the trivial baselines."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " | runs |", "| --- " * (len(COLUMNS) + 2) + "|"]
    for name, metrics in results.items():
        values = [[m[column] for m in metrics] for column in COLUMNS]
        shown = [f"{mean(v):.3f} ± {stdev(v):.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in values]
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {len(metrics)} |")
    any_run = next(iter(results.values()))[0]
    for key, name in BASELINES.items():
        shown = [f"{any_run[f'{key}_f_{sign}']:.3f}" for sign in ("pos", "neg")]
        lines.append(f"| {name} | " + " | ".join(shown) + " | " * (len(COLUMNS) - 1) + "|")
    return "\n".join(lines)


def ratios(results: dict[str, list[dict]]) -> str:
    """F+, F- and ODS of each weak method as ratios to the supervised one with the best F+ and F-; or nothing."""
    means = {
        name: {key: mean(m[key] for m in metrics) for key in ("f_pos", "f_neg", "ods")}
        for name, metrics in results.items()
    }
    supervised = [name for name in means if name in SUPERVISED]
    if not supervised:
        return ""
    best = max(supervised, key=lambda name: means[name]["f_pos"] + means[name]["f_neg"])
    lines = [f"| ratio to {best} | F+ | F- | ODS |", "| --- | --- | --- | --- |"]
    for name in means:
        if name not in SUPERVISED:
            cells = " | ".join(f"{means[name][key] / means[best][key]:.3f}" for key in means[name])
            lines.append(f"| {name} | {cells} |")
    return "\n".join(["", "", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Rows: " + "; ".join(ROWS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset_dir", type=Path, help="folder of dataset.json")
    parser.add_argument("output", type=Path, help="folder of the runs, and of table.md and results.json")
    parser.add_argument("--training", type=int, default=10**9, help="train on so many images (all)")
    parser.add_argument("--validation", type=int, default=80, help="images of other groups that choose thresholds (80)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="(all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    arguments, options = parser.parse_known_args()
    data = arguments.output / "data"
    reduce_dataset(arguments.dataset_dir, data, arguments.training, arguments.validation)
    if arguments.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pending = [
            pool.submit(run_cell, name, seed, data, arguments.output, options)
            for seed in arguments.seeds
            for name in arguments.rows
        ]
        try:
            for future in tqdm(as_completed(pending), total=len(pending), desc="runs"):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # of a failure the others needn't come after
    results = {
        name: [read_metrics(run_folder(arguments.output, name, seed)) for seed in arguments.seeds]
        for name in arguments.rows
    }
    (arguments.output / "results.json").write_text(json.dumps(results, indent=4))
    rows = table(results) + ratios(results)
    (arguments.output / "table.md").write_text(rows + "\n")
    print(rows)


if __name__ == "__main__":
    main()
