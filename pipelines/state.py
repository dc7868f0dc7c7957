"""What is already done, by the files alone: no Ray, torch or MLflow is needed to say so."""

from collections.abc import Iterator

from vidflow.config.load import config_to_yaml
from vidflow.config.schema import STAGES, Config
from vidflow.errors import VidflowError
from vidflow.stages.locate import Address, locate_features, locate_report, locate_shards, locate_sweep, locate_videos


def describe(config: Config) -> str:
    """Return the merged settings and one line per stage."""
    lines = []
    for stage, addresses in _addresses(config).items():
        lines += [f"{stage:<8} {'not known before the stages above are done':<24}"] if addresses is None else []
        for name, address in (addresses or {}).items():
            state = "done" if address.manifest else "to do"
            lines.append(f"{stage:<8} {name:<16} {address.fingerprint}  {state:<6} {address.directory}")
    return "\n".join([config_to_yaml(config), *lines])


def finished(stage: str, config: Config) -> str | None:
    """Return a line that says where a finished stage lies, or None while something of it is to do."""
    addresses = _addresses(config).get(stage)
    if addresses is None or not all(address.manifest for address in addresses.values()):
        return None
    if stage == "shard":
        work = locate_shards(config)
        if work is None or (work.address.manifest or {}).get("plan_rejects") != work.rejects_digest:
            return None
    return f"{stage}: already done: {', '.join(str(address.directory) for address in addresses.values())}"


def check_turn(stage: str, config: Config) -> None:
    """Check that every stage before this one is finished.

    Raises:
        VidflowError: If one is not; the message names it.
    """
    for earlier in _stages(config):
        if earlier == stage:
            return
        if finished(earlier, config) is None:
            raise VidflowError(
                f"{config.root}: the {earlier} stage of this configuration is not finished; run `vidflow {earlier}` "
                "first, or `vidflow run` for all of them"
            )


def _addresses(config: Config) -> dict[str, dict[str, Address] | None]:
    """Return the addresses of each stage in order, or None where they are not known yet."""
    return dict(zip(_stages(config), [*_known(config), None, None, None, None, None], strict=False))


def _stages(config: Config) -> Iterator[str]:
    """Return the stages that this config has: there is nothing to render where a manifest is named."""
    return iter(STAGES if config.video.manifest is None else STAGES[1:])


def _known(config: Config) -> Iterator[dict[str, Address]]:
    if config.video.manifest is None:
        yield {"": locate_videos(config)}
    work = locate_shards(config)
    if work is None:
        return
    yield {"": work.address}
    features = {name: locate_features(config, name, work.address) for name in config.features}
    yield features
    sweep = locate_sweep(config, features)
    yield {"": sweep}
    yield {"": locate_report(config, sweep)}
