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

"""The sizes of a data set's pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scripts.data.original_sizes import original_sizes


def test_pictures_and_parts_of_slides_count_and_slices_and_broken_files_do_not(write_slide, tmp_path) -> None:
    write_slide(tmp_path / "slide.tif", np.zeros((90, 90, 3), np.uint8), 0.5)
    for name in ("a.png", "b.tif"):
        Image.fromarray(np.zeros((20, 30 if name == "a.png" else 40), np.uint8)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    items = [{"image": str(tmp_path / name), "label": 0} for name in ("a.png", "b.tif", "broken.png")]
    items += [
        {"image": str(tmp_path / "a.png"), "slice": 3},
        {"image": str(tmp_path / "slide.tif"), "region": [0, 0, 80, 60], "mpp": 1.0},
        {"image": str(tmp_path / "slide.tif"), "fields": 4, "field_size": 32},
    ]
    assert original_sizes(items) == [(20, 30), (20, 40), (30, 40), (64, 64)]  # height, width
    assert len(original_sizes(items[:1] * 2500)) == 834  # every third one
