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

"""What the tests of the configs share: the bundle's folder, a tiny demo run, and a network whose answer is known."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: tests run side by side

import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import run
from scripts.networks import CDWSNet

BUNDLE = Path(__file__).resolve().parent.parent / "bundle"
SLOW_FIXTURES = {"quick_python", "demo_run", "browser"}
SLOW_PLACES = {"configs", "experiments"}
LONGEST = ("test_commands_of_a_page", "test_commands_of_a_page[docs/results")  # the second more than all others
SHARED = "test_experiments.py"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
CHROMIUM_OPTIONS = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update"]
CHROMIUM_OPTIONS += ["disable-background-networking", "disable-sync", "disable-dev-shm-usage", "window-size=1280,800"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark what `make test-quick` leaves out: tests that train or start programs, and places of such.

    The longest come first, so that no worker is left with one of them while the others have nothing more to do; then
    those that share a study, which is trained in each worker that has one of them.
    """
    for item in items:
        places = item.path.relative_to(Path(__file__).parent).parts
        if SLOW_FIXTURES & set(item.fixturenames) or SLOW_PLACES & set(places):
            item.add_marker("slow")
    items.sort(key=lambda item: (sum(map(item.name.startswith, LONGEST)), item.path.name == SHARED), reverse=True)


@pytest.fixture(scope="session")
def configs() -> Path:
    return BUNDLE / "configs"


@pytest.fixture(scope="session")
def quick_python(tmp_path_factory) -> Iterator[str]:
    """Path of a program that runs Python's as `sys.executable` does, without the seconds of their imports."""
    folder = tmp_path_factory.mktemp("python")
    program, server, path = Path(__file__).with_name("quick_python.py"), folder / "server", folder / "python"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen([sys.executable, program, "serve", server], env=environment, cwd="/")
    command = f"exec {shlex.join([sys.executable, '-IS', str(program), 'run', str(server)])}"
    path.write_text(f'#!/bin/sh\nexport QUICK_PYTHON={shlex.quote(str(path))}\n{command} "$@"\n')
    path.chmod(0o755)
    try:
        while not server.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield str(path)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def demo_run(configs, tmp_path_factory) -> Path:
    """
    Folder of a demo run of two epochs on a few tiny images: data, models, log, metrics and predictions in it, and in
    ``warnings.txt`` what Python has shown of warnings.
    """
    folder = tmp_path_factory.mktemp("demo")
    tiny = {
        "output_dir": str(folder),
        "demo_dir": str(folder / "data"),
        "spatial_size": [32, 32],
        "logging_file": False,
    }
    data = {"datalist#counts": {"training": 6, "validation": 4, "test": 4}, "num_workers": 0}
    train, demo = str(configs / "train.json"), str(configs / "demo.json")
    evaluate, inference = str(configs / "evaluate.json"), str(configs / "inference.json")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        run("training", config_file=[train, demo], max_epochs=2, val_interval=1, **tiny, **data)
        run("evaluating", config_file=[train, demo, evaluate], split="test", **tiny, **data)
        run("inferring", config_file=[inference, demo], dataset_dir=str(folder / "data" / "images"), **tiny)
    shown = [w for w in said if not issubclass(w.category, (DeprecationWarning, PendingDeprecationWarning))]
    (folder / "warnings.txt").write_text("\n".join(str(warning.message) for warning in shown))
    return folder


@pytest.fixture(scope="session")
def serving() -> Callable[[Any], AbstractContextManager[str]]:
    """Puts an application behind a real socket of this computer, and says its address."""
    import uvicorn

    @contextmanager
    def behind_a_socket(app: Any) -> Iterator[str]:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with socket.create_server(("127.0.0.1", 0)) as local:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [local]})
            thread.start()
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{local.getsockname()[1]}"
            finally:
                server.should_exit = True
                thread.join()

    return behind_a_socket


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its driver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*CHROMIUM_OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium):
    """Chromium, of 1280 x 800 pixels, without network: a new tab of one that knows nothing of earlier tests."""
    (first,) = chromium.window_handles
    chromium.switch_to.new_window("tab")
    chromium.get_log("browser")
    yield chromium
    chromium.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": "*", "storageTypes": "all"})
    chromium.close()
    chromium.switch_to.window(first)


@pytest.fixture(scope="session")
def red_detector(tmp_path_factory) -> Path:
    """Checkpoint of a network whose first side output is near 1 where the normalised red is above 0, else near 0."""
    network = CDWSNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.features[0].weight[0, 0, 1, 1] = 1.0  # red, kept where above 0
        network.features[2].weight[0, 0, 1, 1] = 1.0
        network.sides[0].weight[0, 0] = 200.0
        network.sides[0].bias[0] = -20.0
    path = tmp_path_factory.mktemp("red") / "model.pt"
    torch.save(network.state_dict(), path)
    return path


def _write_slide(path: Path, picture: np.ndarray, mpp: float | None, factors: Sequence[int] = (1,)) -> Path:
    """Pyramidal TIFF (lossless) of a picture (H, W, 3); the levels are means over squares of these sides."""
    with tifffile.TiffWriter(path) as writer:
        for factor in factors:
            height, width = (n // factor for n in picture.shape[:2])
            squares = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
            level = np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)
            resolution = {} if mpp is None else {"resolution": (10_000 / mpp / factor,) * 2, "resolutionunit": 3}
            options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
            writer.write(level, subfiletype=int(factor > 1), **options, **resolution)
    return path


def _tissue_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """White, with coloured noise in all but a border of a tenth."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 255, np.uint8)
    y, x = height // 10, width // 10
    noise = rng.integers(0, 200, (height - 2 * y, width - 2 * x, 3))
    noise[..., 1] //= 4  # less green than red and blue, as haematoxylin and eosin
    picture[y : height - y, x : width - x] = noise
    return picture


@pytest.fixture(scope="session")
def write_slide():
    return _write_slide


@pytest.fixture(scope="session")
def tissue_picture():
    return _tissue_picture


@pytest.fixture(scope="session")
def lively_network() -> CDWSNet:
    """Random weights, with side outputs that vary over most of 0..1."""
    torch.manual_seed(0)
    network = CDWSNet().eval()
    with torch.no_grad():
        for side in network.sides:
            torch.nn.init.normal_(side.weight, std=0.5)
    return network
