"""List files of mmaction2."""

from collections import Counter

import pytest

from vidflow.errors import ConfigError
from vidflow.video.sources import read_source


def write(folder, **lists):
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return folder


def place(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def rows(listing, folder):
    return [(item.path.relative_to(folder).as_posix(), item.label, item.split) for item in listing.items]


def test_lists_that_differ_in_the_split_belong_together_and_classes_have_names(tmp_path):
    write(tmp_path, k_train_list_videos=["run/a.mp4 0", "", "jump/b.mp4 1"], k_val_list_videos=["run/c.mp4 0"])
    write(tmp_path, label_map_k=["running", "jumping"], other=["x 1"])
    place(tmp_path, "run/a.mp4")
    listing = read_source(tmp_path / "k_train_list_videos.txt")
    wanted = [("run/a.mp4", "running", "train"), ("jump/b.mp4", "jumping", "train"), ("run/c.mp4", "running", "val")]
    assert rows(listing, tmp_path) == wanted
    assert rows(read_source(tmp_path / "k_val_list_videos.txt"), tmp_path) == wanted
    assert "k_val_list_videos.txt is val" in " ".join(listing.notes)


def test_one_list_is_split_by_seed_and_its_videos_may_be_elsewhere(tmp_path):
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists", mine=[f"{number}.mp4 {number % 2}" for number in range(20)])
    place(tmp_path / "videos", "3.mp4")
    with pytest.raises(ConfigError, match=r"none of its 20 videos exists.*video.video_root"):
        read_source(tmp_path / "lists" / "mine.txt")
    listing = read_source(tmp_path / "lists" / "mine.txt", video_root=tmp_path / "videos")
    counts = Counter((label, split) for _, label, split in rows(listing, tmp_path / "videos"))
    assert counts == {("0", "train"): 8, ("1", "train"): 8, ("0", "val"): 2, ("1", "val"): 2}


def test_a_path_out_of_the_folder_of_videos_is_a_reject(tmp_path):
    write(tmp_path, mine=["a.mp4 0", "b.mp4 0", "../c.mp4 0"])
    place(tmp_path, "a.mp4")
    listing = read_source(tmp_path / "mine.txt")
    assert [reject.reason for reject in listing.rejects] == ["PathEscapes"]
    assert f"video.video_root={tmp_path.parent}" in listing.rejects[0].message


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"a": ["run/v_001 163 1"]}, "a folder of frames.*RawframeDataset"),
        ({"a": ["a.mp4 1 3"]}, "several classes"),
        ({"a": ["a.mp4 running"]}, "CLASS is a whole number"),
        ({"a": ["a.mp4"]}, "wanted `PATH CLASS`"),
        ({"k_train": ["a.mp4 0"]}, "got the lists k_train.txt; wanted one of split train and one of split val"),
        ({"a": ["a.mp4 2"], "classes": ["one", "two"]}, "2 names of classes, but a video has the class 2"),
        ({"a": ["a.mp4 0"], "classes": ["one"], "label_map": ["one"]}, "a second file"),
    ],
)
def test_other_lists_are_refused_with_a_reason(tmp_path, lists, message):
    write(tmp_path, **lists)
    with pytest.raises(ConfigError, match=message):
        read_source(tmp_path / f"{next(iter(lists))}.txt")
