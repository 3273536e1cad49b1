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

"""Where the list of a data set is."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

__all__ = ["dataset_file"]


def dataset_file(data: str | PathLike) -> Path:
    """The ``dataset.json`` of a folder; what ends in ``.json``, and is no folder, is such a file itself."""
    path = Path(data)
    return path if path.suffix == ".json" and not os.path.isdir(path) else path / "dataset.json"
