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

"""The demo's data set: an ordinary datalist, the same at every run, and whole or absent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from scripts.demo import dataset as demo_data
from scripts.demo.dataset import make_demo_dataset
from scripts.runtime.errors import InputError

BUNDLE = Path(demo_data.__file__).parents[2]
COUNTS = {"training": 6, "validation": 4, "test": 3}
SIZE = (40, 32)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the dataset.json of a small data set."""
    return make_demo_dataset(tmp_path_factory.mktemp("data") / "deep" / "demo", counts=COUNTS, size=SIZE, seed=5)


def read(path: Path) -> dict:
    """The content of a dataset.json."""
    return json.loads(path.read_text(encoding="utf-8"))


def pixels(datalist: Path, name: str) -> np.ndarray:
    """An image of the data set."""
    return np.asarray(Image.open(datalist.parent / name))


def test_datalist_has_the_splits_and_balanced_labels(datalist: Path) -> None:
    content = read(datalist)
    assert list(content) == ["name", "description", "training", "validation", "test"]
    labels = {split: sorted(item["label"] for item in content[split]) for split in COUNTS}
    assert labels == {"training": [0, 0, 0, 1, 1, 1], "validation": [0, 0, 1, 1], "test": [0, 1, 1]}
    groups = [item["group"] for split in COUNTS for item in content[split]]
    assert len(set(groups)) == 13


def test_files_are_those_of_the_datalist(datalist: Path) -> None:
    items = [item for split in COUNTS for item in read(datalist)[split]]
    listed = {item[key] for item in items for key in ("image", "mask") if key in item}
    assert {str(path.relative_to(datalist.parent)) for path in datalist.parent.glob("*/*")} == listed
    assert all(pixels(datalist, item["image"]).shape == (40, 32, 3) for item in items)


def test_only_positives_have_a_mask_and_the_area_it_says(datalist: Path) -> None:
    for item in (item for split in COUNTS for item in read(datalist)[split]):
        assert set(item) == {"image", "label", "group"} | ({"area", "mask"} if item["label"] else set())
        if item["label"]:
            mask = pixels(datalist, item["mask"])
            assert mask.shape == SIZE
            assert set(np.unique(mask)) == {0, 255}
            cancer = int((mask == 255).sum())
            tenths = round(10 * item["area"])
            assert item["area"] == tenths / 10
            assert (tenths - 1) * 1280 < 10 * cancer <= tenths * 1280  # 40 x 32 = 1280 pixels


def test_an_image_is_the_same_whatever_the_other_splits(datalist: Path, tmp_path: Path) -> None:
    alone = make_demo_dataset(tmp_path / "alone", counts={"validation": 2}, size=SIZE, seed=5)
    assert read(alone)["validation"] == read(datalist)["validation"][:2]
    for item in read(alone)["validation"]:
        assert np.array_equal(pixels(alone, item["image"]), pixels(datalist, item["image"]))


def test_every_image_and_every_seed_differ(datalist: Path, tmp_path: Path) -> None:
    other = make_demo_dataset(tmp_path / "other", counts=COUNTS, size=SIZE, seed=6)
    images = [pixels(path, item["image"]).tobytes() for path in (datalist, other) for item in read(path)["training"]]
    images += [pixels(datalist, item["image"]).tobytes() for item in read(datalist)["validation"]]
    assert len(set(images)) == 6 + 6 + 4


def test_area_step(tmp_path: Path) -> None:
    path = make_demo_dataset(tmp_path / "coarse", counts={"training": 8}, size=SIZE, area_step=0.5)
    areas = {item["area"] for item in read(path)["training"] if item["label"]}
    assert areas <= {0.5, 1.0}


def test_leaves_a_data_set_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("mine")
    assert make_demo_dataset(tmp_path, counts=COUNTS) == tmp_path / "dataset.json"
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    assert (tmp_path / "dataset.json").read_text() == "mine"


def test_fills_an_empty_folder(tmp_path: Path) -> None:
    assert make_demo_dataset(tmp_path / ".", counts={"test": 2}, size=(8, 8)).is_file()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw_two(*arguments: object, **options: object) -> tuple[np.ndarray, np.ndarray]:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(1)
        return np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)

    monkeypatch.setattr(demo_data, "draw_phantom", draw_two)
    with pytest.raises(KeyboardInterrupt):
        make_demo_dataset(tmp_path / "demo", counts=COUNTS, size=(8, 8))
    assert len(drawn) == 2
    assert not list(tmp_path.iterdir())


def test_another_process_may_be_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "demo" / "dataset.json"

    def draw_slowly(*arguments: object, **options: object) -> tuple[np.ndarray, np.ndarray]:
        theirs.parent.mkdir(exist_ok=True)
        theirs.write_text("theirs")
        return np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), bool)

    monkeypatch.setattr(demo_data, "draw_phantom", draw_slowly)
    assert make_demo_dataset(tmp_path / "demo", counts=COUNTS, size=(8, 8)) == theirs
    assert theirs.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {"training": 1, "test": 4}}, "every split needs 2 images or more.*'training': 1"),
        ({"counts": {}}, "every split needs 2 images"),
        ({"size": (3, 40)}, r"height and a width of 4 or more, got \[3, 40\]"),
        ({"size": (40,)}, r"height and a width of 4 or more, got \[40\]"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"area_step": 0}, r"step must be in \(0, 1\], got 0"),
    ],
)
def test_refuses_bad_input_and_writes_nothing(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_demo_dataset(tmp_path / "demo", **({"counts": COUNTS, "size": SIZE} | options))
    assert not list(tmp_path.iterdir())


def test_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists but is no data set"):
        make_demo_dataset(tmp_path, counts=COUNTS)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("allowed", [False, True])
def test_the_overlay_asks_before_it_follows_paths_out_of_the_folder(allowed, datalist, tmp_path) -> None:
    """The runs of a study name the images of one folder."""
    items = [item | {"image": str(datalist.parent / item["image"])} for item in read(datalist)["validation"]]
    items = [item | {"mask": str(datalist.parent / item["mask"])} if "mask" in item else item for item in items]
    (tmp_path / "dataset.json").write_text(json.dumps({"validation": items}))
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / "configs" / name) for name in ("train.json", "demo.json")])
    parser.update({"dataset_dir": str(tmp_path), "allow_outside": allowed, "datalist::splits": ["validation"]})
    if allowed:
        loaded = parser.get_parsed_content("datalist")["validation"]
        assert [item["image"] for item in loaded] == [item["image"] for item in items]
    else:
        with pytest.raises((InputError, RuntimeError), match="allow_outside"):
            parser.get_parsed_content("datalist")


def run(python: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run the command line from the bundle."""
    command = [python, "-m", "scripts.demo.dataset", *arguments]
    return subprocess.run(command, cwd=BUNDLE, capture_output=True, text=True, check=False)


def test_command_line(tmp_path: Path, quick_python: str) -> None:
    folder = tmp_path / "demo"
    splits = ("--training", "4", "--validation", "2", "--test", "2")
    done = run(quick_python, "--dataset_dir", str(folder), "--size", "24", "20", "--seed", "1", *splits)
    assert done.returncode == 0, done.stderr
    assert str(folder / "dataset.json") in done.stdout
    assert [len(read(folder / "dataset.json")[split]) for split in ("training", "validation", "test")] == [4, 2, 2]
    by_call = make_demo_dataset(tmp_path / "call", counts={"test": 2}, size=(24, 20), seed=1)
    name = "images/test_0001.png"
    assert np.array_equal(pixels(by_call, name), pixels(folder / "dataset.json", name))


def test_command_line_says_what_is_wrong_in_one_sentence(tmp_path: Path, quick_python: str) -> None:
    done = run(quick_python, "--dataset_dir", str(tmp_path / "demo"), "--size", "2", "20")
    assert done.returncode == 1
    assert done.stderr == "error: the size must be a height and a width of 4 or more, got [2, 20]\n"
