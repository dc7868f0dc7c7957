"""What is already done, by the files alone: no Ray, torch or MLflow is needed to say so."""

from collections.abc import Iterator
from typing import Any

from vidflow.config.load import config_to_yaml
from vidflow.config.schema import STAGES, Config
from vidflow.errors import VidflowError
from vidflow.stages.locate import (
    Address,
    ShardWork,
    locate_features,
    locate_report,
    locate_shards,
    locate_sweep,
    locate_videos,
    root_of,
)
from vidflow.stages.reject_limit import built_rejects, limit_problem
from vidflow.store.layout import TRIAL_RESULT, read_listed, seal_of

# A stage does not hold the videos: they may be written while it is at work.
_CHANGED = "the videos, or the files made of them, changed while this command was at work; run the same command again"


class Progress:
    """How far an experiment has come; chooses the clips once, for that reads every row of the manifest."""

    def __init__(self, config: Config) -> None:
        """Look at nothing yet."""
        self._config = config
        self._work: ShardWork | None = None
        self._sweep: Address | None = None

    def describe(self) -> str:
        """Return the merged settings and one line per stage."""
        lines = []
        for stage, addresses in self._addresses().items():
            lines += [f"{stage:<8} {'not known before the stages above are done':<24}"] if addresses is None else []
            for name, address in (addresses or {}).items():
                state = "done" if self._is_done(stage, address) else "to do"
                lines.append(f"{stage:<8} {name:<16} {address.fingerprint}  {state:<6} {address.directory}")
        return "\n".join([config_to_yaml(self._config), *lines])

    def finished(self, stage: str) -> str | None:
        """Return a line that says where a finished stage lies, or None while something of it is to do."""
        addresses = self._addresses().get(stage)
        if addresses is None or not all(self._is_done(stage, address) for address in addresses.values()):
            return None
        return f"{stage}: already done: {', '.join(str(address.directory) for address in addresses.values())}"

    def check_turn(self, stage: str) -> None:
        """Check that every stage before this one is finished.

        Raises:
            VidflowError: If one is not; the message names it.
        """
        for earlier in self._stages():
            if earlier == stage:
                return
            if self.finished(earlier) is None:
                raise VidflowError(
                    f"{self._config.root}: the {earlier} stage of this configuration is not finished; run "
                    f"`vidflow {earlier}` first, or `vidflow run` for all of them"
                )

    def _is_done(self, stage: str, address: Address) -> bool:
        """Whether a stage is finished and every file of it is there, with the size that was stated."""
        manifest = address.manifest
        if manifest is None:
            return False
        match stage:
            case "shard":
                work = self._work
                return (
                    work is not None
                    and manifest["plan_rejects"] == work.rejects_digest
                    and not limit_problem(self._config, work, built_rejects(manifest))
                )
            case "sweep":
                trials = root_of(self._config) / "trials"
                return all(read_listed(trials / key / TRIAL_RESULT) for key in manifest["trials"])
            case "report":
                # A page about trials that were trained again since tells what was.
                sweep = self._sweep.manifest if self._sweep is not None else None
                return sweep is not None and manifest["sweep"] == seal_of(sweep)
            case _:
                return True

    def _addresses(self) -> dict[str, dict[str, Address] | None]:
        """Return the addresses of each stage in order, or None where they are not known yet."""
        return dict(zip(self._stages(), [*self._known(), None, None, None, None, None], strict=False))

    def _stages(self) -> Iterator[str]:
        """Return the stages that this config has: there is nothing to render where a manifest is named."""
        return iter(STAGES if self._config.video.manifest is None else STAGES[1:])

    def _known(self) -> Iterator[dict[str, Address]]:
        config = self._config
        if config.video.manifest is None:
            yield {"": locate_videos(config)}
        self._work = self._work or locate_shards(config)
        if self._work is None:
            return
        yield {"": self._work.address}
        features = {name: locate_features(config, name, self._work.address) for name in config.features}
        yield features
        self._sweep = locate_sweep(config, features)
        yield {"": self._sweep}
        yield {"": locate_report(config, self._sweep)}


def finished_shards(config: Config) -> ShardWork:
    """Return the shards, which were finished when it was this stage's turn.

    Raises:
        VidflowError: If they no longer are, or if not one clip is in them.
    """
    work = locate_shards(config)
    if work is None:
        raise VidflowError(f"{config.root}: {_CHANGED}")
    if not finished_manifest(work.address)["num_clips"]:
        raise VidflowError(
            f"{work.address.directory}: no clip is left, all {work.num_rows} rows are rejected; `vidflow rejects list` "
            "says why, repair the videos"
        )
    return work


def finished_manifest(address: Address) -> dict[str, Any]:
    """Return the manifest of a stage that was finished when this command, which holds the root, looked at it.

    Raises:
        VidflowError: If it no longer is.
    """
    manifest = address.manifest
    if manifest is None:
        raise VidflowError(f"{address.directory}: {_CHANGED}")
    return manifest


def finished_features(config: Config, work: ShardWork) -> dict[str, Address]:
    """Return the addresses of all feature sets, which were finished when it was this stage's turn.

    Raises:
        VidflowError: If one no longer is.
    """
    features = {name: locate_features(config, name, work.address) for name in config.features}
    for address in features.values():
        finished_manifest(address)
    return features
