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


"""Running the cells of a study: several at a time, on devices in turn, each once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from scripts import bundle_root
from scripts.experiments.cell import BUSY, SPECIFICATION, is_finished
from scripts.experiments.plan import METHODS, Cell, Study
from scripts.experiments.variants import write_variant
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.files import replacing

__all__ = ["cell_folder", "prepare_cells", "run_cells"]

LOG = "log.txt"
_running: set[subprocess.Popen] = set()
_stopping = threading.Event()
IDENTITY = ("overlays", "settings", "data", "seed")


def cell_folder(output_dir: Path, cell: Cell) -> Path:
    return output_dir / "cells" / cell.name


def prepare_cells(
    output_dir: Path,
    study: Study,
    cells: Sequence[Cell],
    overlays: Sequence[str],
    settings: Mapping[str, Any],
    anew: bool = False,
) -> None:
    """
    Write each cell's ``cell.json`` and its data set.

    Args:
        output_dir: of the study; absolute.
        study: has the variants of the data set.
        cells: to prepare.
        overlays: of all methods, before their own.
        settings: of all methods; a method's own come before them.
        anew: remove cells of other settings, instead of refusing them.

    Raises:
        InputError: naming the cells whose folder has results of other settings, data or seed.
    """
    changed = []
    for cell in cells:
        folder = cell_folder(output_dir, cell)
        method = METHODS[cell.method]
        splits = study.variants[cell.data]
        data = write_variant(splits, output_dir / "data" / cell.data.replace(" ", "_"))
        wanted = {
            "method": cell.method,
            "overlays": [*overlays, *method.overlays],
            "settings": {**settings, **method.settings, **dict(cell.settings)},
            "dataset_dir": str(data),
            "data": sha256((data / "dataset.json").read_bytes()).hexdigest(),
            "seed": cell.seed,
            "maps": list(cell.maps),
            # as `cdws train` does: without areas no network ranks pixels for a next
            "rounds": method.rounds if any(item.get("area") for item in splits["training"]) else 1,
            "shifted": method.shifted,
        }
        path = folder / SPECIFICATION
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else wanted
        differences = _differences(found, wanted)
        if differences and anew:
            Bar.write(f"run anew, since settings have changed: {cell.name} ({differences})")
            shutil.rmtree(folder)
        elif differences:
            changed.append(f"{cell.name} ({differences})")
            continue
        wanted["maps"] = list(dict.fromkeys((*found["maps"], *wanted["maps"])))
        with replacing(path) as file:
            json.dump(wanted, file, indent=4)
    if changed:
        raise InputError(
            "\n  - ".join(
                [
                    f"{output_dir} has results of other settings; name another --output_dir, or replace "
                    "these with --anew:",
                    *changed,
                ]
            )
        )


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs, old -> new; empty where nothing does."""
    told = []
    for key in IDENTITY:
        if found[key] != wanted[key] and key == "settings":
            names = [k for k in {**found[key], **wanted[key]} if found[key].get(k) != wanted[key].get(k)]
            told += [f"{name}: {found[key].get(name)} -> {wanted[key].get(name)}" for name in names]
        elif found[key] != wanted[key]:
            told.append("other data" if key == "data" else f"{key}: {found[key]} -> {wanted[key]}")
    return ", ".join(told)


def run_cells(output_dir: Path, cells: Sequence[Cell], jobs: int = 1, devices: Sequence[str] = ()) -> None:
    """
    Run what of the prepared cells has not finished, each in a process of its own.

    Cells that another command has, on this machine or on one that shares the folder, are left to it and waited for.

    Args:
        output_dir: of the study; absolute.
        cells: to run.
        jobs: cells at a time.
        devices: as PyTorch names them, taken in turn; none for the config's choice.

    Raises:
        InputError: naming the first cell that failed, with the last line of its log. Those that run are waited for,
            no other is started.
    """
    pending = [cell for cell in cells if not _has_finished(output_dir, cell)]
    free: SimpleQueue = SimpleQueue()
    for job in range(jobs):
        free.put(devices[job % len(devices)] if devices else None)

    with Bar(total=len(cells), initial=len(cells) - len(pending), desc="cells", unit="cell") as progress:
        for wait in (False, True):
            pending = _run_all(output_dir, pending, free, jobs, wait, progress)


def _has_finished(output_dir: Path, cell: Cell) -> bool:
    folder = cell_folder(output_dir, cell)
    return is_finished(json.loads((folder / SPECIFICATION).read_text(encoding="utf-8")), folder)


def _run_all(
    output_dir: Path, cells: Sequence[Cell], free: SimpleQueue, jobs: int, wait: bool, progress: Bar
) -> list[Cell]:
    """Returns the cells that another process has."""
    busy = []
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(_run, cell_folder(output_dir, cell), free, jobs, wait): cell for cell in cells}
        try:
            for future in as_completed(started):
                if future.result() == BUSY:
                    busy.append(started[future])
                else:
                    progress.update()
                    progress.set_postfix_str(started[future].name)
        except BaseException as error:
            if not isinstance(error, Exception):  # stopped: a process left behind would go on for hours
                _stop_all()
            raise
        finally:
            pool.shutdown(cancel_futures=True)  # of a failure the others needn't come after
            _stopping.clear()
    return busy


def _stop_all() -> None:
    """End the cells' processes as a user would, so that they keep what they have."""
    _stopping.set()
    for process in list(_running):
        process.terminate()


def _run(folder: Path, free: SimpleQueue, jobs: int, wait: bool) -> int:
    device = free.get()
    try:
        command = [sys.executable, "-m", "scripts.experiments.cell", str(folder)]
        command += ["--device", device] if device else []
        command += ["--wait"] if wait else []
        paths = [bundle_root(), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            _running.add(process)
            if _stopping.is_set():
                process.terminate()
            status = process.wait()
            _running.discard(process)
    finally:
        free.put(device)
    if status not in (0, BUSY):
        lines = (folder / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(f"'{folder.name}' failed: {lines[-1] if lines else status}; see {folder / LOG}")
    return status
