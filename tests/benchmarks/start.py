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
Time from `python -m monai.bundle run training` to the first step, against that of `import monai` alone; and that of
commands which train nothing.

    python tests/benchmarks/start.py [--repeats 5]

A data set of a few images, random initial weights; the commands in turn, each in a process of its own; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"


class StopAtFirstStep:
    """Handler that ends the process as soon as the trainer has its first batch."""

    def attach(self, engine) -> None:
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: os._exit(0))


def seconds(command: list[str]) -> float:
    start = perf_counter()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sys.path.insert(0, str(BUNDLE))
    from scripts.demo.dataset import make_demo_dataset

    with tempfile.TemporaryDirectory() as folder:
        data = make_demo_dataset(folder + "/data", counts={"training": 4, "validation": 2}, size=(224, 224)).parent
        stop = Path(folder) / "stop.json"
        stop.write_text(json.dumps({"+train#handlers": [{"_target_": "start.StopAtFirstStep"}]}))
        configs = f"['{BUNDLE}/configs/train.json','{BUNDLE}/configs/minibatch.json','{stop}']"
        run = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", configs]
        run += ["--dataset_dir", str(data), "--output_dir", folder + "/log", "--ckpt_dir", folder + "/models"]
        run += ["--pretrained", "random", "--spatial_size", "[224,224]"]
        bare = [sys.executable, "-c", "import monai, os; os._exit(0)"]
        others = {"cdws -h": ["-h"], "cdws settings": ["settings"], "cdws check": ["check", str(data)]}
        commands = [run, bare, *([sys.executable, str(BUNDLE), *words] for words in others.values())]
        times = [[seconds(command) for command in commands] for _ in range(arguments.repeats + 1)][1:]  # one warms up
    ours, plain, *rest = (median(column) for column in zip(*times, strict=True))
    ratio = median(first / second for first, second, *_ in times)
    print(f"start to first step {ours:.2f} s, import monai {plain:.2f} s, ratio {ratio:.2f} (goal: 1.15 at most)")
    print(
        ", ".join(f"{name} {time:.2f} s" for name, time in zip(others, rest, strict=True)),
        "(goal: 1 s without PyTorch)",
    )


if __name__ == "__main__":
    main()
