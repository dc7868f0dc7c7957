"""Check the settings of an adaptation against the architecture; this needs no weights."""

from collections.abc import Sequence

from vidflow.config.schema import Adaptation
from vidflow.errors import VidflowError
from vidflow.models.encoder.architecture import resolve_depths, shape_of
from vidflow.models.encoder.vit import TimmVit, check_blocks


def adaptation_problems(vit: TimmVit, adaptation: Adaptation, *, depths: Sequence[int] | None = None) -> list[str]:
    """Return what of an adaptation does not fit a model, each with its setting.

    Args:
        vit: The model; it may be without weights.
        adaptation: What is to be trained.
        depths: Tapped blocks; None is the last.
    """
    num_blocks, num_heads = len(vit.blocks), shape_of(vit).num_heads
    problems = []
    if adaptation.offsets and len(adaptation.offsets) != num_heads:
        problems.append(
            f"offsets: got {len(adaptation.offsets)} numbers, wanted {num_heads}, one for each attention head, or none"
        )
    if adaptation.first_block >= num_blocks:
        problems.append(f"first_block: got {adaptation.first_block}, wanted 0 to {num_blocks - 1}")
    try:
        check_blocks(vit)
    except VidflowError as error:
        problems.append(
            f"places: {str(error).partition(', inside')[0]}, whose steps cannot be adapted; take another encoder"
        )
    uses = adaptation.interpolate_after
    bad = [after for after in uses if not adaptation.first_block <= after < num_blocks]
    if bad:
        problems.append(
            f"interpolate_after: got {bad[0]}, wanted numbers from first_block = {adaptation.first_block} to "
            f"{num_blocks - 1}"
        )
    shallow = min(resolve_depths(depths, num_blocks=num_blocks))
    if shallow < adaptation.first_block:
        problems.append(
            f"first_block: got {adaptation.first_block}, behind the tapped block {shallow}, so nothing learns"
        )
    elif uses and not bad and shallow < max(uses):
        problems.append(
            f"interpolate_after: got {max(uses)}, but block {shallow} is tapped before, with more frames; tap blocks "
            f"from {max(uses)} on only"
        )
    return problems


def check_adaptation(vit: TimmVit, adaptation: Adaptation, *, depths: Sequence[int] | None = None) -> None:
    """Check an adaptation; see `adaptation_problems`.

    Raises:
        VidflowError: Something does not fit; the message lists all of it.
    """
    if problems := adaptation_problems(vit, adaptation, depths=depths):
        raise VidflowError("\n".join(f"adaptation: {problem}" for problem in problems))


__all__ = ["adaptation_problems", "check_adaptation"]
