"""The reducing walk: arithmetic against timm, proportional attention, independence of the batch."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock

from vidflow.errors import VidflowError
from vidflow.models.encoder.attention import attend
from vidflow.models.encoder.reduced_vit import walk_reduced
from vidflow.models.encoder.vit import check_blocks
from vidflow.models.reduction.bipartite import BlockBipartite, Mode
from vidflow.models.reduction.in_block import BlockReducer, BlockView
from vidflow.models.reduction.saliency import BlockSaliency
from vidflow.models.reduction.windows import BlockWindows

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 0, "dynamic_img_size": False}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "vit_small_patch14_dinov2": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_small_patch16_dinov3": {},
    "vit_small_patch16_dinov3_qkvb": {},
    "vit_small_plus_patch16_dinov3": {},
    "eva02_tiny_patch14_224": {},
    "vit_small_patch16_rope_mixed_224": {},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_224.mae": {},
    "vit_base_patch16_reg4_gap_256": {"qk_norm": True},
}
REDUCERS: dict[str, BlockReducer] = {
    "tome": BlockBipartite(num_merged=4),
    "tome_falling": BlockBipartite(num_merged=5, schedule="decreasing", metric="tokens"),
    "tome_at_destination": BlockBipartite(num_merged=4, positions="destination", metric="rotated_keys"),
    "tome_concat": BlockBipartite(num_merged=4, head_pooling="concat", proportional_attention=False),
    "drop": BlockBipartite(mode="drop", num_merged=4),
    "hybrid": BlockBipartite(mode="hybrid", num_merged=4, threshold=0.5),
    "random_merge": BlockBipartite(mode="random_merge", num_merged=4),
    "random_drop": BlockBipartite(mode="random_drop", num_merged=4),
    "algm": BlockWindows(local_threshold=0.2, global_threshold=0.4, global_block=1, proportional_attention=True),
    "vidtldr": BlockSaliency(num_merged=(5, 3)),
}


def tiny_vit(name: str, patches_per_side: int = 5) -> Any:
    """Build a tiny model whose every parameter is away from its neutral start, so that none can be forgotten."""
    torch.manual_seed(0)
    side = patches_per_side * (14 if "patch14" in name else 16)
    vit = timm.create_model(name, img_size=side, **(TINY | MODELS[name])).eval()
    for parameter in vit.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vit.requires_grad_(False)


def images_of(vit: Any, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


class Onlooker:
    """A reducer that looks at every block, spelled out, and changes nothing."""

    proportional_attention, positions = True, "mean"

    def __init__(self) -> None:
        self.views: list[BlockView] = []

    def acts_at(self, index: int, *, depth: int, num_patches: int) -> bool:
        return True

    def assign(self, view: BlockView) -> None:
        self.views.append(view)


@pytest.mark.parametrize("patches_per_side", [2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_spelled_out_blocks_equal_timms(name: str, patches_per_side: int) -> None:
    vit = tiny_vit(name, patches_per_side)
    images = images_of(vit, 2)
    onlooker = Onlooker()
    (tap,) = walk_reduced(vit, images, depths=[2], normalize=True, reducer=onlooker)  # type: ignore[arg-type]
    # The same float32 operations, of which some are fused differently.
    torch.testing.assert_close(tap.tokens, vit.forward_features(images), atol=1e-5, rtol=1e-5)
    assert len(onlooker.views) == 3


@pytest.mark.parametrize("name", MODELS)
def test_masked_and_repositioned_attention_over_all_patches_equals_timms(name: str) -> None:
    vit = tiny_vit(name)
    images = images_of(vit, 2)
    everything = torch.ones(2, 25, dtype=torch.bool)
    (tap,) = walk_reduced(vit, images, depths=[2], normalize=True, kept=everything)
    # Rotary angles go through an arc tangent and back, at float32 precision.
    torch.testing.assert_close(tap.tokens, vit.forward_features(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_a_reducer_with_nothing_to_do_calls_the_blocks_as_they_are(name: str) -> None:
    vit = tiny_vit(name)
    images = images_of(vit, 2)
    (tap,) = walk_reduced(vit, images, depths=[2], normalize=True, reducer=BlockBipartite(num_merged=0))
    assert torch.equal(tap.tokens, vit.forward_features(images))


def test_attention_entropy_sees_the_weights_that_the_kernel_uses() -> None:
    vit = tiny_vit("vit_small_patch16_dinov3")
    onlooker = Onlooker()
    walk_reduced(vit, images_of(vit, 1), depths=[0], normalize=False, reducer=onlooker)  # type: ignore[arg-type]
    (view,) = onlooker.views
    values = torch.eye(view.keys.shape[2]).expand(1, 3, -1, -1)
    weights = torch.nn.functional.scaled_dot_product_attention(view.queries, view.keys, values)
    torch.testing.assert_close(view.attention(), weights[:, :, view.num_prefix :], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [16, 31, 64])
def test_sizes_in_the_extra_channel_equal_repeated_keys_and_a_mask(width: int) -> None:
    queries, keys, values = torch.randn(3, 2, 4, 6, width)
    repeats = torch.tensor([1, 4, 1, 2, 9, 1])
    bias = repeats.log().expand(2, -1)
    attended = attend(queries, keys, values, bias)
    repeated = attend(queries, keys.repeat_interleave(repeats, dim=2), values.repeat_interleave(repeats, dim=2), None)
    torch.testing.assert_close(attended, repeated, atol=1e-5, rtol=1e-5)
    mask = bias.view(2, 1, 1, 6)
    masked = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    torch.testing.assert_close(attended, masked, atol=1e-5, rtol=1e-5)


def test_sizes_of_one_change_nothing() -> None:
    queries, keys, values = torch.randn(3, 2, 4, 6, 16)
    torch.testing.assert_close(attend(queries, keys, values, torch.zeros(2, 6)), attend(queries, keys, values, None))


def test_large_sizes_survive_bfloat16() -> None:
    # With equal keys the answer is the mean of values by size; bfloat16 alone would make log 1500 wrong by 1%.
    queries, keys = torch.zeros(2, 1, 1, 4, 32, dtype=torch.bfloat16)
    sizes = torch.tensor([[1500.0, 1400.0, 700.0, 3.0]])
    values = torch.eye(4, 32, dtype=torch.bfloat16).view(1, 1, 4, 32)
    weights = attend(queries, keys, values, sizes.log())[0, 0, 0, :4].float()
    # The output itself is rounded to 8 bits.
    torch.testing.assert_close(weights, sizes[0] / sizes.sum(), atol=0, rtol=2**-8)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_base_patch16_siglip_224"])
def test_merging_duplicates_loses_nothing_when_attention_is_proportional(name: str) -> None:
    vit = tiny_vit(name, patches_per_side=4)
    patches_from = 0 if vit.no_embed_class else vit.num_prefix_tokens
    vit.pos_embed.data[:, patches_from:] = 0
    # Patches are equal in pairs of neighbours, one in either half of the matching.
    images = images_of(vit, 2)
    images = images.unflatten(3, (2, 2, 16))[:, :, :, :, :1].expand(-1, -1, -1, -1, 2, -1).flatten(3)
    whole, last = (
        walk_reduced(vit, images, depths=[0, 2], normalize=True, reducer=reducer)[1]
        for reducer in (None, BlockBipartite(num_merged=(8,)))
    )
    assert last.sizes.unique().tolist() == [2.0]
    num_prefix = vit.num_prefix_tokens
    copies = last.tokens[:, num_prefix:].gather(1, last.assignment.unsqueeze(-1).expand(-1, -1, 48))
    torch.testing.assert_close(copies, whole.tokens[:, num_prefix:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last.tokens[:, :num_prefix], whole.tokens[:, :num_prefix], atol=1e-4, rtol=1e-4)
    plain = BlockBipartite(num_merged=(8,), proportional_attention=False)
    if num_prefix:
        (other,) = walk_reduced(vit, images, depths=[2], normalize=True, reducer=plain)
        assert not torch.allclose(other.tokens[:, :num_prefix], whole.tokens[:, :num_prefix], atol=1e-3)


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_an_image_alone_has_the_features_it_has_in_a_batch(name: str, reducer: str) -> None:
    vit = tiny_vit(name)
    images = images_of(vit, 3)
    # Like patches, so that adaptive counts differ from image to image.
    images[1] = images[1, :, :1, :1]
    seeds = torch.arange(3)

    def walk(part: slice) -> list[Any]:
        return walk_reduced(
            vit, images[part], depths=[0, 2], normalize=True, reducer=REDUCERS[reducer], seeds=seeds[part]
        )

    together = walk(slice(None))
    for image in range(3):
        for tap, alone in zip(together, walk(slice(image, image + 1)), strict=True):
            num_rows = alone.sizes.shape[1]
            assert torch.equal(tap.assignment[image], alone.assignment[0])
            assert torch.equal(tap.sizes[image, :num_rows], alone.sizes[0])
            assert (tap.sizes[image, num_rows:] == 0).all()
            # Other batch sizes take other matrix kernels; float32 rounding through three blocks.
            length = vit.num_prefix_tokens + num_rows
            torch.testing.assert_close(tap.tokens[image, :length], alone.tokens[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_sizes_count_the_patches_of_each_token_at_every_depth(name: str) -> None:
    vit = tiny_vit(name)
    taps = walk_reduced(vit, images_of(vit, 2), depths=[0, 1, 2], normalize=False, reducer=BlockBipartite(num_merged=4))
    for block, tap in enumerate(taps):
        num_tokens = 25 - 4 * (block + 1)
        assert tap.tokens.shape == (2, vit.num_prefix_tokens + num_tokens, 48)
        for image in range(2):
            counted = torch.bincount(tap.assignment[image], minlength=num_tokens)
            assert torch.equal(counted.float(), tap.sizes[image])


@pytest.mark.parametrize("mode", ["tome", "drop", "hybrid", "random_merge"])
def test_deeper_assignments_refine_shallower_ones(mode: Mode) -> None:
    vit = tiny_vit("vit_small_patch14_reg4_dinov2")
    reducer = BlockBipartite(mode=mode, num_merged=5)
    first, _, last = walk_reduced(
        vit, images_of(vit, 1), depths=[0, 1, 2], normalize=False, reducer=reducer, seeds=torch.tensor([5])
    )
    for row in range(first.sizes.shape[1]):
        assert len(last.assignment[0][first.assignment[0] == row].unique()) == 1


@pytest.mark.parametrize("mode", ["random_merge", "random_drop"])
def test_random_partners_are_others_with_another_seed(mode: Mode) -> None:
    vit = tiny_vit("vit_tiny_patch16_224")
    usual, same, other = (
        walk_reduced(
            vit,
            images_of(vit, 2),
            depths=[2],
            normalize=False,
            reducer=BlockBipartite(mode=mode, num_merged=4, **drawn),
            seeds=torch.arange(2),
        )[0].assignment
        for drawn in ({}, {"seed": 0}, {"seed": 1})
    )
    assert torch.equal(usual, same)
    assert (usual != other).any(1).all()


def test_positions_of_merged_tokens_are_the_means_of_their_patches() -> None:
    vit = tiny_vit("vit_small_patch16_dinov3")
    (tap,) = walk_reduced(vit, images_of(vit, 1), depths=[2], normalize=False, reducer=BlockBipartite(num_merged=6))
    assert tap.positions is not None
    places = torch.stack([torch.arange(25) // 5, torch.arange(25) % 5], dim=1).float()
    for row in range(7):
        torch.testing.assert_close(tap.positions[0, row], places[tap.assignment[0] == row].mean(0))


def test_no_positions_are_followed_where_no_embedding_asks_for_them() -> None:
    vit = tiny_vit("vit_tiny_patch16_224")
    (tap,) = walk_reduced(vit, images_of(vit, 1), depths=[2], normalize=False, reducer=BlockBipartite(num_merged=6))
    assert tap.is_merged
    assert tap.positions is None


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"])
def test_kept_patches_attend_as_if_the_others_had_never_been(name: str) -> None:
    vit = tiny_vit(name)
    images = images_of(vit, 2)
    kept = torch.rand(2, 25, generator=torch.Generator().manual_seed(3)) < torch.tensor([[0.8], [0.3]])
    (tap,) = walk_reduced(vit, images, depths=[2], normalize=True, kept=kept)
    # The patches that are left out change; nothing else may.
    side = vit.patch_embed.patch_size[0]
    noise = torch.randn_like(images)
    mask = kept.view(2, 1, 5, 5).repeat_interleave(side, 2).repeat_interleave(side, 3)
    (other,) = walk_reduced(vit, torch.where(mask, images, noise), depths=[2], normalize=True, kept=kept)
    for image in range(2):
        length = vit.num_prefix_tokens + int(kept[image].sum())
        assert torch.equal(tap.tokens[image, :length], other.tokens[image, :length])


def compiled(walk: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(walk, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize(
    ("name", "reducer"),
    [
        ("vit_tiny_patch16_224", "tome"),
        pytest.param("vit_tiny_patch16_224", "hybrid", marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", "random_drop", marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", "vidtldr"),
        ("vit_small_patch16_dinov3", "tome"),
    ],
)
def test_fixed_counts_compile_to_one_graph_without_waiting_for_the_device(name: str, reducer: str) -> None:
    vit = tiny_vit(name, patches_per_side=4)
    images, seeds = images_of(vit, 2), torch.arange(2)

    def walk(batch: torch.Tensor) -> torch.Tensor:
        tap = walk_reduced(vit, batch, depths=[2], normalize=True, reducer=REDUCERS[reducer], seeds=seeds)[0]
        return tap.tokens

    # Float32 with operations fused differently.
    torch.testing.assert_close(compiled(walk)(images), walk(images), atol=1e-4, rtol=1e-4)


def test_blocks_of_another_make_are_refused() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, block_fn=ParallelScalingBlock, **TINY)
    with pytest.raises(VidflowError, match="ParallelScalingBlock"):
        check_blocks(vit)
