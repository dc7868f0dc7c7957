"""Where the clips of a trial are: in its feature set, or in the shards that such features are made from."""

from pathlib import Path

from vidflow.config.schema import Config, Feed
from vidflow.config.search import draw_candidates
from vidflow.stages.address import Address
from vidflow.store.features import FeatureReader
from vidflow.store.shard_clips import ShardClips


def open_clips(root: Path, features: Address, feed: Feed) -> FeatureReader | ShardClips:
    """Return the clips of a trial, by position.

    Args:
        root: The experiment's root.
        features: The trial's feature set.
        feed: What its batches are made of.

    Raises:
        VidflowError: If they are not finished.
    """
    if feed == "shards":
        return ShardClips(root / "shards" / features.settings["shards"])
    return FeatureReader(features.directory)


def unread_features(config: Config) -> set[str]:
    """Return the feature sets that no trial reads, because all trials that name them read frames; they are not made."""
    feeds: dict[str, set[Feed]] = {}
    for trial in draw_candidates(config)[0]:
        feeds.setdefault(trial.features, set()).add(trial.feed)
    return {name for name, used in feeds.items() if used == {"shards"}}


__all__ = ["open_clips", "unread_features"]
