"""The state of an experiment, read from its files: the folder of each stage and what the stage has written there.

Addresses are recomputed from the config, never passed by hand. What was read is cached until the step that wrote it
is published again.
"""

import contextlib
import functools
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow.compute as pc

from vidflow.allocator import return_freed_columns
from vidflow.config.fingerprints import (
    STAGE_VERSIONS,
    feature_settings,
    fingerprint,
    reduced_settings,
    shard_settings,
    sweep_settings,
    synth_settings,
    tracking_settings,
)
from vidflow.config.roots import bound_cache, place_path, root_path
from vidflow.config.schema import Config, FeatureSet, Feed, Reducer, Trial
from vidflow.config.tracking_uri import without_credentials
from vidflow.errors import ConfigError, VidflowError
from vidflow.models.identity import video_weights_identity, weights_identity
from vidflow.models.reduction.places import place_of
from vidflow.objects import is_mirror
from vidflow.records import Reject, StageManifest
from vidflow.stages.address import Address, locate_trial
from vidflow.stages.clips import choose_kept, cut_shards
from vidflow.stages.finish import read_manifest
from vidflow.stages.kept_tables import KeptTables
from vidflow.stages.reject_limit import built_rejects, on_one_line
from vidflow.stages.root_files import KEPT
from vidflow.stages.scan import ScanInput
from vidflow.stages.scan_index import VideoIndex
from vidflow.stages.scanned_rows import list_class_names
from vidflow.stages.shard_work import ShardWork, edition_due
from vidflow.stages.transient import Limits
from vidflow.stages.trial_clips import open_clips, unread_features
from vidflow.store.digests import check_once
from vidflow.store.features import FeatureReader
from vidflow.store.initial_weights import list_initial, read_initial
from vidflow.store.layout import TRIAL_RESULT, exclusive, list_sizes, read_listed, store
from vidflow.store.shard_clips import ShardClips
from vidflow.video.manifest import manifest_digest
from vidflow.video.manifest import read_manifest as read_video_manifest
from vidflow.video.sources import find_manifest, read_source
from vidflow.video.video_rows import SCHEMA, VideoRows

log = logging.getLogger(__name__)
VIDEOS_MANIFEST = "manifest.csv"
Step = Literal["synth", "scan", "shard", "extract", "sweep", "report"]
"""The steps that publish something, in order; each depends on those before it."""
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
    "extract": ("features", "stored_features", "_weights"),
    "sweep": ("sweep",),
    "report": ("report",),
}
"""Cached attributes that depend on what a step and the steps before it have published."""
# A stage does not lock the videos: other programs may write them while it runs.
_CHANGED = "the videos, or the files made of them, changed while this command was at work; run the same command again"


class Experiment:
    """Where all files of an experiment are and what exists; each file is read when it is first needed."""

    def __init__(self, config: Config, settings: Sequence[str] = ()) -> None:
        """Read no file yet.

        Args:
            config: The experiment's settings.
            settings: The words of the command line that gave them, for the commands that messages recommend.
        """
        self.config = config
        self._settings = tuple(settings)
        self.root = root_path(config)
        bound_cache(config)
        self.runs_on = False
        """Whether this command goes on by itself from one stage to the next."""
        self._manifests: dict[str, dict[Path, StageManifest | None]] = {}
        self._trained: dict[str, bool] = {}
        self._said: set[str] = set()
        self._kept = KeptTables(self.root / _FOLDERS["scan"] / KEPT)
        self._index: VideoIndex | None = None

    def with_config(self, config: Config) -> "Experiment":
        """Return the experiment with some settings replaced, for the same command line, which runs on."""
        other = Experiment(config, self._settings)
        other.runs_on = True
        return other

    def command(self, name: str) -> str:
        """Return the command line that runs another vidflow command on this experiment, ready to paste into a shell.

        A password in `tracking.uri` is left out, as the line goes into logs.
        """
        return shlex.join(["vidflow", *name.split(), *map(without_credentials, self._settings)])

    def then(self, name: str) -> str:
        """Return the end of a stage's closing line: the command that comes next, unless it starts by itself."""
        return "" if self.runs_on else f"; next: {self.command(name)}"

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the root for this process, and forget what was read before, as another process may have changed it.

        A command that runs several stages holds it for all of them, and reads again once.

        Raises:
            VidflowError: If another process holds it.
        """
        with exclusive(self.root) as is_new:
            if is_new:
                self.published("synth")
            yield
            self._kept.write()

    def published(self, step: Step) -> None:
        """Forget what was read of a step that has just published something, and of all steps that depend on it."""
        steps = get_args(Step)
        for behind in steps[steps.index(step) :]:
            self._manifests.pop(_FOLDERS[behind], None)
            for name in _KNOWN[behind]:
                self.__dict__.pop(name, None)
        self._trained.clear()  # trials depend on every step but the last

    def manifest(self, address: Address) -> StageManifest | None:
        """Return a stage's manifest, or None if the stage is not finished or is finished for another edition."""
        manifest = self._manifest_in(address.directory)
        return manifest if manifest is not None and manifest.edition == address.edition else None

    def finished(self, address: Address) -> StageManifest:
        """Return the manifest of a stage that was finished when this command looked at it.

        Raises:
            VidflowError: If the stage is no longer finished.
        """
        manifest = self.manifest(address)
        if manifest is None:
            raise VidflowError(f"{address.directory}: {_CHANGED}")
        return manifest

    @property
    def limits(self) -> Limits:
        """Time and memory that the decoder may use for one file."""
        resources = self.config.resources
        return Limits(timeout_seconds=resources.decode_timeout_seconds, memory_mib=resources.decode_memory_mib)

    @functools.cached_property
    def videos(self) -> Address:
        """Where rendered videos are."""
        return self._address("synth", synth_settings(self.config))

    @property
    def has_rows(self) -> bool:
        """Whether there is a manifest of videos: the user's own, or the one of the rendered videos."""
        return self.config.video.manifest is not None or self.manifest(self.videos) is not None

    @functools.cached_property
    def rows(self) -> tuple[VideoRows, list[Reject]]:
        """The rows of the manifest of videos that `video.splits` names, and those that are malformed.

        Raises:
            ConfigError: If the manifest cannot be read, has none of these splits, or has annotations of other squares.
            DamagedError: If the manifest of the rendered videos is damaged.
        """
        items, rejects = self._read_rows()
        return_freed_columns()
        video = self.config.video
        if video.splits is not None:
            found = sorted(pc.unique(items.table["split"]).to_pylist())
            if missing := [split for split in video.splits if split not in found]:
                raise ConfigError(
                    f"video.splits: no row of split {', '.join(missing)}; got {', '.join(found) or 'none'}"
                )
            items = items.in_splits(video.splits)
        if not video.is_central and (annotated := items.take(pc.is_valid(items.table["annotations"]))):
            raise ConfigError(
                f"video.crop is {video.crop!r} and video.short_side is {video.short_side}, but {len(annotated)} rows "
                f"have annotations, such as {annotated[0].path}; annotations are cut to the whole central square only: "
                "leave the two settings out, or the annotations"
            )
        return items, rejects

    def _read_rows(self) -> tuple[VideoRows, list[Reject]]:
        video = self.config.video
        if video.manifest is not None:
            place = place_path(self.config, video.manifest)
            video_root = place_path(self.config, video.video_root) if video.video_root else None
            if (path := find_manifest(place, video.format)) is not None:
                return self._read_kept(path, video_root)
            listing = read_source(
                place,
                format_name=video.format,
                video_root=video_root,
                split_names=self.config.trials.splits.used,
                split_seed=video.split_seed,
                published=video.published,
                tracks=self.root / "tracks",
            )
            self._store_tracks()
            self._say_once(listing.notes)
            return VideoRows.of(listing.items), listing.rejects
        table = self.videos.directory / VIDEOS_MANIFEST
        if (rendered := self.manifest(self.videos)) is not None:
            check_once(table, rendered.details["table_sha256"])
        return self._read_kept(table, None)

    def _read_kept(self, path: Path, video_root: Path | None) -> tuple[VideoRows, list[Reject]]:
        """Return the rows of a manifest; if its bytes have not changed, from the last time."""
        digest = manifest_digest(path, video_root)
        if digest and (found := self._kept.get("rows", digest, SCHEMA)) is not None:
            table, facts = found
            return VideoRows(table), [Reject(**row) for row in facts["rejects"]]
        rows, rejects = read_video_manifest(path, video_root=video_root)
        if digest and digest == manifest_digest(path, video_root):  # else it was written meanwhile
            self._kept.put("rows", digest, rows.table, {"rejects": [asdict(reject) for reject in rejects]})
        return rows, rejects

    def _store_tracks(self) -> None:
        """Write tracks that were made on this node into the object store, for the others."""
        folder = self.root / "tracks"
        if not is_mirror(folder) or not folder.is_dir():
            return
        there = list_sizes(folder)
        for path in sorted(folder.glob("*.npz")):
            if there.get(path.name) != path.stat().st_size:
                store(path)

    def _say_once(self, notes: Sequence[str]) -> None:
        """Log how the videos were listed; they are listed again when a stage locks the root."""
        for note in notes:
            if note not in self._said:
                log.info("video.manifest: %s", on_one_line(note))
        self._said.update(notes)

    @functools.cached_property
    def index(self) -> VideoIndex:
        """All scans made under the root."""
        # The stages of a run forget it one after the other; it is read again only if another process has changed it.
        if self._index is None or not self._index.is_current:
            self._index = VideoIndex(self.root / _FOLDERS["scan"], self.limits, self._video_folders)
            return_freed_columns()
        return self._index

    @property
    def _video_folders(self) -> list[Path]:
        """The folders by which videos are known if these move."""
        video = self.config.video
        if video.manifest is None:
            return [self.videos.directory]
        source = place_path(self.config, video.manifest)
        folders = [place_path(self.config, video.video_root)] if video.video_root else []
        return [source if source.is_dir() else source.parent, *folders]

    def list_unscanned(self) -> list[ScanInput]:
        """Return the files that were never scanned, or changed since their scan."""
        return self.index.missing_of(self.rows[0])

    @functools.cached_property
    def shards(self) -> ShardWork | None:
        """The shard stage, or None while some video has no scan of its present content."""
        return self.choose_shards() if self.has_rows and not self.list_unscanned() else None

    @property
    def scanned_shards(self) -> ShardWork:
        """The shard stage, when every video had a scan of its present content at this command's last check.

        Raises:
            VidflowError: If a video has changed since.
        """
        if self.shards is None:
            raise VidflowError(f"{self.root}: {_CHANGED}")
        return self.shards

    @property
    def finished_shards(self) -> ShardWork:
        """The shard stage, when it was finished at this command's last check.

        Raises:
            VidflowError: If it is no longer finished, or if it has no clip.
        """
        work = self.scanned_shards
        if not self.finished(work.address).num_clips:
            raise VidflowError(
                f"{work.address.directory}: no clip is left, all {work.num_rows} rows are rejected; `vidflow rejects "
                "list` says why, repair the videos"
            )
        return work

    def choose_shards(self) -> ShardWork:
        """Return the shard stage that the newest scans give; every file must have a scan."""
        items, rejects = self.rows
        sampling = asdict(self.config.video.sampling)
        clips, unusable, digest = choose_kept(
            items, self.index.scans, self._kept, plain_split=self.config.plain_split, **sampling
        )
        units = cut_shards(clips, self.config.shards.clips_per_shard)
        decoders = {"decord": _version("decord"), "av": _version("av")}
        address = self._address("shard", shard_settings(self.config, digest, decoders))
        made = self._manifest_in(address.directory)
        edition = edition_due(address.directory, units, built_rejects(made) if made is not None else [], self.limits)
        return ShardWork(
            address=replace(address, edition=edition),
            class_names=list_class_names(items),
            clips=clips,
            units=units,
            rejects=[*rejects, *unusable],
            num_rows=len(items) + len(rejects),
        )

    @functools.cached_property
    def features(self) -> dict[str, Address]:
        """Where each feature set is.

        Raises:
            VidflowError: If some video has changed since its scan.
        """
        return {name: self._locate_features(name) for name in self.config.features}

    @functools.cached_property
    def stored_features(self) -> dict[str, Address]:
        """The feature sets that `extract` makes: all but those of which trials only use the frames.

        Raises:
            VidflowError: As `features`.
        """
        unread = unread_features(self.config)
        return {name: address for name, address in self.features.items() if name not in unread}

    def finished_features(self, name: str) -> Address:
        """Return the address of a feature set that is finished.

        Raises:
            VidflowError: If it is not, or if no command makes it, as only the frames behind it are used.
        """
        if name in unread_features(self.config):
            raise VidflowError(
                f"{self.root}: features {name} are not stored, as all trials that name them read frames (feed: "
                "shards); give the same settings a second name below `features`, which no such trial uses, then run "
                f"`{self.command('extract')}`"
            )
        address = self.features[name] if self.shards is not None else None
        if address is None or self.manifest(address) is None:
            raise VidflowError(
                f"{self.root}: features {name} are not finished; run `{self.command('extract')}`, or "
                f"`{self.command('run')}` for all stages"
            )
        return address

    def clips_of(self, features: str, feed: Feed) -> FeatureReader | ShardClips:
        """Return the clips of trials on a feature set, by position; see `open_clips`."""
        return open_clips(self.root, self.features[features], feed)

    def check_features(self) -> None:
        """Check that the shards and all stored feature sets are still finished, as at this command's last check.

        Raises:
            VidflowError: If one of them is no longer finished, or if there is no clip.
        """
        for address in (self.finished_shards.address, *self.stored_features.values()):
            self.finished(address)

    def dense(self, name: str) -> Address:
        """Return the address of the same feature set without token reduction."""
        return self._locate_encoded(dense_features(self.config.features[name]))

    def trial(self, trial: Trial) -> Address:
        """Return the address of a trial."""
        return locate_trial(self.config, trial, self.features[trial.features])

    def is_trained(self, key: str) -> bool:
        """Whether a trial has a result and every file that it lists."""
        if key not in self._trained:
            self._trained[key] = read_listed(self.root / "trials" / key / TRIAL_RESULT) is not None
        return self._trained[key]

    @functools.cached_property
    def sweep(self) -> Address:
        """Where the sweep over all feature sets is."""
        initial = {source: read_initial(self.config, source).sha256 for source in list_initial(self.config)}
        settings = {
            "trials": sweep_settings(self.config, initial),
            "features": {name: address.identity for name, address in sorted(self.features.items())},
            "tracking": tracking_settings(self.config.tracking),
        }
        return self._address("sweep", settings)

    @functools.cached_property
    def report(self) -> Address:
        """Where the page about the sweep is."""
        about = {"sweep": self.sweep.fingerprint, "report": asdict(self.config.report)}
        return self._address("report", {"version": STAGE_VERSIONS["report"], **about})

    @functools.cached_property
    def _weights(self) -> str:
        encoder = self.config.encoder
        if encoder.family == "image":
            return weights_identity(encoder.name, encoder.weights)
        return video_weights_identity(encoder.family, encoder.weights)

    def _locate_features(self, name: str) -> Address:
        features = self.config.features[name]
        if is_reduced_from_cache(features):
            return self._feature_address(reduced_settings(features, self.dense(name).fingerprint))
        return self._locate_encoded(features)

    def _locate_encoded(self, features: FeatureSet) -> Address:
        shards = self.scanned_shards.address
        return self._feature_address(feature_settings(self.config, features, shards.fingerprint, self._weights))

    def _feature_address(self, settings: dict[str, Any]) -> Address:
        """Return the address of features; when a shard is made again, so is the feature file of that shard."""
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
    """Whether the feature set's reducer acts on cached tokens; then the encoder need not run again."""
    reducer = features.reducer
    return reducer.name != "none" and place_of(reducer.name, reducer.place) == "post"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
