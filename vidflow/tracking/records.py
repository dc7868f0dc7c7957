"""What is written about runs, as records that can wait on a disk until the store answers.

A run is named by `SWEEP` or `SWEEP/TRIAL`, where both are vidflow's keys, because the store's own ids are not known
while it is away.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from vidflow.config.tracking_uri import without_credentials

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOpened:
    """A run starts, or starts again.

    Attributes:
        run: Name of the run.
        time: When that was. [milliseconds since 1970]
        title: Its name in the UI.
        params: Settings; those that the run already has are not changed.
        tags: Tags; new values replace old ones.
        datasets: Fields of the `FeatureData` that it reads.
        config_yaml: The merged configuration; empty for a trial.
        view: What the UI shows first, as the tag of an experiment; empty for a trial.
    """

    run: str
    time: int
    title: str
    params: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    config_yaml: str = ""
    view: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """A trial has finished an epoch.

    Attributes:
        run: Name of the run.
        time: When that was.
        epoch: Number of the epoch, from 1.
        metrics: All its metrics.
        seconds: What it took.
    """

    run: str
    time: int
    epoch: int
    metrics: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMade:
    """A file belongs to a run, and replaces an earlier one.

    Attributes:
        run: Name of the run.
        time: When that was.
        artifact_path: Folders and file name within the run, with `/` between them.
        content: Its bytes in base 64; empty if it is a file under the root.
        path: The file's path below the root.
    """

    run: str
    time: int
    artifact_path: str
    content: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run is over.

    Attributes:
        run: Name of the run.
        time: When that was.
        status: How it ended.
        metrics: Metrics of the whole run.
        step: Epoch that they belong to.
        tags: Tags to add. `{page:RUN}` in a value becomes the page of a run in the UI.
        data: Name and digest of the feature set that the metrics were measured on; empty for none.
        history: All epochs, as `epoch`, `metrics` and `seconds`; the run gets those that it lacks.
        model: The model, as keywords of `save_model` and the `path` and `sha256` of its file; empty for none.
        content: Digest of all that was written to the run; empty if it is not to be skipped next time.
        params: Settings, as when it was opened; the run gets those that it lacks.
    """

    run: str
    time: int
    status: RunStatus
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    data: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)
    content: str = ""
    params: dict[str, str] = field(default_factory=dict)


Record = RunOpened | EpochEnded | FileMade | RunEnded
_KINDS: Mapping[str, type[Record]] = {kind.__name__: kind for kind in (RunOpened, EpochEnded, FileMade, RunEnded)}


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as a JSON object, without passwords."""
    return {"kind": type(record).__name__, **_clean(asdict(record))}


def from_json(values: Mapping[str, Any]) -> Record | None:
    """Return a record from its JSON object; None if another version of this program wrote it."""
    given = dict(values)
    kind = _KINDS.get(given.pop("kind", ""))
    is_ours = kind is not None and given.keys() == {each.name for each in fields(kind)}
    return kind(**given) if kind is not None and is_ours else None


def name_run(sweep: str, trial: str = "") -> str:
    """Return the name of a run.

    Raises:
        ValueError: If a key holds letters that could break a search of the store.
    """
    for key in filter(None, (sweep, trial)):
        if not re.fullmatch(r"[\w.-]+", key):
            raise ValueError(f"got key {key!r}, wanted letters, digits, `.`, `_` and `-` only")
    return f"{sweep}/{trial}" if trial else sweep


def page_of(run: str) -> str:
    """Return what stands for the page of a run in a tag, as its address is not known before the store has the run."""
    return f"{{page:{run}}}"


def fill_pages(text: str, pages: Mapping[str, str]) -> str:
    """Return a tag with the addresses of the pages that are known."""
    return re.sub(r"\{page:([\w./-]+)\}", lambda found: pages.get(found[1], ""), text)


def now_milliseconds() -> int:
    """Return the time as MLflow stores it."""
    return int(time.time() * 1000)


def _clean(value: Any) -> Any:
    match value:
        case str():
            return without_credentials(value)
        case dict():
            return {name: each if name == "content" else _clean(each) for name, each in value.items()}
        case list() | tuple():
            return [_clean(each) for each in value]
        case _:
            return value


__all__ = [
    "EpochEnded",
    "FileMade",
    "Record",
    "RunEnded",
    "RunOpened",
    "RunStatus",
    "fill_pages",
    "from_json",
    "name_run",
    "now_milliseconds",
    "page_of",
    "to_json",
]
