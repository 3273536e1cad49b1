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

"""The demo's data set: phantoms written as an ordinary data set, PNG images and masks with a dataset.json."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.data.datalist import SPLITS, load_datalist
from scripts.data.rough_area import rough_area
from scripts.demo.phantoms import draw_phantom
from scripts.runtime.bars import Bar
from scripts.runtime.errors import InputError
from scripts.runtime.processes import by_first_process

__all__ = ["load_demo_datalist", "make_demo_dataset"]

DESCRIPTION = (
    "H&E-like phantoms drawn by scripts/demo/dataset.py, not tissue. area is the cancerous fraction rounded up to the "
    "next {step}. mask is the exact truth, present for positives only. Every image is a group of its own."
)


@by_first_process
def make_demo_dataset(
    dataset_dir: str | Path,
    *,
    counts: Mapping[str, int],
    size: Sequence[int] = (128, 128),
    seed: int = 0,
    area_step: float = 0.1,
) -> Path:
    """Write phantoms to a folder, unless it already holds a data set.

    Half of every split's images are positive (of an odd number, the larger half). An image depends on the seed, the
    size, its split's name and its place in it, and on nothing else. Everything is written to a temporary folder
    beside `dataset_dir` first, so an interrupted run leaves nothing under the final name.

    Args:
        dataset_dir: folder to make; if it exists, it must be empty or hold a dataset.json.
        counts: images per split, at least 2 each, in the order they should be listed.
        size: height and width of the images, at least 4 each.
        seed: of all the randomness, 0 or more.
        area_step: the annotation step of the rough area.

    Returns:
        Path of the dataset.json.

    Raises:
        InputError: if a count, the size, the seed or the step is out of range, or `dataset_dir` is a file or holds
            files but no dataset.json.
    """
    folder = Path(dataset_dir).absolute()  # "." has no name to call the temporary folder by
    datalist = folder / "dataset.json"
    if datalist.is_file():
        return datalist
    _check(folder, counts, size, seed, area_step)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(partial, counts, tuple(size), seed, area_step)
        _move(partial, folder)
    finally:  # after Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
    return datalist


def load_demo_datalist(
    dataset_dir: str | Path,
    demo_dir: str | Path,
    splits: Sequence[str],
    counts: Mapping[str, int],
    size: Sequence[int],
    seed: int | None,
    pixel_labels: bool = False,
    allow_outside: bool = False,
) -> dict[str, list]:
    """`load_datalist`, after making the demo's data set if that is the one configured and it isn't there yet.

    Args:
        dataset_dir: the configured data set.
        demo_dir: where the demo's belongs.
        splits, pixel_labels, allow_outside: see `load_datalist`.
        counts, size, seed: see `make_demo_dataset`; no seed means 0.
    """
    if Path(dataset_dir) == Path(demo_dir):
        make_demo_dataset(demo_dir, counts=counts, size=size, seed=seed or 0)
    return load_datalist(dataset_dir, splits, pixel_labels, allow_outside)


def _check(folder: Path, counts: Mapping[str, int], size: Sequence[int], seed: int, area_step: float) -> None:
    """Raise with one clear sentence if the data set can't be made as asked."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists but is no data set (no dataset.json in it): name another folder")
    too_few = {split: count for split, count in counts.items() if count < 2}
    if too_few or not counts:
        raise InputError(f"every split needs 2 images or more, one of each class, got {dict(counts)}")
    if len(size) != 2 or min(size) < 4:
        raise InputError(f"the size must be a height and a width of 4 or more, got {list(size)}")
    if seed < 0:
        raise InputError(f"the seed must be 0 or more, got {seed}")
    if not 0 < area_step <= 1:
        raise InputError(f"the annotation step must be in (0, 1], got {area_step}")


def _move(partial: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process (a rank of the same run, say) was faster."""
    partial.chmod(0o755)  # mkdtemp makes it its owner's alone
    try:
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError:
        if not (folder / "dataset.json").is_file():
            raise


def _write(folder: Path, counts: Mapping[str, int], size: tuple[int, int], seed: int, area_step: float) -> None:
    """Write all the splits and their datalist into an existing, empty folder."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    content = {"name": "phantoms", "description": DESCRIPTION.format(step=area_step)}
    with Bar(total=sum(counts.values()), desc="Drawing phantoms", unit="image") as progress:
        for split, count in counts.items():
            content[split] = []
            for index in range(count):
                content[split].append(_write_one(folder, split, index, size, seed, area_step))
                progress.update()
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _write_one(folder: Path, split: str, index: int, size: tuple[int, int], seed: int, area_step: float) -> dict:
    """Draw and write one image, positive if its index is even, and return its item of the datalist."""
    # The split's name, not its position, so that an image is the same whatever the other splits are.
    child = np.random.SeedSequence(seed, spawn_key=(int.from_bytes(split.encode(), "big"), index))
    image, mask = draw_phantom(np.random.default_rng(child), size, cancer=index % 2 == 0)
    name = f"{split}_{index:04d}"
    item = {"image": f"images/{name}.png", "label": int(mask.any()), "group": name}
    Image.fromarray(image).save(folder / item["image"])
    if item["label"]:
        item |= {"area": rough_area(mask, area_step), "mask": f"masks/{name}.png"}
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / item["mask"])
    return item


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.demo.dataset",
        description="Write H&E-like phantoms as a data set; does nothing where there is one already.",
    )
    parser.add_argument("--dataset_dir", required=True, help="folder to make")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("H", "W"), help="default: 128 128")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    for split, count in zip(SPLITS, (64, 24, 24), strict=True):
        parser.add_argument(f"--{split}", type=int, default=count, help=f"images in this split, default: {count}")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input ends it with one sentence and status 1."""
    options = _parse(arguments)
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        datalist = make_demo_dataset(options.dataset_dir, counts=counts, size=options.size, seed=options.seed)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"The data set is described in {datalist}")


if __name__ == "__main__":
    main()
