"""The choice of clips in columns is that of the plain one, clip for clip and reject for reject."""

import pickle
import random
from pathlib import Path

import plain_clips
import pytest

from vidflow.records import VideoItem
from vidflow.stages.clips import choose_clips, choose_kept, cut_shards
from vidflow.stages.kept_tables import KeptTables
from vidflow.stages.scan import ScannedVideo, inputs_of
from vidflow.stages.scans import Scans

MODES = {
    "uniform": 1,
    "center": 1,
    "first": 1,
    "segments": 1,
    "windows": 1,
    "spread": 3,
}


def make_rows(seed: int) -> tuple[list[VideoItem], list[ScannedVideo]]:
    """Return rows with spans, twins under other names, leaks, conflicts and every kind of broken file."""
    draw = random.Random(seed)
    rows, scans = [], {}
    for number in range(80):
        path = Path(f"/videos/{draw.randrange(50)}.mp4")
        start = draw.choice([None, 0.0, round(draw.uniform(0, 6), 2)])
        end = draw.choice([None, None, (start or 0.0) + draw.choice([0.001, 0.5, draw.uniform(0.1, 9)])])
        truth = draw.choice([None, None, Path(f"/videos/{draw.randrange(4)}.npz"), path])
        sha256 = draw.choice([None] * 9 + ["0" * 64])
        row = VideoItem(
            path=path, label=draw.choice(["", "a", "b\u00fc", 'say "c"']), split=draw.choice(["train", "train", "val"]),
            start_seconds=start, end_seconds=end, annotations=truth, sha256=sha256,
        )  # fmt: skip
        rows.append(row)
        for each in inputs_of(row):
            fps, frames = draw.choice([25.0, 29.97, 8.0]), draw.randrange(1, 300)
            first = draw.choice([0.0, 0.033, 1.4])
            reason = draw.choice([""] * 12 + ["Corrupt", "Timeout"])
            scans[each] = ScannedVideo(
                path=each.path, is_video=each.is_video, num_bytes=number, modified_ns=7, changed_ns=8,
                timeout_seconds=1.0, memory_mib=1, sha256=f"{draw.randrange(35):064x}", fps=fps, num_frames=frames,
                start_seconds=first, end_seconds=first + frames / fps, reason=reason, message="why", attempts=2,
            )  # fmt: skip
    return rows, list(scans.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(3))
def test_clips_rejects_digest_and_shards_are_those_of_the_plain_choice(mode, seed, tmp_path):
    rows, scans = make_rows(seed)
    sampling = {"mode": mode, "num_frames": 5, "fps": 4.0, "stride_seconds": 0.7, "num_clips": MODES[mode]}
    wanted, refused = plain_clips.choose_clips(rows, {scan.input: scan for scan in scans}, **sampling)
    clips, rejects = choose_clips(rows, Scans.of(scans), **sampling)
    assert len({reject.reason for reject in refused}) >= 5
    assert rejects == refused
    assert list(clips) == wanted
    assert clips.digest() == plain_clips.content_digest(wanted)
    # As a worker gets it, and as the next command finds it.
    assert [clip for unit in pickle.loads(pickle.dumps(cut_shards(clips, 7))) for clip in unit.clips] == wanted
    kept = KeptTables(tmp_path)
    for _ in range(2):
        again, rejects, digest = choose_kept(rows, Scans.of(scans), kept, **sampling)
        assert (list(again), rejects, digest) == (wanted, refused, clips.digest())
        kept.write()
        kept = KeptTables(tmp_path)
