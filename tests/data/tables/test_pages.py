"""Values of parquet's pages, against pyarrow's own reading, under whatever it writes."""

import itertools
import random

import numpy as np
import pytest

from sercli.data.images.stored import open_stored
from sercli.data.tables import chunks, pages
from sercli.data.tables.parquet import ParquetImages, read_parquet
from tests.data.tables.conftest import jpeg

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def stored(where):
    with open_stored(where) as (file, _):
        return file.read()


def bytes_of(values, path, **how):
    """Write values as images, and read each of them by its page."""
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), path, **how)
    images = ParquetImages(read_parquet([str(path)], "train"), name="it", split="train")
    assert len(images) == len(values)
    order = list(range(len(values)))
    random.Random(0).shuffle(order)
    return images, {i: stored(images.where(i)) for i in order}


@pytest.mark.parametrize("codec", ["NONE", "SNAPPY", "GZIP", "ZSTD", "BROTLI", "LZ4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_codec_and_version(tmp_path, codec, version):
    values = [jpeg(i) for i in range(23)]
    for dictionary, page in itertools.product((True, False), (100, 4_000, 10**6)):
        images, found = bytes_of(
            values,
            tmp_path / "x.parquet",
            compression=codec,
            data_page_version=version,
            use_dictionary=dictionary,
            data_page_size=page,
            dictionary_pagesize_limit=5_000,
            write_batch_size=2,
            row_group_size=9,
        )
        assert found == dict(enumerate(values))
        assert images.by_page == (codec != "NONE" or dictionary)
        if images.by_page:
            assert None not in images.reader._pages.values()


def test_dictionaries_with_images_that_stand_twice(tmp_path):
    values = [jpeg(i % 4) for i in range(200)]
    images, found = bytes_of(values, tmp_path / "x.parquet", row_group_size=150)
    assert found == dict(enumerate(values))
    pages_of_it = images.reader._pages[0]
    assert pages_of_it.dictionary is not None
    assert pages_of_it.data[0].encoding in (2, 8)


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_what_is_unfamiliar_is_read_by_pyarrow(tmp_path, monkeypatch, encoding):
    values = [jpeg(i) for i in range(12)]
    images, found = bytes_of(
        values,
        tmp_path / "x.parquet",
        use_dictionary=False,
        column_encoding={"image": encoding},
        row_group_size=5,
    )
    assert found == dict(enumerate(values))
    assert set(images.reader._pages.values()) == {None}
    monkeypatch.setattr(chunks, "_DECODED", 0)
    assert images.amplification() == pytest.approx(4.5, abs=0.5)  # whole groups of 5, 5 and 2


def test_a_null_is_found_where_it_is(tmp_path):
    values = [jpeg(0), None, b"", jpeg(1), None, jpeg(2)]
    for version, dictionary in itertools.product(("1.0", "2.0"), (True, False)):
        path = tmp_path / "x.parquet"
        images = pa.array([{"bytes": v, "path": None} for v in values], STRUCT)
        pq.write_table(
            pa.table({"image": images}),
            path,
            data_page_version=version,
            use_dictionary=dictionary,
            write_statistics=False,  # nothing tells of nulls when it is opened
        )
        members = read_parquet([str(path)], "train")
        read = ParquetImages(members, name="it", split="train").reader
        found = [read.value(row) for row in range(len(values))]
        assert [None if v is None else bytes(v) for v in found] == values


def test_an_image_costs_its_page(tmp_path, monkeypatch):
    """Of a hundred images in a row group, one at random costs those in its page."""
    values = [jpeg(i) for i in range(100)]
    images, _ = bytes_of(
        values,
        tmp_path / "x.parquet",
        use_dictionary=False,
        data_page_size=10 * len(values[0]),
        write_batch_size=1,
        compression="SNAPPY",
    )
    assert len(images.reader._pages[0].data) in range(8, 13)
    assert images.amplification() == 1  # all of it is kept
    assert images.remarks() == ()
    monkeypatch.setattr(chunks, "_DECODED", 0)
    assert 8 < images.amplification() < 13
    (line,) = images.remarks()
    assert "times its own bytes; `ser data shard`" in line


@pytest.mark.parametrize("long", [0, 10**9])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_not_compressed_is_a_part_of_its_file(tmp_path, monkeypatch, version, long):
    monkeypatch.setattr(pages, "_LONG", long)
    values = [jpeg(i) for i in range(31)]
    path = tmp_path / "x.parquet"
    images, found = bytes_of(
        values,
        path,
        use_dictionary=False,
        data_page_size=3000,
        data_page_version=version,
        write_batch_size=2,
        compression="NONE",
        row_group_size=7,
    )
    assert found == dict(enumerate(values))
    assert not images.by_page
    assert [images.file_size(i) for i in range(31)] == [len(one) for one in values]
    assert images.amplification() == 1
    span = images.where(4)
    assert path.read_bytes()[span.offset : span.offset + span.size] == values[4]


def page(**told):
    usual = {"offset": 0, "stored": 0, "size": 0, "first": 0, "rows": 1, "encoding": 0,
             "levels": 0, "compressed": False}  # fmt: skip
    return pages.Page(**usual | told)


@pytest.mark.parametrize("rows", [-1, 0, 1, 5, 6])
def test_a_page_has_some_of_the_rows_that_are_left(rows):
    signed = 2 * rows if rows >= 0 else -2 * rows - 1
    header = bytes([0x15, 0, 0x15, 0, 0x15, 0, 0x2C, 0x15, signed, 0x15, 0, 0, 0])

    def found():
        return pages.find_pages(lambda at, n: (5 * header)[at : at + n], size=65, rows=5)

    if rows in (1, 5):
        assert [one.rows for one in found().data] == [rows] * (5 // rows)
    else:
        with pytest.raises(ValueError, match=f"a page of {rows} rows where 5 are left"):
            found()


def test_a_value_of_a_dictionary_costs_the_dictionary_as_well():
    found = pages.ChunkPages(page(stored=100), (page(stored=10), page(stored=20, encoding=8)))
    assert [found.read_for(one) for one in found.data] == [10, 120]


@pytest.mark.parametrize("length", [3, 4, 5])
def test_a_value_that_leads_out_of_its_page_is_damage(length):
    data = length.to_bytes(4, "little") + b"abcd"

    def values():
        return pages.read_values(
            page(stored=len(data), size=len(data)),
            data,
            decompress=lambda one, _: one,
            max_level=0,
            dictionary=list,
        )

    if length > 4:
        with pytest.raises(ValueError, match="a page ends too soon"):
            values()
    else:
        assert bytes(values().value(0)) == b"abcd"[:length]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_index_that_leads_out_of_its_dictionary_is_damage(index):
    known = pages.Values(b"abc", np.array([0, 1]), np.array([1, 2]))
    data = bytes([2, 1 << 1, index])  # numbers of two bits; a run of one

    def values():
        return pages.read_values(
            page(stored=3, size=3, encoding=8),
            data,
            decompress=lambda one, _: one,
            max_level=0,
            dictionary=lambda: known,
        )

    if index > 1:
        with pytest.raises(ValueError, match="leads out of its dictionary"):
            values()
    else:
        assert bytes(values().value(0)) == (b"a", b"bc")[index]


def test_an_empty_value_is_empty_wherever_it_lies(tmp_path):
    values = [jpeg(1), b"", jpeg(2), b""]
    for codec in ("NONE", "SNAPPY"):
        how = {"compression": codec, "use_dictionary": False}
        _, found = bytes_of(values, tmp_path / f"{codec}.parquet", **how)
        assert found == dict(enumerate(values))


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_DECODED", 20_000)
    monkeypatch.setattr(chunks, "_TABLES", 3)
    values = [jpeg(i) for i in range(60)]
    images, found = bytes_of(values, tmp_path / "x.parquet", row_group_size=6, data_page_size=2000)
    assert found == dict(enumerate(values))
    assert len(images.reader._pages) <= 3
    kept = sum(one.nbytes for one in images.reader._decoded.values())
    assert kept == images.reader._kept <= 20_000


def test_damage_is_told_and_never_more(tmp_path):
    """Whatever stands in a chunk, a value is found or an error of one image is raised."""
    values = [jpeg(i) for i in range(8)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array(values, pa.binary())}), path, data_page_size=3000)
    whole = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start, length = chunk.dictionary_page_offset, chunk.total_compressed_size
    body = whole[start : start + length]
    draws = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        broken = bytearray(body)
        for place in draws.integers(0, 60, 2).tolist() + draws.integers(0, length, 2).tolist():
            broken[place] = int(draws.integers(0, 256))
        data = bytes(broken)
        try:
            found = pages.find_pages(lambda at, n, d=data: d[at : at + n], size=length, rows=8)
            for page in found.data:

                def values_of(page, d=data, found=found):
                    return pages.read_values(
                        page,
                        d[page.offset : page.offset + page.stored],
                        decompress=chunks._codec("snappy"),
                        max_level=1 if page is not found.dictionary else 0,
                        dictionary=lambda: values_of(found.dictionary),
                    )

                values_of(page)
        except (ValueError, IndexError, OSError, pages.Unfamiliar, AttributeError):
            told += 1
    assert told > 100
