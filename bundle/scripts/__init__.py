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

"""What the CDWS-MIL bundle adds to MONAI: networks, losses, metrics, transforms, data, engines, handlers."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any


def bundle_root() -> str:
    """Absolute path of the bundle, so that its configs work from any working directory."""
    return str(Path(__file__).resolve().parent.parent)


def bundle_metadata(root: str | PathLike | None = None) -> dict[str, Any]:
    """What ``metadata.json`` says of this bundle, or of that in another folder."""
    return json.loads((Path(root or bundle_root()) / "configs" / "metadata.json").read_text(encoding="utf-8"))


def bundle_version() -> str:
    """As ``metadata.json`` has it."""
    return bundle_metadata()["version"]
