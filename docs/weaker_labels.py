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
Fewer training images, or rougher areas, for the tables in results.md.

    PYTHONPATH=bundle python docs/weaker_labels.py FOLDER_OF_DATASET_JSON CHANGE OUTPUT_FOLDER [SEED]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from scripts.data.datalist import load_datalist
from scripts.experiments.variants import forget_areas, noisy_areas, stepped_areas, take_subset, write_variant

FEWER: dict[str, Callable[[list[dict], int], list[dict]]] = {
    "20_percent": lambda items, seed: take_subset(items, 0.2, seed),
    "10_percent": lambda items, seed: take_subset(items, 0.1, seed),
    "5_percent": lambda items, seed: take_subset(items, 0.05, seed),
    "20_percent_spread": lambda items, seed: take_subset(items, 0.2, seed, spread=True),
    "10_percent_spread": lambda items, seed: take_subset(items, 0.1, seed, spread=True),
}
CHANGES = FEWER | {
    "quarters": lambda items, seed: stepped_areas(items, 0.25),
    "noisy": lambda items, seed: noisy_areas(items, 0.15, seed),
    "half_missing": lambda items, seed: forget_areas(items, 0.5, seed),
}

if __name__ == "__main__":
    source, change, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    if change not in CHANGES:
        sys.exit(f"CHANGE must be one of {', '.join(CHANGES)}, got '{change}'.")
    splits = load_datalist(source.resolve())
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    for name in ("training",) if change in FEWER else ("training", "validation"):
        splits[name] = CHANGES[change](splits[name], seed)
    write_variant(splits, output)
