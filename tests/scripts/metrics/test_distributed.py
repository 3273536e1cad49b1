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

"""Two processes of `torch.distributed` give exactly the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import scripts
from scipy import ndimage
from scripts.metrics.boundary import BoundaryFMeasure
from scripts.metrics.pixel import PixelAveragePrecision
from scripts.metrics.region import RegionFMeasure

WORKER = """
import json, sys
import numpy as np
import torch.distributed as dist
from scripts.metrics.boundary import BoundaryFMeasure
from scripts.metrics.pixel import PixelAveragePrecision
from scripts.metrics.region import RegionFMeasure

rank, folder = int(sys.argv[1]), sys.argv[2]
results = {"numba_at_import": "numba" in sys.modules}
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
images = np.load(f"{folder}/images.npz")
for name, shares in {"uneven": [[0, 1, 2], [3]], "one has none": [[], [0, 1, 2, 3]]}.items():
    metrics = BoundaryFMeasure("all"), PixelAveragePrecision(), RegionFMeasure()
    for metric in metrics:
        for k in shares[rank]:
            y_pred = images["y_pred"][k][None]
            metric(y_pred > 0.5 if isinstance(metric, RegionFMeasure) else y_pred, images["y"][k][None])
    results[name] = [metrics[0].aggregate(), *(metric.aggregate().item() for metric in metrics[1:])]
dist.destroy_process_group()
print(json.dumps(results))
"""


def test_two_processes_give_the_numbers_of_one(tmp_path):
    rng = np.random.default_rng(0)
    y_pred = ndimage.gaussian_filter(rng.random((4, 1, 40, 50)), (0, 0, 3, 3))
    y_pred = (y_pred - y_pred.min()) / np.ptp(y_pred)
    y = y_pred + 0.2 * ndimage.gaussian_filter(rng.standard_normal(y_pred.shape), (0, 0, 3, 3)) > 0.5
    y[1] = False  # a negative image
    np.savez(tmp_path / "images.npz", y_pred=y_pred, y=y)
    boundary, pixel, region = BoundaryFMeasure("all"), PixelAveragePrecision(), RegionFMeasure()
    boundary(y_pred, y)
    pixel(y_pred, y)
    region(y_pred > 0.5, y)
    expected = [boundary.aggregate(), pixel.aggregate().item(), region.aggregate().item()]

    bundle = Path(scripts.__file__).parent.parent
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(bundle)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        output = worker.communicate(timeout=300)[0]
        assert worker.returncode == 0
        results = json.loads(output.splitlines()[-1])
        assert results["uneven"] == results["one has none"] == expected
        assert not results["numba_at_import"]
