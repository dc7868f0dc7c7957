"""The choice of a temporal core by name."""

from typing import assert_never

from vidflow.config.schema import CoreName
from vidflow.models.cores.blocks import DropUnit, fitting_heads
from vidflow.models.cores.causal_attention import CausalAttentionCore
from vidflow.models.cores.gated_transformer import GatedTransformerCore, GatedVariant
from vidflow.models.cores.mamba import MambaCore, Mixing
from vidflow.models.cores.plain import GruCore, IdentityCore, MeanCore
from vidflow.models.cores.temporal_core import State, TemporalCore, detach_state, reset_rows
from vidflow.models.cores.vtm import VtmCore, VtmSettings


def build_core(
    name: CoreName,
    *,
    embed_dim: int,
    num_layers: int = 4,
    num_heads: int | None = None,
    dropout: float = 0.1,
    drop_path: float = 0.1,
    drop_unit: DropUnit = "clip",
    state_dim: int = 16,
    window: int = 16,
    gated_variant: GatedVariant = "released",
    vtm: VtmSettings | None = None,
) -> TemporalCore:
    """Build a temporal core.

    Args:
        name: Name of the core.
        embed_dim: Width D of the tokens.
        num_layers: Number of blocks; `identity` and `mean` have none, `vtm` three.
        num_heads: Attention heads, for cores with attention; None is `default_heads`.
        dropout: Dropout rate in [0, 1) of the Mamba cores, of causal attention and of VTM.
        drop_path: Rate in [0, 1) of stochastic depth in the spatial blocks of these cores.
        drop_unit: Whether stochastic depth drops whole clips or single frames.
        state_dim: State size of Mamba per inner channel.
        window: Number of frames that each layer of causal attention sees.
        gated_variant: Norms and GELU of the gated transformer: as released in torch, or RVM's own.
        vtm: Groups and merging of VTM; None: as published.

    Raises:
        ValueError: `embed_dim` does not split into the heads.
    """
    heads = default_heads(name, embed_dim) if num_heads is None else num_heads
    match name:
        case "identity":
            return IdentityCore(embed_dim)
        case "mean":
            return MeanCore(embed_dim)
        case "gru":
            return GruCore(embed_dim, num_layers)
        case "mamba":
            return MambaCore(embed_dim, num_layers, heads, mixing="none", state_dim=state_dim, dropout=dropout)
    _check_heads(embed_dim, heads)
    match name:
        case "gated_transformer":
            return GatedTransformerCore(embed_dim, num_layers, heads, variant=gated_variant)
        case "mamba_mix" | "gated_mamba_mix":
            mixing: Mixing = "spatial" if name == "mamba_mix" else "gated"
            return MambaCore(
                embed_dim,
                num_layers,
                heads,
                mixing=mixing,
                state_dim=state_dim,
                dropout=dropout,
                drop_path=drop_path,
                drop_unit=drop_unit,
            )
        case "causal_attention":
            return CausalAttentionCore(
                embed_dim,
                num_layers,
                heads,
                window=window,
                dropout=dropout,
                drop_path=drop_path,
                drop_unit=drop_unit,
            )
        case "vtm":
            return VtmCore(embed_dim, heads, vtm, dropout=dropout)
        case _:
            assert_never(name)


def default_heads(name: CoreName, embed_dim: int) -> int:
    """Return the published number of heads; for other widths, the largest number up to 16 that fits.

    Source: Orlova et al. 2026 (arXiv 2605.19137) and its code: 16 heads in every spatial block; the gated transformer
    has 8, 12 and 16 at widths 384, 768 and 1024.
    """
    published = {384: 8, 768: 12, 1024: 16}
    if name == "gated_transformer" and embed_dim in published:
        return published[embed_dim]
    # The narrower blocks of VTM have half the width.
    return fitting_heads(embed_dim // 2 if name == "vtm" else embed_dim, most=16)


def _check_heads(embed_dim: int, num_heads: int) -> None:
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(f"num_heads is {num_heads}; it must be a positive divisor of embed_dim {embed_dim}")


__all__ = ["State", "TemporalCore", "VtmSettings", "build_core", "default_heads", "detach_state", "reset_rows"]
