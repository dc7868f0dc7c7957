"""V-JEPA 2: its rotary embedding at any positions, and attention that does not depend on the order of tokens."""

from dataclasses import replace
from typing import Any

import torch
from tiny import tiny_classifier

from vidflow.models.encoder.video.state import whole_clip
from vidflow.models.encoder.video.vjepa2 import rotate
from vidflow.models.reduction.assignment import keep_tokens


def test_a_block_does_not_depend_on_the_order_of_tokens() -> None:
    walk = tiny_classifier("vjepa2").walk
    tokens = torch.randn(2, 36, 48, generator=torch.Generator().manual_seed(0))
    state = whole_clip(tokens, num_prefix=0, grid=(4, 3, 3), is_rotary=True)
    assert state.positions is not None
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    moved = replace(state, tokens=tokens[:, order], positions=state.positions[:, order])
    with torch.inference_mode():
        usual, other = walk.step(state, 0, None).tokens, walk.step(moved, 0, None).tokens
    torch.testing.assert_close(usual[:, order], other, atol=1e-5, rtol=1e-5)


def test_dropped_tokens_are_to_the_rest_as_the_library_computes_it() -> None:
    classifier = tiny_classifier("vjepa2")
    tokens = torch.randn(1, 36, 48, generator=torch.Generator().manual_seed(0))
    state = whole_clip(tokens, num_prefix=0, grid=(4, 3, 3), is_rotary=True)
    kept = torch.rand(1, 36, generator=torch.Generator().manual_seed(1)) < 0.5
    dropped = classifier.walk.apply(replace(state, positions=None), keep_tokens(kept))
    assert state.positions is not None
    dropped = replace(dropped, positions=state.positions[kept].unsqueeze(0))
    layer: Any = classifier.model.backbone.model.get_submodule("vjepa2.encoder.layer.1")
    with torch.inference_mode():
        wanted = layer(tokens[kept].unsqueeze(0), position_mask=kept.nonzero()[:, 1].unsqueeze(0))[0]
        found = classifier.walk.step(dropped, 1, None).tokens
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_positions_may_be_fractions_and_channels_that_are_left_over_stay() -> None:
    heads = torch.randn(1, 2, 3, 14, generator=torch.Generator().manual_seed(0))
    at_half = rotate(heads, torch.tensor([[[0.5, 0, 0], [0, 1.5, 0], [0, 0, 0.0]]]))
    # Three parts of four channels: frames, rows, columns; then two that are left over.
    assert torch.equal(at_half[..., 12:], heads[..., 12:])
    assert torch.equal(at_half[:, :, 2], heads[:, :, 2])
    assert torch.equal(at_half[:, :, 0, 4:], heads[:, :, 0, 4:])
    assert not torch.allclose(at_half[:, :, 0, :4], heads[:, :, 0, :4])
