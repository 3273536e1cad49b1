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

"""The bundle in a real MONAI Label server, over HTTP. `make test-monai-label` makes the environment it needs."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scripts.demo.phantoms import draw_phantom

if TYPE_CHECKING:
    from conftest import Server

pytest.importorskip("monailabel", reason="runs in MONAI Label's own environment: make test-monai-label")

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
WIDTH, HEIGHT = 120, 80
RED = (255, 0, 0)
# The upper right quarter as QuPath's extension submits it
QUPATH_LABEL = b"""<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<ASAP_Annotations>
<Annotations Description="" H="80" Name="" W="120" X="0" Y="0">
<Annotation Color="#c80000" Name="cancer" PartOfGroup="cancer" Type="Polygon">
<Coordinates>
<Coordinate Order="0" X="60" Y="0"/><Coordinate Order="1" X="119" Y="0"/>
<Coordinate Order="2" X="119" Y="39"/><Coordinate Order="3" X="60" Y="39"/>
</Coordinates>
</Annotation>
</Annotations>
<AnnotationGroups><Group Color="#c80000" Name="cancer" PartOfGroup="None"/></AnnotationGroups>
</ASAP_Annotations>
"""


def corner(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W) truth: the upper right quarter. No flip or transposition leaves it as it is."""
    mask = np.zeros((height, width), bool)
    mask[: height // 2, width // 2 :] = True
    return mask


def picture(mask: np.ndarray) -> np.ndarray:
    """(H, W, 3): red where the mask is, black elsewhere."""
    return (mask[..., None] * np.array(RED)).astype(np.uint8)


def encoded(picture: np.ndarray, suffix: str = "png") -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, {"tif": "TIFF"}.get(suffix, suffix))
    return file.getvalue()


def decoded(file: bytes) -> np.ndarray:
    """A picture from its file."""
    return np.asarray(Image.open(io.BytesIO(file)))


def test_server_knows_the_bundle(server: Server):
    info = server.ask("GET", "/info/").json()
    model = info["models"][server.model]
    assert (model["type"], model["dimension"], model["labels"]) == ("segmentation", 2, {"cancer": 1})
    assert server.model in info["trainers"]
    assert server.model in info["scoring"]
    assert {"random", "first"} <= set(info["strategies"])


@pytest.mark.parametrize(("suffix", "size"), [("png", (120, 80)), ("png", (61, 97)), ("tif", (80, 120))])
def test_mask_of_a_picture(server: Server, suffix: str, size: tuple[int, int]):
    truth = corner(*size)
    image = server.upload(f"{suffix}_{size[0]}.{suffix}", encoded(picture(truth), suffix))
    mask = decoded(server.infer(image))
    assert mask.dtype == np.uint8
    assert mask.shape == truth.shape
    assert set(np.unique(mask)) == {0, 1}
    assert (mask != truth).mean() < 0.02  # the edge may move by a pixel in an odd size


def test_mask_of_a_nifti_picture(server: Server, tmp_path: Path):
    truth = corner().T  # NIfTI's first axis goes along x
    nib.save(nib.Nifti1Image(truth.astype(np.uint8) * 255, np.eye(4)), tmp_path / "slice.nii.gz")
    image = server.upload("slice.nii.gz", (tmp_path / "slice.nii.gz").read_bytes())
    (tmp_path / "mask.nii.gz").write_bytes(server.infer(image))
    mask = np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, truth)


def test_mask_of_a_volume_lies_where_the_volume_does(server: Server, tmp_path: Path):
    """Slices are red, or rather white, in a corner, or black; spacing and place in the patient are the volume's."""
    truth = np.stack([corner(30, 20).T, np.zeros((30, 20), bool), corner(30, 20).T], axis=-1)
    affine = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(truth.astype(np.int16) * 900 - 100, affine), tmp_path / "volume.nii.gz")
    image = server.upload("volume.nii.gz", (tmp_path / "volume.nii.gz").read_bytes())
    (tmp_path / "mask.nii.gz").write_bytes(server.infer(image))
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), truth)


def test_threshold_can_be_chosen_in_the_viewer(server: Server):
    """The map is 0.6 in the red part: side outputs 1, 1/2, 1/2 weigh 0.2, 0.35, 0.45."""
    image = server.upload("threshold.png", encoded(picture(corner())))
    options = server.ask("GET", "/info/").json()["models"][server.model]["config"]
    assert options["threshold"] == 0.5
    assert options["model_filename"][0] == "model.pt"  # the best checkpoint, not the last, is what it begins with
    assert decoded(server.infer(image, threshold=0.59)).sum() == corner().sum()
    assert decoded(server.infer(image, threshold=0.61)).sum() == 0


def test_region_of_a_slide_as_qupath_asks_for_it(server: Server):
    """The red rectangle from (500, 600) to (900, 700), cut by the region and by two tiles."""
    pixels = np.zeros((1200, 1600, 3), np.uint8)
    pixels[600:700, 500:900] = RED
    slide = io.BytesIO()
    tifffile.imwrite(slide, pixels, tile=(256, 256), photometric="rgb", compression="deflate")
    image = server.upload("slide.tif", slide.getvalue())
    region = {"level": 0, "location": [400, 500], "size": [800, 600], "tile_size": [400, 600], "min_poly_area": 30}
    path, params = f"/infer/wsi/{server.model}", {"image": image, "output": "asap"}
    answer = server.ask("POST", path, params=params, json=region | {"params": {"max_workers": 1}})
    annotations = list(ElementTree.fromstring(answer.content).iter("Annotation"))
    assert [a.get("Name") for a in annotations] == ["cancer", "cancer"]
    corners = [(float(c.get("X")), float(c.get("Y"))) for a in annotations for c in a.iter("Coordinate")]
    xs, ys = zip(*corners, strict=True)
    found = (min(xs), max(xs), min(ys), max(ys))
    assert found == pytest.approx((500, 900, 600, 700), abs=2)  # a network pixel is 1 x 1.2 of the slide's


def test_scores_for_active_learning(server: Server):
    """
    Hiding the one channel that sees red, half of the time, makes the network unsure of the red part alone.

    MONAI Label takes 5e-5 for a pixel that was never marked, and -p ln p of how often it was, p, for any other.
    """
    server.upload("unsure.png", encoded(picture(corner())))
    settings = {"max_workers": 1, "max_samples": 1}
    server.ask("POST", f"/scoring/{server.model}", params={"run_sync": True}, json=settings)
    studies = server.ask("GET", "/datastore/", params={"output": "all"}).json()["objects"]
    [score] = [s["image"]["info"][key] for s in studies.values() for key in s["image"]["info"] if "entropy" in key]

    def entropy(share: float) -> float:
        return -share * math.log(share)

    possible = [entropy(max(k / server.simulations, 5e-5)) for k in range(server.simulations + 1)]
    assert min(abs(score - (0.25 * red + 0.75 * entropy(5e-5))) for red in possible) < 0.005


def test_label_train_infer_next(training_server: Server):
    """One label first, which leaves nothing to validate on; then more, trained on in the background as viewers do."""
    server, model_file = training_server, training_server.bundle / "models" / "model.pt"
    truth = corner()
    images = [server.upload(f"study_{i}.png", encoded(picture(truth))) for i in range(6)]
    assert server.ask("POST", "/activelearning/random").json()["id"] in images

    server.submit(images[0], "label.png", encoded(truth.astype(np.uint8)))
    assert [Path(item["label"]).name for item in server.ask("GET", "/datastore/", params={"output": "train"}).json()]
    server.ask("POST", f"/train/{server.model}", params={"run_sync": True}, json={"max_epochs": 1})
    after_one_label = red_weight(model_file)
    assert abs(after_one_label - 1) == pytest.approx(0.001, rel=0.01)  # Adam's first step from the model
    assert (decoded(server.infer(images[1])) != truth).mean() < 0.02

    for image in images[1:4]:
        server.submit(image, "label.png", encoded(truth.astype(np.uint8)))
    server.submit(images[4], "label.xml", QUPATH_LABEL)
    server.ask("POST", f"/train/{server.model}", json={"max_epochs": 1})
    wait_for_training(server)
    assert 0 < abs(red_weight(model_file) - after_one_label) < 0.0011
    assert (decoded(server.infer(images[5])) != truth).mean() < 0.02
    assert server.ask("POST", "/activelearning/random").json()["id"] == images[5]  # the only one without a label
    assert server.stop() == 0


def test_the_recommended_method_infers_trains_and_scores(recommended_server: Server, tmp_path: Path):
    """Its included model gives the masks of `monai.bundle run`, and training goes on from it."""
    server, model_file = recommended_server, recommended_server.bundle / "models" / "model.pt"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, cancer in (("a", True), ("b", False)):
        Image.fromarray(draw_phantom(np.random.default_rng(0), (120, 160), cancer)[0]).save(pictures / f"{name}.png")
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--dataset_dir", str(pictures)]
    command += ["--config_file", "['configs/inference.json','configs/recommended.json']"]
    subprocess.run([*command, "--output_dir", str(tmp_path / "out")], cwd=BUNDLE, check=True, capture_output=True)
    for name in ("a", "b"):
        image = server.upload(f"{name}.png", (pictures / f"{name}.png").read_bytes())
        expected = decoded((tmp_path / "out" / "predictions" / f"{name}_mask.png").read_bytes()) > 0
        np.testing.assert_array_equal(decoded(server.infer(image)), expected)
        server.submit(image, "label.png", encoded(corner(160, 120).astype(np.uint8)))

    before = weights(model_file)
    server.ask("POST", f"/train/{server.model}", params={"run_sync": True}, json={"max_epochs": 1})
    after = weights(model_file)
    assert after.keys() == before.keys()
    moves = [abs(after[name] - before[name]).max().item() for name in before if "running" not in name]
    assert max(moves) == pytest.approx(0.002, rel=0.05)  # AdamW's first step from the model
    assert decoded(server.infer("a")).shape == (120, 160)

    server.upload("c.png", (pictures / "a.png").read_bytes())
    server.ask("POST", f"/scoring/{server.model}", params={"run_sync": True}, json={"max_workers": 1})
    scored = server.ask("GET", "/datastore/image/info", params={"image": "c"}).json()
    assert 0 < scored["epistemic_entropy"] < 1 / math.e  # of -p ln p


def test_documented_requests(training_server: Server, tmp_path: Path):
    """Those of docs/monai-label.md without a viewer, with one epoch instead of twenty."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "monai-label.md").read_text()
    [script] = re.findall(r"## Without a viewer\n\n```shell\n(.*?)```", page, flags=re.S)
    script = script.replace("http://127.0.0.1:8000", str(training_server.client.base_url)).replace(": 20}", ": 1}")
    (tmp_path / "a.png").write_bytes(encoded(picture(corner())))
    (tmp_path / "a_label.png").write_bytes(encoded(corner().astype(np.uint8)))
    strict = 'set -euo pipefail; curl() { command curl --fail --silent --show-error --noproxy "*" "$@"; }\n'
    done = subprocess.run(["bash", "-c", strict + script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '{"image":"a","label":"a"}' in done.stdout
    np.testing.assert_array_equal(decoded((tmp_path / "a_mask.png").read_bytes()), corner())


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Those of a network, without what it says of itself."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {name: value for name, value in content.get("model", content).items() if value.is_floating_point()}


def red_weight(checkpoint: Path) -> float:
    """The weight that passes red on: 1 in the model that the server starts with."""
    return weights(checkpoint)["features.0.weight"][0, 0, 1, 1].item()


def wait_for_training(server: Server, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = server.ask("GET", "/train/").json()["status"]
        if status in ("DONE", "ERROR"):
            assert status == "DONE", server.log.read_text()[-3000:]
            return
        time.sleep(1)
    raise AssertionError(f"training is not done after {seconds} s")
