"""Render videos with ground truth: `vidflow synth CONFIG.yaml`."""

import functools
import time
from collections.abc import Sequence
from pathlib import Path

from pipelines.job import log, map_units, ray_session
from vidflow.config.schema import Config
from vidflow.stages.locate import locate_videos, root_of
from vidflow.stages.render import Renderer, plan_renders
from vidflow.store.layout import exclusive, publish_json, remove_leftovers
