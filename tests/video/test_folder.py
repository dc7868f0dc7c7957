"""Folders of videos: classes, splits, annotations, and what cannot be told apart."""

from collections import Counter

import pytest

from vidflow.errors import ConfigError
from vidflow.video.folder import list_folder
from vidflow.video.sources import read_source


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def rows(folder):
    return [(item.path.relative_to(folder).as_posix(), item.label, item.split) for item in list_folder(folder)[0]]


def test_sub_folders_are_classes_and_a_fifth_of_each_validates(tmp_path):
    fill(tmp_path, *(f"{label}/{number}.mp4" for label, most in (("cat", 10), ("dog", 2)) for number in range(most)))
    counts = Counter((label, split) for _, label, split in rows(tmp_path))
    assert counts == {("cat", "train"): 8, ("cat", "val"): 2, ("dog", "train"): 1, ("dog", "val"): 1}
    assert not list_folder(tmp_path)[1]


def test_a_split_depends_on_names_alone(tmp_path):
    names = [f"cat/{number}.mp4" for number in range(20)]
    first, second = fill(tmp_path / "a", *names), fill(tmp_path / "b", *reversed(names))
    assert rows(first) == rows(second)
    assert [name for name, _, split in rows(first) if split == "val"] != names[:4]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val"), {"train", "val"}),
        (("train", "Validation"), {"train", "val"}),
        (("train", "test"), {"train", "val"}),
        (("train", "val", "test"), {"train", "val", "test"}),
    ],
)
def test_folders_named_like_splits_are_splits(tmp_path, folders, splits):
    fill(tmp_path, *(f"{folder}/{label}/x.mp4" for folder in folders for label in ("cat", "dog")))
    assert list_folder(tmp_path)[1]
    listed = rows(tmp_path)
    assert {split for _, _, split in listed} == splits
    assert {label for _, label, _ in listed} == {"cat", "dog"}
    assert len(listed) == 2 * len(folders)


def test_a_flat_folder_has_no_labels_but_annotations_where_they_are(tmp_path):
    fill(tmp_path, "a.mp4", "a.npz", "b.MOV", "._b.mp4", "notes.txt", "empty/notes.txt")
    items = {item.path.name: item for item in list_folder(tmp_path)[0]}
    assert items.keys() == {"a.mp4", "b.MOV"}
    assert {item.label for item in items.values()} == {""}
    assert items["a.mp4"].annotations == tmp_path / "a.npz"
    assert items["b.MOV"].annotations is None


def test_animations_are_videos_and_other_files_are_named(tmp_path):
    fill(tmp_path, "cat/a.mp4", "cat/b.gif", "dog/a.MPG", "dog/a.npz", "dog/b.wmv", "dog/.DS_Store")
    listing = read_source(tmp_path)
    assert len(listing.items) == 4
    assert not any("not read" in note for note in listing.notes)
    fill(tmp_path, "dog/list.txt", "x.npz")
    assert "2 other files are not read, such as dog/list.txt" in read_source(tmp_path).notes[-1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["notes.txt"], "no videos; wanted files named"),
        (["a.mp4", "cat/b.mp4"], "videos beside sub-folders"),
        (["train/cat/a.mp4", "bus/a.mp4"], "cannot tell splits from classes in the sub-folders bus, train"),
        (["train/cat/a.mp4"], "cannot tell splits from classes"),
        (["train/a.mp4", "val/b.mp4", "valid/c.mp4"], "cannot tell splits from classes"),
        (["train/a.mp4", "train/cat/b.mp4", "val/cat/c.mp4"], "got a.mp4 beside the sub-folders of classes"),
        (["cat/a.mp4", "dog/a.mp4", "dog/b.mp4"], "cat: got 1 video; wanted at least 2"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path, names, message):
    with pytest.raises(ConfigError, match=message):
        list_folder(fill(tmp_path, *names))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        list_folder(tmp_path / "x")
