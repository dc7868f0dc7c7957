"""The adapted encoder: equal to the frozen one at the start, offsets, gradients, streams that enter a block."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from test_reduced_vit import MODELS, TINY, tiny_vit
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vidflow.config.schema import Adaptation
from vidflow.errors import VidflowError
from vidflow.models.encoder.adapted import AdaptedEncoder, check_adaptation
from vidflow.models.encoder.adapted.cost import count_adapted_macs
from vidflow.models.encoder.architecture import shape_of, skeleton
from vidflow.models.encoder.clip_blocks import run_spelled_block
from vidflow.models.encoder.frozen import FrozenEncoder
from vidflow.models.encoder.vit import embed_patches

T = 5
# Block kinds of timm that no model above has at its own settings.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gated": ("vit_small_patch16_dinov3", {}),
    "separate": ("eva02_tiny_patch14_224", {"qkv_fused": False, "scale_attn_inner": True, "scale_mlp": True}),
}
ALL = [*MODELS, *KINDS]


def build_vit(name: str) -> Any:
    """Build a tiny model whose every parameter is away from its neutral start."""
    if name in MODELS:
        return tiny_vit(name, patches_per_side=2)
    model, options = KINDS[name]
    torch.manual_seed(0)
    vit = timm.create_model(model, img_size=28 if "patch14" in model else 32, **TINY, **options).eval()
    if name == "gated":  # timm's attention has it, but no constructor of a model passes it on
        for block in vit.blocks:
            block.attn.gate = torch.nn.Linear(48, 48)
    for parameter in vit.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return vit.requires_grad_(False)


def freeze(vit: Any, *, depths: list[int] | None = None, normalize: bool = True, **options: Any) -> FrozenEncoder:
    return FrozenEncoder(
        vit=copy.deepcopy(vit), name="tiny", weights="random:0", img_size=int(vit.patch_embed.img_size[0]),
        depths=depths, normalize_depths=normalize, device=torch.device("cpu"), mean=(0.5,) * 3, std=(0.25,) * 3,
        **{"dtype": torch.float32, **options},
    )  # fmt: skip


def adapt(frozen: FrozenEncoder, *, train: bool = False, trained: bool = False, **settings: Any) -> AdaptedEncoder:
    """Adapt an encoder; `trained` moves every trained value away from its start."""
    torch.manual_seed(3)
    encoder = AdaptedEncoder(frozen, Adaptation(**settings), num_frames=T).train(train)
    if trained:
        for parameter in encoder.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return encoder


def clips(frozen: FrozenEncoder, *, batch: int = 2, num_frames: int = T) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, num_frames, frozen.img_size, frozen.img_size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def joined(encoder: AdaptedEncoder, frames: Tensor) -> Tensor:
    """Return all tokens of the last depth (B, F, S, D)."""
    tokens, prefix = encoder(frames)
    return tokens[:, :, -1] if prefix is None else torch.cat([prefix, tokens[:, :, -1]], dim=2)


@pytest.mark.parametrize("name", ALL)
def test_an_encoder_with_nothing_learnt_is_the_frozen_one_bit_by_bit(name: str) -> None:
    frozen = freeze(build_vit(name), depths=[0, 2])
    frames = clips(frozen)
    wanted = frozen.encode(frames)
    for settings in ({"places": []}, {}, {"offsets": [0, 0, 0], "dropout": 0.5, "first_block": 0}):
        encoder = adapt(frozen, train=True, **settings)  # zero adapters are the identity with dropout, too
        tokens, prefix = encoder(frames)
        assert torch.equal(tokens.flatten(0, 1), wanted.tokens)
        assert (prefix is None) == (wanted.prefix.shape[1] == 0)
        assert prefix is None or torch.equal(prefix.flatten(0, 1), wanted.prefix)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224", "gated", "separate"])
def test_heads_read_the_frame_of_their_offset_and_their_own_where_there_is_none(name: str) -> None:
    """Each frame's output is that of plain attention on the frames its heads read, computed one head at a time."""
    frozen = freeze(build_vit(name))
    offsets = (-1, 2, -7)
    frames = clips(frozen, batch=1)
    encoder = adapt(frozen, places=[], offsets=list(offsets))
    stream, rope = embed_patches(frozen.vit, frozen.images(frames[0]))
    found = run_spelled_block(frozen.vit, 0, stream, rope, read=encoder.offsets.reader(T))
    for t in range(T):

        def read(heads: Tensor, t: int = t) -> Tensor:
            sources = [t + o if 0 <= t + o < T else t for o in offsets]
            return torch.stack([heads[source, head] for head, source in enumerate(sources)])[None].expand_as(heads)

        torch.testing.assert_close(run_spelled_block(frozen.vit, 0, stream, rope, read=read)[t], found[t])


def test_offsets_without_a_frame_to_read_are_plain_attention() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    plain = adapt(frozen, places=[])
    one = clips(frozen, num_frames=1)
    for settings in ({"offsets": [-1, 1, 0]}, {"offsets": [-2, 3, 0]}):
        encoder = adapt(frozen, places=[], temporal_embedding=False, **settings)
        assert torch.allclose(joined(encoder, one), joined(adapt(frozen, places=[], temporal_embedding=False), one))
    far = adapt(frozen, places=[], offsets=[-T, T, 0])
    frames = clips(frozen)
    torch.testing.assert_close(joined(far, frames), joined(plain, frames))


def test_a_changed_frame_moves_itself_and_the_frames_that_read_it() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"), depths=[0])
    encoder = adapt(frozen, places=[], offsets=[-1, 2, 0])
    frames = clips(frozen)
    for t in range(T):
        other = frames.clone()
        other[:, t] = 255 - other[:, t]
        moved = (joined(encoder, frames) != joined(encoder, other)).flatten(2).any(2)[0]
        assert {int(i) for i in moved.nonzero()} == {i for i in (t, t + 1, t - 2) if 0 <= i < T}
    # Of heads that look back only, the last frame moves no other, however many blocks there are.
    back = adapt(freeze(build_vit("vit_tiny_patch16_224")), places=[], offsets=[-1, -1, 0])
    other = frames.clone()
    other[:, -1] = 255 - other[:, -1]
    assert torch.equal(joined(back, frames)[:, :-1], joined(back, other)[:, :-1])


def test_clips_do_not_mix_and_reversal_with_negated_offsets_reverses() -> None:
    frozen = freeze(build_vit("vit_small_patch14_reg4_dinov2"))
    frames = clips(frozen, batch=3)
    encoder = adapt(frozen, places=[], offsets=[-1, 2, 0])
    order = torch.tensor([2, 0, 1])
    whole = joined(encoder, frames)
    torch.testing.assert_close(joined(encoder, frames[order]), whole[order])
    torch.testing.assert_close(joined(encoder, frames[1:2]), whole[1:2])
    back = adapt(frozen, places=[], offsets=[1, -2, 0])
    torch.testing.assert_close(joined(back, frames.flip(1)).flip(1), whole)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "gated"])
def test_eager_and_fused_attention_agree(name: str) -> None:
    encoder = adapt(freeze(build_vit(name)), trained=True, offsets=[-1, 1, -2])
    fused = joined(encoder, clips(encoder.frozen))
    encoder.eager = True
    torch.testing.assert_close(joined(encoder, clips(encoder.frozen)), fused, rtol=1e-4, atol=1e-4)


def test_only_what_is_trained_gets_gradients_and_half_of_an_adapter_starts_at_zero() -> None:
    encoder = adapt(freeze(build_vit("vit_small_patch14_dinov2")), train=True, first_block=1, offsets=[-1, 1, 0])
    before = {key: value.clone() for key, value in encoder.frozen.vit.state_dict().items()}
    assert not [key for key in encoder.state_dict() if key.startswith("frozen")]
    tokens, prefix = encoder(clips(encoder.frozen))
    assert prefix is not None
    (tokens.square().mean() + prefix.square().mean()).backward()
    assert not [1 for parameter in encoder.frozen.vit.parameters() if parameter.requires_grad]
    assert set(encoder.adapters) == {"1", "2"}
    for index in (1, 2):
        for adapter in encoder.adapters_of(index).values():
            assert not adapter.down.weight.grad.any()
            assert not adapter.down.bias.grad.any()
            assert adapter.up.weight.grad.any()
    torch.optim.SGD(encoder.parameters(), lr=1.0).step()
    after = encoder.frozen.vit.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_blocks_below_the_first_adapted_one_keep_nothing_for_the_gradient() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    saved = []
    for first_block in (0, 1, 2):
        kept: list[int] = []
        encoder = adapt(frozen, train=True, first_block=first_block, dropout=0.0)

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(clips(frozen))
        saved.append(sum(kept))
    # Each block keeps as much as the next; the tapped norm is the small rest.
    assert all(more > 1.4 * fewer for more, fewer in pairwise(saved))


def test_checkpointing_changes_no_bit_of_outputs_and_gradients() -> None:
    frozen = freeze(build_vit("vit_small_patch16_dinov3"))
    results = []
    for checkpointing in (False, True):
        encoder = adapt(frozen, train=True, trained=True, offsets=[-1, 1, 0], dropout=0.3, interpolate_after=[2])
        encoder.checkpointing = checkpointing
        torch.manual_seed(7)
        tokens, _ = encoder(clips(frozen))
        tokens.square().sum().backward()
        results.append([tokens, *(parameter.grad for parameter in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224", "eva02_tiny_patch14_224"])
def test_a_stream_that_enters_a_block_gives_what_the_frames_give(name: str) -> None:
    vit = build_vit(name)
    stored = freeze(vit, depths=[0], normalize=False)
    encoder = adapt(freeze(vit), trained=True, first_block=2, offsets=[-1, 1, 0])
    frames = clips(stored)
    encoded = stored.encode(frames)
    stream = torch.cat([encoded.prefix, encoded.tokens[:, 0]], dim=1).unflatten(0, (2, T))
    with torch.no_grad():
        exact, halved = encoder.forward_from(stream, 1).tokens, encoder.forward_from(stream.half(), 1).tokens
        wanted = encoder(frames).tokens
    assert torch.equal(exact, wanted)
    # fp16 has 11 bits.
    assert float((halved - wanted).norm() / wanted.norm()) < 1e-3
    with pytest.raises(ValueError, match="everything below is frozen"):
        encoder.forward_from(stream, 3)
    # With adapters that have learnt nothing, the stream gives the features of the last depth.
    fresh = adapt(freeze(vit), first_block=1)
    with torch.no_grad():
        again, halved = fresh.forward_from(stream, 1).tokens, fresh.forward_from(stream.half(), 1).tokens
    features = fresh.frozen.encode(frames).tokens.unflatten(0, (2, T))
    assert torch.equal(again, features)
    assert float((halved - features).norm() / features.norm()) < 1e-3


def test_another_number_of_frames_than_the_temporal_embedding_has_is_refused() -> None:
    encoder = adapt(freeze(build_vit("vit_tiny_patch16_224")))
    with pytest.raises(ValueError, match="clips have 3 frames, wanted 5"):
        encoder(clips(encoder.frozen, num_frames=3))


def test_settings_that_do_not_fit_the_encoder_are_all_named() -> None:
    vit = skeleton("vit_tiny_patch16_224")
    adaptation = Adaptation(offsets=[-1, 1], first_block=12, interpolate_after=[14])
    with pytest.raises(VidflowError) as error:
        check_adaptation(vit, adaptation)
    assert "offsets: got 2 numbers, wanted 3" in str(error.value)
    assert "first_block: got 12, wanted 0 to 11" in str(error.value)
    assert "interpolate_after: got 14" in str(error.value)
    with pytest.raises(VidflowError, match="block 4 is tapped before, with more frames"):
        check_adaptation(vit, Adaptation(interpolate_after=[6]), depths=[4, 11])


def test_adapters_that_are_not_merged_add_exactly_their_own_multiply_accumulates() -> None:
    frozen = freeze(build_vit("vit_tiny_patch16_224"))
    counts = {}
    for key, settings in {
        "plain": {"places": []},
        "adapted": {},
        "offsets": {"places": [], "offsets": [-1, 1, 0]},
    }.items():
        encoder = adapt(frozen, **settings)
        encoder.eager = True  # the counter does not know the fused kernel of a CPU
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(clips(frozen))
        counts[key] = counter.get_total_flops() // 2
    rank, width, num_tokens, depth = 12, 48, 5, 3
    assert counts["adapted"] - counts["plain"] == 8 * width * rank * num_tokens * (2 * T) * depth
    assert counts["offsets"] == counts["plain"]
    shape = shape_of(frozen.vit)
    assert count_adapted_macs(shape, None, num_frames=2 * T) == counts["plain"]
    assert count_adapted_macs(shape, Adaptation(), num_frames=2 * T, merged=False) == counts["adapted"]


@pytest.mark.parametrize(
    ("name", "num_frames", "gflops"),
    [
        ("vit_base_patch16_clip_224", 8, 422),
        ("vit_large_patch14_clip_224", 8, 1946),
        ("vit_large_patch14_clip_224", 32, 7783),
    ],
)
def test_three_clips_cost_what_is_published_of_the_merged_encoder(name: str, num_frames: int, gflops: int) -> None:
    shape = shape_of(skeleton(name, 224))
    adaptation = Adaptation(offsets=[-1] * shape.num_heads)
    assert 3 * count_adapted_macs(shape, adaptation, num_frames=num_frames) / 1e9 == pytest.approx(gflops, rel=0.01)
