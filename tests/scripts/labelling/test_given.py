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
"""A data set that the page takes up: what is in it stands, and nothing of it is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripts.labelling import __main__ as program
from scripts.labelling.dataset import write_dataset
from scripts.labelling.given import GivenData
from scripts.labelling.images import find_images
from scripts.labelling.journal import Answer, Field, Journal
from scripts.labelling.server import make_app
from scripts.labelling.subjects import Pictures

GIVEN = {
    "note": "of two scanners",
    "written_by": "cdws data",
    "training": [
        {"image": "./yes/a.png", "label": 1, "group": "p1", "mask": "masks/a.png"},
        {"image": "yes/b.png", "label": 1, "group": "p2", "area": 0.25},
        {"image": "no/c.png", "label": 0, "group": "p3", "quality": "good"},
        {"image": "../elsewhere.png", "label": 1, "group": "p4"},
    ],
    "validation": [
        {"image": "yes/d.png", "label": 1, "group": "p5"},
        {"image": "no/e.png", "label": 0, "group": "p6"},
    ],
    "test": [{"image": "no/f.png", "label": 0, "excluded": True}],
}
NAMES = ("yes/a.png", "yes/b.png", "no/c.png", "yes/d.png", "no/e.png", "no/f.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*NAMES, "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (20, 20)).save(tmp_path / name)
    (tmp_path / "dataset.json").write_text(json.dumps(GIVEN))
    return tmp_path


def written_in(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_answers_are_added_and_all_else_is_kept(folder: Path) -> None:
    answers = {"yes/a.png": Answer(1, 0.4), "yes/d.png": Answer(None), "no/c.png": Answer(1), "yes/b.png": Answer(0)}
    assert write_dataset(folder / "dataset.json", answers, {}) == {"training": 4, "validation": 1}
    assert written_in(folder) == {
        "note": "of two scanners",
        "written_by": "scripts.labelling",
        "training": [
            {"image": "./yes/a.png", "label": 1, "group": "p1", "mask": "masks/a.png", "area": 0.4},
            {"image": "yes/b.png", "label": 0, "group": "p2"},
            {"image": "no/c.png", "label": 1, "group": "p3", "quality": "good"},
            GIVEN["training"][3],
        ],
        "validation": [GIVEN["validation"][0] | {"excluded": True}, GIVEN["validation"][1]],
        "test": GIVEN["test"],
    }
    assert json.loads((folder / "dataset-given.json").read_text()) == GIVEN
    # answers that are taken back leave what was given; also after the first are on disk
    write_dataset(folder / "dataset.json", {"no/f.png": Answer(0)}, {})
    expected = GIVEN | {"written_by": "scripts.labelling", "test": [{"image": "no/f.png", "label": 0}]}
    assert written_in(folder) == expected
    assert json.loads((folder / "dataset-given.json").read_text()) == GIVEN


def test_what_is_new_is_in_the_split_of_its_group(folder: Path) -> None:
    answers = {"new.png": Answer(1, 0.1), "of_p5.png": Answer(0), "unsure.png": Answer(None)}
    write_dataset(folder / "dataset.json", answers, {"of_p5.png": "p5"})
    content = written_in(folder)
    assert content["training"][4:] == [{"image": "new.png", "group": "new.png", "label": 1, "area": 0.1}]
    assert content["validation"][2:] == [{"image": "of_p5.png", "group": "p5", "label": 0}]


def test_fields_of_slides_are_taken_up_and_away(tmp_path: Path) -> None:
    items = [
        {"image": "s.svs", "region": [left, 0, 64, 64], "mpp": 0.5, "slide_mpp": 0.25, "label": 1, "group": "s"}
        for left in (0, 64, 128)
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items, "validation": []}))
    first, second, third = (Field("s.svs", (left, 0, 64, 64), 0.5) for left in (0, 64, 128))
    assert GivenData.find(tmp_path / "dataset.json").subjects() == [first, second, third]
    drawn = Field("s.svs", (256, 0, 64, 64), 0.5)
    write_dataset(tmp_path / "dataset.json", {second: Answer(1, 0.2), drawn: Answer(0)}, {}, removed=[first])
    new = {"image": "s.svs", "region": [256, 0, 64, 64], "mpp": 0.5, "group": "s", "label": 0}
    assert written_in(tmp_path)["training"] == [items[1] | {"area": 0.2}, items[2], new]


def test_the_page_asks_for_what_is_missing(folder: Path) -> None:
    given, journal = GivenData.find(folder / "dataset.json"), Journal(folder / "labels.jsonl")
    images = find_images(folder, listed=given.subjects())
    assert images == sorted(NAMES)  # neither the mask nor what lies elsewhere
    assert given.elsewhere() == 1
    app = make_app(Pictures(folder, images), journal, lambda: "saved", "secret", given=given.answers())
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    state = client.get("/secret/state").json()
    known = {images[int(k)]: (answer["label"], answer["area"]) for k, answer in state["answers"].items()}
    assert known == {"yes/b.png": (1, 0.25), "no/c.png": (0, None), "no/e.png": (0, None), "no/f.png": (None, None)}
    assert {images[k] for k in state["positive"]} == {"yes/a.png", "yes/d.png"}

    position = images.index("yes/a.png")
    state = client.post("/secret/answer", json={"image": position, "label": 1, "area": 0.7}).json()
    assert state["answers"][str(position)] == {"label": 1, "area": 0.7}
    assert {images[k] for k in state["positive"]} == {"yes/a.png", "yes/d.png"}  # of both the area alone is asked
    client.post("/secret/answer", json={"image": images.index("yes/b.png"), "label": 0})
    state = client.post("/secret/undo", json={}).json()
    assert state["answers"][str(images.index("yes/b.png"))] == {"label": 1, "area": 0.25}  # as it was given


@pytest.fixture
def label(monkeypatch, capsys) -> Callable[..., str]:
    """Function from a command line to what the program prints, which is interrupted after a callback."""

    def function(*arguments: object, meanwhile: Callable[[], object] = lambda: None) -> str:
        monkeypatch.setattr(sys, "argv", ["labelling", "label", *map(str, arguments), "--no_browser"])
        monkeypatch.setattr(program, "serve", lambda *_: meanwhile())
        program.main()
        return capsys.readouterr().out

    return function


def test_the_program_says_what_it_takes_up_and_writes_nothing_unasked(folder: Path, label) -> None:
    before = (folder / "dataset.json").read_bytes()
    shown = label(folder)
    kept = "which will be kept as dataset-given.json. 1 of its images are not"
    assert f"those of '{folder / 'dataset.json'}', {kept}" in shown
    assert "6 images, 4 of them answered." in shown
    assert shown.endswith("Nothing has been answered; nothing is written.\n")
    assert (folder / "dataset.json").read_bytes() == before
    assert not (folder / "dataset-given.json").exists()

    shown = label(folder, meanwhile=lambda: Journal(folder / "labels.jsonl").give("yes/a.png", Answer(1, 0.4)))
    assert "Saved. dataset.json: 4 for training, 2 for validation.\nFew training images, 4: " in shown
    again = label(folder)
    kept = f"Your answers so far are kept; all else is as in '{folder / 'dataset-given.json'}', the data set before"
    assert f"{kept} them. 1 of" in again
    assert "6 images, 5 of them answered." in again
    with pytest.raises(SystemExit, match="has its own groups and splits"):
        label(folder, "--group", "(p.)")


def test_without_answers_nothing_is_called_saved(folder: Path, label) -> None:
    (folder / "dataset.json").unlink()
    assert label(folder).endswith("Nothing has been answered; nothing is written.\n")
    assert not (folder / "dataset.json").exists()


def test_annotators_answers_are_merged_into_what_was_given(folder: Path, label, monkeypatch) -> None:
    for name, area in (("anna", 0.4), ("ben", 0.5)):
        label(folder, "--annotator", name)
        Journal(folder / f"labels-{name}.jsonl").give("yes/a.png", Answer(1, area))
    monkeypatch.setattr(sys, "argv", ["labelling", "merge", str(folder), "anna", "ben"])
    program.main()
    first = {"image": "./yes/a.png", "label": 1, "group": "p1", "mask": "masks/a.png", "area": 0.5}
    assert written_in(folder)["training"] == [first, *GIVEN["training"][1:]]
    assert written_in(folder)["validation"] == GIVEN["validation"]
