"""Which keys a recipe can have, and what to say of one that it cannot."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sercli.errors import UserError
from sercli.recipe.model import ARCHITECTURE, TIMM
from sercli.recipe.schema import AddonConfig, Data, MethodConfig, Model, Recipe, Train, Views
from sercli.recipe.training import OPTIMISERS_OWN
from sercli.recipe.values import Section

# What may be another without a run's numbers being others: how fast it goes, how often it is seen,
# and what of it stays. What lies at a path is compared by those who ask.
WITHOUT_EFFECT = frozenset(
    {
        "data.cache",
        "data.path",
        "data.workers",
        "train.accumulate",
        "train.checkpoint_epochs",
        "train.checkpointing",
        "train.compile",
        "train.keep_epochs",
        "train.log_steps",
        "train.monitor_epochs",
        "train.tensorboard",
    }
)

# Of `model`, what a training chooses whatever it begins from; all else is of the weights.
_OF_TRAINING = frozenset({"cls_after", "drop_path", "patch_embed"})
_SAID_OF_WEIGHTS = frozenset({"weights_as", "weights_sha256"})
WEIGHTS, SHA256, CLS_AFTER = "model.weights", "model.weights_sha256", "model.cls_after"
FROM_WEIGHTS = frozenset(
    f"model.{key}"
    for key in Model.model_fields.keys() - _OF_TRAINING - _SAID_OF_WEIGHTS - {"weights"}
) | {"data.mean", "data.std"}
FILLED_IN = FROM_WEIGHTS | {CLS_AFTER, SHA256}


def given_way(
    told: Mapping[str, Any],
    before: Mapping[str, Any],
    addons: Mapping[str, type[AddonConfig]],
) -> frozenset[str]:
    """The keys whose values of before give way to what is told: they were said of something else.

    - another method or add-on: all settings of the former one;
    - another setting of the views: its local crops;
    - a ViT of timm's, or another one behind it: the architecture;
    - other weights: what was said of the former ones, and, with new ones, what these say;
    - another optimiser: its rates and decay;
    - a preset, even the same: what it fills in.

    Args:
        told: Dotted key → value, of one file.
        before: Likewise, of those that it extends.
        addons: Add-on name → its settings.
    """
    prefixes: list[str] = []
    keys: set[str] = set()
    for section in ("method", "addon"):
        name = f"{section}.name"
        if name in told and before.get(name) not in (None, told[name]):
            prefixes.append(f"{section}.")
    setting = "views.setting"
    if setting in told and str(before.get(setting, Views().setting)) != str(told[setting]):
        prefixes.append("views.local")
    chosen, former = told.get("model.name"), before.get("model.name")
    if chosen not in (None, former) and is_timms(chosen, former):
        keys |= {f"model.{key}" for key in ARCHITECTURE}
    if WEIGHTS in told and told[WEIGHTS] != before.get(WEIGHTS):
        keys |= {key for key in before if _is_said_of_weights(key)}
        keys |= FROM_WEIGHTS if told[WEIGHTS] is not None else set()
    optimiser = "train.optimiser"
    if optimiser in told and before.get(optimiser, Train().optimiser) != told[optimiser]:
        keys |= {f"train.{key}" for key in OPTIMISERS_OWN}
    addon = str(told.get("addon.name", before.get("addon.name")))
    if "addon.preset" in told and addon in addons:
        keys |= {f"addon.{key}" for key in ("preset", *addons[addon].presets_fill)}
    return frozenset(key for key in before if key in keys or key.startswith(tuple(prefixes)))


def is_timms(*names: Any) -> bool:
    """Whether one of them is that of a ViT of timm's."""
    return any(isinstance(name, str) and name.startswith(TIMM) for name in names)


def _is_said_of_weights(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section == "model" and rest.partition(".")[0] in _SAID_OF_WEIGHTS


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, info in section.model_fields.items():
        if key == "plugins":  # read apart, see `read`
            continue
        kinds = [k for k in get_args(info.annotation) or (info.annotation,) if isinstance(k, type)]
        sections = [k for k in kinds if issubclass(k, Section)]
        for kind in sections:
            if not issubclass(kind, MethodConfig | AddonConfig):
                yield from _known_keys(kind, f"{prefix}{key}.")
        if not sections or type(None) in kinds:
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


def refuse_unknown(
    values: Mapping[str, Any],
    method: type[MethodConfig],
    addon: type[AddonConfig],
    origins: Mapping[str, str],
) -> None:
    known = [key for key in _known_keys(Recipe) if key not in ("method", "addon")]
    known += [*_known_keys(method, "method."), *_known_keys(addon, "addon.")]
    open_ones = tuple(
        f"{section}."
        for section, config in (("method", method), ("addon", addon))
        if config.model_config.get("extra") == "allow"  # stands in for one that is missing
    )
    for key, value in values.items():
        if key in known or key.startswith(open_ones):
            continue
        if value is None and any(name.startswith(f"{key}.") for name in known):
            raise UserError(f"recipe section {key} is empty", "", "fill it in or leave it out")
        close = _close_keys(key, known)
        raise UserError(
            f"unknown recipe key {key} (from {origins[key]})",
            "every key must be one that is used",
            f"did you mean {close[0]}?" if close else "`recipe.yaml` of any run lists them all",
        )


def text_keys(method: type[MethodConfig], addon: type[AddonConfig]) -> frozenset[str]:
    """The keys whose values are text, or lists of it, whatever their spelling looks like."""
    return frozenset(
        [*_text_keys(Recipe), *_text_keys(method, "method."), *_text_keys(addon, "addon.")]
    )


def _text_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for key, info in section.model_fields.items():
        kinds = {info.annotation, *_kinds_inside(info.annotation)} - {type(None), None}
        if str in kinds and all(kind is str or not isinstance(kind, type) for kind in kinds):
            yield f"{prefix}{key}"
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from _text_keys(kind, f"{prefix}{key}.")


def _kinds_inside(annotation: Any) -> Iterator[Any]:
    """The types that a union or a tuple is made of."""
    for one in get_args(annotation):
        if one is not ...:
            yield one
            yield from _kinds_inside(one)


def _close_keys(key: str, known: Sequence[str]) -> list[str]:
    """Known keys that may be meant: of the same last part, described so, or spelt alike."""
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    words = last.replace("_", " ")
    described = [name for name in known if words in _DESCRIPTIONS.get(name, "")]
    return same or described or difflib.get_close_matches(key, known, n=1, cutoff=0.6)


def explain(error: ValidationError, origins: Mapping[str, str], section: str) -> str:
    """The first problem of a pydantic error as one line."""
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    place = [str(part) for part in problem["loc"] if not isinstance(part, int)]
    if not place or isinstance(problem["input"], dict):  # a rule about several keys
        return message
    key = ".".join([section, *place] if section else place)
    origin = f" (from {origins[key]})" if key in origins else ""
    return f"{key} = {problem['input']!r}{origin}: {message[:1].lower()}{message[1:]}"
