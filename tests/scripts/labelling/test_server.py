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
"""The labelling page's server, asked as a browser asks it, and as no browser should."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from scripts.labelling.journal import Answer, Journal, read_answers
from scripts.labelling.server import make_app

TOKEN = "secret"
IMAGES = ["a.png", "wide.tif", "broken.png"]


@pytest.fixture
def folder(tmp_path):
    red = np.zeros((20, 30, 3), np.uint8)
    red[:10, 15:] = (255, 0, 0)
    Image.fromarray(red).save(tmp_path / "a.png")
    Image.fromarray(np.full((30, 3000), 65535, np.uint16)).save(tmp_path / "wide.tif")
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "secret.txt").write_text("not for you")
    return tmp_path


@pytest.fixture
def client(folder):
    app = make_app(folder, IMAGES, Journal(folder / "labels.jsonl"), lambda: "saved", TOKEN, title="How much?")
    return TestClient(app, base_url="http://127.0.0.1:8000")


def test_pictures_are_shown_as_they_are(client):
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/{TOKEN}/image/0").content)))
    assert shown.shape == (20, 30, 3)
    assert tuple(shown[5, 20]) == (255, 0, 0)
    assert tuple(shown[15, 5]) == (0, 0, 0)
    wide = Image.open(io.BytesIO(client.get(f"/{TOKEN}/image/1").content))
    assert wide.size == (2000, 20)
    assert wide.getpixel((5, 5)) == (255, 255, 255)


def test_a_damaged_picture_is_named(client):
    answer = client.get(f"/{TOKEN}/image/2")
    assert answer.status_code == 422
    assert "can't be read" in answer.json()["detail"]
    assert client.get(f"/{TOKEN}/image/3").status_code == 404


def test_answers_are_kept_and_taken_back(client, folder):
    state = client.post(f"/{TOKEN}/answer", json={"image": 0, "label": 1, "area": 0.3}).json()
    assert state["answers"] == {"0": {"label": 1, "area": 0.3}}
    client.post(f"/{TOKEN}/answer", json={"image": 1, "label": 0})
    assert read_answers(folder / "labels.jsonl") == {"a.png": Answer(1, 0.3), "wide.tif": Answer(0)}
    state = client.post(f"/{TOKEN}/undo", json={}).json()
    assert state["undone"] == 1
    assert client.get(f"/{TOKEN}/state").json()["answers"] == {"0": {"label": 1, "area": 0.3}}


@pytest.mark.parametrize(
    "given",
    [
        {"image": 0, "label": 2},
        {"image": 0, "label": 1, "area": 30},
        {"image": 0, "label": 1, "area": 0},
        {"image": 0, "label": 0, "area": 0.5},
        {"image": -1, "label": 0},
        {"image": 9, "label": 0},
        {},
    ],
)
def test_what_is_no_answer_is_refused(client, folder, given):
    assert client.post(f"/{TOKEN}/answer", json=given).status_code in (404, 422)
    assert not (folder / "labels.jsonl").exists()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/state", {}),
        ("/secret.txt", {}),
        (f"/{TOKEN}x/state", {}),
        (f"/{TOKEN}/state", {"host": "evil.example"}),
        (f"/{TOKEN}/state", {"host": "evil.example:8000"}),
        (f"/{TOKEN}/state", {"origin": "http://evil.example"}),
        (f"/{TOKEN}/state", {"origin": "http://localhost:9999"}),
        (f"/{TOKEN}/state", {"origin": "null"}),
    ],
)
def test_other_pages_get_nothing(client, path, headers):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403
    assert "a.png" not in answer.text


@pytest.mark.parametrize(
    "path", ["/image/../secret.txt", "/secret.txt", "/image/%2e%2e%2fsecret.txt", "/static/page.html"]
)
def test_nothing_but_the_images_is_served(client, path):
    answer = client.get(f"/{TOKEN}{path}")
    assert answer.status_code in (403, 404, 422)
    assert "not for you" not in answer.text


def test_a_post_of_another_origin_changes_nothing(client, folder):
    given = {"image": 0, "label": 0}
    assert client.post(f"/{TOKEN}/answer", json=given, headers={"origin": "http://evil.example"}).status_code == 403
    assert not (folder / "labels.jsonl").exists()
    assert client.post(f"/{TOKEN}/answer", json=given, headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
