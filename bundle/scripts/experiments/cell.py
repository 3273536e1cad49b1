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
One cell of a study in a process of its own: its training, which may be of several rounds, then its evaluations, each
by the bundle's own configs.

A run that has finished is not repeated; what a killed one left is removed, and it starts again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scripts import bundle_root, bundle_version
from scripts.runtime.command_line import remember
from scripts.runtime.errors import report_input_errors
from scripts.runtime.files import replacing

__all__ = ["BUSY", "Run", "evaluation_folder", "is_finished", "runs_of"]

BUSY = 75  # exit status: another process has the cell (EX_TEMPFAIL)
SPECIFICATION = "cell.json"
FINISHED = "finished.json"
PACKAGES = ("torch", "torchvision", "monai", "pytorch-ignite", "numpy", "scipy", "scikit-image", "numba", "lightgbm")


@dataclass(frozen=True)
class Run:
    """One command of the bundle."""

    id: str
    configs: tuple[str, ...]
    settings: Mapping[str, Any]
    folder: Path

    def command(self) -> str:
        """What does the same in a shell."""
        configs = "[" + ",".join(f"'{path}'" for path in self.configs) + "]"
        words = [f"python -m monai.bundle run {self.id} --config_file {shlex.quote(configs)}"]
        words += [f"--{key} {shlex.quote(str(value))}" for key, value in self.settings.items()]
        return " ".join(words)


def evaluation_folder(cell: Path, map_name: str = "") -> Path:
    """Where the evaluation of a map of the network is, of its answer by default."""
    return cell / f"evaluation {map_name}".strip().replace(" ", "_")


def runs_of(specification: Mapping[str, Any], cell: Path) -> list[Run]:
    """
    The training and the evaluations of a cell, from the content of its ``cell.json``.

    The rounds of a training before the last are in ``round_1`` and so on, the last is in ``training``. What is
    evaluated is the last epoch's: where its map is to be shifted, no other is validated, so that ``model.pt`` is that.
    """
    configs = Path(bundle_root()) / "configs"
    evaluated = [*specification["overlays"], "evaluate", "study_evaluation"]
    common = {
        "dataset_dir": specification["dataset_dir"],
        "seed": specification["seed"],
        "superpixel_cache": str(cell.parent.parent / "superpixels"),
        "allow_outside": True,  # the data of a cell are links to the user's
        **specification["settings"],
    }

    def run(name: str, overlays: Sequence[str], own: Mapping[str, Any], folder: Path) -> Run:
        files = tuple(str(configs / f"{overlay}.json") for overlay in ("train", *overlays))
        return Run(name, files, {**common, **own, "output_dir": str(folder)}, folder)

    runs = []
    folders = [*(cell / f"round_{number}" for number in range(1, specification["rounds"])), cell / "training"]
    for before, folder in zip([None, *folders], folders, strict=False):
        trained = [*specification["overlays"], *(["next_round"] if before else []), "study_training"]
        own = {"ckpt_dir": str(folder / "models")}
        own |= {"ranked_by": str(before / "models" / "model.pt")} if before else {}
        own |= {"val_interval": "@max_epochs"} if specification["shifted"] and folder is folders[-1] else {}
        runs.append(run("training", trained, own, folder))
    model = folders[-1] / "models" / ("model.pt" if specification["shifted"] else "last.pt")
    for name in ("", *specification["maps"]):
        own = {"ckpt_path": str(model), "split": "test", "map": name}
        runs.append(run("evaluating", evaluated, own, evaluation_folder(cell, name)))
    return runs


def is_finished(specification: Mapping[str, Any], cell: Path) -> bool:
    return all((run.folder / FINISHED).is_file() for run in runs_of(specification, cell))


def _environment() -> dict[str, Any]:
    import torch

    return {
        "bundle": bundle_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _execute(run: Run, device: str | None) -> None:
    from monai.bundle import create_workflow  # takes seconds, and may not be needed

    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    (run.folder / "command.txt").write_text(run.command() + "\n", encoding="utf-8")
    placed = {"device": f"$torch.device('{device}')"} if device else {}
    started = time.time()
    remember(run.settings)
    warnings.filterwarnings("ignore", "parsing config_file", UserWarning)  # that they can run code: they are our own
    workflow = create_workflow(config_file=list(run.configs), run_id=run.id, **run.settings, **placed)
    (run.folder / "config.json").write_text(json.dumps(workflow.parser.get(), indent=4), encoding="utf-8")
    workflow.run()
    workflow.finalize()
    (run.folder / "environment.json").write_text(json.dumps(_environment() | {"device": device}, indent=4))
    with replacing(run.folder / FINISHED) as file:
        json.dump({"started": started, "seconds": time.time() - started}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cell", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--wait", action="store_true", help="for another process that has the cell")
    arguments = parser.parse_args()
    report_input_errors()
    specification = json.loads((arguments.cell / SPECIFICATION).read_text(encoding="utf-8"))
    try:
        # the system lets go of the lock when its process dies, however it dies
        with FileLock(arguments.cell / ".lock", timeout=-1 if arguments.wait else 0):
            for run in runs_of(specification, arguments.cell):
                if not (run.folder / FINISHED).is_file():
                    _execute(run, arguments.device)
    except Timeout:
        sys.exit(BUSY)


if __name__ == "__main__":
    main()
