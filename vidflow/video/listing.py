"""What is read from any source of videos."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vidflow.records import Reject, VideoItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The rows of a source of videos.

    Attributes:
        items: Usable rows.
        rejects: Those that are not.
        notes: Sentences for the user about how splits and classes were found, and what was left out.
    """

    items: Sequence[VideoItem]
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
