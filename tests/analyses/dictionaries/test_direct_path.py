"""The direct path from sites of declared families to the logits: linear maps, scales and caps, by differences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mechint
from mechint import Edit
from mechint.analyses.dictionaries.logits import direct_map, has_direct_path, output_matrix
from mechint.models.stack import Stack

pytest.importorskip("transformers")

from tests.helpers.judges.base import judged
from tests.models.families.test_parity import JUDGES


@pytest.fixture(
    scope="module", params=["falcon_h1", "gemma2", "granitemoehybrid", "qwen3_5", "jamba", "zamba2", "lfm2"]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    path = tmp_path_factory.mktemp(request.param)
    judged(JUDGES[request.param], 0).float().save_pretrained(path)
    found = mechint.load(path).double().requires_grad_(False)
    assert isinstance(found, Stack)
    return found


def some(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_direct_map_has_the_scale_and_the_cap_of_the_logits(model: Stack) -> None:
    site = f"layers.{model.num_layers - 1}.resid_post"
    tokens = torch.tensor([[3]])
    direction = some(tuple(model.sites[site].units), 1)
    step = 1e-5 * direction.view(1, 1, -1)
    more, less = (mechint.run(model, tokens, edits=[Edit(site, "add", s * step)]).logits[0, 0] for s in (1, -1))
    torch.testing.assert_close(direct_map(model, tokens, site) @ direction, (more - less) / 2e-5, rtol=1e-5, atol=1e-8)


def test_a_linear_site_moves_the_site_behind_it_by_its_matrix(model: Stack) -> None:
    tokens, tried = torch.tensor([[3, 1, 4]]), set()
    for site in model.sites:
        kind, behind = site.rpartition(".")[2], model.added_at(site)
        if behind is None or kind in tried:
            continue
        tried.add(kind)
        assert has_direct_path(model, site)
        if behind == site:
            assert kind in model.mixers and output_matrix(model, site) is None
            continue
        direction = some((1, 1, *model.sites[site].units), 2)
        before = mechint.run(model, tokens, [behind])[behind]
        after = mechint.run(model, tokens, [behind], [Edit(site, "add", direction)])[behind]
        matrix = output_matrix(model, site)
        assert matrix is not None
        wanted = (matrix @ direction.flatten()).expand(1, 3, -1)
        torch.testing.assert_close(after - before, wanted, rtol=1e-9, atol=1e-10)
    assert tried & set(model.mixers)


def test_a_site_behind_which_a_norm_stands_has_no_direct_path(tmp_path: Path) -> None:
    judged(JUDGES["gemma2"], 0).float().save_pretrained(tmp_path)
    model = mechint.load(tmp_path)
    assert not has_direct_path(model, "layers.0.mlp_post") and has_direct_path(model, "layers.0.mlp_out")
    with pytest.raises(mechint.MechintError, match=r"layers\.0\.mlp_post reaches the logits through products"):
        direct_map(model, torch.tensor([[1, 2]]), "layers.0.mlp_post")
