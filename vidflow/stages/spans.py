"""Which split takes which seconds of one video: sorted spans; spans of different splits share no time."""

import bisect
from dataclasses import dataclass

# If one row ends where the next starts, both give the same time; as doubles the two differ by far less than this.
_TOLERANCE_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of a video that rows of one split cover.

    Attributes:
        start: Start of the span.
        end: End of the span, after `start`.
        split: Name of the split.
        path: Video that the first of the rows names.
    """

    start: float
    end: float
    split: str
    path: str


def find_leak(taken: list[Taken], wanted: Taken) -> Taken | None:
    """Return a span of another split that shares time with a wanted one, or None.

    Args:
        taken: Spans that `take` has added.
        wanted: The span of one more row.
    """
    low, high = _neighbours(taken, wanted)
    return next((t for t in taken[low:high] if t.split != wanted.split and _share_time(t, wanted)), None)


def take(taken: list[Taken], wanted: Taken) -> None:
    """Add a span for which `find_leak` returned None; spans of one split that touch are joined.

        taken      [--- train ---]      [- val -][- train -]
        wanted               [ train ]
        result     [---- train ------]  [- val -][- train -]

    Args:
        taken: Spans in order; changed in place.
        wanted: The span to add.
    """
    low, high = _neighbours(taken, wanted)
    same = [t for t in taken[low:high] if t.split == wanted.split]
    joined = Taken(
        min(t.start for t in [*same, wanted]),
        max(t.end for t in [*same, wanted]),
        wanted.split,
        same[0].path if same else wanted.path,
    )
    others = [t for t in taken[low:high] if t.split != wanted.split]  # at most one at each end, which only touches
    taken[low:high] = sorted([*others, joined], key=lambda t: t.start)


def _neighbours(taken: list[Taken], wanted: Taken) -> tuple[int, int]:
    """Return the index range of the spans that touch `wanted` or share time with it; starts and ends both ascend."""
    low = bisect.bisect_left(taken, wanted.start, key=lambda t: t.end)
    return low, max(low, bisect.bisect_right(taken, wanted.end, key=lambda t: t.start))


def _share_time(one: Taken, other: Taken) -> bool:
    shared = min(one.end, other.end) - max(one.start, other.start)
    # Half of the shorter span is also a limit, so that a very short span inside another one is found.
    return shared > min(_TOLERANCE_SECONDS, (one.end - one.start) / 2, (other.end - other.start) / 2)
