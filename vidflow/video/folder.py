"""List a folder of videos as rows of a manifest. Its sub-folders name classes, or splits with classes below."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.video.published import SPLITS, VIDEO_SUFFIXES
from vidflow.video.splits import split_by_name

FOLDER_RULE = "labels are the names of sub-folders; annotations are the .npz file beside a video, with the same name"
"""How labels and annotations are found in a folder."""


def list_folder(
    folder: Path, *, split_names: Collection[str] = ("train", "val"), seed: int = 0
) -> tuple[list[VideoItem], bool]:
    """List the videos below a folder as rows. The `.npz` of the same name beside a video is its annotations.

        FOLDER/train/CLASS/*.mp4, FOLDER/val/CLASS/*.mp4    splits as given; without `val`, `test` is used as `val`
        FOLDER/CLASS/*.mp4                                  split by `VALIDATION_RULE`
        FOLDER/*.mp4                                        the same, without labels

    Args:
        folder: The folder.
        split_names: Further names of sub-folders that are splits: those that trials use.
        seed: Seed of `VALIDATION_RULE`.

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
    beside = [path for path in folder.iterdir() if is_video(path)]
    if not parts and not beside:
        raise ConfigError(f"{folder}: no videos; wanted files named *{', *'.join(sorted(VIDEO_SUFFIXES))}")
    if parts and beside:
        raise ConfigError(
            f"{folder}: got videos beside sub-folders with videos, such as {beside[0].name} and {next(iter(parts))}/; "
            "wanted only videos, or only sub-folders"
        )
    splits = {name: name for name in parts if name in split_names}
    splits |= {name: SPLITS[name.casefold()] for name in parts if name not in splits and name.casefold() in SPLITS}
    if splits:
        return _list_splits(folder, splits, parts, split_names), True
    groups = _group_by_class(folder, [*beside, *_flatten(parts)])
    rows = [_make_row(path, label, "") for label, group in groups.items() for path in group]
    named = [(row.path.relative_to(folder).as_posix(), row) for row in rows]
    return split_by_name(folder, named, seed=seed), False


def name_others(folder: Path, items: Iterable[VideoItem]) -> list[str]:
    """Return a sentence about the files below a folder that are neither videos nor annotations, if there are any."""
    folder = folder.absolute()
    used = {path for item in items for path in (item.path, item.annotations)}
    below = (path for path in sorted(folder.rglob("*")) if path not in used and path.is_file())
    others = [
        name for path in below if not (name := path.relative_to(folder).as_posix()).split("/")[-1].startswith(".")
    ]
    if not others:
        return []
    files = "file is" if len(others) == 1 else "files are"
    example = f": {others[0]}" if len(others) == 1 else f", such as {others[0]}"
    return [
        f"{len(others)} other {files} not read{example}. Names of videos end in {', '.join(sorted(VIDEO_SUFFIXES))}."
    ]


def _list_splits(
    folder: Path, splits: dict[str, str], parts: dict[str, list[Path]], split_names: Collection[str]
) -> list[VideoItem]:
    others = [name for name in parts if name not in splits]
    found = set(splits.values())
    if others or len(found) < len(splits) or len(found) < 2 or not found & {"train", *split_names} - {"val", "test"}:
        raise ConfigError(
            f"{folder}: cannot tell splits from classes in the sub-folders {', '.join(parts)}; wanted train/ and val/ "
            "(or test/, or the names in trials.splits) with classes below them and nothing else, or one sub-folder per "
            "class, or a manifest"
        )
    names = validate_on_test(splits, split_names)
    return [
        _make_row(path, label, split)
        for name, split in names.items()
        for label, group in _group_by_class(folder / name, parts[name]).items()
        for path in group
    ]


def validate_on_test(splits: Mapping[str, str], split_names: Collection[str]) -> dict[str, str]:
    """Return name -> split; where there is no split `val`, `test` becomes it, unless trials use a split `test`."""
    keep = "val" in splits.values() or "test" in split_names
    return {name: "val" if split == "test" and not keep else split for name, split in splits.items()}


def _group_by_class(folder: Path, videos: Iterable[Path]) -> dict[str, list[Path]]:
    """Group videos by sub-folder; videos in the folder itself get the label ''."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(videos):
        below = path.relative_to(folder).parts
        groups[below[0] if len(below) > 1 else ""].append(path)
    if "" in groups and len(groups) > 1:
        raise ConfigError(f"{folder}: got {groups[''][0].name} beside the sub-folders of classes; move it into one")
    return groups


def _make_row(path: Path, label: str, split: str) -> VideoItem:
    annotations = path.with_suffix(".npz")
    return VideoItem(path=path, label=label, split=split, annotations=annotations if annotations.is_file() else None)


def _flatten(parts: dict[str, list[Path]]) -> list[Path]:
    return [path for videos in parts.values() for path in videos]


def _find_videos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_video(path))


def is_video(path: Path) -> bool:
    """Return whether a path is a file that is named like a video."""
    # macOS puts hidden files, whose names begin with a dot, beside others.
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


__all__ = ["FOLDER_RULE", "is_video", "list_folder", "name_others", "validate_on_test"]
