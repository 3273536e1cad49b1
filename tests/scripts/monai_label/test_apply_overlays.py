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

"""A bundle made of the bundle and an overlay."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from scripts.model_zoo import assemble
from scripts.monai_label.apply_overlays import apply_overlays
from scripts.runtime.errors import InputError

BUNDLE = Path(__file__).resolve().parents[3] / "bundle"


def config(folder: Path, name: str) -> dict:
    return json.loads((folder / "configs" / name).read_text())


def test_overlays_are_in_the_copys_configs_and_not_in_the_bundles(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"spatial_size": [64, 48], "network_def#stages": 2}))
    apply_overlays(tmp_path / "copy", ["superpixels.json", mine])
    for name in ("train.json", "inference.json"):
        merged, original = config(tmp_path / "copy", name), config(BUNDLE, name)
        assert merged["superpixels"] is True
        assert merged["spatial_size"] == [64, 48]
        assert merged["network_def"]["stages"] == 2
        assert merged["network_def"]["_target_"] == original["network_def"]["_target_"]
        assert original["superpixels"] is False
        assert set(original) <= set(merged)
    assert (tmp_path / "copy" / "scripts" / "networks" / "cdws_net.py").is_file()


def test_what_monai_label_needs_is_in_the_config_that_has_a_place_for_it(tmp_path: Path) -> None:
    apply_overlays(tmp_path / "copy")
    needed = config(BUNDLE, "monai_label.json")
    used = set()
    for name in ("train.json", "inference.json"):
        merged, original = ({**config(folder, name)} for folder in (tmp_path / "copy", BUNDLE))
        assert set(merged) == set(original)
        for key, value in needed.items():
            found = merged
            for part in key.removeprefix("+").split("#"):
                found = found.get(part, {})
            if found == value or (key.startswith("+") and found and found[-len(value) :] == value):
                used.add(key)
    assert used == set(needed) - ({"_desc_"} - used)
    apply_overlays(tmp_path / "slices", ["slices.json"])
    assert config(tmp_path / "slices", "inference.json")["save"] == []


def test_the_copy_of_the_recommended_method_has_its_model(tmp_path: Path) -> None:
    apply_overlays(tmp_path / "copy", ["recommended.json"])
    models = [path for path in (tmp_path / "copy" / "models").iterdir() if path.suffix == ".pt"]
    assert [path.name for path in models] == ["model.pt"]
    assert models[0].read_bytes() == (BUNDLE / "models" / "area_ranked.pt").read_bytes()
    weights = config(tmp_path / "copy", "train.json")["network_def"]["pretrained"]
    assert weights == config(BUNDLE, "monai_label.json")["network_def#pretrained"]  # goes on from model.pt
    # MONAI Label's regions are not what loads slices
    apply_overlays(tmp_path / "slices", ["slices.json"])
    assert config(tmp_path / "slices", "train.json")["load_image"]["_target_"].startswith("scripts.volumes.")


def test_later_overlays_win(tmp_path: Path) -> None:
    for name, value in (("first", 8), ("second", 16)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"spatial_size": [value, value]}))
    apply_overlays(tmp_path / "copy", [tmp_path / "first.json", tmp_path / "second.json"])
    assert config(tmp_path / "copy", "inference.json")["spatial_size"] == [16, 16]


def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match="no overlay 'none"):
        apply_overlays(tmp_path / "copy", ["none.json"])
    with pytest.raises(InputError, match="not valid JSON"):
        apply_overlays(tmp_path / "copy", [tmp_path / "broken.json"])
    assert not (tmp_path / "copy").exists()
    with pytest.raises(InputError, match="exists already"):
        apply_overlays(tmp_path, ["dws.json"])


def test_command_fails_with_one_sentence(tmp_path: Path, quick_python: str) -> None:
    command = [quick_python, "-m", "scripts.monai_label.apply_overlays", str(tmp_path), "dws.json"]
    done = subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: '{tmp_path}' exists already")


def files_of_the_bundle() -> list[Path]:
    return sorted(path for path in BUNDLE.rglob("*") if "__pycache__" not in path.parts)  # others import meanwhile


@pytest.mark.parametrize("where", ["models/copy", "copy", "runs/copy", "."])
def test_the_bundle_is_not_copied_into_itself(monkeypatch, where: str) -> None:
    """It would be copied on and on, until the disk is full or names are too long."""
    before = files_of_the_bundle()
    for folder in (BUNDLE / where, Path(os.path.relpath(BUNDLE / where))):
        with pytest.raises(InputError, match=r"in the bundle itself|exists already"):
            apply_overlays(folder, ["dws.json"])
        with pytest.raises(InputError, match=r"in the bundle itself|exists already"):
            assemble(folder)
    assert files_of_the_bundle() == before


def test_a_killed_copy_has_not_the_final_name(tmp_path: Path, quick_python: str) -> None:
    """The process ends as if by 'kill -9' after some files."""
    code = """
import os, shutil, sys
from scripts.model_zoo import assemble
copy, done = shutil.copyfile, []
def then_die(*paths, **options):
    done.append(copy(*paths, **options))
    if len(done) == 5:
        os._exit(9)
shutil.copyfile = then_die
assemble(sys.argv[1])
"""
    done = subprocess.run([quick_python, "-c", code, str(tmp_path / "copy")], cwd=BUNDLE, check=False)
    assert done.returncode == 9
    assert not (tmp_path / "copy").exists()
    assemble(tmp_path / "copy")
    assert (tmp_path / "copy" / "models" / "model.pt").is_file()
