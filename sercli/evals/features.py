"""Features of a set's images in one file, for people: .npz for NumPy, .parquet for data frames.

Both hold, of every image, `features` (float32, D numbers), `labels` and `identifiers`; beside them
the names of the classes, and as JSON what the features are of (`Facts`). Rows are in the order of
the set. They are written as they come: beside labels and identifiers, memory holds one piece of
them (a batch; 256 MiB from CUDA), however many images there are.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sercli import __version__, distributed
from sercli.data import ImageSource
from sercli.data.loading import evaluation_resize
from sercli.data.subset import class_settings
from sercli.encoders.loading import LoadedEncoder, encoder_sha256
from sercli.engine.runtime import Runtime
from sercli.errors import RunFailed
from sercli.evals.common import SEED, Progress, at_most, model_of
from sercli.evals.linear.features import FeaturePlan, Reader
from sercli.protocols.contract import PRECISION
from sercli.randomness import numpy_generator
from sercli.runs.files import replacing_file
from sercli.runs.result import now, protocol_id

SCHEMA = 1
_INTERPOLATION = "bicubic"
_RULE: dict[str, Any] = {
    "name": "features",
    "version": 1,
    "settings": {
        "features": "after the final norm; parts side by side; pooled: the mean patch token",
        "resize": "256/224 of the side, central crop",
        "interpolation": _INTERPOLATION,
        "precision": PRECISION,
    },
}
Rows = Iterable[NDArray[np.float32]]


@dataclass(frozen=True)
class FeatureFile:
    """Features that are to be written.

    Attributes:
        loaded: The encoder, for images of its size; it is moved to the runtime's device.
        source: The images.
        plan: One feature set: which parts of the encoder's output stand side by side.
        indices: int64 [N], ascending: those encoded.
    """

    loaded: LoadedEncoder
    source: ImageSource
    plan: FeaturePlan
    indices: NDArray[np.int64]

    @classmethod
    def of(
        cls, loaded: LoadedEncoder, source: ImageSource, plan: FeaturePlan, *, limit: int | None
    ) -> FeatureFile:
        """Of all images, or of a seeded sample of at most `limit`."""
        draws = numpy_generator(SEED, "features", "limit")
        return cls(loaded, source, plan, at_most(limit, np.arange(len(source)), draws))

    @property
    def shape(self) -> tuple[int, int]:
        """[N, D]."""
        return len(self.indices), len(self.plan.parts) * self.loaded.encoder.dim

    def facts(self, runtime: Runtime) -> dict[str, Any]:
        """What the features are of; the encoder is on the runtime's device."""
        loaded, source = self.loaded, self.source
        settings = {**_RULE["settings"], **class_settings(source), "image_size": loaded.image_size}
        protocol = {**_RULE, "settings": settings}
        return {
            "schema": SCHEMA,
            "ser": __version__,
            "created": now(),
            "protocol": protocol,
            "protocol_id": protocol_id(protocol),
            "model": {**model_of(loaded, runtime), "sha256": encoder_sha256(loaded.encoder)},
            "parts": list(self.plan.parts),
            "data": {
                "path": source.name,
                "split": source.split,
                "n": len(self.indices),
                "partial": len(self.indices) < len(source),
            },
            "image_size": loaded.image_size,
            "resize": evaluation_resize(loaded.image_size),
            "mean": list(loaded.mean),
            "std": list(loaded.std),
        }

    def require_room(self, path: Path) -> None:
        """Raise a RunFailed if a disk has no room for the features."""
        place = path.absolute().parent
        while not place.exists():
            place = place.parent
        needed, free = 4 * self.shape[0] * self.shape[1], shutil.disk_usage(place).free
        if needed > free:
            raise RunFailed(
                f"features would take {needed / 2**30:,.1f} GiB, {free / 2**30:,.1f} GiB are free "
                f"at {place}; name another disk with --out, or fewer --parts"
            )

    def write(
        self,
        path: Path,
        *,
        runtime: Runtime,
        batch_size: int = 256,
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Encode and write; several processes share the images, and the first one writes.

        Args:
            path: *.npz or *.parquet; one that is there is replaced once all is written.
            runtime: Where, and in which precision, the encoder runs.
            batch_size: Images it takes at a time.
            workers: Loader processes; None: by the number of cores.
            progress: Called with the split, the images done, and all of them.

        Raises:
            UserError: An image cannot be read, or the file cannot be written.
            RunFailed: A feature is not finite, or the disk is full.
        """
        self.loaded.encoder.to(runtime.device).eval()
        reader = Reader(
            self.loaded,
            self.plan,
            runtime,
            interpolation=_INTERPOLATION,
            seed=SEED,
            at_once=batch_size,
            workers=workers,
        )
        pieces = reader.pieces(self.source, self.indices, what=self.source.split, progress=progress)
        rows = (_finite(piece.flatten(1).numpy()) for piece in pieces)
        facts = json.dumps(self.facts(runtime))
        if distributed.rank():
            for _ in rows:
                pass
            return
        write = _write_parquet if path.suffix == ".parquet" else _write_npz
        with replacing_file(path) as draft:
            write(draft, rows, self, facts)

    def identifiers(self, start: int, stop: int) -> list[str]:
        """Of some rows."""
        return [self.source.identifier(index) for index in self.indices[start:stop].tolist()]


def _finite(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(rows).all():
        raise RunFailed("the encoder gives features that are not finite")
    return rows


# -- Files ----------------------------------------------------------------------------------------


def _write_npz(path: Path, rows: Rows, file: FeatureFile, facts: str) -> None:
    """An archive that is not compressed, which floats hardly are, written front to back."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("features.npy", "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": file.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for piece in rows:
                member.write(np.ascontiguousarray(piece, "<f4").data)
        for name, array in _beside(file, facts).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _beside(file: FeatureFile, facts: str) -> Mapping[str, NDArray[Any]]:
    labelled = {
        "labels": file.source.labels[file.indices],
        "classes": np.array(file.source.classes),
    }
    return {
        **(labelled if file.source.classes else {}),
        "identifiers": np.array(file.identifiers(0, len(file.indices))),
        "facts": np.array(facts),
    }


def _write_parquet(path: Path, rows: Rows, file: FeatureFile, facts: str) -> None:
    """A row group a piece; the facts under `ser` in the metadata of the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = file.shape[1]
    classes = np.array(file.source.classes)
    labelled = [("labels", pa.int64()), ("classes", pa.string())] if len(classes) else []
    schema = pa.schema(
        [
            ("identifiers", pa.string()),
            *labelled,
            ("features", pa.list_(pa.float32(), width)),
        ],
        metadata={"ser": facts},
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start, piece in _placed(rows):
            stop = start + len(piece)
            labels = file.source.labels[file.indices[start:stop]]
            told = [pa.array(labels), pa.array(classes[labels].tolist(), pa.string())]
            columns = [
                pa.array(file.identifiers(start, stop), pa.string()),
                *(told if labelled else []),
                pa.FixedSizeListArray.from_arrays(pa.array(piece.reshape(-1)), width),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _placed(rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Each piece with the number of its first row."""
    start = 0
    for piece in rows:
        yield start, piece
        start += len(piece)
