"""TimeSformer after reduction: whether a slot stays the same place in all frames, and who sees the sizes."""

from typing import Any

import pytest
import torch
from tiny import clips_for, tiny_classifier
from torch import Tensor

from vidflow.models.encoder.video import EncodedClips, VideoClassifier, with_reduction
from vidflow.models.encoder.video.state import ClipTokens
from vidflow.models.reduction.bipartite import BlockBipartite

FRAMES, PATCHES = 8, 16


def timeless() -> VideoClassifier:
    """A TimeSformer without its table of times, to which all frames are alike."""
    classifier = tiny_classifier.__wrapped__("timesformer")
    inner: Any = classifier.model.backbone.model.get_submodule("timesformer.embeddings")
    inner.time_embeddings.data.zero_()
    return classifier


def slots(encoded: EncodedClips) -> Tensor:
    """Return the row of each patch within its frame, (B, F, N)."""
    assert encoded.assignment is not None
    return encoded.assignment.unflatten(1, (FRAMES, PATCHES)) % (encoded.tokens.shape[1] // FRAMES)


@pytest.mark.parametrize("order", ["index", "similarity"])
@pytest.mark.parametrize("scope", ["frame", "tube"])
def test_equal_frames_are_reduced_alike_so_that_slots_stay_places(scope: Any, order: Any) -> None:
    classifier = timeless()
    clips = clips_for(classifier, 2)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    reducer = BlockBipartite(num_merged=3, scope=scope, order=order)
    rows = slots(with_reduction(classifier, reducer).encode(clips))
    assert torch.equal(rows, rows[:, :1].expand_as(rows))


def test_a_tube_is_the_matching_of_each_frame_if_all_frames_are_equal() -> None:
    classifier = timeless()
    clips = clips_for(classifier, 2)[:, :1].expand(-1, FRAMES, -1, -1, -1)
    by_frame, tube = (
        with_reduction(classifier, BlockBipartite(num_merged=3, scope=scope)).encode(clips)
        for scope in ("frame", "tube")
    )
    assert torch.equal(slots(by_frame), slots(tube))
    torch.testing.assert_close(by_frame.tokens, tube.tokens, atol=1e-5, rtol=1e-5)


def test_only_a_tube_keeps_slots_at_their_places_in_unlike_frames() -> None:
    classifier = tiny_classifier("timesformer")
    clips = clips_for(classifier, 1)
    for scope, is_same in (("frame", False), ("tube", True)):
        rows = slots(with_reduction(classifier, BlockBipartite(num_merged=3, scope=scope)).encode(clips))
        assert torch.equal(rows, rows[:, :1].expand_as(rows)) == is_same


def test_other_orders_of_frames_give_the_same_tokens_in_another_order() -> None:
    classifier = timeless()
    clips = clips_for(classifier, 2)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    # Later blocks attend over slots; after merging by frame they hold unlike places, which moves with the frames.
    for scope in ("frame", "tube"):
        merged = with_reduction(classifier, BlockBipartite(num_merged=3, scope=scope, order="index"))
        usual, moved = merged.encode(clips), merged.encode(clips[:, order])
        assert torch.equal(slots(usual)[:, order], slots(moved))
        torch.testing.assert_close(usual.frames()[:, order], moved.frames(), atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(usual.prefix, moved.prefix, atol=2e-5, rtol=1e-5)


def test_sizes_act_in_space_only_and_not_on_the_class_token() -> None:
    """Against attention over repeated patches, spelled out."""
    classifier = tiny_classifier("timesformer")
    walk = with_reduction(classifier, BlockBipartite(num_merged=3)).walk
    block = classifier.model.backbone.blocks[1]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 1 + FRAMES * 3, 48, generator=generator)
    sizes = torch.tensor([1.0, 3.0, 2.0]).repeat(FRAMES).unsqueeze(0)
    state = ClipTokens(
        tokens=tokens, num_prefix=1, sizes=sizes, assignment=torch.arange(24).unsqueeze(0), positions=None,
        is_merged=True,
    )  # fmt: skip
    with torch.inference_mode():
        found = walk.attention(block, state).tokens
        frames = walk.attention.over_time(block, state.patches.unflatten(1, (FRAMES, 3)))
        copies = frames.repeat_interleave(torch.tensor([1, 3, 2]), dim=2)
        part, wanted, firsts = block.attention, [], []
        for frame in range(FRAMES):
            for others, into in ((copies, wanted), (frames, firsts)):
                sequence = torch.cat([tokens[:, :1], others[:, frame]], dim=1)
                queries, keys, values = part.project(part.norm(sequence))
                heads = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
                into.append(part.output(heads.transpose(1, 2).flatten(2)))
        patches = torch.stack(wanted, dim=1)[:, :, [1, 2, 5]] + frames
        first = tokens[:, :1] + torch.stack(firsts, dim=1)[:, :, :1].mean(1)
    torch.testing.assert_close(found[:, 1:], patches.flatten(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :1], first, atol=1e-5, rtol=1e-5)
