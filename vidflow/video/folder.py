"""A folder of videos as the rows of a manifest: its sub-folders name classes, or splits with classes below."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.video.published import SPLITS, VIDEO_SUFFIXES

FOLDER_RULE = "labels are the names of sub-folders, annotations the .npz files named like a video, beside it"
"""What a folder says of its videos."""
VALIDATION_RULE = "within each class the fifth of the videos whose paths have the smallest SHA-256 validates"
"""How a folder without splits is split: by names alone, so that the same folder is always split alike."""

_TRAIN_PER_VAL = 4


def list_folder(folder: Path) -> tuple[list[VideoItem], bool]:
    """List the videos below a folder as rows, with the `.npz` of the same name beside a video as its annotations.

        FOLDER/train/CLASS/*.mp4, FOLDER/val/CLASS/*.mp4    splits as they are; without `val`, `test` is taken for it
        FOLDER/CLASS/*.mp4                                  split by `VALIDATION_RULE`
        FOLDER/*.mp4                                        the same, without labels

    Returns:
        The rows by path, and whether the folder itself says how they are split.

    Raises:
        ConfigError: There are no videos, or it cannot be told what the sub-folders mean.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; wanted one that holds videos, or a manifest")
    folder = folder.absolute()
    parts = {part.name: _videos(part) for part in sorted(folder.iterdir()) if part.is_dir()}
    parts = {name: videos for name, videos in parts.items() if videos}
    beside = [path for path in folder.iterdir() if _is_video(path)]
    if not parts and not beside:
        raise ConfigError(f"{folder}: no videos; wanted files named *{', *'.join(sorted(VIDEO_SUFFIXES))}")
    if parts and beside:
        raise ConfigError(
            f"{folder}: videos beside sub-folders with videos, such as {beside[0].name} beside {next(iter(parts))}/; "
            "wanted one or the other"
        )
    splits = {name: SPLITS[name.casefold()] for name in parts if name.casefold() in SPLITS}
    if splits:
        return _given_splits(folder, splits, parts), True
    return [
        row for group in _by_class(folder, [*beside, *_all(parts)]).values() for row in _split(folder, group)
    ], False


def _given_splits(folder: Path, splits: dict[str, str], parts: dict[str, list[Path]]) -> list[VideoItem]:
    others = [name for name in parts if name not in splits]
    if others or len(set(splits.values())) < len(splits) or not {"train"} < set(splits.values()):
        raise ConfigError(
            f"{folder}: cannot tell splits from classes in the sub-folders {', '.join(parts)}; wanted train/ and val/ "
            "(or test/) with classes below them and nothing else, or one sub-folder per class, or a manifest"
        )
    names = {name: split if "val" in splits.values() or split == "train" else "val" for name, split in splits.items()}
    return [
        _row(path, label, split)
        for name, split in names.items()
        for label, group in _by_class(folder / name, parts[name]).items()
        for path in group
    ]


def _by_class(folder: Path, videos: Iterable[Path]) -> dict[str, list[Path]]:
    """Group videos by the sub-folder that they lie in; those in the folder itself have the label ''."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(videos):
        below = path.relative_to(folder).parts
        groups[below[0] if len(below) > 1 else ""].append(path)
    if "" in groups and len(groups) > 1:
        raise ConfigError(f"{folder}: {groups[''][0].name} lies beside the sub-folders of classes; wanted it in one")
    return groups


def _split(folder: Path, videos: list[Path]) -> list[VideoItem]:
    """Split the videos of a class by `VALIDATION_RULE`."""
    label = next(iter(_by_class(folder, videos)))
    if len(videos) < 2:
        raise ConfigError(f"{folder / label}: got 1 video; wanted at least 2, to train with and to validate with")
    ordered = sorted(videos, key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())
    validating = set(ordered[: max(1, len(videos) // (_TRAIN_PER_VAL + 1))])
    return [_row(path, label, "val" if path in validating else "train") for path in videos]


def _row(path: Path, label: str, split: str) -> VideoItem:
    annotations = path.with_suffix(".npz")
    return VideoItem(path=path, label=label, split=split, annotations=annotations if annotations.is_file() else None)


def _all(parts: dict[str, list[Path]]) -> list[Path]:
    return [path for videos in parts.values() for path in videos]


def _videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_video(path))


def _is_video(path: Path) -> bool:
    # The files that macOS leaves beside others begin with a dot.
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


__all__ = ["FOLDER_RULE", "VALIDATION_RULE", "list_folder"]
