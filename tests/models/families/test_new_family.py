"""Adding a family of parts: the file on docs/families.md is all that is written."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mechint
from mechint.interventions.edits import Edit
from mechint.interventions.sweep import sweep
from mechint.interventions.units import Units
from mechint.models import families
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.models.stack import Stack
from tests.helpers.sweeps import one_by_one

PAGE = Path(__file__).parents[3] / "docs" / "families.md"
SIZES = {
    "vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 4, "state_size": 3,
    "intermediate_size": 12, "sliding_window": 3,
}  # fmt: skip


@pytest.fixture
def duet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkpoint of the family on the page, whose file stands in one more folder of families."""
    [file] = re.findall(r'```python\n("""Duet.*?)```', PAGE.read_text(), re.S)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "duet.py").write_text(file)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "more")])
    importlib.invalidate_caches()
    families.declared.cache_clear()
    family = families.declared()["duet"]
    torch.manual_seed(0)
    model = family.build(family.read(reader(SIZES)))
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf_config(model)))
    save_file(
        {name: tensor.contiguous() for name, tensor in to_hf_state_dict(model).items()}, path / "model.safetensors"
    )
    yield path
    families.declared.cache_clear()


def reader(sizes: dict[str, int]) -> object:
    from mechint.models.loading.config_reader import ConfigReader

    return ConfigReader(sizes, "config.json", "Duet")


def test_a_family_of_one_file_is_loaded_edited_and_swept(duet: Path) -> None:
    model = mechint.load(duet, dtype="float64")
    assert isinstance(model, Stack) and model.config.family == "duet" and model.config.window == 3
    tokens = torch.arange(14).view(2, 7) % 11
    whole = mechint.run(model, tokens)
    first = mechint.run(model, tokens[:, :3])
    rest = mechint.run(model, tokens[:, 3:], cache=first.cache)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole.logits, rtol=1e-12, atol=1e-12)
    cells = [
        [Edit(f"layers.{layer}.{site}", "scale", 0.5, positions=[position])]
        for layer in (0, 1)
        for site in ("head_out", "y", "ssm_out", "mlp_post", "key", "resid_mid")
        for position in (0, 4)
    ]
    torch.testing.assert_close(sweep(model, tokens, cells), one_by_one(model, tokens, cells))
    units = Units(model, model.unit_kinds["head"], model.unit_kinds["ssm_head"])
    assert [row.size for row in units.by_row] == [2, 2, 2, 2]


def test_its_bad_files_are_refused_by_name(duet: Path) -> None:
    config = json.loads((duet / "config.json").read_text())
    for change, words in (
        ({"logit_softcapping": 30.0}, "logit_softcapping"),
        ({"num_heads": None}, "lacks num_heads, which a Duet needs"),
        ({"state_size": 4}, r"layers\.0\.mixer"),
    ):
        (duet / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(mechint.MechintError, match=words):
            mechint.load(duet)
