"""Where in a file its encoder is, in which layout, and which one is meant if it holds several."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from sercli.encoders.files import is_plain
from sercli.encoders.foreign.layouts import LAYOUTS, Layout, Role
from sercli.encoders.foreign.names import Family, stem_of
from sercli.errors import UserError

# What DDP, FSDP and torch.compile put into names, around the whole or around a part of it.
_WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_RESNET = re.compile(r"(^|\.)\d+\.\d+\.conv[123]\.weight$|(^|\.)layer1\.0\.conv1\.weight$")
_NOT_WEIGHTS = ("optimizer", "optimizer_states", "scaler")


@dataclass(frozen=True)
class Candidate:
    """A ViT in a file: where it is, what it is, its tensors, and names found beside it."""

    place: str
    family: Family
    layout: Layout | None
    role: Role
    tensors: dict[str, Tensor]
    beside: tuple[str, ...]


def stored_arguments(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The command-line arguments that the training script stored (an argparse.Namespace)."""
    arguments = state.get("args")
    if isinstance(arguments, Mapping):
        return arguments
    return {} if arguments is None else dict(getattr(arguments, "__dict__", {}))


def _containers(
    state: Mapping[str, Any], place: str = "", levels: int = 3
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors in a file, with the keys that lead there."""
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and is_plain(v)}
    if tensors:
        yield place, tensors
    for key, value in state.items():
        if levels and isinstance(value, Mapping) and key not in _NOT_WEIGHTS:
            yield from _containers(value, f"{place}.{key}".lstrip("."), levels - 1)


def find_candidates(state: Mapping[str, Any]) -> list[Candidate]:
    """Every ViT in a file, of whatever layout."""
    tables = [_Table.of(place, tensors) for place, tensors in _containers(state)]
    marks = [f".{key}" for key in state]
    marks += [f".args.{key}" for key in stored_arguments(state)]
    marks += [f".{name}" for table in tables for name in table.stored]
    return [_candidate(table, prefix, marks) for table in tables for prefix in table.stems]


@dataclass(frozen=True)
class _Table:
    """A dictionary of tensors in a file.

    Attributes:
        place: The keys that lead there.
        tensors: By the names in the file.
        stored: Name without wrappers → the name in the file.
        stems: What stands in front of a ViT's names (both without wrappers) → the name of its
            patch embedding, and whose names they are.
    """

    place: str
    tensors: Mapping[str, Tensor]
    stored: Mapping[str, str]
    stems: Mapping[str, tuple[str, Family]]

    @classmethod
    def of(cls, place: str, tensors: Mapping[str, Tensor]) -> _Table:
        stored = {_WRAPPERS.sub("", key): key for key in tensors}
        found = [(name, stem) for name in stored if (stem := stem_of(name, stored))]
        stems = {prefix: (name, family) for name, (prefix, family) in found}
        return cls(place, tensors, stored, stems)

    def own(self, prefix: str) -> list[str]:
        """The names of one ViT, without those of another one that is inside it."""
        inner = [name for name in self.stored if name.startswith(prefix)]
        others = [other for other in self.stems if len(other) > len(prefix)]
        return [name for name in inner if not any(name.startswith(other) for other in others)]

    def beside(self) -> tuple[str, ...]:
        """The names of no ViT."""
        ours = tuple(self.stems)
        return tuple(name for name in self.stored if not name.startswith(ours))

    def place_of(self, prefix: str) -> str:
        """The keys that lead to a ViT, with the wrappers' names, as the user would give them."""
        stem, _ = self.stems[prefix]
        original = self.stored[stem]
        beginning = original[: len(original) - len(stem) + len(prefix)].rstrip(".")
        return ".".join(part for part in (self.place, beginning) if part)


def _candidate(table: _Table, prefix: str, marks: Sequence[str]) -> Candidate:
    family = table.stems[prefix][1]
    layout, role = _classify(table.place, prefix, family, marks)
    return Candidate(
        place=table.place_of(prefix),
        family=family,
        layout=layout,
        role=role,
        tensors={
            name.removeprefix(prefix): table.tensors[table.stored[name]]
            for name in table.own(prefix)
        },
        beside=table.beside(),
    )


def _classify(
    place: str, prefix: str, family: Family, facts: Sequence[str]
) -> tuple[Layout | None, Role]:
    for layout in LAYOUTS:
        marked = family in layout.families and (
            not layout.marks
            or any(
                all(any(f".{mark}" in fact for fact in facts) for mark in group)
                for group in layout.marks
            )
        )
        for container, beginning, role in layout.places:
            if marked and prefix == beginning and fnmatchcase(place, container):
                return layout, role
    return None, "encoder"


def choose(
    candidates: Sequence[Candidate],
    state: Mapping[str, Any],
    name: str,
    *,
    teacher: bool,
    key: str | None,
) -> Candidate:
    """The one that is asked for; what is beside it must be known, unless it was named.

    Args:
        candidates: The ViTs of the file.
        state: All that the file holds, to see what lies beside the candidates.
        name: What the user called it, for messages.
        teacher: The momentum encoder instead of the student.
        key: The place that the user named.

    Raises:
        UserError: There is none such, there are several, or something unknown is beside it.
    """
    if not candidates:
        raise _no_vit(state, name)
    places = ", ".join(one.place or "." for one in candidates)
    if key is not None:
        if teacher:
            raise UserError(f"--key {key} with --teacher", "--key says which encoder is taken")
        for one in candidates:
            if _plain(key) == _plain(one.place):
                return one
        raise UserError(f"--key {key} of {name}", f"it holds ViTs at: {places}")
    known = [one for one in candidates if one.layout is not None]
    if not known:
        raise UserError(
            f"{name} holds a ViT in a layout that ser does not know (at {places})",
            "the place must be named then",
            f"add --key {candidates[0].place}",
        )
    roles = ("teacher",) if teacher else ("student", "encoder")
    fitting = [one for one in known if one.role in roles]
    if not fitting:
        asked, remedy = ("teacher", "") if teacher else ("student", "add --teacher for the other")
        raise UserError(f"{name} holds no {asked} (a ViT is at {places})", "", remedy)
    if len(fitting) > 1:
        raise UserError(
            f"{name} holds {len(fitting)} encoders (at {places})",
            "one must be chosen",
            f"add --key, for instance --key {fitting[0].place or '.'}",
        )
    chosen = fitting[0]
    assert chosen.layout is not None
    for other in chosen.beside:
        if not re.match(chosen.layout.beside, other):
            raise UserError(
                f"{name}: {other} is neither of the encoder nor of a head that the layout "
                f"{chosen.layout.name} has",
                "every tensor must be accounted for",
                f"add --key {chosen.place} to take the encoder there and leave the rest",
            )
    return chosen


def require_like_its_twin(found: Candidate, candidates: Sequence[Candidate], name: str) -> None:
    """A student has the blocks of its teacher, and the reverse: one may have lost its last.

    Raises:
        UserError: It lacks some.
    """
    for other in candidates:
        if other.layout is found.layout and {found.role, other.role} == {"student", "teacher"}:
            lost = [k for k in other.tensors if "blocks." in k and k not in found.tensors]
            if lost:
                raise UserError(
                    f"{name}: its {found.role} (at {found.place}) has no {lost[0]}, its "
                    f"{other.role} has",
                    "both must have the same blocks",
                    f"add --key {found.place} if it is meant to be so",
                )


def _plain(place: str) -> str:
    """A place without wrappers' names."""
    return _WRAPPERS.sub("", f"{place.strip('.')}.").strip(".")


def _no_vit(state: Mapping[str, Any], name: str) -> UserError:
    names = [key for _, tensors in _containers(state) for key in tensors]
    if any(_RESNET.search(key) for key in names):
        return UserError(f"{name} holds a ResNet", "a ViT is needed: ser's measures are on tokens")
    found = ", ".join([*names, *map(str, state)][:4]) or "nothing"
    return UserError(
        f"{name} holds no ViT that ser knows (it holds {found})",
        "a checkpoint of one of the projects in the README of encoders is needed",
    )
