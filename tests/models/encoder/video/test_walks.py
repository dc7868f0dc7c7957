"""What holds for reduction in every video transformer: counts, sizes, batches, modes, schedules."""

from typing import Any

import pytest
import torch
from published import FAMILIES
from tiny import clips_for, tiny_classifier

from vidflow.errors import VidflowError
from vidflow.models.encoder.video import VideoClassifier, with_reduction
from vidflow.models.encoder.video.build import make_walk
from vidflow.models.encoder.video.families import FAMILIES as FACTS
from vidflow.models.encoder.video.self_test import check_against_library
from vidflow.models.reduction.bipartite import BlockBipartite, Mode
from vidflow.models.reduction.saliency import BlockSaliency

MODES: tuple[Mode, ...] = ("tome", "drop", "random_merge", "random_drop", "hybrid")
SCOPES = [(family, scope) for family, facts in FACTS.items() for scope in facts.scopes]


def reduced(family: str, **settings: Any) -> VideoClassifier:
    return with_reduction(tiny_classifier(family), BlockBipartite(**{"num_merged": 3, **settings}))


@pytest.mark.parametrize("attention", ["fused", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_reduction_the_walk_is_the_librarys_forward(family: str, attention: Any) -> None:
    classifier = tiny_classifier(family, attention)
    check_against_library(classifier.walk, classifier.geometry, classifier.model.shape, name=family)
    clips = clips_for(classifier, 2)
    logits, encoded = classifier.classify_with_tokens(clips)
    assert encoded.sizes is encoded.assignment is None
    assert encoded.tokens.shape == (2, classifier.geometry.num_patches, 48)
    merged = with_reduction(classifier, BlockBipartite(num_merged=0)).classify(clips)
    assert torch.equal(logits["class"], merged["class"])


def test_another_computation_of_the_library_is_refused() -> None:
    classifier = tiny_classifier.__wrapped__("vivit")
    layer: Any = classifier.model.backbone.model.get_submodule("vivit.layers.1")
    layer.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(VidflowError, match=r"walk through 3 blocks differs from transformers 5\.\d+\.\d+ by 0\.0"):
        check_against_library(classifier.walk, classifier.geometry, classifier.model.shape, name="vivit")


@pytest.mark.parametrize(("family", "scope"), SCOPES)
@pytest.mark.parametrize("mode", MODES)
def test_counts_and_sizes_follow_from_r(family: str, scope: Any, mode: Mode) -> None:
    merged = reduced(family, mode=mode, scope=scope, num_merged=(3, 1, 40), threshold=-1.0)
    encoded = merged.encode(clips_for(merged, 2))
    groups = 1 if scope == "clip" else merged.num_output_frames
    first = merged.geometry.num_patches // groups
    left = [first, first - 3, first - 4, first - 4 - (first - 4) // 2]
    assert merged.tokens_per_block == tuple(groups * each for each in left)
    assert encoded.tokens.shape[1] == merged.tokens_per_block[-1]
    assert encoded.sizes is not None
    assert encoded.assignment is not None
    total = encoded.tokens.shape[1] if "drop" in mode else merged.geometry.num_patches
    assert (encoded.sizes.sum(1) == total).all()
    for rows, sizes in zip(encoded.assignment, encoded.sizes, strict=True):
        assert torch.equal(torch.bincount(rows[rows >= 0], minlength=len(sizes)).float(), sizes)
    assert encoded.by_frame == (scope in ("frame", "tube"))
    if encoded.by_frame:  # tokens of a frame stand for patches of that frame
        rows = encoded.assignment.unflatten(1, (groups, -1))
        frame = torch.arange(groups).view(1, -1, 1)
        assert ((rows // left[-1] == frame) | (rows < 0)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_clip_alone_has_the_output_it_has_in_a_batch(family: str, mode: Mode) -> None:
    merged = reduced(family, mode=mode, threshold=0.9)
    clips = clips_for(merged, 3)
    together_logits, together = merged.classify_with_tokens(clips)
    alone_logits, alone = merged.classify_with_tokens(clips[1:2])
    assert together.assignment is not None
    assert alone.assignment is not None
    assert torch.equal(together.assignment[1], alone.assignment[0])
    # Other batch sizes take other matrix kernels.
    torch.testing.assert_close(together.tokens[1], alone.tokens[0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together_logits["class"][1], alone_logits["class"][0], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_blocks_r_matters_only_to_heads_that_read_patches(family: str) -> None:
    usual, other = (reduced(family, num_merged=(3, 3, last)) for last in (0, 4))
    clips = clips_for(usual, 1)
    first, second = usual.classify(clips)["class"], other.classify(clips)["class"]
    assert torch.equal(first, second) == (family not in ("videomae", "vjepa2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_threshold_of_hybrid_reaches_from_merging_to_replacing(family: str) -> None:
    clips = clips_for(tiny_classifier(family), 2)
    merged = reduced(family).encode(clips)
    same = reduced(family, mode="hybrid", threshold=-1.5).encode(clips)
    assert torch.equal(merged.tokens, same.tokens)
    whole = tiny_classifier(family)
    replaced = reduced(family, mode="hybrid", num_merged=(3,), threshold=1.5).encode(clips)
    once = reduced(family, num_merged=(3,)).encode(clips)
    assert replaced.sizes is not None
    assert replaced.assignment is not None
    assert once.sizes is not None
    assert once.assignment is not None
    # Every destination that was hit is gone; its row is what merged into it.
    hit = once.sizes > 1
    assert torch.equal(replaced.sizes, torch.where(hit, once.sizes - 1, once.sizes))
    assert torch.equal((replaced.assignment < 0).sum(1), hit.sum(1))
    assert whole.geometry.num_patches == replaced.sizes.sum(1)[0] + hit.sum(1)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_weigh_keys_when_tokens_were_merged_but_not_when_they_were_dropped(family: str) -> None:
    clips = clips_for(tiny_classifier(family), 1)
    for mode, is_same in (("drop", True), ("tome", False)):
        with_sizes, without = (
            reduced(family, mode=mode, proportional_attention=proportional).encode(clips).tokens
            for proportional in (True, False)
        )
        assert torch.equal(with_sizes, without) == is_same


def test_what_the_published_runs_do_is_the_default() -> None:
    found = {}
    for family in FAMILIES:
        reducer = reduced(family).walk.reducer
        assert reducer is not None
        found[family] = (reducer.order, reducer.scope, reducer.proportional_attention)
    assert found == {
        "vivit": ("index", "clip", True),
        "videomae": ("similarity", "clip", False),
        "timesformer": ("similarity", "frame", True),
        "motionformer": ("similarity", "frame", True),  # not the artefact `stride`
        "vjepa2": ("index", "clip", True),
    }


def test_random_draws_differ_between_frames_but_not_in_a_tube() -> None:
    for scope, is_same in (("frame", False), ("tube", True)):
        merged = reduced("timesformer", mode="random_drop", scope=scope)
        encoded = merged.encode(clips_for(merged, 1))
        assert encoded.assignment is not None
        frames = encoded.assignment.view(8, 16) < 0
        assert bool((frames == frames[:1]).all()) == is_same
    usual, other = (
        reduced("vivit", mode="random_drop", seed=seed).encode(clips_for(tiny_classifier("vivit"), 1)).assignment
        for seed in (0, 1)
    )
    assert usual is not None
    assert other is not None
    assert not torch.equal(usual, other)


def test_a_reducer_that_does_not_fit_is_refused() -> None:
    for family, settings, message in (
        ("timesformer", {"scope": "clip"}, "has scope 'clip'; this encoder offers frame, tube"),
        ("vivit", {"scope": "stride"}, "has scope 'stride'; this encoder offers clip, frame, tube"),
        ("vivit", {"num_merged": (1, 1, 1, 1)}, "for 4 blocks; the encoder has 3"),
    ):
        with pytest.raises(VidflowError, match=message):
            reduced(family, **settings)
    with pytest.raises(VidflowError, match=r"vivit reduces tokens in its blocks by tome.*got a BlockSaliency"):
        with_reduction(tiny_classifier("vivit"), BlockSaliency(num_merged=(5, 3)))


def test_an_r_beyond_half_is_capped_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    merged = reduced("videomae", num_merged=15)
    merged.encode(clips_for(merged, 1))
    assert [record.getMessage() for record in caplog.records] == [
        "videomae: blocks [1, 2] remove [10, 5] tokens per clip instead of [15, 15], for no block can remove more than "
        "half; tokens per clip: [36, 21, 11, 6]"
    ]


def test_unmerging_copies_tokens_to_their_patches() -> None:
    merged = reduced("vivit", mode="drop")
    encoded = merged.encode(clips_for(merged, 2))
    assert encoded.assignment is not None
    patches = encoded.unmerged()
    assert patches.shape == (2, 4, 3, 3, 48)
    dropped = (encoded.assignment < 0).view(2, 4, 3, 3)
    assert torch.equal((patches == 0).all(-1), dropped)
    with pytest.raises(ValueError, match="a token has no frame of its own"):
        encoded.frames()
    by_frame = reduced("timesformer").encode(clips_for(tiny_classifier("timesformer"), 1))
    assert by_frame.frames().shape == (1, 8, 7, 48)
    assert by_frame.frame_of == tuple((frame,) for frame in range(8))
    assert encoded.frame_of[1] == (2, 3)


def test_half_precision_stays_near_single_precision() -> None:
    classifier = tiny_classifier.__wrapped__("vivit")
    clips = clips_for(classifier, 1)
    exact = with_reduction(classifier, BlockBipartite(num_merged=7)).encode(clips)
    wanted, first = exact.tokens, exact.prefix
    classifier.model.backbone.model.to(torch.bfloat16)
    classifier.dtype = torch.bfloat16
    walk = make_walk(classifier.model, "vivit", "fused", reduction=BlockBipartite(num_merged=7))
    found = classifier.with_walk(walk).encode(clips)
    assert found.tokens.dtype == torch.bfloat16
    assert found.sizes is not None
    assert found.sizes.dtype == torch.float32
    assert found.tokens.shape == wanted.shape
    # Rounding to 8 bits may change who merges with whom, but little of the class token.
    torch.testing.assert_close(found.prefix.float(), first, atol=0.1, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_walk_compiles_without_breaks(family: str) -> None:
    walk = reduced(family, mode="random_merge").walk
    pixels = torch.randn(2, 8, 3, *[walk.grid[1] * 16] * 2)
    seeds = torch.arange(2)
    compiled = torch.compile(lambda given: walk.run(given, seeds=seeds).tokens, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixels), walk.run(pixels, seeds=seeds).tokens, atol=1e-5, rtol=1e-5)
