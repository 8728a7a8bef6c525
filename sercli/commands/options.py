"""Options that commands share, as objects, and the decorator that lets a command take them.

A frozen dataclass whose fields are `Annotated` for Typer is a group of options. A command with a
parameter of such a class has all of them, in a panel of `--help` that is called as the class says,
and is handed one object:

    @option_objects
    def knn(model: ModelOptions, run: RunOptions, batch_size: BatchSize = 256) -> None: ...
"""

from __future__ import annotations

import copy
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from sercli import addons, methods
from sercli.errors import UserError
from sercli.runs.places import joined

# -- What commands take ----------------------------------------------------------------------------


def _device(name: str) -> str:
    """A device's name as PyTorch has it; whether the machine has one is found out later."""
    if re.fullmatch(r"mps(:\d+)?", name):
        raise UserError(
            f"--device {name}",
            "it has no float64, in which evaluators sum, and no training was tried on one",
            "use cpu",
        )
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"--device {name}", "it must be cpu or cuda")
    return name


def _loaders(workers: int | None) -> int | None:
    """No more than there are cores."""
    from sercli.data.cores import require_loaders

    require_loaders(workers, "--workers")
    return workers


def _devices() -> list[str]:
    return ["cpu", "cuda"]


Device = Annotated[
    str | None,
    typer.Option(
        parser=_device,
        autocompletion=_devices,
        metavar="cpu|cuda",
        help="Where it is computed. Default: cuda where there is one.",
    ),
]


def _folders(package: ModuleType) -> str:
    """What the folders of methods or add-ons are called, for `--help`.

    Only their names are looked at: help does not wait until all they set is imported.
    """
    found = (one.name for one in pkgutil.iter_modules(package.__path__) if one.ispkg)
    *names, last = sorted(name.replace("_", "-") for name in found)
    return f"{', '.join(names)} or {last}"


def _method_names() -> list[str]:
    from sercli.families.plugins import families

    return list(families().methods)


def _addon_names() -> list[str]:
    from sercli.families.plugins import families

    return list(families().addons)


def method_option(**more: Any) -> Any:
    """`--method`: an open set, completed from all there are."""
    text = f"Invariant objective: {_folders(methods)}; or a plug-in's."
    return typer.Option(metavar="NAME", help=text, autocompletion=_method_names, **more)


def addon_option(**more: Any) -> Any:
    """`--addon`, likewise."""
    text = f"Equivariance add-on: {_folders(addons)}; or a plug-in's."
    return typer.Option(metavar="NAME", help=text, autocompletion=_addon_names, **more)


Bounds = Annotated[
    str | None,
    typer.Option(
        metavar="STAGE=SECONDS,…",
        help="How long one of several processes may stand still before the others end the run: "
        "start, compile (the first steps), step, save, monitor. Default: what the variable "
        "`SER_BOUNDS` says, or start=900, compile=1200, step=600, save=900, monitor=1200.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DIR|shapes",
        help="Images: a directory, archives, a list, or `shapes` or `shapes:scenes`, the embedded "
        "world; repeated: all as one set. Default: what the run was trained on.",
    ),
]


def place_of(data: Sequence[str] | None) -> str | None:
    """What `--data` names, once or several times, as one text; None: nothing."""
    return joined(data) if data else None


def parse_shots(shots: str | None) -> float | None:
    """A share above 0 and below 1 of a percentage.

    Raises:
        UserError: It is none.
    """
    if shots is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", shots.strip())
    if match is None or not 0 < float(match[1]) < 100:
        raise UserError(f"--shots {shots}", "it must be a percentage below 100", "such as 1%")
    return float(match[1]) / 100


def parse_layers(layers: str | None) -> list[int] | None:
    """Block numbers with commas between.

    Raises:
        UserError: They are none.
    """
    try:
        return None if layers is None else [int(part) for part in layers.split(",")]
    except ValueError as error:
        raise UserError(
            f"--layers {layers}", "it takes block numbers with commas", "for instance 0,3,12"
        ) from error


Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(
        help="In which precision the encoder runs; what follows is float32. auto: bf16 on CUDA, "
        "fp32 on a CPU. The result says which it was.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images taken at a time.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, e.g. `train.lr=1e-3`."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="Python file with a method or an add-on of your own (may be given several times).",
    ),
]
# `recipe.schema.PosResize`, which takes a while to import; a test compares them.
PositionsWay = Literal["bicubic", "bicubic-antialias", "bicubic-offset", "bicubic-aligned"]
Activation = Literal["gelu", "gelu-tanh", "quick-gelu"]


@dataclass(frozen=True)
class ModelOptions:
    """Which encoder, and what its file does not say itself."""

    panel: ClassVar[str] = "The model"

    source: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A run directory, a checkpoint file, or `timm:NAME`."),
    ]
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Take the momentum encoder, not the student.")
    ] = False
    random_init: Annotated[
        bool, typer.Option("--random-init", help="Random weights (for `timm:NAME` only).")
    ] = False
    num_heads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Attention heads of a checkpoint file that does not say how many."
        ),
    ] = None
    cls_after: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="L",
            help="Block after which [CLS] joins in a checkpoint file that does not say it; 0: from "
            "the start.",
        ),
    ] = None
    key: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where the encoder is in a checkpoint file of a layout that is not known, for "
            "instance `state_dict.net`.",
        ),
    ] = None
    positions: Annotated[
        PositionsWay | None,
        typer.Option(
            metavar="WAY",
            help="How a checkpoint file that does not say whose it is resamples positions at "
            "another size: bicubic-antialias as timm (assumed), bicubic-offset as DINO, bicubic as "
            "MAE and DeiT, bicubic-aligned as torchvision.",
        ),
    ] = None
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which of timm's ViTs a checkpoint file holds that does not say it, for instance "
            "`vit_small_patch16_dinov3`: timm knows what its tensors do not show.",
        ),
    ] = None
    activation: Annotated[
        Activation | None,
        typer.Option(
            help="In the MLPs of a CLIP's or SigLIP's checkpoint file that does not say it: "
            "OpenAI's CLIPs have quick-gelu.",
        ),
    ] = None


@dataclass(frozen=True)
class ImageOptions:
    """Which images, at which size."""

    panel: ClassVar[str] = "The images"

    data: Data = None
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|all",
            help="Some of the classes only, of train and of val: a text file with a name a line; "
            "part of the protocol. Default: those that the run was trained on.",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Side in pixels of the images, a multiple of the patch; the positional embedding "
            "is resampled. Default: of training (518 for DINOv2, whose authors evaluate at 224).",
        ),
    ] = None

    @property
    def place(self) -> str | None:
        """What `--data` names, as one text; None: nothing."""
        return place_of(self.data)


@dataclass(frozen=True)
class MachineOptions:
    """How an evaluation runs."""

    panel: ClassVar[str] = "The run"

    device: Device = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            callback=_loaders,
            help="Loader processes, at most one a core. Default: by the number of cores.",
        ),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use at most this many images; the result is marked partial."),
    ] = None
    precision: Precision = "auto"


@dataclass(frozen=True)
class RunOptions(MachineOptions):
    """How an evaluation runs, and where its results go."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RUNDIR",
            help="Run directory that takes the results; made if it does not exist. Default: the "
            "run directory itself, or `runs/NAME`, after the model.",
        ),
    ] = None


@dataclass(frozen=True)
class MeasuringOptions:
    """On what `ser bench` measures."""

    panel: ClassVar[str] = "The machine"

    device: Annotated[
        str,
        typer.Option(
            parser=_device,
            autocompletion=_devices,
            metavar="cpu|cuda",
            help="Where it is computed.",
        ),
    ] = "cpu"
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="Write the numbers, their units and what they depend on as well.",
        ),
    ] = None


# -- How a command takes them ----------------------------------------------------------------------


def option_objects(command: Callable[..., None]) -> Callable[..., None]:
    """Put the fields of a command's option objects into its signature; hand each over as one."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=hints[name], kind=keyword))

    @wraps(command)
    def run(**values: Any) -> None:
        objects = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**objects, **values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _parameters(group: Any) -> Iterator[inspect.Parameter]:
    """One keyword for each field, its option in the group's panel."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind, info = get_args(hints[field.name])
        if isinstance(info, OptionInfo):
            info = copy.copy(info)
            info.rich_help_panel = group.panel
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=Annotated[kind, info],
        )
