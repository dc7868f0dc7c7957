"""An experiment as its files tell it: where each stage lies, and what it has left there.

Addresses are recomputed from the config, never passed by hand. What was read is kept until the step that wrote it is
published again.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from vidflow.config.fingerprints import (
    STAGE_VERSIONS,
    feature_settings,
    fingerprint,
    reduced_settings,
    shard_settings,
    synth_settings,
)
from vidflow.config.schema import Config, FeatureSet, Reducer, Trial
from vidflow.errors import VidflowError
from vidflow.models.identity import weights_identity
from vidflow.models.reduction.places import place_of
from vidflow.records import Reject, StageManifest, VideoItem
from vidflow.stages.address import Address, locate_trial
from vidflow.stages.clips import choose_clips, content_digest, cut_shards, list_class_names
from vidflow.stages.finish import read_manifest
from vidflow.stages.reject_limit import built_rejects
from vidflow.stages.scan import ScanInput, VideoIndex, list_inputs
from vidflow.stages.shard_work import ShardWork, edition_due
from vidflow.stages.transient import Limits
from vidflow.store.digests import check_once
from vidflow.store.layout import TRIAL_RESULT, exclusive, read_listed
from vidflow.video.manifest import read_manifest as read_video_manifest

VIDEOS_MANIFEST = "manifest.csv"
Step = Literal["synth", "scan", "shard", "extract", "sweep", "report"]
"""What is published, in the order of the flow: each rests on those before it."""
_FOLDERS: dict[Step, str] = {
    "synth": "videos",
    "scan": "index",
    "shard": "shards",
    "extract": "features",
    "sweep": "sweeps",
    "report": "reports",
}
_KNOWN: dict[Step, tuple[str, ...]] = {
    "synth": ("rows",),
    "scan": ("index",),
    "shard": ("shards",),
    "extract": ("features", "_weights"),
    "sweep": ("sweep",),
    "report": ("report",),
}
"""Attributes that rest on what a step and those before it have published."""
# A stage does not hold the videos: they may be written while it is at work.
_CHANGED = "the videos, or the files made of them, changed while this command was at work; run the same command again"


class Experiment:
    """Where everything of an experiment lies and what is there; each file is read when it is first asked for."""

    def __init__(self, config: Config) -> None:
        """Look at nothing yet."""
        self.config = config
        self.root = Path(config.root)
        self._manifests: dict[str, dict[Path, StageManifest | None]] = {}
        self._trained: dict[str, bool] = {}

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the root for this process, and read anew what another one may have changed before.

        Raises:
            VidflowError: If another process holds it.
        """
        with exclusive(self.root):
            self.published("synth")
            yield

    def published(self, step: Step) -> None:
        """Forget what was known of a step that has published something now, and of all that rests on it."""
        steps = get_args(Step)
        for behind in steps[steps.index(step) :]:
            self._manifests.pop(_FOLDERS[behind], None)
            for name in _KNOWN[behind]:
                self.__dict__.pop(name, None)
        self._trained.clear()  # trials rest on every step but the last

    def manifest(self, address: Address) -> StageManifest | None:
        """Return a stage's manifest, or None while it is not finished or tells of another edition."""
        manifest = self._manifest_in(address.directory)
        return manifest if manifest is not None and manifest.edition == address.edition else None

    def finished(self, address: Address) -> StageManifest:
        """Return the manifest of a stage that was finished when this command looked at it.

        Raises:
            VidflowError: If it no longer is.
        """
        manifest = self.manifest(address)
        if manifest is None:
            raise VidflowError(f"{address.directory}: {_CHANGED}")
        return manifest

    @property
    def limits(self) -> Limits:
        """What the decoder may take for one file."""
        resources = self.config.resources
        return Limits(timeout_seconds=resources.decode_timeout_seconds, memory_mib=resources.decode_memory_mib)

    @functools.cached_property
    def videos(self) -> Address:
        """Where rendered videos lie."""
        return self._address("synth", synth_settings(self.config))

    @property
    def has_rows(self) -> bool:
        """Whether there is a manifest of videos: the user's own, or that of rendered ones."""
        return self.config.video.manifest is not None or self.manifest(self.videos) is not None

    @functools.cached_property
    def rows(self) -> tuple[list[VideoItem], list[Reject]]:
        """The rows of the manifest of videos, and those that are malformed.

        Raises:
            ConfigError: If the manifest cannot be read.
            DamagedError: If it is that of the rendered videos, and not what was written.
        """
        video = self.config.video
        if video.manifest is not None:
            root = Path(video.video_root) if video.video_root else None
            return read_video_manifest(Path(video.manifest), video_root=root)
        table = self.videos.directory / VIDEOS_MANIFEST
        if (rendered := self.manifest(self.videos)) is not None:
            check_once(table, rendered.details["table_sha256"])
        return read_video_manifest(table)

    @functools.cached_property
    def index(self) -> VideoIndex:
        """All scans made under the root."""
        return VideoIndex(self.root / _FOLDERS["scan"], self.limits)

    def list_unscanned(self) -> list[ScanInput]:
        """Return the files that are not scanned as they are now."""
        return self.index.missing(list_inputs(self.rows[0]))

    @functools.cached_property
    def shards(self) -> ShardWork | None:
        """The shard stage, or None while some video is not scanned as it is now."""
        return self.choose_shards() if self.has_rows and not self.list_unscanned() else None

    @property
    def scanned_shards(self) -> ShardWork:
        """The shard stage, of which every video was scanned when this command looked at it.

        Raises:
            VidflowError: If one no longer is.
        """
        if self.shards is None:
            raise VidflowError(f"{self.root}: {_CHANGED}")
        return self.shards

    @property
    def finished_shards(self) -> ShardWork:
        """The shards, which were finished when this command looked at them.

        Raises:
            VidflowError: If they no longer are, or if not one clip is in them.
        """
        work = self.scanned_shards
        if not self.finished(work.address).num_clips:
            raise VidflowError(
                f"{work.address.directory}: no clip is left, all {work.num_rows} rows are rejected; `vidflow rejects "
                "list` says why, repair the videos"
            )
        return work

    def choose_shards(self) -> ShardWork:
        """Return the shard stage as the newest scans make it, given that every file has one."""
        items, rejects = self.rows
        clips, unusable = choose_clips(
            items, {each: self.index[each] for each in list_inputs(items)}, **asdict(self.config.video.sampling)
        )
        units = cut_shards(clips, self.config.shards.clips_per_shard)
        decoders = {"decord": _version("decord"), "av": _version("av")}
        address = self._address("shard", shard_settings(self.config, content_digest(clips), decoders))
        made = self._manifest_in(address.directory)
        edition = edition_due(address.directory, units, built_rejects(made) if made is not None else [], self.limits)
        return ShardWork(
            address=replace(address, edition=edition),
            class_names=list_class_names(items),
            units=units,
            rejects=[*rejects, *unusable],
            num_rows=len(items) + len(rejects),
        )

    @functools.cached_property
    def features(self) -> dict[str, Address]:
        """Where each feature set lies.

        Raises:
            VidflowError: If some video is no longer scanned as it is now.
        """
        return {name: self._locate_features(name) for name in self.config.features}

    def check_features(self) -> None:
        """Check that the shards and all feature sets, which were finished when this command looked at them, still are.

        Raises:
            VidflowError: If one no longer is, or if there is not one clip.
        """
        for address in (self.finished_shards.address, *self.features.values()):
            self.finished(address)

    def dense(self, name: str) -> Address:
        """Return where the same feature set without token reduction lies."""
        return self._locate_encoded(dense_features(self.config.features[name]))

    def trial(self, trial: Trial) -> Address:
        """Return where a trial lies."""
        return locate_trial(self.config, trial, self.features[trial.features])

    def is_trained(self, key: str) -> bool:
        """Whether a trial has a result and every file that it lists."""
        if key not in self._trained:
            self._trained[key] = read_listed(self.root / "trials" / key / TRIAL_RESULT) is not None
        return self._trained[key]

    @functools.cached_property
    def sweep(self) -> Address:
        """Where the sweep over all feature sets lies."""
        settings = {
            "trials": asdict(self.config.trials),
            "features": {name: address.identity for name, address in sorted(self.features.items())},
            "tracking": asdict(self.config.tracking),
        }
        return self._address("sweep", settings)

    @functools.cached_property
    def report(self) -> Address:
        """Where the page about the sweep lies."""
        about = {"sweep": self.sweep.fingerprint, "report": asdict(self.config.report)}
        return self._address("report", {"version": STAGE_VERSIONS["report"], **about})

    @functools.cached_property
    def _weights(self) -> str:
        return weights_identity(self.config.encoder.name, self.config.encoder.weights)

    def _locate_features(self, name: str) -> Address:
        features = self.config.features[name]
        if is_reduced_from_cache(features):
            return self._feature_address(reduced_settings(features, self.dense(name).fingerprint))
        return self._locate_encoded(features)

    def _locate_encoded(self, features: FeatureSet) -> Address:
        shards = self.scanned_shards.address
        return self._feature_address(feature_settings(self.config, features, shards.fingerprint, self._weights))

    def _feature_address(self, settings: dict[str, Any]) -> Address:
        """Return where features lie; their files are made again one by one as their shards are."""
        return replace(self._address("extract", settings), edition=self.scanned_shards.address.edition)

    def _address(self, step: Step, settings: dict[str, Any]) -> Address:
        return Address(directory=self.root / _FOLDERS[step] / fingerprint(settings), settings=settings)

    def _manifest_in(self, directory: Path) -> StageManifest | None:
        known = self._manifests.setdefault(directory.parent.name, {})
        if directory not in known:
            known[directory] = read_manifest(directory)
        return known[directory]


def dense_features(features: FeatureSet) -> FeatureSet:
    """Return a feature set without its token reduction."""
    return replace(features, reducer=Reducer())


def is_reduced_from_cache(features: FeatureSet) -> bool:
    """Whether the feature set's reducer acts on cached tokens, so that the encoder need not run again."""
    reducer = features.reducer
    return reducer.name != "none" and place_of(reducer.name, reducer.place) == "post"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
