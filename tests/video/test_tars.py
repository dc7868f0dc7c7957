"""Videos in WebDataset tars: the same videos as in files, and tars that are damaged or hostile."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from vidflow.errors import ConfigError, VideoError
from vidflow.files import open_regular
from vidflow.tar_members import find_member, short_name
from vidflow.video.encode import encode_clip
from vidflow.video.ffmpeg import probe, write_h264
from vidflow.video.sandboxed import scan_file
from vidflow.video.sources import read_source

ENCODING = {"size": 32, "resize_filter": "bilinear", "image_format": "png", "jpeg_quality": 90}


def write_tar(path, *samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wds.TarWriter(str(path), encoder=False) as writer:
        for number, sample in enumerate(samples):
            texts = {k: v if isinstance(v, bytes) else json.dumps(v).encode() for k, v in sample.items()}
            writer.write({"__key__": f"{number:09d}"} | texts)
    return path


def labelled(label, **more):
    return {"mp4": b"video", "json": {"label": label, "status": "success", **more}}


def rows(source, **options):
    return [(short_name(item.path), item.label, item.split) for item in read_source(source, **options).items]


@pytest.fixture
def video(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
    write_h264(tmp_path / "video.mp4", frames, fps=10)
    return tmp_path / "video.mp4"


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_video_in_a_tar_is_the_video_in_a_file(tmp_path, video, decoder):
    tar = write_tar(tmp_path / "t" / "0.tar", labelled("a"), {"mp4": video.read_bytes(), "json": {"label": "a"}})
    address = read_source(tar).items[1].path
    assert scan_file(address, 60.0, is_video=True)[0] == scan_file(video, 60.0, is_video=True)[0]
    assert np.array_equal(probe(address).pts_seconds, probe(video).pts_seconds)
    clips = [encode_clip(path, [0.0, 0.5, 1.0], decoder=decoder, **ENCODING) for path in (address, video)]
    assert clips[0] == clips[1]


def test_a_damaged_video_in_a_tar_is_refused_as_in_a_file(tmp_path, video):
    halves = (video.read_bytes()[:-500], b"", b"no video, but it has some bytes")
    tar = write_tar(tmp_path / "0.tar", *({"mp4": half, "json": {"label": "a"}} for half in halves))
    for half, item in zip(halves, read_source(tar).items, strict=True):
        (tmp_path / "half.mp4").write_bytes(half)
        reasons = []
        for path in (item.path, tmp_path / "half.mp4"):
            with pytest.raises(VideoError) as caught:
                probe(path)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]


def test_the_output_of_video2dataset_gives_classes_and_splits(tmp_path):
    for number in range(2):
        write_tar(
            tmp_path / f"{number:05d}.tar",
            labelled("cat", split="train") | {"txt": b"a cat"},
            labelled(7, split="val") | {"txt": b"seven"},
            {"json": {"status": "failed_to_download", "label": "cat"}, "txt": b""},
        )
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    listing = read_source(tmp_path)
    assert [(item.label, item.split) for item in listing.items] == [("cat", "train"), ("7", "val")] * 2
    assert "2 samples have no video: 2 with status failed_to_download." in listing.notes


@pytest.mark.parametrize(
    ("samples", "labels"),
    [
        ([{"mp4": b"v", "cls": b"1"}, {"mp4": b"w", "cls": b"0"}] * 2, ["bark", "meow"] * 2),
        ([{"mp4": b"v", "txt": b"cat"}, {"mp4": b"w", "txt": b"dog\n"}] * 2, ["cat", "dog"] * 2),
        ([{"mp4": b"v", "txt": f"caption {number}".encode()} for number in range(4)], [""] * 4),
        ([{"mp4": b"v"}] * 2, [""] * 2),
    ],
)
def test_classes_are_numbers_with_names_beside_or_texts_but_not_captions(tmp_path, samples, labels):
    (tmp_path / "classes.txt").write_text("meow\nbark\n")
    write_tar(tmp_path / "0.tar", *samples)
    assert [label for _, label, _ in rows(tmp_path)] == labels


@pytest.mark.parametrize("names", [("train-0.tar", "validation-0.tar"), ("train/0.tar", "test/0.tar")])
def test_tars_named_after_splits_are_splits(tmp_path, names):
    for name in names:
        write_tar(tmp_path / name, labelled("a"), labelled("b"))
    assert sorted(split for _, _, split in rows(tmp_path)) == ["train", "train", "val", "val"]


def test_a_split_by_seed_does_not_depend_on_the_place_in_the_tar(tmp_path):
    samples = [labelled("a", number=number) for number in range(10)]
    write_tar(tmp_path / "a" / "0.tar", *samples)
    write_tar(tmp_path / "b" / "0.tar", *(sample | {"txt": b"x" * 3000} for sample in samples))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert [split for *_, split in rows(tmp_path / "a")].count("val") == 2
    assert any(rows(tmp_path / "a", split_seed=seed) != rows(tmp_path / "a") for seed in range(1, 4))


@pytest.mark.parametrize(
    ("tars", "message"),
    [
        ({"0.tar": [{"left.mp4": b"v", "right.mp4": b"w"}]}, "wanted one video per sample"),
        ({"0.tar": [{"txt": b"v"}]}, "no videos in 1 tars"),
        ({"train-0.tar": [labelled("a")], "other.tar": [labelled("a")]}, "other.tar beside tars that are named after"),
        ({"train-0.tar": [labelled("a")], "train-1.tar": [labelled("a")]}, "only tars of train"),
        (
            {"train-0.tar": [labelled("a", split="val")], "val-0.tar": [labelled("a", split="val")]},
            "its tar is named after split 'train'",
        ),
        ({"0.tar": [labelled("a")]}, "got 1 video; wanted at least 2"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path, tars, message):
    for name, samples in tars.items():
        write_tar(tmp_path / name, *samples)
    with pytest.raises(ConfigError, match=message):
        read_source(tmp_path)


def add(archive, name, data=b"video", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(data))


def test_names_and_links_lead_nowhere(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    names = ["../secret.mp4", "/etc/passwd.mp4", "a/../../secret2.mp4", "x#1+2#y.mp4", "\x1b[2J\n.mp4", "\udcff.mp4"]
    names.append("ü" * 120 + ".mp4")
    with tarfile.open(tmp_path / "t" / "0.tar", "w", errors="surrogateescape") as archive:
        for name in names:
            add(archive, name)
        add(archive, "link.mp4", b"", type=tarfile.SYMTYPE, linkname="../secret.mp4")
        add(archive, "hard.mp4", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add(archive, "fifo.mp4", b"", type=tarfile.FIFOTYPE)
        add(archive, "._hidden.mp4")
    listing = read_source(tmp_path / "t")
    assert len(listing.items) == len(names)
    assert not listing.rejects
    for item in listing.items:
        assert item.path.parent == tmp_path / "t"
        assert str(item.path).isprintable()
        with open_regular(item.path) as file:
            assert file.read() == b"video"


def test_a_tar_that_is_cut_off_gives_what_is_whole_and_a_reject(tmp_path):
    write_tar(tmp_path / "0.tar", *[labelled("a") for _ in range(4)])
    data = (tmp_path / "0.tar").read_bytes()
    whole = read_source(tmp_path).items
    (tmp_path / "0.tar").write_bytes(data[: find_member(whole[3].path).offset + 2])
    listing = read_source(tmp_path)
    assert [item.path for item in listing.items] == [item.path for item in whole[:3]]
    assert "not a whole, uncompressed tar" in listing.rejects[0].message
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ConfigError, match="not a whole, uncompressed tar"):
        read_source(tmp_path)


def test_an_address_into_a_tar_that_has_changed_is_refused(tmp_path):
    tar = write_tar(tmp_path / "0.tar", labelled("a", split="x"), labelled("bb", split="y"))
    addresses = [item.path for item in read_source(tar).items]
    write_tar(tar, labelled("a", split="x"), {"mp4": b"other", "json": {"label": "a much longer label" * 100}})
    with open_regular(addresses[0]) as file:
        assert file.read() == b"video"
    for address in (addresses[1], Path(f"{tar}#0+10000#{'0' * 9}.mp4"), Path(f"{tar}#99999999+5#x.mp4")):
        with pytest.raises(VideoError) as caught:
            open_regular(address)
        assert caught.value.reason == "Changed"
