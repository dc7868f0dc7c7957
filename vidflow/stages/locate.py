"""Where each stage of an experiment lies: addresses recomputed from the config, never passed by hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vidflow.config.fingerprints import (
    STAGE_VERSIONS,
    feature_settings,
    fingerprint,
    reduced_settings,
    shard_settings,
    synth_settings,
    trial_settings,
)
from vidflow.config.schema import Config, FeatureSet, Reducer, Trial
from vidflow.config.search import objective_of
from vidflow.models.identity import weights_identity
from vidflow.records import Reject, VideoItem
from vidflow.stages.clips import ShardUnit, choose_clips, content_digest, cut_shards, list_class_names
from vidflow.stages.scan import ScanInput, VideoIndex, inputs_of
from vidflow.stages.transient import TRANSIENT, Limits, is_due
from vidflow.store.digests import check_once
from vidflow.store.layout import committed_entry, read_stage
from vidflow.video.manifest import read_manifest

VIDEOS_MANIFEST = "manifest.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a stage's artifacts lie, and the settings that name the place.

    Attributes:
        directory: The place.
        settings: What names it.
        edition: Names the clips that are left out for now, though the settings would have them in; empty for none.
    """

    directory: Path
    settings: dict[str, Any]
    edition: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of the settings."""
        return fingerprint(self.settings)

    @property
    def identity(self) -> str:
        """Name of the content: what is made from an edition never passes for what is made from the whole."""
        return fingerprint([self.fingerprint, self.edition]) if self.edition else self.fingerprint

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The stage's manifest, or None while it is not finished or tells of another edition."""
        manifest = read_stage(self.directory)
        return manifest if manifest is not None and manifest.get("edition", "") == self.edition else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardWork:
    """The shard stage as complete scans make it."""

    address: Address
    class_names: list[str]
    units: list[ShardUnit]
    rejects: list[Reject]
    num_rows: int

    @property
    def rejects_digest(self) -> str:
        """Name of what is left out before shards are made: the shards do not depend on it, their rejects do."""
        return fingerprint([asdict(reject) for reject in self.rejects])


def root_of(config: Config) -> Path:
    """Return the root folder."""
    return Path(config.root)


def locate_videos(config: Config) -> Address:
    """Return where rendered videos lie."""
    settings = synth_settings(config)
    return Address(directory=root_of(config) / "videos" / fingerprint(settings), settings=settings)


def read_items(config: Config) -> tuple[list[VideoItem], list[Reject]]:
    """Return the rows of the experiment's manifest, and those that are malformed.

    Raises:
        ConfigError: If the manifest cannot be read.
        DamagedError: If it is that of the rendered videos, and not what was written.
    """
    if config.video.manifest is None:
        videos = locate_videos(config)
        if videos.manifest is not None:
            check_once(videos.directory / VIDEOS_MANIFEST, videos.manifest["table_sha256"])
        return read_manifest(videos.directory / VIDEOS_MANIFEST)
    root = Path(config.video.video_root) if config.video.video_root else None
    return read_manifest(Path(config.video.manifest), video_root=root)


def open_index(config: Config) -> VideoIndex:
    """Return all scans made under the root."""
    return VideoIndex(root_of(config) / "index", decode_limits(config))


def decode_limits(config: Config) -> Limits:
    """Return what scanning or decoding one video may take."""
    resources = config.resources
    return Limits(timeout_seconds=resources.decode_timeout_seconds, memory_mib=resources.decode_memory_mib)


def scanned_paths(items: Sequence[VideoItem]) -> list[ScanInput]:
    """Return every file whose content the clips depend on, once as each of what the rows name it."""
    return sorted({each for item in items for each in inputs_of(item)})


def list_shard_work(
    config: Config, items: Sequence[VideoItem], rejects: Sequence[Reject], index: VideoIndex
) -> ShardWork:
    """Return the shards to make, given that every file has been scanned."""
    clips, unusable = choose_clips(
        items, {scanned: index[scanned] for scanned in scanned_paths(items)}, **asdict(config.video.sampling)
    )
    settings = shard_settings(config, content_digest(clips), {"decord": _version("decord"), "av": _version("av")})
    directory, units = (
        root_of(config) / "shards" / fingerprint(settings),
        cut_shards(clips, config.shards.clips_per_shard),
    )
    edition = _edition_due(directory, units, decode_limits(config))
    return ShardWork(
        address=Address(directory=directory, settings=settings, edition=edition),
        class_names=list_class_names(items),
        units=units,
        rejects=[*rejects, *unusable],
        num_rows=len(items) + len(rejects),
    )


def count_reasons(rejects: Sequence[Reject]) -> str:
    """Return how often each reason is given, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())


def edition_of(rejects: Sequence[Reject]) -> str:
    """Return the name of the clips that are left out for transient reasons."""
    keys = sorted(reject.key for reject in rejects if reject.reason in TRANSIENT)
    return fingerprint(keys) if keys else ""


def _edition_due(directory: Path, units: Sequence[ShardUnit], limits: Limits) -> str:
    """Return the edition as it will be if every clip that is due succeeds.

    Equal to the finished stage's edition when nothing is due.
    """
    rejects = [Reject(**row) for row in (read_stage(directory) or {}).get("build_rejects", [])]
    keys = {reject.key for reject in rejects if reject.reason in TRANSIENT}
    due: set[str] = set()
    for unit in units if keys else ():
        here = keys & {clip.key for clip in unit.clips}
        entry = committed_entry(directory, unit.file) if here else None
        if entry is None or is_due(entry, limits):
            due |= here
    return edition_of([reject for reject in rejects if reject.key not in due])


def locate_shards(config: Config) -> ShardWork | None:
    """Return the shard stage, or None while some video has not been scanned as it is now."""
    if config.video.manifest is None and locate_videos(config).manifest is None:
        return None
    items, rejects = read_items(config)
    index = open_index(config)
    return None if index.missing(scanned_paths(items)) else list_shard_work(config, items, rejects, index)


def locate_features(config: Config, name: str, shards: Address) -> Address:
    """Return where a feature set lies, given its shards."""
    features = config.features[name]
    if is_reduced_from_cache(features):
        settings = reduced_settings(features, locate_dense(config, name, shards).fingerprint)
        return _feature_address(config, settings, shards)
    return _locate_encoded(config, features, shards)


def locate_dense(config: Config, name: str, shards: Address) -> Address:
    """Return where the same feature set without token reduction lies."""
    return _locate_encoded(config, dense_features(config, name), shards)


def dense_features(config: Config, name: str) -> FeatureSet:
    """Return a feature set without its token reduction."""
    return replace(config.features[name], reducer=Reducer())


def is_reduced_from_cache(features: FeatureSet) -> bool:
    """Whether the feature set's reducer acts on cached tokens, so that the encoder need not run again."""
    reducer = features.reducer
    if reducer.name == "none":
        return False
    from vidflow.models.reduction.build import build_reducer  # here, for it takes torch's seconds

    made = build_reducer(reducer.name, place=reducer.place, **reducer.settings)
    return made is not None and made.place == "post"


def _locate_encoded(config: Config, features: FeatureSet, shards: Address) -> Address:
    identity = weights_identity(config.encoder.name, config.encoder.weights)
    return _feature_address(config, feature_settings(config, features, shards.fingerprint, identity), shards)


def _feature_address(config: Config, settings: dict[str, Any], shards: Address) -> Address:
    """Return where features lie; their files are made again one by one as their shards are."""
    directory = root_of(config) / "features" / fingerprint(settings)
    return Address(directory=directory, settings=settings, edition=shards.edition)


def locate_trial(config: Config, trial: Trial, features: Address) -> Address:
    """Return where a trial lies, given its features."""
    settings = trial_settings(trial, features.identity, *objective_of(config.trials, trial.task))
    return Address(directory=root_of(config) / "trials" / fingerprint(settings), settings=settings)


def locate_sweep(config: Config, features: dict[str, Address]) -> Address:
    """Return where the sweep over these feature sets lies."""
    settings = {
        "trials": asdict(config.trials),
        "features": {name: address.identity for name, address in sorted(features.items())},
        "tracking": asdict(config.tracking),
    }
    return Address(directory=root_of(config) / "sweeps" / fingerprint(settings), settings=settings)


def locate_report(config: Config, sweep: Address) -> Address:
    """Return where the page about a sweep lies."""
    settings = {"version": STAGE_VERSIONS["report"], "sweep": sweep.fingerprint, "report": asdict(config.report)}
    return Address(directory=root_of(config) / "reports" / fingerprint(settings), settings=settings)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
