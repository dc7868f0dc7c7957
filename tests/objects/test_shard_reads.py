"""Frames of shards in an object store, read clip by clip in any order."""

import numpy as np
import pytest
from shard_sets import finish_shards

from vidflow.video.encode import decompress

pytestmark = pytest.mark.slow


def test_a_shard_is_copied_to_a_node_once_and_no_clip_asks_the_store_again(root, proxy):
    frames = np.random.default_rng(0).integers(0, 256, (6, 2, 8, 8, 3), dtype=np.uint8)
    clips = finish_shards(root / "shards" / "a", frames, [0] * 6, ["train"] * 6, clips_per_shard=2)
    for path in (root / "shards" / "a").glob("*.tar"):
        path.unlink()
    proxy.seen.clear()

    def read():
        for index in (5, 0, 3, 1, 4, 2):
            np.testing.assert_array_equal([decompress(image) for image in clips.images(index)], frames[index])
            assert len(clips[index].pts_seconds) == 2

    read()
    assert sum(method == "GET" and path.endswith(".tar") for method, path in proxy.seen) == 3
    proxy.seen.clear()
    # What another process removes from the cache meanwhile is still read.
    for path in (root / "shards" / "a").glob("*.tar"):
        path.unlink()
    read()
    assert proxy.seen == []
