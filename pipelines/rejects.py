"""Which inputs each stage left out, and why: `vidflow rejects list|retry|export CONFIG.yaml`."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from pipelines.predict_files import check_local
from vidflow.errors import ConfigError, VidflowError
from vidflow.objects import show_urls
from vidflow.records import Reject
from vidflow.stages.experiment import Experiment
from vidflow.stages.finish import read_rejects
from vidflow.stages.reject_limit import count_reasons, on_one_line
from vidflow.stages.scan import list_inputs
from vidflow.stages.shard_work import ShardWork
from vidflow.stages.transient import TRANSIENT
from vidflow.store.layout import committed_entries, committed_entry, publish, remove

Action = Literal["list", "retry", "export"]
_COLUMNS = ("stage", "reason", "path", "message")
_SUFFIXES = (".csv", ".jsonl", ".parquet")


def main(experiment: Experiment, action: Action, to: Path | None) -> None:
    """Run one action on the rejects.

    Args:
        experiment: The experiment.
        action: What to do.
        to: File that `export` writes.

    Raises:
        ConfigError: If `to` is missing or cannot be written, or is given with another action.
        VidflowError: If the videos have not been scanned.
    """
    if (action == "export") != (to is not None):
        raise ConfigError(f"rejects {action}: got --to {to}; `export` wants --to FILE, the others nothing")
    match action:
        case "list":
            print(describe(collect(experiment)))
        case "retry":
            print(retry(experiment))
        case "export":
            assert to is not None
            rejects = collect(experiment)
            export(rejects, to, manifest=experiment.config.video.manifest)
            print(f"{len(rejects)} rejects -> {to}")


def collect(experiment: Experiment) -> list[Reject]:
    """Return the rejects of all stages so far, in the order of the flow.

    Raises:
        VidflowError: If some video has no scan of its present content.
    """
    work = experiment.shards
    if work is None:
        raise VidflowError(
            f"{experiment.root}: not all videos are scanned as they are now; run `{experiment.command('shard')}`"
        )
    rejects = [*work.rejects, *_build_rejects(work)]
    if experiment.manifest(work.address) is not None:
        for address in experiment.features.values():
            if experiment.manifest(address) is not None:
                rejects += read_rejects(address)
    return [replace(each, path=show_urls(each.path), message=show_urls(each.message)) for each in rejects]


def _build_rejects(work: ShardWork) -> list[Reject]:
    """Return the rejects of the shards, read from their own manifests, which exist even if the stage did not finish."""
    entries = committed_entries(work.address.directory, [unit.file for unit in work.units])
    return [Reject(**row) for entry in entries if entry is not None for row in entry.rejects]


def describe(rejects: Sequence[Reject]) -> str:
    """Return a table with one line per reject, and how often each reason occurs."""
    if not rejects:
        return "no rejects"
    rows = [_COLUMNS, *(tuple(on_one_line(getattr(reject, name)) for name in _COLUMNS) for reject in rejects)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
    return "\n".join([*lines, "", f"{len(rejects)} rejects: {count_reasons(rejects)}"])


def retry(experiment: Experiment) -> str:
    """Let the next run retry every input that was left out for a transient reason; return a line with their number."""
    with experiment.exclusive():
        work = experiment.shards
        shards = [unit.file for unit in work.units if _drop_transient(work, unit.file)] if work is not None else []
        files = experiment.index.forget_transient(list_inputs(experiment.rows[0]))
        experiment.published("scan")
    if not shards and not files:
        return f"nothing was left out for {', '.join(TRANSIENT[:-1])} or {TRANSIENT[-1]}"
    return f"{len(files)} files to scan and {len(shards)} shards to make again; next: {experiment.command('run')}"


def _drop_transient(work: ShardWork, file: str) -> bool:
    """Delete the manifest of a shard that left out clips for transient reasons; return whether it had such clips."""
    entry = committed_entry(work.address.directory, file)
    if entry is None or not any(row["reason"] in TRANSIENT for row in entry.rejects):
        return False
    remove(work.address.directory / f"{file}.json")
    return True


def export(rejects: Sequence[Reject], path: Path, *, manifest: str | None) -> None:
    """Write rejects as a table, but never over the manifest.

    Raises:
        ConfigError: If the file's suffix is not that of a table, or it is a URL or the manifest, or cannot be written.
    """
    check_local("--to", path)
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"--to: got {path}; wanted a name that ends in {', '.join(_SUFFIXES)}")
    table = pd.DataFrame([asdict(reject) for reject in rejects], columns=[field.name for field in fields(Reject)])
    try:
        if manifest is not None and path.exists() and Path(manifest).exists() and path.samefile(manifest):
            raise ConfigError(f"--to: {path} is the manifest; wanted another file")
        with publish(path) as aside:
            match path.suffix:
                case ".csv":
                    table.to_csv(aside, index=False)
                case ".jsonl":
                    table.to_json(aside, orient="records", lines=True, force_ascii=False)
                case ".parquet":
                    table.to_parquet(aside, index=False)
    except OSError as error:
        raise ConfigError(f"--to: {path}: cannot be written ({error.strerror}); wanted a file in a folder") from error
