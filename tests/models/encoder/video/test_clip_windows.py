"""Video transformers behind the contract of all encoders: windows, and the layout of tokens on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.encoder.video.tiny import clips_for, tiny_classifier
from vidflow.config.load import load_config
from vidflow.errors import ConfigError, VidflowError
from vidflow.models.encoder.video import with_reduction
from vidflow.models.encoder.video.windows import WindowedEncoder
from vidflow.models.identity import video_weights_identity
from vidflow.models.reduction.build import build_reducer
from vidflow.records import ClipTokens
from vidflow.store.features import unmerge

FAMILIES = ("vivit", "videomae", "timesformer", "motionformer", "vjepa2")
REDUCERS: dict[str, dict[str, Any]] = {
    "none": {},
    "tome": {"num_merged": 2},
    "drop": {"num_merged": 2},
    "random_merge": {"num_merged": 2},
}


def windowed(family: str, reducer: str = "none") -> WindowedEncoder:
    reduction = build_reducer(reducer, place="block" if REDUCERS[reducer] else None, **REDUCERS[reducer])
    return WindowedEncoder(with_reduction(tiny_classifier(family), reduction))


def stored(arrays: Any) -> ClipTokens:
    values = {name: getattr(arrays, name) for name in ("tokens", "prefix", "counts", "sizes", "assignment")}
    return ClipTokens(key="a", label=0, split="train", pts_seconds=np.arange(len(arrays.counts)) * 1.0, **values)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_tokens_unmerge_to_what_each_window_gives_alone(family: str, reducer: str) -> None:
    encoder = windowed(family, reducer)
    clips = clips_for(encoder.video, 4)
    long = clips.unflatten(0, (2, 2)).flatten(1, 2)  # two clips of two windows
    frames = encoder.output_frames(long.shape[1])
    for clip, arrays in zip(long, encoder.encode(long).clips(), strict=True):
        grid = unmerge(stored(arrays))[:, 0]
        assert len(frames) == len(grid) == len(arrays.prefix)
        for index, window in enumerate(clip.unflatten(0, (2, -1))):
            alone = encoder.video.encode(window[None])
            wanted = alone.unmerged()[0].flatten(1, 2).half().numpy()
            mine = grid[index * len(wanted) : (index + 1) * len(wanted)]
            # Storage fills a dropped patch from the frame before; the encoder leaves it empty.
            kept = np.ones(wanted.shape[:2], bool)
            if alone.assignment is not None:
                kept = (alone.assignment[0] >= 0).view(kept.shape).numpy()
            np.testing.assert_allclose(mine[kept], wanted[kept], atol=5e-3)
        if arrays.sizes is not None and reducer != "drop":
            assert arrays.sizes.sum() == grid.shape[0] * grid.shape[1]


def test_an_output_frame_is_known_at_the_last_frame_of_its_tubelet() -> None:
    encoder = windowed("videomae")
    assert encoder.output_frames(16) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert windowed("timesformer").output_frames(8) == list(range(8))


def test_a_clip_that_is_no_whole_number_of_windows_is_refused_with_both_numbers() -> None:
    encoder = windowed("videomae")
    with pytest.raises(VidflowError, match=r"num_frames is 12, but videomae sees 8 frames at a time"):
        encoder.encode(torch.zeros(1, 12, 48, 48, 3, dtype=torch.uint8))


def test_the_identity_of_a_folder_follows_its_weights_and_its_settings(tmp_path: Path) -> None:
    model: Any = tiny_classifier("videomae").model.backbone.model
    model.save_pretrained(tmp_path)
    first = video_weights_identity("videomae", str(tmp_path))
    (tmp_path / "README.md").write_text("a note")
    assert video_weights_identity("videomae", str(tmp_path)) == first
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    second = video_weights_identity("videomae", str(tmp_path))
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + "\n")
    assert len({first, second, video_weights_identity("videomae", str(tmp_path))}) == 3


def test_settings_of_the_other_kind_of_encoder_are_refused_together(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("encoder: {family: vivit, name: vit_small_patch16_224, img_size: 96, weights: hub}\n")
    with pytest.raises(ConfigError) as caught:
        load_config([file])
    text = str(caught.value)
    assert all(part in text for part in ("encoder.name: got", "encoder.img_size: got", "encoder.weights: got `hub`"))
    file.write_text("encoder: {size: base}\n")
    with pytest.raises(ConfigError, match=r"encoder.size: got 'base', but encoder.family 'image' has no such setting"):
        load_config([file])
