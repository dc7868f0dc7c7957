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


def first_of_each_reason(rejects: Sequence[Reject], *, most: int = 5) -> list[str]:
    """Return one line for the first reject of each reason, the most frequent reason first; at most `most` reasons."""
    counts = Counter(reject.reason for reject in rejects).most_common()
    firsts = {reject.reason: reject.message for reject in reversed(rejects)}
    lines = [f"  {count} {reason}, the first: {on_one_line(firsts[reason])}" for reason, count in counts[:most]]
    more = counts[most:]
    return [*lines, *([f"  and {sum(count for _, count in more)} for {len(more)} other reasons"] if more else [])]


def on_one_line(text: str) -> str:
    """Return a text without line ends and terminal commands, which names of files may contain."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


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
    problem = (
        f"{len(broken)} of {work.num_rows} rows are rejected ({count_reasons(broken)}), more than "
        f"shards.max_reject_fraction = {config.shards.max_reject_fraction}:"
    )
    return "\n".join([problem, *first_of_each_reason(broken)])
