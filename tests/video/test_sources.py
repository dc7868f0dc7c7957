"""What a source of videos is, by its name and content."""

import pytest
from test_tars import labelled, write_tar

from vidflow.errors import ConfigError
from vidflow.video.sources import read_source


def test_published_annotations_are_read_by_their_name(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "abc_000001_000011.mp4").touch()
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    (tmp_path / "train.csv").write_text(header + "run,abc,1,11,train,0\n")
    (tmp_path / "val.csv").write_text(header + "run,xyz,1,11,val,0\n")
    with pytest.raises(ConfigError, match=r"for a published list, name its format in video\.format"):
        read_source(tmp_path / "train.csv")
    options = {"format_name": "kinetics", "video_root": tmp_path / "v"}
    assert [item.split for item in read_source(tmp_path, **options).items] == ["train", "val"]
    assert [item.split for item in read_source(tmp_path / "train.csv", **options).items] == ["train"]
    with pytest.raises(ConfigError, match="none of its 1 videos exists"):
        read_source(tmp_path / "val.csv", format_name="kinetics", video_root=tmp_path / "v")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/a.mp4", "b.tar"], r"got videos \(cat/a.mp4\) and tars \(b.tar\); it is not clear"),
        (["cat/a.mp4", "labels.csv"], r"videos \(cat/a.mp4\) and a table \(labels.csv\)"),
        (["notes.txt"], "no videos in it; wanted a folder of videos, a .csv"),
    ],
)
def test_a_folder_that_may_be_several_things_is_refused(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=message):
        read_source(tmp_path)


def test_the_format_decides_where_the_content_does_not(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.mp4").touch()
    write_tar(tmp_path / "0.tar", labelled("cat"), labelled("cat"))
    assert len(read_source(tmp_path, format_name="folder").items) == 3
    assert len(read_source(tmp_path, format_name="webdataset").items) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.tar.gz", "compressed archive"), ("a.mp4", "got one video; wanted the folder"), ("", "no such file or folder")],
)
def test_other_files_are_refused(tmp_path, name, message):
    (tmp_path / (name or "there")).touch()
    with pytest.raises(ConfigError, match=message):
        read_source(tmp_path / (name or "gone"))


def test_folders_of_splits_may_have_the_names_that_trials_use(tmp_path):
    for split in ("fit", "rank", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / f"{split}.mp4").touch()
    items = read_source(tmp_path, split_names=("fit", "rank", "test")).items
    assert {(item.label, item.split) for item in items} == {("cat", "fit"), ("cat", "rank"), ("cat", "test")}
