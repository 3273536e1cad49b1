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

"""
The splits of the MR studies in volumes.md: the data set's validation volumes become the test split; of its training
volumes every tenth chooses the epoch, and all others train, or every so many of them.

    python docs/mri_split.py FOLDER_OF_DATASET_JSON OUTPUT_FOLDER [EVERY]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def split(source: Path, every: int) -> dict[str, list[dict]]:
    """The three splits, with absolute paths."""
    content = json.loads((source / "dataset.json").read_text())
    training, test = (
        [{key: str((source / path).resolve()) for key, path in item.items()} for item in content[name]]
        for name in ("training", "validation")
    )
    rest = [item for position, item in enumerate(training) if position % 10]
    return {"training": rest[::every], "validation": training[::10], "test": test}


if __name__ == "__main__":
    source, output = map(Path, sys.argv[1:3])
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    output.mkdir(parents=True, exist_ok=True)
    (output / "dataset.json").write_text(json.dumps(split(source, every), indent=4))
