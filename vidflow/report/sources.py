"""Names of clips that a reader knows: the video as the user filed it, and the seconds taken from it."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from vidflow.stages.clips import ChosenClip, ShardUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a clip comes from: its name on the page, and the video's path."""

    name: str
    path: str


def name_sources(units: Sequence[ShardUnit]) -> dict[str, Source]:
    """Return key -> source of every clip.

    A name is the video's path below the folder that all videos share, such as `juggling/v1.mp4`. If a video gives
    several clips, the name has the clip's seconds.
    """
    clips = [clip for unit in units for clip in unit.clips]
    if not clips:
        return {}
    parents = {os.path.dirname(clip.path) for clip in clips}
    shared = os.path.commonpath(parents)
    counts = Counter(clip.path for clip in clips)
    return {clip.key: Source(name=_name(clip, shared, counts[clip.path] > 1), path=clip.path) for clip in clips}


def _name(clip: ChosenClip, shared: str, is_part: bool) -> str:
    name = PurePath(clip.path).relative_to(shared).as_posix()
    return f"{name}, {clip.times[0]:.1f} to {clip.times[-1]:.1f} s" if is_part else name
