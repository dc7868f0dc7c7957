"""Where the clips of a trial are: in its feature set, or in the shards that such features are made from."""

from collections.abc import Collection
from pathlib import Path

from vidflow.config.roots import root_path
from vidflow.config.schema import Config, Feed, Trial
from vidflow.config.search import draw_candidates
from vidflow.errors import VidflowError
from vidflow.stages.address import Address
from vidflow.stages.finish import peek_manifest
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


def video_keys(
    root: Path, features: Address, splits: Collection[str], *, instead: str = "trials.trial.score_by=clip"
) -> dict[str, str]:
    """Return key of a clip -> key of its video, for the clips of some splits.

    Args:
        root: The experiment's root.
        features: A feature set of these clips.
        splits: Names of the splits.
        instead: A setting that does without, for the message.

    Raises:
        VidflowError: If the shards are of an older version, which does not record it.
    """
    settings = features.settings
    if "shards" not in settings:  # made from other features
        dense = peek_manifest(root / "features" / settings["dense"])
        settings = {} if dense is None else dense.settings
    clips = ShardClips(root / "shards" / settings["shards"])
    videos = {key: clips.video(place) for place, key in enumerate(clips.keys) if clips.splits[place] in splits}
    if lacking := [key for key, video in videos.items() if video is None]:
        raise VidflowError(
            f"{clips.directory}: does not say from which video a clip is, such as {lacking[0]}; an older vidflow made "
            f"it: remove this folder and run `vidflow shard` again, or set {instead}"
        )
    return {key: video for key, video in videos.items() if video is not None}


def scored_videos(config: Config, trial: Trial, features: Address) -> dict[str, str] | None:
    """Return key of a clip -> key of its video, of the splits that a trial is measured on; None if it counts clips.

    Raises:
        VidflowError: As `video_keys`.
    """
    if trial.score_by == "clip":
        return None
    splits = config.trials.splits
    measured = [split for split in (splits.val, splits.test) if split is not None]
    return video_keys(root_path(config), features, measured)


def drawn_videos(config: Config, trial: Trial, features: Address) -> dict[str, str] | None:
    """Return key of a training clip -> its video, of which a trial takes a share; None if each clip has its own.

    Raises:
        VidflowError: As `video_keys`.
    """
    if trial.train_fraction == 1.0 or not config.video.sampling.has_several:
        return None
    splits = [config.trials.splits.train]
    return video_keys(root_path(config), features, splits, instead="trials.trial.train_fraction=1")


def unread_features(config: Config) -> set[str]:
    """Return the feature sets that no trial reads, because all trials that name them read frames; they are not made."""
    feeds: dict[str, set[Feed]] = {}
    for trial in draw_candidates(config)[0]:
        feeds.setdefault(trial.features, set()).add(trial.feed)
    return {name for name, used in feeds.items() if used == {"shards"}}


__all__ = ["drawn_videos", "open_clips", "scored_videos", "unread_features", "video_keys"]
