"""Density-peak clustering."""

import pytest
import torch

from vidflow.errors import VidflowError
from vidflow.models.reduction.density_peaks import PostDensityPeaks, cluster_owners


def slow_owners(tokens: torch.Tensor, num_clusters: int, num_neighbours: int) -> list[int]:
    """Follow the description token by token, for one sample."""
    points = tokens.double()
    num_tokens, width = points.shape
    distance = [[float((a - b).norm()) / width**0.5 for b in points] for a in points]
    density = [
        float(torch.tensor([-sum(d * d for d in sorted(row)[:num_neighbours]) / num_neighbours]).exp())
        for row in distance
    ]
    separation = []
    for token in range(num_tokens):
        denser = [distance[token][other] for other in range(num_tokens) if density[other] > density[token]]
        separation.append(min(denser) if denser else max(map(max, distance)))
    score = [a * b for a, b in zip(density, separation, strict=True)]
    centres = sorted(range(num_tokens), key=lambda token: -score[token])[:num_clusters]
    return [
        token if token in centres else min(centres, key=lambda centre: distance[token][centre])
        for token in range(num_tokens)
    ]


@pytest.mark.parametrize(("num_clusters", "num_neighbours"), [(1, 3), (4, 3), (9, 5), (15, 2)])
def test_clusters_equal_those_of_the_slow_description(num_clusters: int, num_neighbours: int) -> None:
    tokens = torch.randn(3, 15, 4, generator=torch.Generator().manual_seed(1))
    owners = cluster_owners(tokens, num_clusters=num_clusters, num_neighbours=num_neighbours)
    assert owners.tolist() == [slow_owners(sample, num_clusters, num_neighbours) for sample in tokens]
    assert all(len(sample.unique()) == num_clusters for sample in owners)


def test_as_many_clusters_as_tokens_change_nothing() -> None:
    tokens = torch.randn(2, 2, 3, 3, 5)
    step = PostDensityPeaks(keep=1.0).assign(tokens)
    assert torch.equal(step.merge(tokens.flatten(1, 3), torch.ones(2, 18))[0], tokens.flatten(1, 3))


def test_equal_tokens_that_are_both_centres_keep_a_cluster_each() -> None:
    owners = cluster_owners(torch.ones(1, 6, 3), num_clusters=4, num_neighbours=3)
    assert len(owners.unique()) == 4


def test_well_separated_groups_are_found() -> None:
    centres = 10 * torch.eye(4)
    tokens = (centres.repeat(4, 1) + 0.1 * torch.randn(16, 4)).view(1, 1, 4, 4, 4)
    step = PostDensityPeaks(keep=0.25, num_neighbours=3).assign(tokens)
    assert torch.equal(step.row_of.view(4, 4), step.row_of.view(4, 4)[:1].expand(4, -1))


def test_segments_do_not_mix_and_must_divide_the_clip() -> None:
    tokens = torch.randn(2, 6, 3, 3, 5)
    step = PostDensityPeaks(keep=0.3, frames_per_segment=2).assign(tokens)
    owners = step.owners.gather(1, step.row_of)
    assert torch.equal(owners // 18, (torch.arange(54) // 18).expand(2, -1))
    with pytest.raises(VidflowError, match="frames_per_segment 4"):
        PostDensityPeaks(keep=0.5, frames_per_segment=4).assign(tokens)
