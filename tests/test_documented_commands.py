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
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.demo_data import make_demo_dataset

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # and the folder its commands are for
    "README.md": ".",
    "bundle/docs/README.md": "bundle",
    "docs/quick-start.md": ".",
    "docs/extending.md": ".",
}
# Not run here; what stands behind each is run elsewhere.
ELSEWHERE = {
    r"make \w+": "every target has a run of its own; that it exists is checked below",
    r"\. \.venv/bin/activate": "the environment that runs the tests is the one it makes",
}
PYTHON = """#!/usr/bin/env bash
tiny=()
if [[ "$*" == "-m monai.bundle run "* ]]; then
    tiny+=(--spatial_size "[32,32]")
    [[ "$4" == training ]] && tiny+=(--max_epochs 1 --val_interval 1 --pretrained random)
fi
exec "{python}" "$@" "${{tiny[@]}}"
"""


def shell_blocks(page: str) -> list[str]:
    """Those marked as such, and plain ones of commands, as in the model zoo's template."""
    return re.findall(r"^ *```(?:shell\n|\n(?=python ))(.*?)^ *```", (ROOT / page).read_text(), flags=re.M | re.S)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the repository's tree with images in DATA and FOLDER, and `python` made quick."""
    for name in ("bundle", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pt", "__pycache__", "runs"))
    data = make_demo_dataset(tmp_path / "DATA", counts={"training": 6, "validation": 4, "test": 4}, size=(32, 32))
    shutil.copytree(data.parent / "images", tmp_path / "FOLDER")
    for name in ("DATA", "FOLDER"):
        (tmp_path / "bundle" / name).symlink_to(tmp_path / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(PYTHON.format(python=sys.executable))
    (tmp_path / "bin" / "python").chmod(0o755)
    return tmp_path


def run_shell(script: str, folder: Path, cwd: Path) -> None:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    command = ["bash", "-euxo", "pipefail", "-c", script]
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page(page, folder):
    for name, text in named_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    lines = "".join(shell_blocks(page)).replace("\\\n", " ").splitlines()
    runnable = [line.strip() for line in lines if not any(re.match(rf"\s*{known}", line) for known in ELSEWHERE)]
    assert runnable
    run_shell("\n".join(runnable), folder, folder / PAGES[page])


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


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_make_targets_exist(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for block in shell_blocks(page):
        for target in re.findall(r"^make ([\w-]+)", block, flags=re.MULTILINE):
            assert target in targets, target
