"""What is exported, and what every form makes of it."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sercli.actions import grid_of
from sercli.encoders.describing import model_of
from sercli.encoders.loading import LoadedEncoder
from sercli.encoders.vit import Encoder
from sercli.errors import UserError
from sercli.recipe.model import Model


class Outputs(NamedTuple):
    """What an encoder says of images.

    Attributes:
        summary: [B, D], what stands for an image ([CLS], or a mean) after the final norm.
        patches: [B, N, D], patch tokens after it (as they are where it is of the mean alone).
    """

    summary: Tensor
    patches: Tensor


Opened = Callable[[Tensor], Outputs]


@dataclass(frozen=True)
class Subject:
    """An encoder for images of one size, and what is known of it.

    Attributes:
        loaded: The encoder; its positions are for `loaded.image_size`.
        header: What a run was, by name, for headers of files.
        results: What was measured of it, as a table in Markdown; "": nothing.
    """

    loaded: LoadedEncoder
    header: Mapping[str, str] = field(default_factory=dict)
    results: str = ""

    @property
    def encoder(self) -> Encoder:
        return self.loaded.encoder

    @property
    def cls_after(self) -> int:
        """Block after which [CLS] joins; 0 where there is none."""
        return self.encoder.cls_after or 0

    @cached_property
    def model(self) -> Model:
        """Its settings.

        Raises:
            UserError: None describe it.
        """
        try:
            return model_of(self.encoder)
        except UserError as error:
            reason = str(error).partition(": ")[2].partition(";")[0]
            raise UserError(
                f"{self.loaded.source} as it is cannot be built elsewhere: {reason}",
                "settings of a recipe's model have to describe it",
                "take --format onnx, which needs no description",
            ) from error

    @property
    def input_config(self) -> dict[str, Any]:
        """What timm is told of the images, as its `pretrained_cfg` calls it (JSON values).

        timm takes it from whoever creates the model, never from a file of weights; what it would
        take otherwise is of the model whose name is used: other sizes, and other means.
        """
        side = self.loaded.image_size
        return {
            "input_size": [3, side, side],
            "interpolation": "bicubic",
            "crop_pct": 224 / 256,  # as ser evaluates
            "mean": list(self.loaded.mean),
            "std": list(self.loaded.std),
            "num_classes": 0,
        }


class Prepared(abc.ABC):
    """An encoder in one form, to be written, and read back by the library it is for."""

    @property
    @abc.abstractmethod
    def reader(self) -> str:
        """Who reads it back, as messages call it."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a person should know who takes it, a line each."""
        return ()

    @abc.abstractmethod
    def write(self, draft: Path) -> None:
        """Write it: a file, or what belongs into a folder that is there."""

    @abc.abstractmethod
    def opened(self, draft: Path) -> Opened:
        """What was written, as the other library has it.

        Raises:
            UserError: It does not take it.
        """

    @abc.abstractmethod
    def code(self, path: Path) -> str:
        """One line of Python that loads it from where it will be."""


def at_its_size(loaded: LoadedEncoder) -> LoadedEncoder:
    """The encoder with positions for the images it is said to be for, by its own way.

    Raises:
        UserError: Its own are for no square, and no size was asked for.
    """
    encoder = loaded.encoder
    grid = grid_of((loaded.image_size, loaded.image_size), encoder.patch_size)
    if grid == encoder.grid:
        return loaded
    if encoder.grid[0] != encoder.grid[1] and grid[0] == encoder.grid[0]:
        height, width = (side * encoder.patch_size for side in encoder.grid)
        raise UserError(
            f"{loaded.source} is for images of {height} × {width} px",
            "encoders of square images are exported",
            f"add --image-size {min(height, width)}, for which its positions are resampled",
        )
    resized = copy.deepcopy(encoder)
    if encoder.pos_embed is not None:
        with torch.no_grad():
            resized.pos_embed = nn.Parameter(encoder.positions(grid).clone(), requires_grad=False)
    resized.grid = grid
    return replace(loaded, encoder=resized)


@torch.no_grad()
def outputs_of(encoder: Encoder, images: Tensor) -> Outputs:
    """What our encoder says, for images [B, 3, H, W]."""
    features = encoder(images, (encoder.depth,))
    patches = features.grids[encoder.depth].flatten(2).transpose(1, 2)
    return Outputs(features.cls, encoder.norm(patches))
