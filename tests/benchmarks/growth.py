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
How time and memory grow: training with images, inference with pixels, the labelling page with images.

    python tests/benchmarks/growth.py [--images 100 1000 10000] [--cache_rates 1 0] [--sides 256 512 1024]
        [--listed 100 1000 10000] [--runs 10 100 1000]

Training: `train.json` with `minibatch.json`, phantoms of 32 x 32, cached and not, and a network of one layer, so that
what is measured is everything else. Inference: a picture through `inference.json` with `recommended.json`, in tiles.
Page: its first state, and an answer. Report: of a study with so many runs. Seconds are the processor's, which other
work on the machine disturbs less; memory is the growth of a process's largest resident size. Each row has a process of
its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from time import process_time

import numpy as np
import torch
from fastapi.testclient import TestClient
from memory import MEGABYTE, peak
from monai.bundle import ConfigParser
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bundle"))

from scripts import bundle_root
from scripts.demo.dataset import make_demo_dataset
from scripts.demo.phantoms import draw_phantom
from scripts.experiments.cell import SPECIFICATION
from scripts.experiments.figures import draw_spread
from scripts.experiments.plan import Cell, Plan, Row
from scripts.experiments.report import BASELINES, COLUMNS, CURVES, Section, results_table, write_report
from scripts.experiments.results import read_rows
from scripts.experiments.runner import cell_folder
from scripts.labelling.journal import Journal
from scripts.labelling.server import make_app
from scripts.labelling.subjects import Pictures
from scripts.networks import CDWSNet, MapNetwork

BUNDLE = Path(bundle_root())
DRAWN = 20
CPU = torch.device("cpu")


def config(*names: str, **settings: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / f"{name}.json") for name in names])
    parser.update({"bundle_root": str(BUNDLE), "device": "cpu", **settings})
    return parser


class OneLayer(MapNetwork):
    """As many maps as CDWS-MIL's network, at next to no cost."""

    def __init__(self) -> None:
        super().__init__(CDWSNet().map_names)
        self.layer = torch.nn.Conv2d(3, len(self.map_names), 1)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image).sigmoid()


def train(folder: Path, images: int, cache_rate: float) -> None:
    """Two epochs over so many images, which are links to a few phantoms."""
    data = make_demo_dataset(folder / "data", counts={"training": DRAWN, "validation": 2}, size=(32, 32))
    listed = json.loads(data.read_text())
    drawn, listed["training"] = listed["training"], []
    for number in range(images):
        item = dict(drawn[number % DRAWN])
        link = data.parent / "images" / f"link_{number}.png"
        os.link(data.parent / item["image"], link)
        listed["training"].append({**item, "image": f"images/{link.name}", "group": str(number)})
    data.write_text(json.dumps(listed))
    settings = {"dataset_dir": str(data.parent), "output_dir": str(folder), "pretrained": "random", "max_epochs": 2}
    parser = config("train", "minibatch", **settings, spatial_size=[32, 32], cache_rate=cache_rate, batch_size=16)
    parser.update({"validate#dataset#data": [], "micro_batch_size": 16, "network_def": OneLayer()})
    parser.get_parsed_content("train#trainer").run()


def infer(folder: Path, side: int) -> None:
    picture = draw_phantom(np.random.default_rng(0), (side, side), cancer=True)[0]
    Image.fromarray(picture).save(folder / "a.png")
    settings = {"dataset_dir": str(folder / "a.png"), "output_dir": str(folder)}
    config("inference", "recommended", **settings).get_parsed_content("evaluator").run()


def label(folder: Path, images: int) -> None:
    names = [f"{number}.png" for number in range(images)]
    app = make_app(Pictures(folder, names), Journal(folder / "labels.jsonl"), lambda: "saved", "token", title="")
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    for number in range(10):
        client.get("/token/state").raise_for_status()
        client.post("/token/answer", json={"image": number, "label": 0}).raise_for_status()


def report(folder: Path, runs: int) -> None:
    """Of two rows with so many runs, which are links to one with 100 test images; without the pictures of maps."""
    keys = (*COLUMNS, *(f"{key}_f_{sign}" for key in BASELINES for sign in ("pos", "neg")))
    values = np.random.default_rng(0).random((100, 2))
    images = "".join(f"{i}.png,{i % 2},{f:.4f},{area:.4f}\n" for i, (f, area) in enumerate(values))
    specification = {"method": "cdws", "overlays": [], "settings": {}, "dataset_dir": "data", "seed": 0}
    specification |= {"maps": [], "rounds": 1, "shifted": False}
    contents = {
        SPECIFICATION: json.dumps(specification),
        "training/environment.json": "{}",
        "evaluation/metrics.json": json.dumps(dict.fromkeys(keys, 0.5)),
        "evaluation/metrics_per_image.csv": "image,label,f_measure,area_predicted\n" + images,
    }
    rows = tuple(Row(name, tuple(Cell(name, seed=seed) for seed in range(runs // 2))) for name in ("cdws", "dws"))
    for number, (name, content) in enumerate(contents.items()):
        (folder / str(number)).write_text(content)
        for cell in (cell for row in rows for cell in row.cells):
            path = cell_folder(folder, cell) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(folder / str(number), path)
    plan = Plan("Study", "", rows, "cdws")
    results = read_rows(folder, plan)
    draw_spread(results, CURVES).savefig(folder / "spread.png")
    section = Section("study", plan, results, [results_table(plan, results, {})], [], [])
    write_report(folder, [section], "")


def measured(task: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Seconds and megabytes, in a process that has done a small one before, so that the start isn't counted."""
    logging.disable()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        for name in ("small", "large"):
            (Path(folder) / name).mkdir()
        task(Path(folder) / "small", DRAWN if task is not infer else 64, *arguments[1:])
        before, start = peak(CPU), process_time()
        task(Path(folder) / "large", *arguments)
        return process_time() - start, (peak(CPU) - before) / MEGABYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--cache_rates", type=float, nargs="*", default=[1.0, 0.0])
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 512, 1024])
    parser.add_argument("--listed", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--runs", type=int, nargs="*", default=[10, 100, 1000])
    arguments = parser.parse_args()
    rows = [("page, 10 answers", label, (n,), n, "image listed") for n in arguments.listed]
    rows += [("inference", infer, (n,), n * n / 1e6, "million pixels") for n in arguments.sides]
    rows += [("report", report, (n,), n, "run") for n in arguments.runs]
    rates = {1.0: "cached", 0.0: "not cached"}
    chosen = [(rate, n) for rate in arguments.cache_rates for n in arguments.images]
    rows += [(f"two epochs, {rates.get(rate, rate)}", train, (n, rate), n, "image") for rate, n in chosen]
    print("| what | size | s | ms per | more memory, MB |\n| --- | --- | --- | --- | --- |")
    for what, task, sizes, count, unit in rows:
        with get_context("fork").Pool(1) as pool:
            seconds, megabytes = pool.apply(measured, (task, *sizes))
        print(
            f"| {what} | {sizes[0]} | {seconds:.2f} | {seconds / count * 1000:.2f} per {unit} | {megabytes:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
