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

"""Folders for WSInfer and bioimage.io: as their own packages read them, with the network's answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scripts import bundle_root
from scripts.boosting.ensemble import MILBoostNet
from scripts.exports import Exporter
from scripts.images.originals import Originals
from scripts.losses.pooling import Pooling
from scripts.networks import CDWSNet
from scripts.runtime.errors import InputError
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RED, DARK = (230, 60, 120), (70, 20, 120)


def export(target: Path, checkpoint: Path, **settings) -> Path:
    """A network with one side output, which is 1 where the picture is red."""
    network = CDWSNet(fusion_weights=[1.0, 0.0, 0.0]).averaging_flips(True)
    given = {
        "folder": str(target),
        "export_as": "wsinfer",
        "network": network,
        "loader": lambda _: network.load_state_dict(torch.load(checkpoint)),
        "ckpt_path": str(checkpoint),
        "pool": Pooling("generalized_mean", r=4.0),
        "mean": MEAN,
        "std": STD,
        "spatial_size": [48, 64],
        "mpp": 0.5,
    }
    Exporter(**(given | settings)).run()
    return target


def half_red(height: int, width: int) -> np.ndarray:
    """(H, W, 3), the left half of which is found."""
    picture = np.full((height, width, 3), DARK, np.uint8)
    picture[:, : width // 2] = RED
    return picture


def test_wsinfer_reads_the_config(red_detector, tmp_path):
    client = pytest.importorskip("wsinfer_zoo.client", reason="WSInfer's schema is in the package wsinfer-zoo")
    folder = export(tmp_path / "model", red_detector, class_name="Tumour")
    config = client.ModelConfiguration.from_dict(json.loads((folder / "config.json").read_text()))
    assert (config.num_classes, config.class_names) == (2, ["Other", "Tumour"])
    assert config.get_slide_patch_size(0.25) == 96  # 48 pixels of 0.5 micrometres, the shorter side
    assert [step.name for step in config.transform] == ["Resize", "ToTensor", "Normalize"]


@pytest.mark.parametrize("patches", [1, 3])
def test_a_patch_has_the_pooled_probability_after_the_softmax_of_wsinfer_and_qupath(red_detector, tmp_path, patches):
    folder = export(tmp_path / "model", red_detector)
    config = json.loads((folder / "config.json").read_text())
    made = {"Resize": lambda size: transforms.Resize((size, size)), "ToTensor": transforms.ToTensor}
    made["Normalize"] = transforms.Normalize
    prepare = transforms.Compose([made[step["name"]](**step.get("arguments", {})) for step in config["transform"]])
    picture = prepare(Image.fromarray(half_red(96, 96)))
    blank = prepare(Image.fromarray(np.full((96, 96, 3), DARK, np.uint8)))
    network = torch.jit.load(folder / "torchscript_model.pt")
    scores = network(torch.stack([picture, blank, picture][:patches]))
    found = torch.softmax(scores, dim=1)
    np.testing.assert_allclose(found.sum(dim=1), 1, atol=1e-6)
    # the generalised mean of r = 4 over a half of ones; on an eighth of the columns the resizing mixes the two colours
    expected = [0.5**0.25, 0, 0.5**0.25][:patches]
    np.testing.assert_allclose(found[:, 1], expected, atol=0.02)


def test_bioimageio_finds_no_fault_with_the_description(red_detector, tmp_path):
    spec = pytest.importorskip("bioimageio.spec", reason="the format's package bioimageio.spec is not installed")
    folder = export(tmp_path / "model", red_detector, export_as="bioimageio", mpp=0.2527)
    described = spec.load_description(folder / "rdf.yaml", perform_io_checks=True)
    assert not isinstance(described, spec.InvalidDescr), described.validation_summary.format()
    inputs, outputs = described.inputs[0], described.outputs[0]
    assert (inputs.id, outputs.id) == ("image", "probability")
    assert inputs.axes[2].scale == pytest.approx(0.2527)
    for n in range(40):  # every size of the input is that of the output
        sizes, found = described.get_axis_sizes({("image", axis): n for axis in "yx"}, batch_size=1)
        assert [found["probability", axis] for axis in "yx"] == [sizes["image", axis] for axis in "yx"]
    (folder / "weights.pt").write_bytes(b"others")
    assert isinstance(spec.load_description(folder / "rdf.yaml", perform_io_checks=True), spec.InvalidDescr)


def test_bioimageios_test_tensors_are_the_networks(red_detector, tmp_path):
    """By the description alone, on the test image and on one of another size."""
    folder = export(tmp_path / "model", red_detector, export_as="bioimageio")
    (described,) = yaml.safe_load((folder / "rdf.yaml").read_text())["inputs"]
    values = described["preprocessing"][0]["kwargs"]
    mean, std = (np.array(values[name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    network = torch.jit.load(folder / "weights.pt")
    image, output = np.load(folder / "test_input.npy"), np.load(folder / "test_output.npy")
    assert (image.shape, output.shape) == ((1, 3, 64, 64), (1, 1, 64, 64))
    assert image.std() > 10
    np.testing.assert_allclose(network(torch.from_numpy((image - mean) / std)), output, atol=1e-5)
    picture = half_red(32, 96).transpose(2, 0, 1)[None].astype(np.float32)
    found = network(torch.from_numpy((picture - mean) / std)).numpy()
    np.testing.assert_allclose(found[0, 0, 16, [10, 40, 56, 90]], [1, 1, 0, 0], atol=1e-3)


REFUSED = {
    "superpixels": ({"superpixels": True}, "Superpixels"),
    "boosting": ({"network": MILBoostNet()}, "MIL-Boosting"),
    "channels": ({"mean": [0.5], "std": [0.5]}, "1 channels"),
    "no resolution": ({"mpp": None}, "--mpp"),
    "resolution": ({"mpp": 0}, "mpp must be"),
    "program": ({"export_as": "qupath"}, "wsinfer, bioimageio; got 'qupath'"),
    "no folder": ({"folder": None}, "--export_dir"),
    "class": ({"class_name": " "}, "class_name"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cant_be_exported_is_refused_in_a_sentence(red_detector, tmp_path, reason):
    settings, said = REFUSED[reason]
    with pytest.raises(InputError, match=said):
        export(tmp_path / "model", red_detector, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_stays_as_it_is(red_detector, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "model", red_detector)
    assert (tmp_path / "model" / "config.json").read_text() == "mine"


def test_a_model_that_was_trained_on_parts_of_slides_knows_its_resolution(red_detector, tmp_path):
    """256 pixels of 1 micrometre are 128 of 2."""
    network = CDWSNet()
    network.learns_from(Originals(256, 256, mpp=1.0))
    torch.save(network.state_dict(), tmp_path / "fields.pt")
    folder = export(tmp_path / "model", tmp_path / "fields.pt", mpp=None, spatial_size=[128, 128])
    assert json.loads((folder / "config.json").read_text())["spacing_um_px"] == 2.0


def test_the_resolution_of_a_model_that_comes_with_the_bundle_is_known(red_detector, tmp_path):
    shipped = Path(bundle_root()) / "models" / "model.pt"
    folder = export(tmp_path / "model", red_detector, ckpt_path=str(shipped), mpp=None, spatial_size=[112, 112])
    known = json.loads((Path(bundle_root()) / "configs" / "metadata.json").read_text())["network_data_format"]
    assert json.loads((folder / "config.json").read_text())["spacing_um_px"] == known["inputs"]["image"]["mpp"]
