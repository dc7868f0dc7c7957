import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import webdataset as wds

from vidflow.store.shards import ShardSample, read_shard, write_shard


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
        assert index == {member.name: [member.offset_data, member.size] for member in archive}
    offset, size = index["key2.11.jpg"]
    assert (tmp_path / "a.tar").read_bytes()[offset : offset + size] == b"image 11"


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_or_tiny_shard_is_valid(tmp_path, count):
    write_shard(tmp_path / "a.tar", make_samples(count))
    assert len(list(read_shard(tmp_path / "a.tar"))) == count
