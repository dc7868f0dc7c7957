"""Read the list files of mmaction2: text files with a video and the number of its class on each line.

Source: open-mmlab/mmaction2, docs/en/user_guides/prepare_dataset.md, on `VideoDataset` and `RawframeDataset`.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidflow.errors import ConfigError, VideoError
from vidflow.files import open_regular
from vidflow.records import Reject, VideoItem
from vidflow.video.class_names import read_class_names
from vidflow.video.folder import validate_on_test
from vidflow.video.listing import Listing
from vidflow.video.manifest import parse_rows
from vidflow.video.published import SPLITS, VIDEO_SUFFIXES
from vidflow.video.splits import VALIDATION_RULE, split_by_name

_SPLIT_WORD = re.compile(rf"(?<![a-zA-Z])({'|'.join(SPLITS)})(?![a-zA-Z])", re.IGNORECASE)
_WANTED = "wanted `PATH CLASS` on each line, where CLASS is a whole number, as mmaction2's VideoDataset reads"


def list_mmaction(source: Path, *, video_root: Path | None, split_names: Collection[str], seed: int) -> Listing:
    """List the videos of a list file.

    A list whose name holds a split, such as `k400_train_list_videos.txt`, is read together with those beside it whose
    names differ only in the split. A list without a split in its name is split by `VALIDATION_RULE`.

    Args:
        source: A list.
        video_root: Folder of the videos; None: that of the list.
        split_names: Splits that trials use.
        seed: Seed of `VALIDATION_RULE`.

    Raises:
        ConfigError: If a list cannot be read, is of another kind, or lacks its counterpart.
    """
    lists = _find_lists(source, split_names)
    root = video_root or source.parent
    items: list[VideoItem] = []
    rejects: list[Reject] = []
    for file, split in lists.items():
        rows = parse_rows(file, _read_rows(file, split or "all"), [root])
        items += rows[0]
        rejects += rows[1]
    names, about = read_class_names(source.parent, (item.label for item in items))
    items = [replace(item, label=names.get(item.label, item.label)) for item in items]
    if lists == {source: ""}:
        items = split_by_name(
            source, [(str(item.path.relative_to(root.absolute())), item) for item in items], seed=seed
        )
        rule = f"Split by names: {VALIDATION_RULE}."
    else:
        rule = f"Split by lists: {', '.join(f'{file.name} is {split}' for file, split in lists.items())}."
    return Listing(items=items, rejects=rejects, notes=[note for note in (rule, about) if note])


def _find_lists(source: Path, split_names: Collection[str]) -> dict[Path, str]:
    """Return the list and those that belong to it, each with its split; '' if its name has none."""
    words = _SPLIT_WORD.findall(source.name)
    if not words:
        return {source: ""}
    if len(words) > 1:
        raise ConfigError(f"{source}: got {' and '.join(words)} in the name of a list; wanted one split")
    before, after = _SPLIT_WORD.split(source.name)[::2]
    family = re.compile(f"{re.escape(before)}({'|'.join(SPLITS)}){re.escape(after)}", re.IGNORECASE)
    splits = {
        file.name: SPLITS[found[1].casefold()]
        for file in sorted(source.parent.iterdir())
        if (found := family.fullmatch(file.name)) and file.is_file()
    }
    if len(set(splits.values())) < len(splits) or "train" not in splits.values() or len(splits) < 2:
        raise ConfigError(
            f"{source}: got the lists {', '.join(splits)}; wanted one of split train and one of split val (or test) in "
            "the same folder, with names that differ only in that word; or one list without such a word in its name"
        )
    return {source.with_name(name): split for name, split in validate_on_test(splits, split_names).items()}


def _read_rows(file: Path, split: str) -> Iterator[dict[str, Any]]:
    try:
        with open_regular(file) as stream:
            lines = stream.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeError, VideoError) as error:
        raise ConfigError(f"{file}: cannot be read as a list ({error}); {_WANTED}") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        is_video = Path(words[0]).suffix.lower() in VIDEO_SUFFIXES
        where = f"{file}, line {number}: got {line.strip()[:200]!r}"
        if len(words) == 3 and not is_video and words[1].isdecimal():
            raise ConfigError(
                f"{where}, a folder of frames, their number and a class, as mmaction2's RawframeDataset reads; frames "
                "without their times cannot be used: give the list of the videos"
            )
        if len(words) > 2:
            raise ConfigError(f"{where}, with several classes or a path with spaces; {_WANTED}: one class per video")
        if len(words) < 2 or not words[1].isdecimal():
            raise ConfigError(f"{where}; {_WANTED}")
        yield {"path": words[0], "label": str(int(words[1])), "split": split}


__all__ = ["list_mmaction"]
