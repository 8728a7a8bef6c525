"""`ser bench data`: it measures what it says, on files that it makes."""

import io
import json
import math
import os

import numpy as np
import torch
from PIL import Image

from sercli.benchmarks import data, flow
from sercli.data.images import native
from sercli.views.reading import Samples
from tests.support.command_line import run_in_process

CPU = torch.device("cpu")


def silent(_text):
    """Nobody looks at the bar."""


def test_pictures_are_compressed_as_photographs_are():
    sizes = []
    for seed in range(4):
        picture = data.picture(seed)
        assert picture.size == (500, 375)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=90)
        sizes.append(len(file.getvalue()))
    assert 40e3 < np.mean(sizes) < 100e3  # noise takes 250 kB, a gradient 10
    assert not np.array_equal(np.asarray(data.picture(0)), np.asarray(data.picture(1)))


def test_files_are_there_while_they_are_needed():
    with data.jpeg_files(3) as source:
        paths = [source.path(i) for i in range(3)]
        assert [Image.open(path).format for path in paths] == ["JPEG"] * 3
        assert source.pixels(2).shape == (375, 500, 3)
    assert not any(os.path.exists(path) for path in paths)


def test_the_ways_of_a_core_do_what_they_are_called(monkeypatch):
    decoded = []
    real = native.decode
    monkeypatch.setattr(native, "decode", lambda *given: decoded.append(1) or real(*given))
    with data.jpeg_files(2) as source:
        rows = data.one_core(source, rounds=2, tell=silent)
        ones, twos = data._reference(source)()
    assert [row.way for row in rows] == [
        data.REFERENCE,
        "ser, data.decoder=pil",
        "ser, data.decoder=fast",
        "decoding only, pil",
        "decoding only, fast",
    ]
    assert rows[0].ratio.value == 1
    assert all(row.seconds > 0 and row.ratio.rounds == 2 for row in rows)
    assert len(decoded) == 3 * 2 * 2  # rounds with the first, files, the fast ways
    for crops in (ones, twos):
        assert (crops.shape, crops.dtype) == ((2, 3, 224, 224), torch.float32)
        assert 0 <= crops.min() < crops.max() <= 1


def test_the_training_process_takes_whole_batches(monkeypatch):
    taken = []
    real = Samples.of
    monkeypatch.setattr(Samples, "of", lambda batch: taken.append(batch) or real(batch))
    before = flow._open_files() or 0
    row = flow.training_process(6, workers=2, device=CPU, rounds=3)
    assert len(taken) == 8 + 3
    for batch in taken:
        indices = [note.image for note in batch.notes]
        assert len(set(indices)) == 6
        assert batch.columns["crop1"].shape == (6, 224, 224, 3)
    assert row.seconds > 0
    # Descriptors of what ran before in this process stay open, some of them until it ends.
    assert row.open_files is None or 3 < row.open_files < before + 24


def test_what_flows_has_shares_of_all_parts():
    with data.jpeg_files(2) as source:
        rows = flow.end_to_end(source, batch_size=2, workers=1, device=CPU, rounds=1, tell=silent)
    assert [row.decoder for row in rows] == ["pil", "fast"]
    for row in rows:
        assert math.isclose(sum(row.spent.values()), 1)
        assert min(row.spent["read"], row.spent["decode"], row.spent["crop"]) > 0
        assert row.images_per_s > 0


def test_the_command_prints_four_tables_and_writes_them(tmp_path, monkeypatch, capsys):
    path = tmp_path / "data.json"
    options = ["--files", "2", "--rounds", "1", "--batch-size", "4", "--workers", "0"]
    arguments = ["bench", "data", *options, "--json", path]
    assert run_in_process(arguments, monkeypatch, capsys)[0] == 0
    found = json.loads(path.read_text())
    assert [table["benchmark"] for table in found["tables"]] == ["data"] * 4
    core, forms, process, end = (table["rows"] for table in found["tables"])
    assert core[2]["ratio"]["rounds"] == 1
    assert [row["form"] for row in forms][:4] == ["class folders", "list", "tar", "zip"]
    assert [row["batch_size"] for row in process] == [4]
    assert [row["decoder"] for row in end] == ["pil", "fast"]
