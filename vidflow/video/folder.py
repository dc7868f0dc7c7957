"""List a folder of videos as rows of a manifest. Its sub-folders name classes, or splits with classes below."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.video.published import SPLITS, VIDEO_SUFFIXES

FOLDER_RULE = "labels are the names of sub-folders; annotations are the .npz file beside a video, with the same name"
"""How labels and annotations are found in a folder."""
VALIDATION_RULE = "in each class, the fifth of the videos whose paths have the smallest SHA-256 is for validation"
"""How a folder without splits is split. It depends on names alone, so the same folder is always split the same way."""

_TRAIN_PER_VAL = 4


def list_folder(folder: Path) -> tuple[list[VideoItem], bool]:
    """List the videos below a folder as rows. The `.npz` of the same name beside a video is its annotations.

        FOLDER/train/CLASS/*.mp4, FOLDER/val/CLASS/*.mp4    splits as given; without `val`, `test` is used as `val`
        FOLDER/CLASS/*.mp4                                  split by `VALIDATION_RULE`
        FOLDER/*.mp4                                        the same, without labels

    Returns:
        The rows, and whether the sub-folders are splits.

    Raises:
        ConfigError: If there are no videos, or it is not clear what the sub-folders mean.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; wanted one that holds videos, or a manifest")
    folder = folder.absolute()
    parts = {part.name: _find_videos(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    parts = {name: videos for name, videos in parts.items() if videos}
    beside = [path for path in folder.iterdir() if _is_video(path)]
    if not parts and not beside:
        raise ConfigError(f"{folder}: no videos; wanted files named *{', *'.join(sorted(VIDEO_SUFFIXES))}")
    if parts and beside:
        raise ConfigError(
            f"{folder}: got videos beside sub-folders with videos, such as {beside[0].name} and {next(iter(parts))}/; "
            "wanted only videos, or only sub-folders"
        )
    splits = {name: SPLITS[name.casefold()] for name in parts if name.casefold() in SPLITS}
    if splits:
        return _list_splits(folder, splits, parts), True
    return [
        row
        for group in _group_by_class(folder, [*beside, *_flatten(parts)]).values()
        for row in _split_class(folder, group)
    ], False


def _list_splits(folder: Path, splits: dict[str, str], parts: dict[str, list[Path]]) -> list[VideoItem]:
    others = [name for name in parts if name not in splits]
    if others or len(set(splits.values())) < len(splits) or not {"train"} < set(splits.values()):
        raise ConfigError(
            f"{folder}: cannot tell splits from classes in the sub-folders {', '.join(parts)}; wanted train/ and val/ "
            "(or test/) with classes below them and nothing else, or one sub-folder per class, or a manifest"
        )
    names = {name: split if "val" in splits.values() or split == "train" else "val" for name, split in splits.items()}
    return [
        _make_row(path, label, split)
        for name, split in names.items()
        for label, group in _group_by_class(folder / name, parts[name]).items()
        for path in group
    ]


def _group_by_class(folder: Path, videos: Iterable[Path]) -> dict[str, list[Path]]:
    """Group videos by sub-folder; videos in the folder itself get the label ''."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(videos):
        below = path.relative_to(folder).parts
        groups[below[0] if len(below) > 1 else ""].append(path)
    if "" in groups and len(groups) > 1:
        raise ConfigError(f"{folder}: got {groups[''][0].name} beside the sub-folders of classes; move it into one")
    return groups


def _split_class(folder: Path, videos: list[Path]) -> list[VideoItem]:
    """Split the videos of a class by `VALIDATION_RULE`."""
    label = next(iter(_group_by_class(folder, videos)))
    if len(videos) < 2:
        raise ConfigError(f"{folder / label}: got 1 video; wanted at least 2, one each for training and validation")
    ordered = sorted(videos, key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
    validating = set(ordered[: max(1, len(videos) // (_TRAIN_PER_VAL + 1))])
    return [_make_row(path, label, "val" if path in validating else "train") for path in videos]


def _make_row(path: Path, label: str, split: str) -> VideoItem:
    annotations = path.with_suffix(".npz")
    return VideoItem(path=path, label=label, split=split, annotations=annotations if annotations.is_file() else None)


def _flatten(parts: dict[str, list[Path]]) -> list[Path]:
    return [path for videos in parts.values() for path in videos]


def _find_videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_video(path))


def _is_video(path: Path) -> bool:
    # macOS puts hidden files, whose names begin with a dot, beside others.
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


__all__ = ["FOLDER_RULE", "VALIDATION_RULE", "list_folder"]
