"""The typed recipe: every setting of a run, where it came from, and the YAML files they come in.

Order: defaults < recipe (one `extends:` a file) < `--set` < named flags. Unknown keys, values out
of range and settings that would be ignored are errors. What a method or an add-on can be told is
declared beside its class, as a subclass of `MethodConfig` or `AddonConfig`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    model_validator,
)

from sercli.errors import UserError, from_os_error

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[Positive, Positive]


class Section(BaseModel):
    """A group of settings; unknown keys are refused, values do not change once resolved."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Data(Section):
    """What is trained on."""

    path: str = Field("shapes", description="`shapes` (the embedded world) or a directory")
    image_size: Count = Field(224, description="side of a view, pixels")
    num_train: Count | None = Field(None, description="training images; embedded world only")
    num_val: Count | None = Field(None, description="validation images; embedded world only")
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="loader processes a rank; default: by the number of cores"
    )

    @model_validator(mode="after")
    def _counts_are_used(self) -> Self:
        if self.path != "shapes" and (self.num_train or self.num_val):
            raise ValueError(
                "data.num_train and data.num_val only size the embedded world; "
                f"data.path is {self.path!r}"
            )
        return self


class Model(Section):
    """The ViT."""

    name: str = Field(
        "vit_small", description="vit_micro, vit_tiny, vit_small, vit_base, vit_large"
    )
    patch_size: Count = Field(16, description="side of a patch, pixels")
    width: Count | None = Field(None, description="embedding width; default: by name")
    depth: Count | None = Field(None, description="number of blocks; default: by name")
    num_heads: Count | None = Field(None, description="attention heads; default: by name")
    pos_embed: Literal["learned", "sincos"] = Field("learned", description="sincos is MoCo-v3's")
    patch_embed: Literal["trained", "frozen"] = Field(
        "trained", description="frozen: a random patch embedding, as in MoCo-v3"
    )
    init: Literal["timm", "moco-v3"] = Field("timm", description="weight initialisation")
    cls_after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="block after which [CLS] joins; default: follows addon.layer"
    )


class Photometrics(Section):
    """What happens to the colours of one view."""

    jitter: tuple[NotNegative, NotNegative, NotNegative, Annotated[float, Field(ge=0, le=0.5)]] = (
        Field((0.4, 0.4, 0.2, 0.1), description="brightness, contrast, saturation, hue")
    )
    jitter_p: Probability = 0.8
    grey_p: Probability = 0.2
    blur_p: Probability = 1.0
    blur_sigma: Range = Field((0.1, 2.0), description="pixels")
    solarise_p: Probability = 0.0


class Views(Section):
    """What the encoder sees of an image."""

    setting: Annotated[Literal["2"], BeforeValidator(str)] = Field(
        "2", description="views an image"
    )
    crop_area: tuple[Share, Share] = Field((0.08, 1.0), description="share of the image's area")
    crop_aspect: Range = Field((3 / 4, 4 / 3), description="width / height, log-uniform")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    hflip_p: Probability = 0.5
    view1: Photometrics = Photometrics()
    view2: Photometrics = Photometrics(blur_p=0.1, solarise_p=0.2)

    @model_validator(mode="after")
    def _ranges_are_ordered(self) -> Self:
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"views.{name} [{low}, {high}]: the first must not be larger")
        return self


class Train(Section):
    """Optimisation and bookkeeping."""

    epochs: Positive = 100
    max_steps: Count | None = Field(None, description="stop the schedule after this many steps")
    batch_size: Count = Field(2048, description="images a step over all ranks")
    lr: Positive = Field(3e-4, description="base learning rate, for 256 images: × batch_size / 256")
    min_lr: NotNegative = Field(
        0.0, description="final learning rate of the cosine, for 256 images"
    )
    warmup_epochs: NotNegative = 10
    weight_decay: NotNegative = 0.1
    decay: Literal["all", "weights"] = Field(
        "all", description="weights: no decay on biases, norms and tokens"
    )
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile; auto: on CUDA"
    )
    tensorboard: bool = Field(False, description="also log to TensorBoard (extra `track`)")
    log_steps: Count = Field(10, description="steps between rows of metrics.jsonl")
    checkpoint_epochs: Positive = Field(1.0, description="epochs between checkpoints")
    monitor_epochs: NotNegative = Field(
        10.0, description="epochs between kNN and collapse measurements; 0: none"
    )


class MethodConfig(Section):
    """Base of the settings of an objective."""

    name: str


class AddonConfig(Section):
    """Base of the settings of an add-on; `none` has no other."""

    name: str

    @property
    def tapped_layer(self) -> int | None:
        """The block whose output the add-on takes; None: no add-on."""
        return None

    @property
    def taps_cls(self) -> bool:
        """Whether the add-on takes [CLS] of the tapped layer, so that [CLS] cannot be delayed."""
        return False

    @classmethod
    def expand(cls, given: Mapping[str, Any], *, method: str) -> dict[str, Any]:
        """Values that follow from others given (presets); explicit values win over them."""
        del given, method
        return {}


class Recipe(Section):
    """Every setting of a pretraining run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    data: Data = Data()
    model: Model = Model()
    views: Views = Views()
    method: SerializeAsAny[MethodConfig]
    addon: SerializeAsAny[AddonConfig]
    train: Train = Train()

    def to_yaml(self) -> str:
        """The resolved recipe; reading it gives an equal one."""
        tree = self.model_dump(mode="json")
        return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class Resolved:
    """A recipe with its history.

    Attributes:
        recipe: The typed values.
        name: Name or file it was read from.
        origins: Dotted key → where the value came from ("default" where nobody set it).
    """

    recipe: Recipe
    name: str
    origins: dict[str, str]


# -- YAML -----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with numbers and booleans as people write them, and no repeated keys."""


_Loader.yaml_implicit_resolvers = {
    key: [
        (tag, expression)
        for tag, expression in resolvers
        if not tag.endswith((":bool", ":float", ":int", ":timestamp"))
    ]
    for key, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789")
)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as something else than text."""


# Strings that either reader takes for something else are quoted.
_Dumper.yaml_implicit_resolvers = {
    key: [
        *_Loader.yaml_implicit_resolvers.get(key, []),
        *yaml.SafeDumper.yaml_implicit_resolvers.get(key, []),
    ]
    for key in {*_Loader.yaml_implicit_resolvers, *yaml.SafeDumper.yaml_implicit_resolvers}
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            line = node.value[index][0].start_mark.line + 1
            raise yaml.YAMLError(f"the key {key!r} stands twice (again in line {line})")
    return dict(
        zip(keys, (loader.construct_object(v, deep=True) for _, v in node.value), strict=True)
    )


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse_yaml(text: str) -> Any:
    """Parse YAML safely: `1e-3` is a number, `no` a string, a key that stands twice an error."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError) as error:  # of PyYAML's constructors
        raise yaml.YAMLError(str(error)) from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise UserError(f"recipe key {key}", f"{parent} is a value, not a section")
            node = child
        node[leaf] = value
    return tree


# -- Finding and merging --------------------------------------------------------------------------


def recipes_root() -> Path:
    """The folder of the recipes that come with ser: in the wheel, or in a checkout."""
    packaged = Path(__file__).parent / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "recipes"


def recipe_names() -> list[str]:
    """Names of the recipes that come with ser, e.g. `shapes/moco-ser`."""
    root = recipes_root()
    return sorted(
        file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml")
    )


def _find(name: str, *, beside: Path | None = None) -> Path:
    for candidate in (
        *([beside / f"{name}.yaml", beside / name] if beside else []),
        recipes_root() / f"{name}.yaml",
        Path(name),
    ):
        if candidate.is_file():
            return candidate
    close = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else "see the folder recipes/"
    raise UserError(f"no recipe {name!r}", "a name under recipes/ or a YAML file is needed", hint)


def _read(file: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise from_os_error(error, f"cannot read {file}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is no valid YAML: {reason}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds {type(tree).__name__}", "a recipe is a mapping of settings")
    return tree


def _layers(
    name: str, *, beside: Path | None = None, seen: tuple[Path, ...] = ()
) -> list[tuple[str, dict[str, Any]]]:
    """The recipe and what it extends, the most basic first, each as dotted keys."""
    file = _find(name, beside=beside)
    if file.resolve() in seen:
        raise UserError(f"{file} extends itself", "recipes must not extend in a circle")
    tree = _read(file)
    parent = tree.pop("extends", None)
    pairs = list(_flatten(tree))
    layer = (name, dict(pairs))
    if len(layer[1]) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{file} sets {twice} twice", "a key may stand once, dotted or nested")
    if parent is None:
        return [layer]
    if not isinstance(parent, str):
        raise UserError(f"{file} extends {parent!r}", "`extends:` takes one recipe name")
    return [*_layers(parent, beside=file.parent, seen=(*seen, file.resolve())), layer]


# What the presets of add-ons speak of: a preset replaces these of the layers below it.
_OF_PRESETS = frozenset(
    f"addon.{key}"
    for key in (
        "preset",
        "fraction",
        "temperature",
        "weight",
        "negatives",
        "base",
        "elements",
        "share",
        "keys",
    )
)


def _merge(layers: list[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Later layers win. Choosing another method or add-on drops the settings of the former one."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for section in ("method", "addon"):
            name = f"{section}.name"
            if name in layer and values.get(name) not in (None, layer[name]):
                values = {k: v for k, v in values.items() if not k.startswith(f"{section}.")}
        if "addon.preset" in layer:
            values = {k: v for k, v in values.items() if k not in _OF_PRESETS}
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))
    return values, {key: origins[key] for key in values}


def load(
    name: str,
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
    settings: tuple[str, ...] = (),
    flags: Mapping[str, Any] | None = None,
) -> Resolved:
    """Resolve a recipe.

    Args:
        name: Name under `recipes/`, or a YAML file.
        methods: Method name → its settings.
        addons: Add-on name → its settings.
        settings: `--set` values, each "dotted.key=YAML value".
        flags: Values of named options by dotted key.

    Raises:
        UserError: No such recipe, bad YAML, unknown key (with a suggestion) or bad value.
    """
    layers = _layers(name)
    layers.append(("--set", dict(_flatten(dict(_parse_setting(text) for text in settings)))))
    layers.append(("flag", dict(flags or {})))
    values, origins = _merge(layers)
    _refuse_layer_without_addon(values, origins)
    return _resolve(values, origins, name, methods=methods, addons=addons)


def from_mapping(
    tree: Mapping[str, Any],
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
    name: str = "recipe",
) -> Resolved:
    """Resolve settings given as nested mappings (as `Recipe.model_dump` gives them)."""
    values, origins = _merge([(name, dict(_flatten(tree)))])
    return _resolve(values, origins, name, methods=methods, addons=addons)


def _resolve(
    values: dict[str, Any],
    origins: dict[str, str],
    name: str,
    *,
    methods: Mapping[str, type[MethodConfig]],
    addons: Mapping[str, type[AddonConfig]],
) -> Resolved:
    tree = _unflatten(values)
    method = _choice(tree, "method", methods)
    addon = _choice(tree, "addon", addons)
    _refuse_unknown(values, method, addon, origins)
    section = ""
    try:
        expanded = addon.expand(tree["addon"], method=tree["method"]["name"])
        section = "method"
        tree["method"] = method.model_validate(tree["method"])
        section = "addon"
        tree["addon"] = addon.model_validate({**expanded, **tree["addon"]})
        section = ""
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, origins, section)) from error
    preset = f"preset {tree['addon'].preset}" if expanded else ""
    origins = {**{f"addon.{key}": preset for key in expanded}, **origins}
    everything = dict(_flatten(recipe.model_dump(mode="json")))
    return Resolved(recipe, name, {key: origins.get(key, "default") for key in everything})


def _parse_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text!r}", "it takes key=value", "e.g. --set train.lr=1e-3")
    try:
        return key.strip(), parse_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {text!r}", "the value is no valid YAML") from error


def _refuse_layer_without_addon(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    if values.get("addon.name") == "none" and "addon.layer" in values:
        source = "--layer" if origins["addon.layer"] == "flag" else "addon.layer"
        raise UserError(
            f"{source} {values['addon.layer']} with --addon none",
            "without an add-on no layer is tapped",
            f"leave {source} out, or choose an add-on",
        )


_S = TypeVar("_S", bound=Section)


def _choice(tree: dict[str, Any], section: str, table: Mapping[str, type[_S]]) -> type[_S]:
    given = tree.get(section)
    name = given.get("name") if isinstance(given, dict) else None
    if name not in table:
        close = difflib.get_close_matches(str(name), list(table), n=1)
        hint = f"did you mean {close[0]}?" if close else ""
        raise UserError(f"{section}.name {name!r}", f"known: {', '.join(table)}", hint)
    return table[cast(str, name)]


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, info in section.model_fields.items():
        kind = info.annotation
        if (
            isinstance(kind, type)
            and issubclass(kind, Section)
            and not (issubclass(kind, MethodConfig | AddonConfig))
        ):
            yield from _known_keys(kind, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _descriptions() -> dict[str, str]:
    sections: dict[str, type[Section]] = {
        "data": Data,
        "model": Model,
        "views": Views,
        "train": Train,
    }
    return {
        f"{section}.{key}": info.description or ""
        for section, config in sections.items()
        for key, info in config.model_fields.items()
    }


_DESCRIPTIONS = _descriptions()


def _refuse_unknown(
    values: Mapping[str, Any],
    method: type[MethodConfig],
    addon: type[AddonConfig],
    origins: Mapping[str, str],
) -> None:
    known = [key for key in _known_keys(Recipe) if key not in ("method", "addon")]
    known += [*_known_keys(method, "method."), *_known_keys(addon, "addon.")]
    for key, value in values.items():
        if key in known:
            continue
        if value is None and any(name.startswith(f"{key}.") for name in known):
            raise UserError(f"recipe section {key} is empty", "", "fill it in or leave it out")
        close = _close_keys(key, known)
        raise UserError(
            f"unknown recipe key {key} (from {origins[key]})",
            "every key must be one that is used",
            f"did you mean {close[0]}?" if close else "`recipe.yaml` of any run lists them all",
        )


def _close_keys(key: str, known: Sequence[str]) -> list[str]:
    """Known keys that may be meant: of the same last part, described so, or spelt alike."""
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    words = last.replace("_", " ")
    described = [name for name in known if words in _DESCRIPTIONS.get(name, "")]
    return same or described or difflib.get_close_matches(key, known, n=1, cutoff=0.6)


def _explain(error: ValidationError, origins: Mapping[str, str], section: str) -> str:
    """The first problem of a pydantic error as one line."""
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    place = [str(part) for part in problem["loc"] if not isinstance(part, int)]
    if not place or isinstance(problem["input"], dict):  # a rule about several keys
        return message
    key = ".".join([section, *place] if section else place)
    origin = f" (from {origins[key]})" if key in origins else ""
    return f"{key} = {problem['input']!r}{origin}: {message[:1].lower()}{message[1:]}"


# -- Derived quantities ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """Durations in steps, converted once.

    Attributes:
        steps_per_epoch: Full batches in the data set.
        total_steps: Length of the run (and of the cosine).
        warmup_steps: Linear warm-up, at most `total_steps`.
        checkpoint_steps: Steps between checkpoints.
        monitor_steps: Steps between kNN and collapse measurements (0: none).
        lr: Peak learning rate, train.lr × batch_size / 256.
        min_lr: Final learning rate, scaled alike.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    checkpoint_steps: int
    monitor_steps: int
    lr: float
    min_lr: float

    @classmethod
    def of(cls, train: Train, num_images: int) -> Schedule:
        """Convert epochs to steps for a data set of `num_images`.

        Raises:
            UserError: The batch is larger than the data set.
        """
        if train.batch_size > num_images:
            raise UserError(
                f"train.batch_size {train.batch_size} with {num_images} images",
                "a batch must not be larger than the data set",
                f"use --set train.batch_size={max(2, num_images // 2)} or more images",
            )
        per_epoch = num_images // train.batch_size
        total = max(1, round(train.epochs * per_epoch))
        total = min(total, train.max_steps or total)

        def steps(epochs: float) -> int:
            return max(1, round(epochs * per_epoch))

        return cls(
            steps_per_epoch=per_epoch,
            total_steps=total,
            warmup_steps=min(total, round(train.warmup_epochs * per_epoch)),
            checkpoint_steps=steps(train.checkpoint_epochs),
            monitor_steps=steps(train.monitor_epochs) if train.monitor_epochs else 0,
            lr=train.lr * train.batch_size / 256,
            min_lr=train.min_lr * train.batch_size / 256,
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0…total−1: linear warm-up, then half a cosine to `min_lr`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        return cosine(self.lr, self.min_lr, (step - self.warmup_steps) / span)


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (progress 0) to `end` (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
