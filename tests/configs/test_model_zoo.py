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

"""What would be submitted to the model zoo or pushed to the hub, checked as the model zoo does, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image
from scripts import bundle_version
from scripts.model_zoo import assemble, find_problems, push
from scripts.runtime.errors import InputError

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
SCHEMA = Path(__file__).parent / "metadata_schema.json"
# the order of the model zoo's own bundles, as spleen_ct_segmentation
HEADINGS = ["# Model Overview", "## Data", "## Training configuration", "### Input", "### Output", "## Performance"]
HEADINGS += ["## MONAI Bundle Commands", "# References", "# License"]

# sections of requirements.txt that a bundle needs nothing of to train, evaluate and infer
NOT_OF_THE_BUNDLE = ("python -m monai.bundle", "python -m monai.bundle verify_metadata", "export")
NOT_OF_THE_BUNDLE += ("the model zoo and the Hugging Face hub",)


@pytest.fixture(scope="module")
def assembled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("zoo") / "pathology_cdws_mil_segmentation"
    assemble(folder)
    return folder


def test_all_that_is_under_version_control_is_there_and_nothing_else(assembled) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=BUNDLE, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs the repository's history")
    tracked = {name for name in listed.stdout.splitlines() if not Path(name).name.startswith(".")}
    assert {str(p.relative_to(assembled)) for p in assembled.rglob("*") if p.is_file()} == tracked


def test_a_wheel_has_all_of_it_too(assembled) -> None:
    tool = tomllib.loads((BUNDLE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert tool["package-dir"] == {"cdws": "bundle"}
    packed = {p.relative_to(BUNDLE) for pattern in tool["package-data"]["cdws"] for p in BUNDLE.glob(pattern)}
    packed |= {p.relative_to(BUNDLE) for p in BUNDLE.glob("*.py")}  # of a package always
    assert {p.relative_to(assembled) for p in assembled.rglob("*") if p.is_file()} <= packed


def test_it_runs_alone(assembled, quick_python, tmp_path) -> None:
    Image.fromarray(np.full((40, 60, 3), 180, np.uint8)).save(tmp_path / "a.png")
    command = [quick_python, "-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(tmp_path / "a.png"), "--output_dir", str(tmp_path / "out")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=assembled, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "predictions" / "a_mask.png").size == (60, 40)


def test_metadata_network_and_export_pass_monais_checks(assembled, tmp_path) -> None:
    config, meta = str(assembled / "configs" / "inference.json"), str(assembled / "configs" / "metadata.json")
    verify_metadata(meta_file=meta, filepath=str(SCHEMA))
    verify_net_in_out("network_def", meta_file=meta, config_file=config, bundle_root=str(assembled))
    exported, checkpoint = tmp_path / "model.ts", assembled / "models" / "model.pt"
    ckpt_export("network_def", str(exported), ckpt_file=str(checkpoint), meta_file=meta, config_file=config)
    assert torch.jit.load(exported)(torch.zeros(1, 3, 8, 8)).shape == (1, 1, 8, 8)


def test_the_required_packages_are_those_of_the_requirements(assembled) -> None:
    metadata = json.loads((assembled / "configs" / "metadata.json").read_text())
    versions = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    lowest = {}
    for section in (BUNDLE.parent / "requirements.txt").read_text().split("# ")[1:]:
        if section.splitlines()[0] not in NOT_OF_THE_BUNDLE:
            lowest |= dict(re.findall(r"^([\w-]+)>=([\w.]+)", section, re.M))
    assert set(versions) == set(lowest)
    for name, version in versions.items():
        assert _numbers(version) >= _numbers(lowest[name]), name


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def test_the_model_card_has_the_model_zoos_order(assembled) -> None:
    headings = re.findall(r"^#+ .*$", (assembled / "docs" / "README.md").read_text(), re.M)
    assert [heading for heading in headings if heading in HEADINGS] == HEADINGS
    assert [h for h in headings if h.startswith(("# ", "## "))] == [h for h in HEADINGS if not h.startswith("###")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("models/model.pt", None, "models/model.pt is missing"),
        ("LICENSE", None, "LICENSE is missing"),
        ("docs/large.bin", b"0" * (25 * 2**20 + 1), "docs/large.bin is larger than 25 MB"),
        ("configs/mine.json", b'{"dataset_dir": "/home/anna/data"}', "'/home/anna'; make it relative"),
        ("configs/mine.json", rb'{"dataset_dir": "C:\\Users\\anna\\data"}', r"Users\\anna'"),
        ("configs/metadata.json", b'{"version": "9.9.9", "changelog": {}}', "no changelog for version 9.9.9"),
        ("models/model.pt", b"not a checkpoint", "models/model.pt is not weights alone, or is damaged"),
    ],
)
def test_what_the_model_zoo_would_refuse_is_named(assembled, tmp_path, name, content, problem) -> None:
    shutil.copytree(assembled, tmp_path / "copy")
    assert find_problems(tmp_path / "copy") == []
    (tmp_path / "copy" / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "copy" / name).write_bytes(content)
    (found,) = find_problems(tmp_path / "copy")
    assert problem in found


LINK = "large_files:\n- path: models/model.pt\n  url: https://example.org/model.pt\n"


def test_a_large_model_is_linked_and_left_out(assembled, tmp_path, monkeypatch) -> None:
    shutil.copytree(assembled, tmp_path / "bundle")
    with (tmp_path / "bundle" / "models" / "model.pt").open("ab") as model:
        model.truncate(26 * 2**20)
    (tmp_path / "bundle" / "large_files.yml").write_text(LINK)
    monkeypatch.setattr("scripts.model_zoo.bundle_root", lambda: str(tmp_path / "bundle"))
    files = assemble(tmp_path / "zoo")
    assert Path("large_files.yml") in files
    assert not (tmp_path / "zoo" / "models" / "model.pt").exists()
    assert find_problems(tmp_path / "zoo") == []


@pytest.mark.parametrize(
    "content", ["large_files: {", "models/model.pt", "large_files:\n- path: models/model.pt\n", "1"]
)
def test_links_that_cannot_be_read_are_one_sentence(assembled, tmp_path, monkeypatch, content) -> None:
    shutil.copytree(assembled, tmp_path / "bundle")
    (tmp_path / "bundle" / "large_files.yml").write_text(content)
    monkeypatch.setattr("scripts.model_zoo.bundle_root", lambda: str(tmp_path / "bundle"))
    with pytest.raises(InputError, match=r"large_files.yml must have a list 'large_files'.*"):
        assemble(tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    copied = []

    def fill_the_disk(source: Path, target: Path) -> None:
        if len(copied) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(target.write_bytes(source.read_bytes()))

    monkeypatch.setattr(shutil, "copyfile", fill_the_disk)
    with pytest.raises(InputError, match=r"zoo' \(No space left on device\)"):
        assemble(tmp_path / "zoo")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path) -> None:
    with pytest.raises(InputError, match="exists already"):
        assemble(tmp_path)
    assert list(tmp_path.iterdir()) == []


class Hub:
    """Stands in for the hub: keeps what it is sent."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private))

    def upload_folder(self, repo_id: str, folder_path: str) -> str:
        self.calls.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
        return "https://hub/commit"

    def create_tag(self, repo_id: str, tag: str, exist_ok: bool) -> None:
        self.calls.append(("tag", repo_id, tag))


def test_the_hub_gets_the_assembled_folder_and_a_tag(assembled, tmp_path, monkeypatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: hub)
    shutil.copytree(assembled, tmp_path / "name")
    assert push(tmp_path / "name", "anna/cdws") == "https://hub/commit"
    sent = ["LICENSE", "README.md", "__main__.py", "configs", "docs", "models", "scripts"]
    assert hub.calls == [
        ("create", "anna/cdws", True),
        ("upload", "anna/cdws", sent),
        ("tag", "anna/cdws", bundle_version()),
    ]
    assert not (BUNDLE / "README.md").exists()  # the hub's card is written into the copy


def test_a_hub_that_cannot_be_reached_is_one_sentence(assembled, monkeypatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("401 Client Error: unauthorised")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: Hub())
    with pytest.raises(InputError, match=r"'anna/cdws' can't be pushed to \(401 Client Error: unauthorised\)"):
        push(assembled, "anna/cdws")
