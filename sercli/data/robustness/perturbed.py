"""ImageNet-P as files: short videos of a picture that changes a little from frame to frame."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sercli.data.corruptions.pixels import PUBLISHED_SIDE
from sercli.data.images.folder import class_names, some
from sercli.data.images.listing import list_directory, printable
from sercli.data.robustness import videos
from sercli.data.robustness.folders import Findings, absent_parts, merged, parts
from sercli.data.robustness.imagenet_classes import is_imagenet
from sercli.data.robustness.published import PERTURBATIONS, folder_rule
from sercli.errors import UserError

_LAYOUT = "the layout is DIR/<perturbation>/<class>/*.mp4"


@dataclass(frozen=True)
class Sequences:
    """The video files of one perturbation.

    Attributes:
        root: The folder of its class folders.
        files: Paths below it, "<class>/<name>.mp4", sorted.
        labels: int64 [V], indices into the head's classes.
    """

    root: str
    files: tuple[str, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class PerturbedSet:
    """ImageNet-P: short videos in which a picture changes a little from frame to frame.

    Attributes:
        path: Folder that the perturbations' folders lie in.
        perturbations: Those found, of the ten.
        sequences: Perturbation → its videos.
        side: What both sides of all frames must be, in pixels; None: they may be anything.
        partial: Whether something is missing of it.
        notes: What a partial set lacks, a sentence each.
    """

    path: Path
    perturbations: tuple[str, ...]
    sequences: Mapping[str, Sequences]
    side: int | None
    partial: bool
    notes: tuple[str, ...]

    def num_videos(self, perturbation: str) -> int:
        return len(self.sequences[perturbation].files)

    def labels(self, perturbation: str) -> NDArray[np.int64]:
        """int64 [V], indices into the head's classes."""
        return self.sequences[perturbation].labels

    def identifier(self, perturbation: str, index: int) -> str:
        """The path of a video below its perturbation's folder."""
        return self.sequences[perturbation].files[index]

    def frames(self, perturbation: str, index: int) -> NDArray[np.uint8]:
        """All frames of one video, uint8 [T, S, S, 3]; videos may differ in T.

        Raises:
            UnreadableVideo: It cannot be decoded to its end, or has another side.
            UserError: PyAV is not installed.
        """
        path = self._file(perturbation, index)
        frames = videos.read_frames(path)
        self._require_side(path, frames.shape[2], frames.shape[1])
        return frames

    def header(self, perturbation: str, index: int) -> tuple[int, int, int]:
        """Frames, width and height as the file's header states them.

        Raises:
            As `frames`.
        """
        path = self._file(perturbation, index)
        number, width, height = videos.read_size(path)
        self._require_side(path, width, height)
        return number, width, height

    def _file(self, perturbation: str, index: int) -> str:
        sequences = self.sequences[perturbation]
        return os.path.join(sequences.root, sequences.files[index])

    def _require_side(self, path: str, width: int, height: int) -> None:
        if self.side is not None and (width, height) != (self.side, self.side):
            raise videos.UnreadableVideo(
                path, f"it has {width} × {height} pixels instead of {self.side} × {self.side}"
            )


def open_perturbed(
    path: Path, classes: Sequence[str], *, allow_partial: bool = False
) -> PerturbedSet:
    """Open ImageNet-P: `<perturbation>/<class>/*.mp4`.

    Args:
        path: Its folder; the perturbations may lie in folders noise, blur, weather, digital.
        classes: The class order of the head.
        allow_partial: Accept missing perturbations, classes and videos.

    Raises:
        UserError: It is missing or not as published, or PyAV is not installed.
        UnreadableVideo: The first video of a perturbation cannot be opened or has another side.
    """
    perturbed, found = inspect_perturbed(path, classes)
    rule = f"ImageNet-P has {len(PERTURBATIONS)} perturbations of the same images, of all classes"
    found.require(path, "imagenet-p", rule, allow_partial=allow_partial)
    if not perturbed.perturbations:
        raise UserError(f"{path} has no perturbation", _LAYOUT, "name its folder")
    for name in perturbed.perturbations:
        perturbed.header(name, 0)
    return perturbed


def inspect_perturbed(path: Path, classes: Sequence[str]) -> tuple[PerturbedSet, Findings]:
    """The perturbations whose labels can be told, and what is not as published.

    Raises:
        UserError: It is missing.
    """
    folders = parts(path, PERTURBATIONS)
    lacking = absent_parts(folders, PERTURBATIONS, "perturbation", _LAYOUT)
    rule = folder_rule("imagenet-p", classes)
    found: dict[str, Findings] = {}
    sequences: dict[str, Sequences] = {}
    for name, folder in folders.items():
        files = {one: _video_files(folder / one) for one in class_names(folder)}
        counts = {one: len(names) for one, names in files.items()}
        found[name] = rule.apply(counts, noun="video")
        if not found[name].wrong:
            labels = np.array([rule.labels[one] for one in files], np.int64)
            sequences[name] = Sequences(
                root=str(folder),
                files=tuple(f"{one}/{file}" for one, names in files.items() for file in names),
                labels=np.repeat(labels, list(counts.values())),
            )
    most = max((len(one.files) for one in sequences.values()), default=0)
    fewer = [f"{n}: {len(s.files):,}" for n, s in sequences.items() if len(s.files) < most]
    if fewer:
        lacking.append(f"not all perturbations have {most:,} videos ({some(fewer)})")
    in_parts = merged(found, "perturbation")
    findings = Findings(in_parts.wrong, (*lacking, *in_parts.lacking))
    perturbed = PerturbedSet(
        path=path,
        perturbations=tuple(sequences),
        sequences=sequences,
        side=PUBLISHED_SIDE if is_imagenet(classes) else None,
        partial=bool(findings.lacking),
        notes=findings.lacking,
    )
    return perturbed, findings


def _video_files(folder: Path) -> list[str]:
    listing = list_directory(folder, suffixes=("mp4",))
    for name, reason in sorted(listing.faults.items()):
        raise UserError(
            f"{folder / printable(name)} is {reason}", "videos are regular files", "remove it"
        )
    return [os.fsdecode(name) for name in listing.files]
