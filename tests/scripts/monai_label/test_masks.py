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

from __future__ import annotations

import torch
from monai.data import MetaTensor
from scripts.monai_label.masks import LabelMapd


def test_label_map_is_the_first_channel_in_whole_numbers() -> None:
    mask = MetaTensor(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), meta={"filename_or_obj": "a.png"})
    label_map = LabelMapd("pred")({"pred": mask})["pred"]
    assert label_map.dtype == torch.uint8
    assert label_map.tolist() == [[0, 1]]
    assert label_map.meta["filename_or_obj"] == "a.png"
