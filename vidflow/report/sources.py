"""Names of clips that a reader knows: the video as the user filed it, and the seconds taken from it."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from vidflow.stages.clips import ChosenClip, ShardUnit


def name_sources(units: Sequence[ShardUnit]) -> dict[str, str]:
    """Return key -> name of every clip.

    A name is the video's path below the folder that all videos share, such as `juggling/v1.mp4`. If a video gives
    several clips, the name has the clip's seconds, and its square if there are three.
    """
    clips = [clip for unit in units for clip in unit.clips]
    if not clips:
        return {}
    parents = {os.path.dirname(clip.path) for clip in clips}
    shared = os.path.commonpath(parents)
    counts = Counter(clip.path for clip in clips)
    return {clip.key: _name(clip, shared, is_part=counts[clip.path] > 1) for clip in clips}


def _name(clip: ChosenClip, shared: str, *, is_part: bool) -> str:
    name = PurePath(clip.path).relative_to(shared).as_posix()
    if not is_part:
        return name
    square = "" if clip.crop is None else f", {clip.crop}"
    return f"{name}, {clip.times[0]:.1f} to {clip.times[-1]:.1f} s{square}"
