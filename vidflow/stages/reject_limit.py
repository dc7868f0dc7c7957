"""Whether more rows of a manifest are left out than `shards.max_reject_fraction` allows."""

from collections import Counter
from collections.abc import Sequence

from vidflow.config.schema import Config
from vidflow.records import Reject, StageManifest
from vidflow.stages.shard_work import ShardWork


def built_rejects(manifest: StageManifest) -> list[Reject]:
    """Return what a finished shard stage left out while it made the shards."""
    return [Reject(**row) for row in manifest.details["build_rejects"]]


def count_reasons(rejects: Sequence[Reject]) -> str:
    """Return how often each reason occurs, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())


def limit_problem(config: Config, work: ShardWork, built: Sequence[Reject]) -> str:
    """Return what is wrong if more rows are left out than the config allows; empty if not.

    A second copy of a video is left out but is not broken, so it does not count.

    Args:
        config: The experiment.
        work: The shards to make; the rows left out of them are counted.
        built: Clips left out while the shards were made.
    """
    broken = [reject for reject in [*work.rejects, *built] if reject.reason != "Duplicate"]
    if len(broken) <= config.shards.max_reject_fraction * work.num_rows:
        return ""
    return (
        f"{len(broken)} of {work.num_rows} rows are rejected ({count_reasons(broken)}), more than "
        f"shards.max_reject_fraction = {config.shards.max_reject_fraction}"
    )
