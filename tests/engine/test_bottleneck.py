"""Which part of loading holds a training up: on the line, and a line of advice, once."""

import time

import pytest

from sercli.data import spent
from sercli.data.loading import RowReader, load_rows
from sercli.data.spent import PARTS
from sercli.engine import bottleneck
from sercli.engine.bottleneck import advice, row_of
from sercli.engine.progress import TrainingProgress, row_texts
from sercli.recipe.schema import Data


def row(wait=0.34, **parts):
    shares = {"read": 0.1, "decode": 0.5, "crop": 0.3, "idle": 0.1, **parts}
    named = {f"data_{part}": share for part, share in shares.items()}
    return {"step": 1, "epoch": 0.1, "loss": 1.0, "images_per_s": 9.0, "data_wait": wait, **named}


def test_shares_are_of_all_that_was_spent():
    assert row_of((1.0, 4.0, 2.0, 1.0)) == {
        "data_read": 1 / 8, "data_decode": 1 / 2, "data_crop": 1 / 4, "data_idle": 1 / 8,
    }  # fmt: skip
    assert row_of(()) == row_of((0.0,) * len(PARTS)) == {}


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (row(), "data 34% (decode)"),
        (row(read=0.6), "data 34% (read)"),
        (row(crop=0.6), "data 34% (crop)"),
        (row(wait=0.04), "data 4%"),
        (row(idle=0.6), "data 34%"),
        ({"loss": 1.0, "images_per_s": 9.0, "data_wait": 0.34}, "data 34%"),
    ],
)
def test_the_line_names_the_part_while_the_step_waits_for_it(given, shown):
    assert row_texts(given)[-1] == shown


MORE = "more data.workers (3 now, 8 at most here)"


@pytest.mark.parametrize(
    ("given", "decoder", "workers", "rendered", "ending"),
    [
        (row(), "pil", 3, False, f"decoding most; what may help is {MORE} or data.decoder=fast"),
        (row(), "fast", 8, False, "decoding most; what may help is more cores"),
        (row(crop=0.7), "pil", 8, False, "cropping most; what may help is data.decoder=fast"),
        (row(read=0.7), "fast", 8, False, "reading files most; what may help is a faster disk"),
        (row(), "pil", 3, True, f"rendering most; what may help is {MORE}"),
    ],
)
def test_advice_fits_the_part(monkeypatch, given, decoder, workers, rendered, ending):
    monkeypatch.setattr(bottleneck, "most_loaders", lambda: 8)
    said = advice(given, Data(decoder=decoder), workers=workers, rendered=rendered)
    assert said.startswith("note: 34% of the time is spent waiting for images")
    assert said.endswith(ending)
    assert "\n" not in said


@pytest.mark.parametrize("given", [row(wait=0.2), row(wait=0.9, idle=0.7)])
def test_no_advice_where_loading_is_not_what_is_waited_for(given):
    assert advice(given, Data(), workers=1, rendered=False) is None


def test_advice_comes_once_and_not_on_starting_or_for_a_moment(monkeypatch):
    progress, said = TrainingProgress(9, quiet=True, advise=lambda _row: "advice"), []
    monkeypatch.setattr(progress, "message", said.append)
    for seconds, count in ((100, 0), (109, 0), (110, 1), (120, 1)):
        monkeypatch.setattr("time.monotonic", lambda now=seconds: float(now))
        progress.row(row())
        assert said == ["advice"] * count


class Slowly(RowReader):
    """Reads for a while and crops for twice as long."""

    def layout(self):
        return {}

    def read(self, _key, _row):
        time.sleep(0.005)
        spent.here.lap("read")
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_say_what_was_spent_on_them(workers):
    loaded = list(load_rows(Slowly(), [[1, 2, 3], [4], []], rows=3, workers=workers))
    for batch, images in zip(loaded, (3, 1, 0), strict=True):
        read, decode, crop, idle = batch.spent
        assert read >= 0.005 * images
        assert crop >= 0.01 * images
        assert decode == 0
        assert idle >= 0


def test_without_loader_processes_nobody_is_idle_while_a_step_is_taken():
    """Else a wait below half of the time would be none of the reader's."""
    batches = load_rows(Slowly(), [[1], [2], [3]], rows=1, workers=0)
    for batch in batches:
        assert batch.spent[PARTS.index("idle")] == 0
        shares = row_of(batch.spent)
        assert max(shares, key=shares.__getitem__) == "data_crop"
        time.sleep(0.06)  # a step, longer than what is read for it
