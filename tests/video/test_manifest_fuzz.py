"""Manifests that nobody wrote on purpose: rows and rejects, or one configuration error, and nothing else."""

import io
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidflow.errors import ConfigError
from vidflow.video.manifest import read_manifest

NUM_INPUTS = 20_000
PER_KIND = settings(max_examples=NUM_INPUTS // 5, deadline=None, suppress_health_check=list(HealthCheck), database=None)
NAMES = ("path", "label", "split", "start_seconds", "end_seconds", "annotations")

odd_text = st.text(st.characters(codec=None), max_size=12)
odd_numbers = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([10**400, 10**4299, -0.0, 1e308])
odd_values = st.recursive(
    st.none() | st.booleans() | odd_numbers | odd_text | st.sampled_from(["a.mp4", "train", "val", "", " ", "../b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=6,
)
odd_rows = st.dictionaries(st.sampled_from(NAMES) | odd_text, odd_values, max_size=8)
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.integers(0, 2)), max_size=12)

# Columns of three rows, of every kind that Parquet can hold.
some_text = st.text(max_size=8) | st.sampled_from(["a.mp4", "train", "", "../b", "\0", "1.5", "nan"])
odd_columns = st.one_of(
    *(
        st.lists(st.none() | values, min_size=3, max_size=3).map(lambda column, kind=kind: pa.array(column, kind))
        for values, kind in (
            (st.integers(-(2**63), 2**63 - 1), pa.int64()),
            (st.integers(-(2**62), 2**62), pa.timestamp("ms")),
            (st.integers(0, 2**31 - 1), pa.date32()),
            (st.integers(0, 2**31 - 1), pa.duration("us")),
            (st.floats(), pa.float64()),
            (st.floats(width=16).map(np.float16), pa.float16()),
            (st.decimals(-99, 99, places=2), pa.decimal128(4, 2)),
            (st.booleans(), pa.bool_()),
            (some_text, pa.string()),
            (some_text, pa.large_string()),
            (st.binary(max_size=5), pa.binary()),
            (st.lists(st.floats(), max_size=2), pa.list_(pa.float64())),
            (st.fixed_dictionaries({"a": st.integers(0, 9)}), pa.struct({"a": pa.int64()})),
            (st.nothing(), pa.null()),
        )
    ),
    st.lists(some_text, min_size=3, max_size=3).map(lambda column: pa.array(column).dictionary_encode()),
)
GOOD_COLUMNS = {name: ["a.mp4", "b", "train"] for name in NAMES[:3]}
GOOD_ROWS = [
    {"path": f"videos/{n}.mp4", "label": "x", "split": "train", "start_seconds": n / 3, "end_seconds": n + 1.0}
    for n in range(6)
]


def parquet_bytes(**options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(GOOD_ROWS), buffer, **options)
    return buffer.getvalue()


GOOD = {
    ".csv": ("path,label,split,start_seconds\n" + 'a.mp4,"x, y",train,1\nb.mp4,,val,\n' * 3).encode(),
    ".jsonl": "".join(json.dumps(row) + "\n" for row in GOOD_ROWS).encode(),
}
PARQUET = [parquet_bytes(), parquet_bytes(compression="zstd"), parquet_bytes(use_dictionary=False, version="1.0")]


def read(content: bytes, suffix: str) -> None:
    """Read a manifest and check what comes out of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"m{suffix}"
        path.write_bytes(content)
        try:
            items, rejects = read_manifest(path)
        except ConfigError:
            return
    assert items or rejects
    for item in items:
        f"{item.path}{item.label}{item.split}{item.annotations}".encode()
        assert item.path.is_relative_to(folder)
        assert all(math.isfinite(value) for value in (item.start_seconds or 0.0, item.end_seconds or 0.0))
    for reject in rejects:
        assert reject.reason in ("BadRow", "PathEscapes")
        f"{reject.path}{reject.message}".encode()
        assert len(reject.message) < 2000


def can_be_written(text: str) -> bool:
    return text.encode("utf-8", "ignore").decode() == text


def edit(content: bytes, changes) -> bytes:
    """Replace, insert or delete single bytes."""
    data = bytearray(content)
    for place, byte, kind in changes:
        at = int(place * len(data)) if data else 0
        data[at : at + (kind != 1)] = b"" if kind == 2 else bytes([byte])
    return bytes(data)


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestFuzz:
    @PER_KIND
    @given(st.sampled_from(sorted(GOOD)), edits)
    def test_changed_bytes_of_text(self, suffix, changes):
        read(edit(GOOD[suffix], changes), suffix)

    @PER_KIND
    @given(st.sampled_from(PARQUET), edits)
    def test_changed_bytes_of_parquet(self, content, changes):
        read(edit(content, changes), ".parquet")

    @PER_KIND
    @given(st.lists(odd_rows, max_size=4))
    def test_odd_json_lines(self, rows):
        read("".join(json.dumps(row | {"path": "a"}) + "\n" for row in rows).encode(), ".jsonl")

    @PER_KIND
    @given(st.binary(max_size=200) | odd_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
    def test_any_bytes_behind_a_header(self, content):
        read(b"path,label,split\n" + content, ".csv")
        read(b'{"path": "a", "label": "b", "split": "c"}\n' + content, ".jsonl")

    @PER_KIND
    @given(st.dictionaries(st.sampled_from(NAMES) | odd_text, odd_columns, max_size=6))
    def test_odd_tables(self, columns):
        columns = {name: column for name, column in (GOOD_COLUMNS | columns).items() if can_be_written(name)}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        read(buffer.getvalue(), ".parquet")
