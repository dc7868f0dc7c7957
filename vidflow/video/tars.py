"""List the videos in WebDataset tars, such as those that video2dataset writes, as rows. They are read in place.

Source: webdataset's README, "The WebDataset Format"; iejMac/video2dataset, its README, "Output format".
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidflow.errors import ConfigError
from vidflow.records import VideoItem
from vidflow.tar_members import TarMember
from vidflow.video.class_names import read_class_names
from vidflow.video.folder import validate_on_test
from vidflow.video.listing import Listing
from vidflow.video.manifest import parse_rows
from vidflow.video.published import SPLITS, VIDEO_SUFFIXES
from vidflow.video.splits import VALIDATION_RULE, split_by_name
from vidflow.video.tar_samples import Sample, read_samples

_SPLIT_AT_START = re.compile(rf"({'|'.join(SPLITS)})(?![a-zA-Z])", re.IGNORECASE)
# Of captions nearly each is another text; of classes nearly none.
_MAX_CLASS_SHARE = 0.5


def list_tars(source: Path, tars: Sequence[Path], *, split_names: Collection[str], seed: int) -> Listing:
    """List the videos of tars.

    The class is `label` in the sample's JSON, else the text of its `.cls`, else that of its `.txt`, unless the texts
    are captions. The split is `split` in the JSON; or the folder of the tar, or the start of its name, as in
    `train-000000.tar`; else videos are split by `VALIDATION_RULE`.

    Args:
        source: The tar, or the folder of the tars.
        tars: The tars.
        split_names: Splits that trials use.
        seed: Seed of `VALIDATION_RULE`.

    Raises:
        ConfigError: If there are no videos, or it is not clear which members are the videos or how they are split.
    """
    folder = source if source.is_dir() else source.parent
    of_tars = _split_tars(source, tars, split_names)
    read = [(tar, *read_samples(tar)) for tar in tars]
    rejects = [reject for _, _, some in read for reject in some]
    samples = [sample for _, some, _ in read for sample in some]
    usable = [sample for sample in samples if sample.videos]
    if not usable:
        why = rejects[0].message if rejects else f"wanted members named *{', *'.join(sorted(VIDEO_SUFFIXES))}"
        raise ConfigError(f"{source}: no videos in {len(tars)} tars: {why}")
    labels, about_labels = _choose_labels(usable)
    names, about_names = read_class_names(folder, (str(label) for label in labels if label is not None))
    splits, rule = _choose_splits(usable, of_tars)
    rows = [
        {
            "path": sample.videos[0].address,
            "label": names.get(str(label), "" if label is None else label),
            "split": split,
        }
        for sample, label, split in zip(usable, labels, splits, strict=True)
    ]
    items: Sequence[VideoItem]
    items, refused = parse_rows(source, rows, [folder])
    if not rule:
        # Where a member is in its tar does not matter.
        named = {sample.videos[0].address: _name_of(sample.videos[0], folder) for sample in usable}
        items = split_by_name(source, [(named[str(item.path)], item) for item in items], seed=seed)
        rule = f"Split by names: {VALIDATION_RULE}."
    notes = [f"{len(tars)} tars, read in place.", rule, about_labels, about_names, *_describe_unused(samples)]
    return Listing(items=items, rejects=[*rejects, *refused], notes=[note for note in notes if note])


def _name_of(member: TarMember, folder: Path) -> str:
    return f"{member.tar.relative_to(folder).as_posix()}/{member.name}"


def _describe_unused(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield sentences about what the tars hold besides videos and their classes."""
    failed = Counter(str(sample.facts.get("status", "unknown"))[:100] for sample in samples if not sample.videos)
    if failed:
        counts = ", ".join(f"{count} with status {status}" for status, count in failed.most_common(5))
        yield f"{failed.total()} samples have no video: {counts}."
    unused = Counter(ending for sample in samples for ending in sample.others)
    if unused:
        yield f"Members that are not used: {', '.join(f'{n} .{ending}' for ending, n in unused.most_common(5))}."


def _split_tars(source: Path, tars: Sequence[Path], split_names: Collection[str]) -> dict[Path, str]:
    """Return the split of each tar by the folder below `source` or the start of its name; '' for all if none has one.

    Raises:
        ConfigError: If only some have one, or all have the same.
    """
    known = SPLITS | {name: name for name in split_names}
    found: dict[Path, str] = {}
    for tar in tars:
        below = tar.relative_to(source).parts[:-1] if source.is_dir() else ()
        at_start = _SPLIT_AT_START.match(tar.name)
        word = below[0] if below else at_start[1] if at_start else ""
        found[tar] = known.get(word) or known.get(word.casefold(), "")
    if not any(found.values()) or len(tars) == 1:
        return dict.fromkeys(tars, "")
    bare = [tar.name for tar, split in found.items() if not split]
    if bare or len(set(found.values())) < 2:
        got = (
            f"{bare[0]} beside tars that are named after splits"
            if bare
            else f"only tars of {next(iter(found.values()))}"
        )
        raise ConfigError(f"{source}: got {got}; wanted tars of two splits or more, such as train/*.tar and val/*.tar")
    renamed = validate_on_test({split: split for split in found.values()}, split_names)
    return {tar: renamed[split] for tar, split in found.items()}


def _choose_splits(samples: Sequence[Sample], of_tars: Mapping[Path, str]) -> tuple[list[Any], str]:
    """Return the split of each sample, and where it is from; '' if the samples have none.

    Raises:
        ConfigError: If a sample and its tar name different splits.
    """
    if not any("split" in sample.facts for sample in samples):
        splits = [of_tars[sample.videos[0].tar] for sample in samples]
        return (splits, "Split by the names of the tars.") if any(splits) else (["none"] * len(samples), "")
    for sample in samples:
        member, split = sample.videos[0], sample.facts.get("split")
        of_tar = of_tars[member.tar]
        if of_tar and SPLITS.get(str(split).casefold(), split) != of_tar:
            raise ConfigError(
                f"{member.tar}: {member.name} is of split {split!r} by its JSON, but its tar is named after split "
                f"{of_tar!r}; wanted the same"
            )
    return [sample.facts.get("split") for sample in samples], "Split by `split` in the .json members."


def _choose_labels(samples: Sequence[Sample]) -> tuple[list[Any], str]:
    """Return the label of each sample, None if it has none, and a sentence that says where they are from."""
    if any("label" in sample.facts for sample in samples):
        return [sample.facts.get("label") for sample in samples], "Classes are `label` in the .json members."
    if any("cls" in sample.texts for sample in samples):
        return [sample.texts.get("cls") for sample in samples], "Classes are the .cls members."
    texts = [sample.texts["txt"] for sample in samples if sample.texts.get("txt")]
    if not texts:
        return [None] * len(samples), "Videos have no class: got no `label` in .json members, no .cls and no .txt."
    if len(set(texts)) > max(2, _MAX_CLASS_SHARE * len(texts)):
        about = f"The .txt members are captions ({len(set(texts))} for {len(texts)} videos), so videos have no class."
        return [None] * len(samples), about
    return [sample.texts.get("txt") for sample in samples], "Classes are the texts of the .txt members."


__all__ = ["list_tars"]
