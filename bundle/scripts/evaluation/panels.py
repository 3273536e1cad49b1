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

"""Every map of a network beside its input, into TensorBoard or a picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from scripts.evaluation.figures import draw_maps, render
from scripts.networks import MapNetwork
from scripts.runtime.files import replacing
from scripts.runtime.processes import gather, process_rank, share, union

__all__ = ["MapImages", "MapPanels", "SideOutputs"]

LARGEST = 1024  # pixels of a side that is mapped at once
logger = logging.getLogger(__name__)


class MapPanels:
    """
    Some images of an evaluation, for `show` to put somewhere: input, truth where known, every map of the network.

    The maps are those of the network, before superpixels take their means; of a large picture, which is mapped in
    tiles, they are those of the whole at once, shrunk to 1024 pixels.

    Args:
        network: whose maps are shown.
        mean, std: normalisation of the network's input, undone for the picture.
        count: number of images, spread evenly over those evaluated.
    """

    def __init__(
        self,
        network: MapNetwork,
        mean: Sequence[float],
        std: Sequence[float],
        count: int = 6,
    ) -> None:
        self.network = network
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.count = count
        self.own: Sequence[int] = ()
        self.shown: set[int] = set()
        self.chosen: dict[int, tuple[Path, dict[str, np.ndarray]]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        images = len(gather(range(engine.state.epoch_length)))
        self.own = share(range(images))  # places of this process's images among those of all
        self.shown = set(np.linspace(0, images - 1, min(self.count, images)).round().astype(int).tolist())
        self.chosen = {}

    def __call__(self, engine: Engine) -> None:
        if not engine.state.output:  # an image that can't be read
            return
        place = self.own[(engine.state.iteration - 1) % engine.state.epoch_length]
        if place in self.shown:
            item = engine.state.output[0]
            self.chosen[place] = Path(item["image"].meta["filename_or_obj"]), self._panels(item, engine.state.device)

    def finish(self, engine: Engine) -> None:
        chosen = union(self.chosen)
        if process_rank() == 0:
            for place in sorted(chosen):
                self.show(*chosen[place], engine.state.epoch)

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        """Of each chosen image its file, and pictures in 0..1: (3, H, W) the input, (1, H, W) all others."""
        raise NotImplementedError

    def _panels(self, item: dict, device: torch.device) -> dict[str, np.ndarray]:
        image = item["image"].as_tensor()
        if (shrunk := LARGEST / max(image.shape[1:])) < 1:
            image = torch.nn.functional.interpolate(image[None], scale_factor=shrunk, mode="area")[0]
        with torch.no_grad():
            maps = self.network.eval().maps(image[None].to(device))[0].cpu()
        picture = (image.cpu() * self.std + self.mean).clamp(0, 1)
        if len(picture) != 3:  # neighbouring slices: the one between them
            picture = picture[len(picture) // 2].expand(3, -1, -1)
        panels = {"input": picture}
        if "truth" in item:
            panels["truth"] = torch.nn.functional.interpolate(item["truth"][None].float(), size=maps.shape[1:])[0].cpu()
        panels |= dict(zip(self.network.map_names, maps.unsqueeze(1), strict=True))
        return {name: np.asarray(panel.swapaxes(1, 2)) for name, panel in panels.items()}  # MONAI has (C, W, H)


class MapImages(MapPanels):
    """
    Draws validation images into TensorBoard, the panels of each in a row; the step is the trainer's epoch.

    Args:
        summary_writer: of TensorBoard.
        network, mean, std, count: see `MapPanels`.
    """

    def __init__(self, summary_writer: SummaryWriter, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.summary_writer = summary_writer

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        row = np.concatenate([np.broadcast_to(panel, (3, *panel.shape[1:])) for panel in panels.values()], axis=2)
        self.summary_writer.add_image(f"{', '.join(panels)}/{image.stem}", row, epoch)


class SideOutputs(MapPanels):
    """
    Draws ``side_outputs.png`` during evaluation: what each side of the network sees, as Figure 4 of the paper. Of a
    network with a single map it draws none.

    Args:
        output_dir: folder of the picture.
        network, mean, std, count: see `MapPanels`.
    """

    def __init__(self, output_dir: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = Path(output_dir) / "side_outputs.png"
        self.rows: dict[str, dict[str, np.ndarray]] = {}

    def finish(self, engine: Engine) -> None:
        super().finish(engine)
        if process_rank() == 0:
            self.draw()

    def show(self, image: Path, panels: dict[str, np.ndarray], epoch: int) -> None:
        self.rows[image.name] = panels

    def draw(self) -> None:
        if not self.rows or len(self.network.map_names) == 1:  # a network without side outputs
            return
        picture = render(draw_maps(self.rows, self.network.receptive_fields()), dpi=110)
        with replacing(self.path, binary=True) as file:
            Image.fromarray(picture).save(file, "PNG")
        logger.info(f"Written: {self.path}")
