"""What it costs a core to read the same images from each form that sets are kept in."""

from __future__ import annotations

import importlib.util
import io
import statistics
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sercli.benchmarks.record import Tell
from sercli.benchmarks.rounds import cpu_seconds, interleaved
from sercli.benchmarks.table import Column, Table, rows_of
from sercli.data.images.folder import ImageFolder
from sercli.data.registry import open_source
from sercli.statistics import Ratio, paired_ratio

if TYPE_CHECKING:
    from sercli.data.source import ImageSource

_ROWS_A_GROUP = 100  # as Hugging Face's writers have it
_PARQUET = 96 * 2**20  # bytes of images: three times what a process keeps of pages
Read = Callable[["ImageSource", list[int]], Callable[[], object]]


@dataclass(frozen=True)
class FormRow:
    """A form, on one core.

    Attributes:
        form: What it is called.
        seconds: CPU time an image, median over the rounds.
        ratio: Times as many images a second as from class folders.
    """

    form: str
    seconds: float
    ratio: Ratio

    @property
    def images_per_s(self) -> float:
        return 1 / self.seconds


def from_forms(source: ImageFolder, read: Read, *, rounds: int, tell: Tell) -> list[FormRow]:
    """CPU seconds of reading as many images as there are, from each form, in interleaved rounds.

    Args:
        source: JPEG files in class folders.
        read: What is done with some images of a set.
        rounds: Timed rounds, after one to warm up.
        tell: Shows how far it is.
    """
    tell("writing the forms")
    sets = dict(_written(source, Path(source.path(0)).parent.parent))
    order = np.random.default_rng(0)
    variants = []
    for one in sets.values():
        # All of a set once, or as many of a larger one, in an order of their own.
        indices = order.permutation(len(one))[: len(source)].tolist()
        variants.append(cpu_seconds(read(one, indices)))
    times = interleaved(variants, rounds=rounds, report=lambda text: tell(f"forms: {text}"))
    return [
        FormRow(name, statistics.median(mine) / len(source), paired_ratio(times[0], mine))
        for name, mine in zip(sets, times, strict=True)
    ]


def tabled(rows: list[FormRow], title: str) -> Table:
    """The rows as a table."""
    columns = (
        Column("form", "form"),
        Column("seconds", "ms an image", "s", ".3f", 1e-3),
        Column("images_per_s", "images/s", "1/s", ",.0f"),
        Column("ratio", "times the first", form=".2f"),
    )
    notes = [
        f"CPU time of one thread, median over rounds ({rows[0].ratio.rounds}), data.decoder=fast"
    ]
    if not _has_pyarrow():
        notes.append("Arrow and parquet: not without pyarrow (pip install 'sercli[parquet]')")
    return Table("data", title, columns, rows_of(columns, rows), notes)


# -- Writing ---------------------------------------------------------------------------------------


def _written(source: ImageFolder, root: Path) -> Iterator[tuple[str, ImageSource]]:
    """Each form by its name, written beside the class folders."""

    def opened(path: Path) -> ImageSource:
        return open_source(str(path), "train", image_size=1)

    yield "class folders", source
    files = {source.identifier(i): Path(source.path(i)).read_bytes() for i in range(len(source))}
    lines = [
        f"{source.path(i)},{source.identifier(i).partition('/')[0]}" for i in range(len(source))
    ]
    (root / "list.csv").write_text("\n".join(lines), encoding="utf-8")
    yield "list", opened(root / "list.csv")
    with tarfile.open(root / "set.tar", "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    yield "tar", opened(root / "set.tar")
    with zipfile.ZipFile(root / "set.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    yield "zip", opened(root / "set.zip")
    if not _has_pyarrow():
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = _table(files)
    with pa.ipc.new_stream(root / "train.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=_ROWS_A_GROUP)
    yield "Arrow", opened(root / "train.arrow")
    times = -(-_PARQUET // sum(map(len, files.values())))
    more = {f"{turn:05}-{name}": data for turn in range(times) for name, data in files.items()}
    for name, compression in (("parquet, not compressed", "none"), ("parquet, snappy", "snappy")):
        path = root / f"{compression}.parquet"
        # One page a row group, as Hugging Face's writers leave it.
        pq.write_table(
            _table(more),
            path,
            row_group_size=_ROWS_A_GROUP,
            compression=compression,
            use_dictionary=False,
            data_page_size=2**30,
        )
        yield f"{name}, groups of {_ROWS_A_GROUP}", opened(path)


def _table(files: dict[str, bytes]) -> Any:
    import pyarrow as pa

    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = [{"bytes": data, "path": name.replace("/", "-")} for name, data in files.items()]
    columns = {"image": pa.array(images, struct), "label": pa.array([0] * len(files), pa.int64())}
    return pa.table(columns)


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None
