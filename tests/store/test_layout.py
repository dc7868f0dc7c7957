import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vidflow.files import file_sha256
from vidflow.store.layout import (
    FileEntry,
    committed_entry,
    list_file,
    publish,
    publish_entry,
    publish_json,
    read_json,
    read_stage,
    remove_leftovers,
)
from vidflow.store.rows import write_rows


@dataclass(frozen=True)
class FileName:
    file: str


def commit(folder: Path, data: bytes = b"data") -> FileEntry:
    with publish(folder / "a.bin") as aside:
        aside.write_bytes(data)
    entry = FileEntry(
        file="a.bin",
        num_bytes=len(data),
        sha256=file_sha256(folder / "a.bin"),
        num_clips=1,
        seconds=0.0,
        rejects=[],
        details={},
    )
    publish_entry(folder, entry)
    return entry


def test_a_failed_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    commit(tmp_path, b"old")

    def fail():
        with publish(tmp_path / "a.bin") as aside:
            aside.write_bytes(b"half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        fail()
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from vidflow.store.layout import publish\n"
        "with publish(Path(sys.argv[1]) / 'a.bin') as aside:\n"
        "    aside.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    assert not (tmp_path / "a.bin").exists()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_exists_only_with_a_manifest_that_agrees(tmp_path):
    assert committed_entry(tmp_path, "a.bin") is None
    entry = commit(tmp_path)
    assert committed_entry(tmp_path, "a.bin") == entry
    (tmp_path / "a.bin").write_bytes(b"dat")
    assert committed_entry(tmp_path, "a.bin") is None


@pytest.mark.parametrize(
    "text", ["", "{", "null", '{"a": 1}', "[" * 100_000, "9" * 5000, "\udcff", '{"a": 2, "seal": "0"}'], ids=repr
)
def test_a_json_that_is_cut_or_altered_counts_as_not_there_and_is_said_once(tmp_path, caplog, text):
    path = tmp_path / "a.json"
    publish_json(path, {"a": 1})
    path.write_text(text, errors="surrogateescape")
    assert read_json(path) is None
    assert read_json(path) is None
    assert len(caplog.messages) == 1
    assert "a.json: truncated or altered" in caplog.text
    assert "a.json.damaged" in caplog.text


def test_a_json_reads_back_whatever_the_order_and_kind_of_its_keys(tmp_path):
    publish_json(tmp_path / "a.json", {"b": {10: 1.5, 9: (1, None)}, "a": float("inf"), "é": "\udcff"})
    assert read_json(tmp_path / "a.json") == {"b": {"10": 1.5, "9": [1, None]}, "a": float("inf"), "é": "\udcff"}


def test_no_changed_byte_of_a_json_gives_another_value(tmp_path):
    path, value = tmp_path / "a.json", {"name": "gru", "numbers": [0.1, 3, -1e-9], "flag": True, "deep": {"x": None}}
    publish_json(path, value)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert read_json(path) in (None, value)


@pytest.mark.parametrize("harm", ["gone", "cut", "folder"])
def test_a_stage_is_not_finished_where_a_file_of_it_is_not_there(tmp_path, harm):
    commit(tmp_path)
    write_rows(tmp_path / "rows.parquet", FileName, [FileName("a.bin")])
    publish_json(
        tmp_path / "manifest.json",
        {
            "files": [list_file(tmp_path / "a.bin")],
            "entries": [list_file(tmp_path / "a.bin.json")],
            "tables": ["rows.parquet"],
        },
    )
    victims = ["a.bin", "a.bin.json", "rows.parquet", "rows.parquet.json", "manifest.json"]
    whole = {name: (tmp_path / name).read_bytes() for name in victims}
    assert read_stage(tmp_path) is not None
    for name, data in whole.items():
        (tmp_path / name).unlink()
        if harm == "cut":
            (tmp_path / name).write_bytes(data[:-2])
        if harm == "folder":
            (tmp_path / name).mkdir()
        assert read_stage(tmp_path) is None, name
        if harm == "folder":
            (tmp_path / name).rmdir()
        (tmp_path / name).write_bytes(data)
    assert read_stage(tmp_path) is not None
