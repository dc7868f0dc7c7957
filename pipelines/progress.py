"""What is already done, found from the files alone, without Ray, torch or MLflow."""

from vidflow.config.load import config_to_yaml
from vidflow.config.schema import STAGES
from vidflow.errors import VidflowError
from vidflow.stages.address import Address
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import manifest_seal
from vidflow.stages.reject_limit import built_rejects, limit_problem
from vidflow.store.initial_weights import has_initial


def describe(experiment: Experiment) -> str:
    """Return the merged settings and one line per stage."""
    lines = []
    for stage, addresses in _locate_stages(experiment).items():
        lines += [f"{stage:<8} {'not known before the stages above are done':<24}"] if addresses is None else []
        for name, address in (addresses or {}).items():
            state = "done" if _is_done(experiment, stage, address) else "to do"
            lines.append(f"{stage:<8} {name:<16} {address.fingerprint}  {state:<6} {address.directory}")
    return "\n".join([config_to_yaml(experiment.config), *lines])


def finished(experiment: Experiment, stage: str) -> str | None:
    """Return a line that says where a finished stage is, or None if part of the stage is still to do."""
    addresses = _locate_stages(experiment).get(stage)
    if addresses is None or not all(_is_done(experiment, stage, address) for address in addresses.values()):
        return None
    if not addresses:
        return f"{stage}: nothing to do, as all trials read frames"
    return f"{stage}: already done: {', '.join(str(address.directory) for address in addresses.values())}"


def check_turn(experiment: Experiment, stage: str) -> None:
    """Check that every stage before this one is finished.

    Raises:
        VidflowError: If an earlier stage is not finished; the message names it.
    """
    for earlier in _locate_stages(experiment):
        if earlier == stage:
            return
        if finished(experiment, earlier) is None and not _has_failed_trials(experiment, earlier):
            raise VidflowError(
                f"{experiment.root}: the {earlier} stage of this configuration is not finished; run "
                f"`{experiment.command(earlier)}` first, or `{experiment.command('run')}` for all of them"
            )


def _has_failed_trials(experiment: Experiment, stage: str) -> bool:
    """Whether this is a sweep of which some trials failed: it is not finished, but the others can be reported."""
    manifest = experiment.manifest(experiment.sweep) if stage == "sweep" else None
    return manifest is not None and bool(manifest.details.get("failed"))


def _locate_stages(experiment: Experiment) -> dict[str, dict[str, Address] | None]:
    """Return the addresses of each stage of this config, in order; None if a stage's addresses are not known yet."""
    stages: dict[str, dict[str, Address] | None] = dict.fromkeys(STAGES)
    if experiment.config.video.manifest is None:
        stages["synth"] = {"": experiment.videos}
    else:
        del stages["synth"]  # there is nothing to render
    if (work := experiment.shards) is not None:
        stages["shard"] = {"": work.address}
        stages["extract"] = experiment.stored_features
        if has_initial(experiment.config):
            stages["sweep"] = {"": experiment.sweep}
            stages["report"] = {"": experiment.report}
    return stages


def _is_done(experiment: Experiment, stage: str, address: Address) -> bool:
    """Whether a stage is finished and each of its files exists, with the size in the manifest."""
    manifest = experiment.manifest(address)
    if manifest is None:
        return False
    match stage:
        case "shard":
            work = experiment.scanned_shards
            return manifest.details["plan_rejects"] == work.rejects_digest and not limit_problem(
                experiment.config, work, built_rejects(manifest)
            )
        case "sweep":
            details = manifest.details
            return not details.get("failed") and all(experiment.is_trained(key) for key in details["trials"])
        case "report":
            # The page is out of date if trials were trained again after it was written.
            sweep = experiment.manifest(experiment.sweep)
            return sweep is not None and manifest.details["sweep"] == manifest_seal(sweep)
        case _:
            return True
