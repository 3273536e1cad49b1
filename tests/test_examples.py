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

"""The examples of the docstrings give what stands there, and the page on Python runs as it stands."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts.demo.dataset import make_demo_dataset

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
MODULES = [
    ".".join(path.relative_to(BUNDLE).with_suffix("").parts)
    for path in sorted((BUNDLE / "scripts").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of(module: str) -> None:
    found = doctest.testmod(import_module(module), extraglobs={"np": np, "torch": torch})
    assert found.attempted > 0
    assert found.failed == 0


OFFLINE = "import socket\nsocket.socket.connect = None\n"
SEEN = """
assert mask.shape == (50, 70)
assert not mask.any()  # blank glass
assert paper.method == "cdws"
assert 0 < best <= 1
"""


def test_the_page_on_python_runs_without_internet(tmp_path: Path, quick_python: str) -> None:
    """One program of all its blocks; only the training is shorter."""
    page = (BUNDLE.parent / "docs" / "python.md").read_text(encoding="utf-8")
    program = "".join(re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S))
    program = program.replace('"steps": 100', '"steps": 1, "spatial_size": [64, 64]')
    (tmp_path / "bundle").symlink_to(BUNDLE)
    make_demo_dataset(tmp_path / "DATA", counts={"training": 4, "validation": 2}, size=(32, 32))
    Image.fromarray(np.full((50, 70, 3), 240, np.uint8)).save(tmp_path / "picture.png")
    command, environment = [quick_python, "-c", OFFLINE + program + SEEN], os.environ | {"PYTHONPATH": "bundle"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^loss \d\.\d{3}, F 0\.\d{3}$", done.stdout, flags=re.M)
    assert (tmp_path / "runs" / "python" / "models" / "model.pt").is_file()
