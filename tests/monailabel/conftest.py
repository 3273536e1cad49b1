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

"""A MONAI Label server with the bundle in it, in a folder of its own, and what a viewer asks of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
MODEL = "cdws_mil_segmentation"
START_SECONDS = 600  # of a busy machine
SIMULATIONS = 5
NOWHERE = "http://127.0.0.1:9"  # nothing listens there: whatever wants the internet fails at once


class Server:
    """
    Runs the commands of docs/monai-label.md.

    Args:
        folder: where the app, the studies and the log go.
        checkpoint: becomes the bundle's ``models/model.pt``; None leaves the included one.
        options: more ``--conf`` options.
        overlays: of the bundle.
    """

    model = MODEL
    simulations = SIMULATIONS

    def __init__(
        self, folder: Path, checkpoint: Path | None, options: dict[str, str] | None = None, overlays: Sequence[str] = ()
    ) -> None:
        self.log = folder / "server.log"
        self.bundle = folder / "apps" / "monaibundle" / "model" / MODEL
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
            "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
            "TORCH_HOME": str(folder / "torch"),
            "http_proxy": NOWHERE,
            "https_proxy": NOWHERE,
            "no_proxy": "127.0.0.1",
        }
        apps = ["monailabel", "apps", "--download", "--name", "monaibundle", "--output", str(folder / "apps")]
        subprocess.run(apps, env=self.environment, check=True, capture_output=True)
        copy = [sys.executable, "-m", "scripts.monai_label.apply_overlays", str(self.bundle), *overlays]
        subprocess.run(copy, cwd=BUNDLE, check=True, capture_output=True)
        if checkpoint is not None:
            shutil.copy(checkpoint, self.bundle / "models" / "model.pt")
        torch.save({"model": {}}, self.bundle / "models" / "last.pt")  # as training leaves one; not the best
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        conf = {"models": MODEL, "zoo_source": "local", "sam2": "false"} | (options or {})
        command = ["monailabel", "start_server", "--app", "apps/monaibundle", "--studies", "studies"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += [part for key, value in conf.items() for part in ("--conf", key, value)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        # a busy server closes a connection that it is being asked on
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=900, trust_env=False, limits=limits)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.client.get("/info/").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.5)
        self.process.kill()
        raise RuntimeError(f"the server did not start:\n{self.log.read_text()[-3000:]}")

    def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """An HTTP request; what the server says of it, if it fails, is in the error."""
        answer = self.client.request(method, path, **kwargs)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code}\n{self.log.read_text()[-3000:]}")
        return answer

    def upload(self, name: str, content: bytes) -> str:
        """Put an image into the studies. Returns its id, the name without suffixes."""
        image = name.split(".")[0]
        return self.ask("PUT", "/datastore/image", params={"image": image}, files={"file": (name, content)}).json()[
            "image"
        ]

    def submit(self, image: str, name: str, content: bytes) -> None:
        """Put the final label of an image."""
        self.ask("PUT", "/datastore/label", params={"image": image}, files={"label": (name, content)})

    def infer(self, image: str, **options: Any) -> bytes:
        """The mask's file; `options` are those of the viewer's panel."""
        form = {"params": json.dumps(options)}
        return self.ask("POST", f"/infer/{MODEL}", params={"image": image, "output": "image"}, data=form).content

    def stop(self) -> int:
        """Ask the server to end, as Ctrl-C does; returns its exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@pytest.fixture(scope="module")
def server(red_detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With scores for active learning; its model is never trained."""
    options = {"epistemic_model": MODEL, "epistemic_dropout": "0.5", "epistemic_simulation_size": str(SIMULATIONS)}
    running = Server(tmp_path_factory.mktemp("inference"), red_detector, options)
    yield running
    running.stop()


@pytest.fixture
def training_server(red_detector: Path, tmp_path: Path) -> Iterator[Server]:
    """One whose model may be trained."""
    running = Server(tmp_path, red_detector)
    yield running
    running.stop()


@pytest.fixture
def recommended_server(tmp_path: Path) -> Iterator[Server]:
    """The one of the documents: the included model of the recommended method, with scores."""
    running = Server(tmp_path, None, {"epistemic_model": MODEL}, ["recommended.json"])
    yield running
    running.stop()
