"""DivPrune: greedy choice of far tokens."""

import pytest
import torch

from vidflow.models.reduction.diversity import PostDiversity, most_diverse


def slow_choice(tokens: torch.Tensor, num_kept: int) -> list[int]:
    """Choose one by one, for one sample."""
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    distance = 1 - unit @ unit.T
    isolation = [min(float(distance[a, b]) for b in range(len(tokens)) if b != a) for a in range(len(tokens))]
    chosen = [isolation.index(max(isolation))]
    while len(chosen) < num_kept:
        rest = [token for token in range(len(tokens)) if token not in chosen]
        chosen.append(max(rest, key=lambda token: min(float(distance[token, other]) for other in chosen)))
    return chosen


@pytest.mark.parametrize("num_kept", [1, 4, 11, 12])
def test_the_choice_equals_the_slow_one_and_repeats_nothing(num_kept: int) -> None:
    tokens = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(2))
    kept, owners = most_diverse(tokens, num_kept=num_kept)
    assert kept.tolist() == [slow_choice(sample, num_kept) for sample in tokens]
    assert all(len(sample.unique()) == num_kept for sample in kept)
    assert torch.equal(owners.gather(1, kept), kept)


def test_fewer_tokens_are_the_first_of_more() -> None:
    tokens = torch.randn(2, 20, 5)
    assert torch.equal(most_diverse(tokens, num_kept=12)[0][:, :5], most_diverse(tokens, num_kept=5)[0])


def test_what_is_left_out_belongs_to_the_likest_kept() -> None:
    tokens = torch.randn(1, 20, 5)
    kept, owners = most_diverse(tokens, num_kept=6)
    unit = torch.nn.functional.normalize(tokens[0], dim=-1)
    assert torch.equal(kept[0][(unit @ unit[kept[0]].T).argmax(1)], owners[0])


@pytest.mark.parametrize("scope", ["frame", "clip"])
def test_kept_tokens_are_taken_as_they_are(scope: str) -> None:
    tokens = torch.randn(2, 3, 4, 4, 6)
    step = PostDiversity(keep=0.25, scope=scope).assign(tokens)  # type: ignore[arg-type]
    merged, sizes = step.merge(tokens.flatten(1, 3), torch.ones(2, 48))
    assert torch.equal(merged, step.select(tokens.flatten(1, 3)))
    assert step.num_rows == 12
    assert (sizes.sum(1) == 48).all()
    assert (step.owners.diff(dim=1) > 0).all()
