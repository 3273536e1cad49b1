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
The commands of the documents run, as they stand, in a folder like a user's.

All shell blocks of a page are one script, since later commands need what earlier ones have made. Only size and length
are changed, by a `python` that adds options to the bundle's runs: tiny images, one epoch, random initial weights.
What a process has when it starts anew, test_bundle.py and test_command_line.py see.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scripts.demo.dataset import make_demo_dataset
from scripts.labelling.journal import Answer, Journal
from scripts.losses import constraints, pooling
from scripts.metrics.boundary_counts import compute_boundary_counts
from scripts.networks import CDWSNet

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "bundle/docs/README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
IN_BUNDLE = ("bundle/docs/README.md", "docs/labelling.md", "docs/experiments.md")  # run from bundle/
# Not run here; what stands behind each is run elsewhere.
ELSEWHERE = {
    r"make [\w-]+": "every target has a run of its own; that it exists is checked below",
    r"\. \.venv/bin/activate": "the environment that runs the tests is the one it makes",
    r"python docs/method_figures.py": "takes minutes; that it takes these options is checked below",
    r"mlflow ui": "a server that runs until it is stopped; test_tracking.py reads the file that it shows",
    r"(\. \.venv-monailabel|pip install|python3 -m venv|monailabel |curl )": "tests/monailabel has a server of its own",
    r"#SBATCH": "read by SLURM",
}
PYTHON = """#!/usr/bin/env bash
tiny=(--spatial_size "[32,32]")
learn=(--max_epochs 1 --val_interval 1)
[[ " $* " == *" --pretrained "* ]] || learn+=(--pretrained random)
[[ "$*" == *demo.json* ]] && tiny+=(--datalist#counts "{{'training':6,'validation':4,'test':4}}")
study=(--seeds 0 --training 4 --validation 2 --folds 2 --fractions 1 --pretrained random)
case "$*" in
    "-m monai.bundle run training "*) exec "{python}" "$@" "${{tiny[@]}}" "${{learn[@]}}" ;;
    "-m monai.bundle run "*) exec "{python}" "$@" "${{tiny[@]}}" ;;
    "-m scripts.experiments "*)
        set -e
        if [[ "$3" == all || "$*" == *--methods* ]]; then  # the names of all methods and settings
            "{python}" "$@" --training 4 --validation 2 --folds 2 --list
        fi
        [[ "$3" == all ]] || exec "{python}" "$@" "${{tiny[@]}}" "${{learn[@]}}" "${{study[@]}}" --methods cdws ;;
    *) exec "{python}" "$@" ;;
esac
"""
CDWS = """#!/usr/bin/env bash
bundle=$(dirname "$0")/../bundle
tiny=(--spatial_size "[32,32]")
case "$1" in
    train) exec "{python}" "$bundle" "$@" "${{tiny[@]}}" --max_epochs 1 --val_interval 1 --pretrained random ;;
    evaluate | infer) exec "{python}" "$bundle" "$@" "${{tiny[@]}}" ;;
    demo)
        tiny+=(--max_epochs 1 --datalist#counts "{{'training':6,'validation':4,'test':4}}")
        exec "{python}" "$bundle" "$@" "${{tiny[@]}}" ;;
    curve) exec "{python}" "$bundle" "$@" "${{tiny[@]}}" --fractions 0.5 1 --steps 2 --pretrained random ;;
    label)
        log=$(mktemp)
        "{python}" "$bundle" "$@" --no_browser --port 0 > "$log" 2>&1 &
        until grep -q "^Open http://127.0.0.1" "$log"; do kill -0 $! || {{ cat "$log" >&2; exit 1; }}; sleep 0.2; done
        kill -INT $!
        wait $! || {{ cat "$log" >&2; exit 1; }} ;;
    review)  # the image in most doubt gets another area and a stroke
        log=$(mktemp)
        "{python}" "$bundle" "$@" --no_browser --port 0 > "$log" 2>&1 &
        until grep -q "^Open http://127.0.0.1" "$log"; do kill -0 $! || {{ cat "$log" >&2; exit 1; }}; sleep 0.2; done
        "{python}" -c "import sys, urllib.request as web
web.urlopen(web.Request(sys.argv[1], sys.argv[2].encode(), {{'Content-Type': 'application/json'}}))" \\
            "$(grep -o 'http://.*' "$log")correct" '{{"image": 0, "correction": {{"label": 1, "area": 0.5,
                "strokes": [{{"label": 1, "width": 3, "points": [[9, 9], [20, 9]]}}]}}}}' || exit 1
        kill -INT $!
        wait $! || {{ cat "$log" >&2; exit 1; }} ;;
    *) exec "{python}" "$bundle" "$@" ;;
esac
"""
TORCHRUN = """#!/usr/bin/env bash
tiny=(--spatial_size "[32,32]")
[[ " $* " == *" run training "* ]] && tiny+=(--max_epochs 1 --val_interval 1 --pretrained random)
exec "{python}" -m torch.distributed.run --standalone "$@" "${{tiny[@]}}"  # at a free port
"""


def shell_blocks(page: str) -> list[str]:
    """Those marked as such, and plain ones of commands, as in the model zoo's template."""
    return re.findall(r"^ *```(?:shell\n|\n(?=python ))(.*?)^ *```", (ROOT / page).read_text(), flags=re.M | re.S)


@pytest.fixture(scope="module")
def compiled() -> None:
    """What Numba compiles in 15 s lies beside the scripts, so that copies of them have it."""
    compute_boundary_counts(np.eye(8), np.eye(8))


@pytest.fixture
def folder(tmp_path, quick_python, compiled) -> Path:
    """A copy of the repository's tree with pictures in DATA and FOLDER, and `python` made quick."""
    for name in ("bundle", "docs", "tests/benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("runs", ".*"))
    data = make_demo_dataset(tmp_path / "DATA", counts={"training": 8, "validation": 4, "test": 4}, size=(32, 32))
    shutil.copytree(data.parent / "images", tmp_path / "FOLDER")
    for name in ("DATA", "FOLDER"):
        (tmp_path / "bundle" / name).symlink_to(tmp_path / name)
    (tmp_path / "bin").mkdir()
    for name, script in (("python", PYTHON), ("torchrun", TORCHRUN), ("cdws", CDWS)):
        (tmp_path / "bin" / name).write_text(script.format(python=quick_python))
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def lay_out_labelling(folder: Path, write_slide, tissue_picture) -> None:
    """Two annotators have answered, and disagree on one image; there are masks of three people, and a slide."""
    data = folder / "DATA"
    (folder / "bundle" / "SLIDES").mkdir()
    write_slide(folder / "bundle" / "SLIDES" / "a.svs", tissue_picture(600, 600), 0.5)
    (data / "dataset.json").unlink()
    masks = data / "masks"
    for name in ("MASKS_ANNA", "MASKS_BEN", "MASKS_CAROL"):
        shutil.copytree(masks, folder / "bundle" / name)
    shutil.rmtree(masks)
    images = sorted(path.relative_to(data).as_posix() for path in (data / "images").iterdir())
    for annotator, last in (("anna", Answer(1, 0.2)), ("ben", Answer(0)), ("carol", Answer(1, 0.3))):
        journal = Journal(data / f"labels-{annotator}.jsonl")
        for i, image in enumerate(images):
            journal.give(image, last if image == images[-1] else Answer(1, 0.5) if i % 2 else Answer(0))


def lay_out_weights(folder: Path) -> None:
    """Random ones in the place of ImageNet's."""
    torch.save(CDWSNet().features.state_dict(prefix="features."), folder / "vgg16_stages123_imagenet.pt")


def lay_out_volumes(folder: Path, write_slide, tissue_picture) -> None:
    """Small volumes with a ball in them, of label 2."""
    lay_out_weights(folder)
    volumes = {"DATA": "abc", "MRI": "abcd", "ct": ["ct"]}
    shutil.rmtree(folder / "FOLDER")
    shutil.rmtree(folder / "DATA")
    for name, stems in volumes.items():
        (folder / name).mkdir()
        depth = 30 if name == "ct" else 12  # slices, of which the page names some of the CT
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in (32, 28, depth)), indexing="ij"))
        for seed, stem in enumerate(stems):
            ball = ((grid - np.array([16, 14, 0.4 * depth]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < depth
            values = np.random.default_rng(seed).normal(0, 20, ball.shape) + 60 * ball
            labels = "organs" if name == "ct" else f"{stem}_labels"
            for file, voxels in ((stem, values.astype(np.int16)), (labels, 2 * ball.astype(np.uint8))):
                nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / name / f"{file}.nii.gz")
        items = [{"image": f"{stem}.nii.gz", "mask": f"{stem}_labels.nii.gz"} for stem in stems]
        splits = {"training": items[:-1], "validation": items[-1:]}
        (folder / name / "dataset.json").write_text(json.dumps(splits))
    shutil.copytree(folder / "DATA", folder / "FOLDER", ignore=shutil.ignore_patterns("*.json", "*_labels*"))
    text = (ROOT / "docs/volumes.md").read_text().split("## CT")[1]
    (folder / "ct" / "dataset.json").write_text(re.search(r"^```json\n(.*?)^```", text, re.M | re.S)[1])


def lay_out_slides(folder: Path, write_slide, tissue_picture) -> None:
    shutil.rmtree(folder / "FOLDER")
    (folder / "FOLDER").mkdir()
    write_slide(folder / "FOLDER" / "slide.tif", tissue_picture(300, 200), 1.0)


def lay_out_results(folder: Path, write_slide, tissue_picture) -> None:
    """A data set of real images is the demo's here; what needs three seeds has the first three times."""
    for place in (folder, folder / "bundle"):
        (place / "colon").symlink_to(folder / "DATA")
        lay_out_weights(place)
    (folder / "runs").mkdir()
    for seed in (1, 2):
        (folder / "runs" / f"round_1_{seed}").symlink_to("round_1_0")


def lay_out_own(folder: Path, write_slide, tissue_picture) -> None:
    """Pictures in two folders, and no dataset.json yet; a slide."""
    lay_out_weights(folder)
    (folder / "SLIDES").mkdir()
    write_slide(folder / "SLIDES" / "a.tif", tissue_picture(300, 200), 1.0)
    data = folder / "DATA"
    items = [
        item for items in json.loads((data / "dataset.json").read_text()).values() for item in items if "image" in item
    ]
    for item in items:
        (data / ("POSITIVE" if item["label"] else "NEGATIVE")).mkdir(exist_ok=True)
        shutil.move(data / item["image"], data / ("POSITIVE" if item["label"] else "NEGATIVE"))
    (data / "dataset.json").unlink()


LAY_OUT = {
    "README.md": lay_out_own,
    "bundle/docs/README.md": lay_out_results,
    "docs/labelling.md": lay_out_labelling,
    "docs/quick-start.md": lay_out_own,
    "docs/paper-results.md": lay_out_results,
    "docs/results.md": lay_out_results,
    "docs/slides.md": lay_out_slides,
    "docs/volumes.md": lay_out_volumes,
}


def run_shell(script: str, folder: Path, cwd: Path) -> None:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    command = ["bash", "-euxo", "pipefail", "-c", script]
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


def commands(page: str) -> str:
    """What of a page is run here: all lines of its blocks but those in `ELSEWHERE`."""
    lines = "".join(shell_blocks(page)).replace("\\\n", " ").splitlines()
    run = [line.strip() for line in lines if not any(re.match(rf"\s*{known}", line) for known in ELSEWHERE)]
    return "\n".join(run).replace("for SEED in 0 1 2; do", "for SEED in 0; do")  # the others do the same


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page).strip()])
def test_commands_of_a_page(page, folder, write_slide, tissue_picture):
    for name, text in named_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if page in LAY_OUT:
        LAY_OUT[page](folder, write_slide, tissue_picture)
    run_shell(commands(page), folder, folder / ("bundle" if page in IN_BUNDLE else "."))


@pytest.mark.parametrize("page", PAGES)
def test_programs_named_on_a_page_take_the_options_that_stand_there(page):
    """Benchmarks and the like, which take minutes; `make bench` runs them."""
    text = (ROOT / page).read_text()
    programs = re.findall(r"python ((?:tests/benchmarks|docs)/\w+\.py)((?: (?!#)[^\s`|;]+)*)", text)
    for program, options in programs:
        source = (ROOT / program).read_text()
        for option in re.findall(r"--(\w+)", options):
            assert f'"--{option}"' in source, (program, option)
    for test in re.findall(r"pytest (tests/[\w/]+\.py)", text):
        assert (ROOT / test).is_file(), test


def named_files(page: str) -> dict[str, str]:
    """Blocks of Python that begin with their path, and blocks of JSON that commands of the page take as overlays."""
    text = (ROOT / page).read_text()
    files = {path: block for block, path in re.findall(r"^```python\n(# (\S+\.py)\n.*?)^```", text, re.M | re.S)}
    overlays = re.findall(r"'(\w*overlay\w*\.json)'", text)
    blocks = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    return files | dict(zip(overlays, blocks, strict=False))


def test_the_constraint_of_the_guide_passes_its_test(folder):
    files = named_files("docs/extending.md")
    assert len(files) == 3
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    environment = os.environ | {"PYTHONPATH": str(folder / "bundle")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_a_constraint_and_a_pooling_of_the_guide_are_found_by_their_names(configs, monkeypatch):
    """v is 0.5, the area 0.1, the tolerance 0.05: an excess of 0.35. Of 0.2 and 0.8 the middle is 0.65."""
    text = (ROOT / "docs/extending.md").read_text()
    blocks = re.findall(r"^```python\n# add to bundle/scripts/losses/(\w+)\.py\n(.*?)^```", text, re.M | re.S)
    assert [name for name, _ in blocks] == ["constraints", "pooling"]
    for module, (_, block) in zip((constraints, pooling), blocks, strict=True):
        registry = "CONSTRAINTS" if module is constraints else "POOLINGS"
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))
        exec(block, dict(vars(module)))
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    parser.update({"constraint": "proportional", "pooling": "middle", "side_area_weights": []})
    loss = parser.get_parsed_content("loss")
    terms = loss.terms(torch.tensor([[[[0.2, 0.8]]]]), torch.tensor([[1.0, 0.1]]))
    assert terms["area"].item() == pytest.approx(10 * 0.35)
    assert terms["mil"].item() == pytest.approx(-math.log(0.65))


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for block in shell_blocks(page):
        for target in re.findall(r"^make ([\w-]+)", block, flags=re.MULTILINE):
            assert target in targets, target
