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
"""Export to ONNX by MONAI's command: the same maps in another runtime, at other sizes; and the run that exports."""

from __future__ import annotations

import inspect
import json
import re

import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, onnx_export, run
from monai.networks import trt_compile
from monai.networks.trt_compiler import TrtCompiler
from scripts.networks import CDWSNet, PyramidNet, UNet, in_onnx_runtime
from scripts.runtime.errors import InputError, input_error_of

AXES = {0: "batch", 2: "height", 3: "width"}
OPTIONS = {
    "input_names": ["image"],
    "output_names": ["pred"],
    "dynamic_axes": {"image": AXES, "pred": AXES},
    "dynamo": False,
}
METHODS = {"cdws": [], "baseline": ["baseline"], "unet": ["unet"], "recommended": ["recommended"]}


@pytest.fixture(scope="module", params=METHODS)
def exported(request, configs, tmp_path_factory):
    """A network with weights that make no map constant, and its session in ONNX Runtime."""
    folder = tmp_path_factory.mktemp("onnx")
    files = [str(configs / f"{name}.json") for name in ("inference", *METHODS[request.param])]
    parser = ConfigParser()
    parser.read_config(files)
    parser["bundle_root"] = str(configs.parent)
    torch.manual_seed(0)
    network = parser.get_parsed_content("network_def").eval()
    for name, parameter in network.named_parameters():
        if "sides" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    torch.save(network.state_dict(), folder / "model.pt")
    onnx_export(
        "network_def",
        filepath=str(folder / "model.onnx"),
        ckpt_file=str(folder / "model.pt"),
        config_file=files,
        input_shape=[2, 3, 64, 96],
        use_trace=True,
        converter_kwargs=OPTIONS,
        bundle_root=str(configs.parent),
    )
    return network, onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 96, 64), (1, 3, 101, 77)], ids=str)
def test_the_same_maps_at_other_sizes(exported, shape):
    network, session = exported
    if isinstance(network, UNet) and shape[2] % 32:
        pytest.skip("MONAI's U-Net pads as the size that was exported needs it")
    image = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(image)
    assert expected.std() > 1e-3
    (found,) = session.run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("overlay", ["baseline", "recommended"])
def test_onnx_runtime_gives_pytorchs_maps_of_the_weights_that_are_loaded(configs, overlay):
    networks = []
    for added in ([], ["inference_onnx"]):
        parser = ConfigParser()
        parser.read_config([str(configs / f"{name}.json") for name in ("inference", overlay, *added)])
        parser.update({"bundle_root": str(configs.parent), "spatial_size": [64, 64], "tta": True, "device": "cpu"})
        networks.append(parser.get_parsed_content("network").eval())
    plain, network = networks
    for seed in (0, 1):
        torch.manual_seed(seed)
        for name, parameter in plain.named_parameters():
            if "sides" in name or "heads" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        network.load_state_dict(plain.state_dict())
        with torch.no_grad():
            for shape in [(1, 3, 64, 96), (2, 3, 45, 61)]:
                image = torch.randn(shape)
                expected = plain(image)
                assert expected.std() > 1e-3
                torch.testing.assert_close(network(image), expected, atol=1e-4, rtol=0)


def test_onnx_runtime_refuses_networks_that_it_would_compute_otherwise():
    with pytest.raises(InputError, match=r"UNet.*inference_onnx\.json"):
        in_onnx_runtime(UNet())


def test_tensorrt_is_asked_for_what_its_compiler_takes_and_left_out_without_it(configs, tmp_path, monkeypatch):
    """Without TensorRT and a GPU the network is the one it would have compiled."""
    files = [str(configs / f"{name}.json") for name in ("inference", "inference_trt")]
    torch.save(CDWSNet(method="cdws").state_dict(), tmp_path / "model.pt")
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({"bundle_root": str(configs.parent), "ckpt_dir": str(tmp_path)})
    definition = parser.get("network")
    assert definition["_target_"] == f"{trt_compile.__module__.rsplit('.', 1)[0]}.{trt_compile.__name__}"
    arguments = parser.get_parsed_content("trt_args")
    bound = inspect.signature(TrtCompiler).bind(None, str(tmp_path / "model.pt.plan"), **arguments)
    assert set(arguments) <= set(bound.arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    network = parser.get_parsed_content("network").eval()
    assert not hasattr(network, "_trt_compiler")
    assert isinstance(network, CDWSNet)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_the_run_exports_what_was_trained(configs, red_detector, tmp_path):
    files = [str(configs / f"{name}.json") for name in ("inference", "export")]
    settings = {"ckpt_path": str(red_detector), "spatial_size": [64, 64], "fusion_weights": [1.0, 0.0, 0.0]}
    folder = tmp_path / "for" / "qupath"
    run("exporting", config_file=files, export_dir=str(folder), mpp=2, logging_file=False, **settings)
    assert json.loads((folder / "config.json").read_text())["spacing_um_px"] == 2
    image = torch.full((1, 3, 64, 64), -1.0)
    image[:, 0, :, :16] = 1.0  # a quarter is red
    found = torch.jit.load(folder / "torchscript_model.pt")(image).softmax(dim=1)
    assert float(found[0, 1]) == pytest.approx(0.25**0.25, abs=0.02)


def test_a_file_is_of_the_network_that_was_trained_or_is_refused(configs, tmp_path):
    """Another encoder than the method's, in the state of a training, which has its optimizer beside it."""
    network = PyramidNet(encoder="resnet18", pretrained="random", method="area_ranked").eval()
    checkpoint, file = tmp_path / "state_0.pt", tmp_path / "model"
    torch.save({"model": network.state_dict(), "optimizer": {}, "epoch": 1}, checkpoint)
    files = [str(configs / f"{name}.json") for name in ("inference", "recommended", "export")]
    settings = {"config_file": files, "ckpt_path": str(checkpoint), "logging_file": False}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        run("exporting_file", export_file=f"{file}.ts", **settings)
    assert re.match(
        rf"The checkpoint '{checkpoint}' is of another network .*--encoder", str(input_error_of(caught.value))
    )
    assert list(tmp_path.iterdir()) == [checkpoint]
    for suffix in (".ts", ".onnx"):
        run("exporting_file", export_file=f"{file}{suffix}", encoder="resnet18", **settings)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
    extra = {"metadata.json": ""}
    torch.testing.assert_close(torch.jit.load(f"{file}.ts", _extra_files=extra)(image), expected)
    assert json.loads(extra["metadata.json"]) == json.loads((configs / "metadata.json").read_text())
    session = onnxruntime.InferenceSession(f"{file}.onnx", providers=["CPUExecutionProvider"])
    torch.testing.assert_close(
        torch.as_tensor(session.run(None, {"image": image.numpy()})[0]), expected, atol=1e-4, rtol=0
    )
