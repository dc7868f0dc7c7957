"""Rendered videos with ground truth: pairs of classes that differ only in the order of time.

A textured room and flat things in it stand at metric depths before a moving pinhole camera. A
saturated target moves as its class says; muted distractors, shake and a post in front make it
harder. Everything but the target's path is as likely forwards in time as backwards, and a class
is drawn as its partner played backwards, so no model blind to order can tell the two apart.
"""

from vidflow.video.synthetic.clips import (
    PlannedVideo,
    RenderedVideo,
    plan_videos,
    render_video,
    video_path,
    write_video,
)
from vidflow.video.synthetic.motion import CLASS_NAMES, ClassName, reverse_of

__all__ = [
    "CLASS_NAMES",
    "ClassName",
    "PlannedVideo",
    "RenderedVideo",
    "plan_videos",
    "render_video",
    "reverse_of",
    "video_path",
    "write_video",
]
