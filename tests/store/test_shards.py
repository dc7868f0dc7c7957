import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset as wds

from vidflow.store.layout import FileEntry
from vidflow.store.shards import ShardSample, read_images, read_members, read_shard, write_shard


def make_samples(count: int = 3) -> list[ShardSample]:
    return [
        ShardSample(
            key=f"key{index}",
            label=index,
            images=[b"image %d" % frame for frame in range(12)],
            image_format="jpg",
            metadata={"split": "train", "pts_seconds": [0.0, 0.1]},
            annotations=b"npz" if index == 1 else b"",
        )
        for index in range(count)
    ]


def test_what_is_written_is_read_back_exactly(tmp_path):
    write_shard(tmp_path / "a.tar", make_samples())
    assert list(read_shard(tmp_path / "a.tar")) == make_samples()


def test_the_bytes_do_not_depend_on_the_time_or_the_process(tmp_path):
    write_shard(tmp_path / "a.tar", make_samples())
    time.sleep(1.1)  # tar times count in whole seconds
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
        "from test_shards import make_samples, write_shard; write_shard(Path(sys.argv[1]), make_samples())"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "b.tar", str(Path(__file__).parent)], check=True)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_stock_webdataset_reads_a_shard(tmp_path):
    write_shard(tmp_path / "a.tar", make_samples())
    samples = list(wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["key0", "key1", "key2"]
    assert samples[2]["11.jpg"] == b"image 11"
    assert samples[2]["cls"] == b"2"


def test_the_member_index_says_what_a_reading_of_the_tar_says(tmp_path):
    index = write_shard(tmp_path / "a.tar", make_samples())
    with tarfile.open(tmp_path / "a.tar") as archive:
        read = {member.name: [member.offset_data, member.size] for member in archive}
    found = {f"{key}.{name}": [*span] for key, clip in read_members(index).items() for name, span in clip.items()}
    assert found == read
    assert read_members(read) == read_members(index), "older shards have an index of this form"
    for members in (index, read):
        assert read_images(tmp_path / "a.tar", members, "key2") == make_samples()[2].images


def test_the_driver_keeps_little_of_a_shard_of_64_clips_of_16_frames_and_a_reader_finds_all(tmp_path):
    samples = [ShardSample(key=f"{n:016x}", label=0, images=[b"x"] * 16, image_format="jpg") for n in range(64)]
    members = write_shard(tmp_path / "a.tar", samples)
    entry = FileEntry(
        file="a.tar", num_bytes=1, sha256="", num_clips=64, seconds=1, rejects=[], details={"members": members}
    )
    assert len(json.dumps(entry.details)) < 20 << 10
    assert entry.without_members().details == {}


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_or_tiny_shard_is_valid(tmp_path, count):
    write_shard(tmp_path / "a.tar", make_samples(count))
    assert len(list(read_shard(tmp_path / "a.tar"))) == count
