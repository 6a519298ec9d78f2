"""Proposals of candidates and their evidence by hand, from made-up activations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mechint.analyses.study.candidates import (
    Candidate,
    from_units,
    listing,
    merge,
    of_clusters,
    of_mask,
    of_probe,
    of_sae,
    strongest,
)
from mechint.analyses.study.subspaces import Traffic, overlap

SITE = "layers.1.gated"


def traffic(slope: list[float], change: Tensor, effect: float) -> Traffic:
    """Changes [prompt, unit] from twins of zero at one position; each prompt has the same slope and effect."""
    clean = change.double().unsqueeze(1)
    slopes = torch.tensor(slope, dtype=torch.float64).expand_as(clean)
    rows = len(clean)
    return Traffic(SITE, clean, 0 * clean, slopes, torch.full((rows,), effect).double(), torch.ones(rows).bool())


def shares(*values: float) -> Traffic:
    """One prompt with an effect of 4; unit i carries the i-th of these shares of it."""
    return traffic([2.0] * len(values), 2 * torch.tensor([values]), 4.0)


def test_what_passes_through_units_and_directions() -> None:
    found = shares(0.5, 0.3, -0.1)
    assert found.by_unit().tolist() == pytest.approx([0.5, 0.3, -0.1])
    assert found.share(torch.eye(3, 2, dtype=torch.float64)) == pytest.approx(0.8)
    both = torch.tensor([[1.0], [1.0], [0.0]], dtype=torch.float64) / 2**0.5
    # ⟨slope, v⟩ = 4 / √2 and ⟨change, v⟩ = 1.6 / √2 of an effect of 4
    assert found.share(both) == pytest.approx(0.8)
    two = traffic([1.0, 0.0], torch.tensor([[1.0, 5.0], [3.0, 5.0]]), 4.0)
    assert two.by_unit().tolist() == pytest.approx([0.5, 0.0])  # 4 of 8


def test_the_strongest_are_positive_and_near_the_strongest() -> None:
    assert strongest(torch.tensor([0.1, 0.5, -0.9, 0.5]), 3) == [1, 3, 0]
    assert strongest(torch.tensor([0.1, 0.5, -0.9, 0.5]), 1) == [1]
    assert strongest(torch.tensor([1.0, 0.02, 0.021]), 3) == [0, 2]  # more than a fiftieth of the strongest
    assert strongest(torch.tensor([0.01, 0.0009, 0.0011]), 3) == [0, 2] and strongest(torch.tensor([0.0009]), 1) == []


class Dictionary:
    """Latents that are the units themselves, and one more that is none."""

    W_dec = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])

    def check_input(self, x: Tensor) -> None:
        assert x.shape[-1] == 3

    def encode(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 0], x[..., 1] / 2, x[..., 2], 0 * x[..., 0]], -1)


def test_latents_are_proposed_by_the_effect_that_passes_through_them() -> None:
    proposals = of_sae(shares(0.5, 0.3, -0.1), 1, Dictionary(), 3)  # type: ignore[arg-type]
    [candidate] = proposals
    assert candidate.name == "L1 sae latents 0 1" and candidate.rank == 2 and candidate.sources == ("sae",)
    assert overlap(candidate.basis, torch.eye(3, 2, dtype=torch.float64)) == pytest.approx(1)
    assert (candidate.layer, candidate.site, candidate.units) == (1, SITE, ())
    assert of_sae(shares(-0.5, 0.0, -0.1), 1, Dictionary(), 3) == []  # type: ignore[arg-type]
    assert of_sae(shares(0.5, 0.3, -0.1), 1, Dictionary(), 1)[0].name == "L1 sae latents 0"  # type: ignore[arg-type]
    # the effect is what shares are of: of a larger one these are next to nothing
    assert of_sae(traffic([1.0] * 3, torch.tensor([[1.0, 1, 1]]), 2000.0), 1, Dictionary(), 3) == []  # type: ignore[arg-type]


def test_units_that_change_together_are_one_cluster() -> None:
    """Units 0 and 1 move together, 2 and 3 against each other, 4 alone; 5 carries nothing and 6 does not change."""
    random = np.random.default_rng(0)
    first, second, third = random.normal(size=(3, 50)) + 1
    columns = [first, 2 * first, second, -0.5 * second, third, first, 0 * first + 1]
    change = torch.from_numpy(np.stack(columns, 1))
    found = traffic([0.1, 0.1, 1.0, -1.0, 1.0, 0.0, 0.5], change, 5.0)
    proposals = of_clusters(found, 1, 2)
    assert [candidate.units for candidate in proposals] == [(2, 3), (0, 1)]
    assert proposals[0].name == "L1 cluster 2 3" and proposals[0].sources == ("cluster",)
    assert [candidate.units for candidate in of_clusters(found, 1, 2, most=1)] == [(2, 3)]
    assert [candidate.units for candidate in of_clusters(found, 1, 1)] == [(2,), (1,)]  # of each the stronger one
    assert of_clusters(traffic([1.0, 0.0], change[:, [0, 5]], 5.0), 1, 2) == []
    # a correlation of a half is the least within a cluster
    for mixed, count in ((0.7, 1), (0.3, 0)):
        noise = torch.from_numpy(np.linalg.qr(random.normal(size=(400, 3)) - 0.0)[0] * 20)
        noise = noise - noise.mean(0)
        pair = torch.stack([noise[:, 0], mixed * noise[:, 0] + (1 - mixed**2) ** 0.5 * noise[:, 1]], 1) + 1
        assert len(of_clusters(traffic([1.0, 1.0], pair, 5.0), 1, 2)) == count


def test_the_mask_proposes_the_units_that_it_kept() -> None:
    found = shares(0.5, -0.3, 0.2, 0.1)
    [candidate] = of_mask(found, 1, torch.tensor([False, True, True, True]), 2)
    assert candidate.units == (1, 2) and candidate.name == "L1 mask 1 2" and candidate.sources == ("mask",)
    assert of_mask(found, 1, torch.zeros(4).bool(), 2) == []


def test_a_probe_proposes_what_it_reads_where_it_is_selective() -> None:
    weights = np.array([[1.0, 0, 0], [2.0, 0, 0]])
    probe = lambda low, w: SimpleNamespace(selectivity={"low": low}, weights=w, method="linear", label="key")
    made = lambda low, w: of_probe(probe(low, w), 2, SITE, 3)  # type: ignore[arg-type]
    [candidate] = made(0.01, weights)
    assert candidate.rank == 1 and candidate.name == "L2 linear of key" and abs(float(candidate.basis[0])) == 1
    assert made(0.0, weights) == [] and made(0.5, 0 * weights) == []


def test_evidence_is_the_share_and_half_of_it_again_where_sources_agree() -> None:
    """Units 0 and 1 are proposed by two sources, 0 alone by a third, 2 by one of them."""
    found = shares(0.4, 0.2, 0.3, -0.5)
    unit = lambda name, source, units: from_units(name, source, 1, SITE, units, 4)
    proposals = [unit("a", "mask", [0, 1]), unit("b", "sae", [1, 0]), unit("c", "probe", [0]), unit("d", "mask", [2]),
                 unit("e", "probe", [3])]  # fmt: skip
    other = from_units("f", "sae", 0, "layers.0.gated", [0], 4)
    scored, table = merge([*proposals, other], {SITE: found, "layers.0.gated": shares(0.1, 0, 0, 0)})
    by_name = {candidate.name: candidate for candidate in scored}
    both = by_name["a"]
    assert both.sources == ("mask", "sae") and "b" not in by_name
    # one more source, whose nearest proposal lies in it wholly, and the agreement of its own two
    assert (
        both.share == pytest.approx(0.6)
        and both.agreement == pytest.approx(1.0)
        and both.evidence == pytest.approx(0.6)
    )
    alone = by_name["c"]  # in the subspace of both other sources
    assert (alone.share, alone.agreement, alone.evidence) == pytest.approx((0.4, 1.0, 0.4))
    single = by_name["d"]
    assert (single.share, single.agreement, single.evidence) == pytest.approx((0.3, 0.0, 0.15))
    assert by_name["e"].share == 0 == by_name["e"].evidence and by_name["f"].agreement == 0
    assert [c.name for c in scored] == ["a", "c", "d", "f", "e"]
    names = [c.name for c in scored]
    cell = lambda x, y: table[names.index(x)][names.index(y)]
    assert cell("a", "c") == pytest.approx(1.0) and cell("a", "d") == 0 and cell("c", "f") == 0 and cell("f", "f") == 1


def test_proposals_of_other_ranks_are_not_joined() -> None:
    basis = torch.eye(6, dtype=torch.float64)
    found = {SITE: shares(0.3, 0.2, 0.1, 0.1, 0.1, 0.1)}
    made = lambda name, k: Candidate(name, 1, SITE, basis[:, :k], (name,))
    joined = lambda a, b: len(merge([made("x", a), made("y", b)], found)[0]) == 1
    assert joined(4, 3) and not joined(4, 2) and joined(3, 3) and not joined(3, 2)
    apart: Any = Candidate("z", 1, SITE, torch.cat([basis[:, :1], basis[:, 5:]], 1), ("z",))
    assert len(merge([made("x", 2), apart], found)[0]) == 2  # half of it is the same


def test_listings_are_cut() -> None:
    assert listing([3, 1, 2]) == "1 2 3" and listing([4, 3, 2, 1]) == "1 2 3 4"
    assert listing([9, 8, 7, 6, 5]) == "5 6 7 8 … (5)" and listing([2, 1], most=1) == "1 … (2)"
