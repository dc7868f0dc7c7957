"""Manifests: three formats, the same rows; what is wrong is said with its row."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidflow.errors import ConfigError
from vidflow.records import Reject, VideoItem
from vidflow.store.rows import read_rows, write_rows
from vidflow.video.manifest import read_manifest, write_manifest

FORMATS = ["csv", "jsonl", "parquet"]


def _items(folder):
    return [
        VideoItem(path=folder / "videos/a b, ü.mp4", label='say\u2028"hi"', split="train"),
        VideoItem(path=folder / "c.webm", label="", split="val", start_seconds=0.1, end_seconds=1 / 3),
        VideoItem(path=folder / "d.mp4", label="x", split="val", annotations=folder / "d.npz"),
    ]


def _write(folder, text, name="m.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"m.{suffix}"
    write_manifest(path, _items(tmp_path))
    assert read_manifest(path) == (_items(tmp_path), [])


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_moves_with_its_videos(tmp_path, suffix):
    write_manifest(tmp_path / f"m.{suffix}", _items(tmp_path))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / f"m.{suffix}").rename(moved / f"m.{suffix}")
    assert read_manifest(moved / f"m.{suffix}") == (_items(moved), [])


def test_optional_columns_are_written_only_where_used(tmp_path):
    write_manifest(tmp_path / "m.csv", _items(tmp_path)[:1])
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "path,label,split"


def test_paths_resolve_against_the_manifest_whatever_the_working_directory(tmp_path, monkeypatch):
    path = _write(tmp_path, "path,label,split\nvideos/../a.mp4,x,train\n")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    for named in (path, Path("m.csv"), Path("./sub/../m.csv")):
        (item,), rejects = read_manifest(named)
        assert item.path == tmp_path / "a.mp4"
        assert rejects == []


@pytest.mark.parametrize("named", ["../a.mp4", "/etc/passwd", "videos/../../a.mp4", "{folder}x/a.mp4"])
def test_a_path_that_leaves_the_folder_is_rejected(tmp_path, named):
    folder = tmp_path / "set"
    folder.mkdir()
    path = _write(folder, f"path,label,split\nok.mp4,x,train\n{named.format(folder=folder)},x,train\n")
    items, (reject,) = read_manifest(path)
    assert [item.path for item in items] == [folder / "ok.mp4"]
    assert (reject.reason, reject.stage) == ("PathEscapes", "manifest")
    assert f"{path}, row 2" in reject.message
    assert "video.video_root" in reject.message


def test_annotations_may_not_leave_the_folder_either(tmp_path):
    path = _write(tmp_path, "path,label,split,annotations\na.mp4,x,train,../../secret.npz\n")
    assert read_manifest(path)[1][0].reason == "PathEscapes"


def test_video_root_opens_one_more_folder(tmp_path):
    (tmp_path / "set").mkdir()
    outside = tmp_path / "videos" / "a.mp4"
    path = _write(tmp_path / "set", f"path,label,split\n{outside},x,train\n../videos/b.mp4,x,train\n/c.mp4,x,train\n")
    items, rejects = read_manifest(path, video_root=tmp_path / "videos")
    assert [item.path for item in items] == [outside, outside.with_name("b.mp4")]
    assert len(rejects) == 1


def test_a_symbolic_link_inside_the_folder_is_followed_wherever_it_leads(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "set" / "videos").symlink_to(tmp_path / "disk")
    (item,), _ = read_manifest(_write(tmp_path / "set", "path,label,split\nvideos/a.mp4,x,train\n"))
    assert item.path == tmp_path / "set" / "videos" / "a.mp4"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (",x,train", "path = ''"),
        ("a.mp4,x,", "split = ''"),
        ("a.mp4,x", "split = None"),
        ("a.mp4,x, train", "split = ' train'; wanted it without spaces"),
        ("a.mp4,x\u00a0,train", "label = 'x\\xa0'; wanted it without spaces"),
        ("a.mp4, ,train", "label = ' '; wanted it without spaces"),
        ("a.mp4,x,train,one", "start_seconds = 'one'"),
        ("a.mp4,x,train,inf", "start_seconds = 'inf'"),
        ("a.mp4,x,train,2.0,1.0", "the span 2.0 to 1.0 s"),
        ("a.mp4,x,train,,0", "the span 0.0 to 0.0 s"),
        ("a.mp4,x,train,1,2,surplus,more", "2 more cells"),
    ],
)
def test_a_malformed_row_is_rejected_with_its_number_and_the_rest_is_kept(tmp_path, row, complaint):
    path = _write(
        tmp_path, f"path,label,split,start_seconds,end_seconds\nok.mp4,x,train,,\n{row}\nfine.mp4,x,val,1,2\n"
    )
    items, (reject,) = read_manifest(path)
    assert [item.path.name for item in items] == ["ok.mp4", "fine.mp4"]
    assert reject.reason == "BadRow"
    assert f"{path}, row 2" in reject.message
    assert complaint in reject.message


def test_lines_that_are_no_object_and_wrong_types_are_rejected_in_jsonl(tmp_path):
    good = {"path": "a.mp4", "label": 3, "split": "train", "start_seconds": 1, "end_seconds": 2.5}
    lines = [
        json.dumps(good),
        "{nonsense",
        "[1]",
        json.dumps(good | {"path": ["a"]}),
        json.dumps(good | {"label": None}),
    ]
    items, rejects = read_manifest(_write(tmp_path, "\n".join(lines), "m.jsonl"))
    assert [(item.label, item.start_seconds, item.end_seconds) for item in items] == [("3", 1.0, 2.5)]
    assert [reject.message.split(", ")[1].split(":")[0] for reject in rejects] == ["row 2", "row 3", "row 4", "row 5"]


def test_missing_numbers_in_parquet_mean_the_whole_video(tmp_path):
    table = {"path": ["a.mp4", "b.mp4"], "label": ["x", "y"], "split": ["train"] * 2}
    spans = {"start_seconds": [float("nan"), None], "end_seconds": [None, 4.0], "extra": [1, 2]}
    pq.write_table(pa.table(table | spans), tmp_path / "m.parquet")
    items, rejects = read_manifest(tmp_path / "m.parquet")
    assert rejects == []
    assert [(item.start_seconds, item.end_seconds) for item in items] == [(None, None), (None, 4.0)]


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfpath,label,split\r\na.mp4,x,train\r\n")
    assert read_manifest(path)[0][0].path == tmp_path / "a.mp4"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.csv", None, "no such file"),
        ("m.txt", b"path,label,split\n", r"wanted \*.csv"),
        ("m.csv", b"file,label,split\na,b,c\n", "no column path; got file, label, split; wanted path, label, split"),
        ("m.csv", b"", "no column path, label, split; got none"),
        ("m.csv", b"path,label,split\n", "got no rows"),
        ("m.csv", b"path,label,split\n\xff\xfe,x,train\n", "cannot be read as a manifest"),
        ("m.csv", b'path,label,split\n"a.mp4,x,train\n', "cannot be read as a manifest"),
        ("m.jsonl", b'{"path": "a", "label": "x"}\n', "no column split"),
        ("m.parquet", b"not parquet at all", "cannot be read as a manifest"),
    ],
)
def test_what_is_no_manifest_is_a_configuration_error(tmp_path, name, content, complaint):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_missing_videos_are_left_for_later(tmp_path):
    items, rejects = read_manifest(_write(tmp_path, "path,label,split\nnothing.mp4,x,train\n"))
    assert (len(items), rejects) == (1, [])


def test_a_real_manifest_is_read(shared_dir):
    items, rejects = read_manifest(shared_dir / "data" / "mocap20" / "annotations.csv")
    assert (len(items), rejects) == (400, [])
    assert sorted({item.split for item in items}) == ["train", "val"]
    assert all(item.path.is_file() for item in items)


def _jsonl(folder, *lines):
    good = json.dumps({"path": "ok.mp4", "label": "x", "split": "train"})
    return _write(folder, "\n".join([good, *lines]), "m.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        r'{"path": "\ud800.mp4", "label": "x", "split": "train"}',
        r'{"path": "\udc80.mp4", "label": "x", "split": "train"}',
        r'{"path": "a.mp4", "label": "\udfff", "split": "train"}',
        '{"path": "a.mp4", "label": ' + "1" * 5000 + ', "split": "train"}',
        '{"path": "a.mp4", "label": ' + "1" * 4300 + ', "split": "train"}',
        '{"path": "a.mp4", "label": "x", "split": "train", "start_seconds": 1' + "0" * 400 + "}",
        '{"path": "a.mp4", "label": "x", "split": "train", "start_seconds": NaN}',
        '{"path": "a.mp4", "label": "x", "split": "train", "end_seconds": 1e999}',
        '{"path": "a.mp4", "label": "x", "split": "train", "split": "val"}',
        '{"path": "a.mp4", "label": NaN, "split": "train"}',
        '{"path": "' + "a" * 1_000_000 + '", "label": "x", "split": "train"}',
        r'{"path": "a\u0000.mp4", "label": "x", "split": "train"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"path": "a.mp4", "label": {"a": [null]}, "split": "train"}',
    ],
    ids=lambda line: line[:50],
)
def test_a_line_that_no_table_could_hold_is_one_reject_and_the_rest_is_kept(tmp_path, line):
    items, (reject,) = read_manifest(_jsonl(tmp_path, line))
    assert [item.path.name for item in items] == ["ok.mp4"]
    assert reject.reason == "BadRow"
    assert "row 2" in reject.message
    assert len(reject.message) < 1000
    write_rows(tmp_path / "rejects.parquet", Reject, [reject])
    assert read_rows(tmp_path / "rejects.parquet", Reject) == [reject]


def test_columns_that_nobody_reads_may_hold_anything_in_parquet(tmp_path):
    table = {"path": ["a.mp4"], "label": ["x"], "split": ["train"]}
    never = pa.array([2**62], pa.timestamp("ms"))  # a year that Python has no value for
    pq.write_table(pa.table(table | {"when": never, "ns": pa.array([1], pa.timestamp("ns"))}), tmp_path / "m.parquet")
    items, rejects = read_manifest(tmp_path / "m.parquet")
    assert (len(items), rejects) == (1, [])


def test_columns_of_categories_and_class_numbers_are_read_from_parquet(tmp_path):
    table = {"path": ["a.mp4", "b.mp4"], "label": [3, 4], "split": pa.array(["train", "val"]).dictionary_encode()}
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    items, _ = read_manifest(tmp_path / "m.parquet")
    assert [(item.label, item.split) for item in items] == [("3", "train"), ("4", "val")]


@pytest.mark.parametrize(
    "columns",
    [
        {"start_seconds": pa.array([1], pa.timestamp("ns"))},
        {"start_seconds": pa.array([[1.0]])},
        {"label": pa.array([1.5])},
        {"path": pa.array([b"a.mp4"])},
        {"split": pa.array([{"a": 1}])},
    ],
)
def test_columns_of_another_type_are_a_configuration_error(tmp_path, columns):
    table = {"path": ["a.mp4"], "label": ["x"], "split": ["train"]} | columns
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    with pytest.raises(ConfigError, match=f"got the column {next(iter(columns))} with values of type"):
        read_manifest(tmp_path / "m.parquet")


def test_a_column_that_is_there_twice_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="column split more than once"):
        read_manifest(_write(tmp_path, "path,label,split,split\na.mp4,x,train,val\n"))


@pytest.mark.timeout(20)
def test_a_manifest_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    (tmp_path / "m.parquet").mkdir()
    (tmp_path / "m.jsonl").symlink_to("/dev/zero")
    for suffix in FORMATS:
        with pytest.raises(ConfigError, match="wanted a file"):
            read_manifest(tmp_path / f"m.{suffix}")


def test_a_folder_whose_name_no_table_could_hold_is_refused(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_manifest(_write(folder, "path,label,split\na.mp4,x,train\n"))


def test_a_digest_is_kept_and_one_that_is_none_is_a_bad_row(tmp_path):
    path, digest = tmp_path / "manifest.csv", "AB" * 32
    path.write_text(f"path,label,split,sha256\na.mp4,x,train,{digest}\nb.mp4,x,train,\nc.mp4,x,train,abc\n")
    items, rejects = read_manifest(path)
    assert [item.sha256 for item in items] == [digest.lower(), None]
    assert [reject.reason for reject in rejects] == ["BadRow"]
    write_manifest(tmp_path / "again.parquet", items)
    assert read_manifest(tmp_path / "again.parquet") == (items, [])
