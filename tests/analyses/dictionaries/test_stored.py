"""Which dictionaries of a directory are taken."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mechint.analyses.dictionaries import stored
from mechint.analyses.dictionaries.stored import best_of, chosen_of, one_for_each_site
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json


def dictionaries(**baselines: str) -> dict[str, Any]:
    """Dictionaries by name, each with the kind of baseline that it is; '' for one that was trained whole."""
    return {name: SimpleNamespace(config=SimpleNamespace(baseline=baseline)) for name, baseline in baselines.items()}


def test_patterns_choose_in_the_order_of_the_directory() -> None:
    every = dictionaries(relu_a="", topk_b="", topk_a="", gated="")
    assert chosen_of(every, "topk_*") == ["topk_b", "topk_a"] and chosen_of(every, "gated, relu_a") == [
        "relu_a",
        "gated",
    ]
    with pytest.raises(MechintError, match="no dictionary 'tpk_\\*'"):
        chosen_of(every, "gated,tpk_*")


def test_of_each_site_the_one_is_taken_that_loses_the_model_least(tmp_path: Path) -> None:
    every = dictionaries(a="", frozen="frozen_decoder", b="", c="")
    measured = [
        {
            "name": name,
            "site": site,
            "baseline": every[name].config.baseline,
            "metrics": {"ce_increase": {"value": rise}},
        }
        for name, site, rise in (("b", "y", 0.3), ("frozen", "x", 0.0), ("c", "x", 0.2), ("a", "x", 0.1))
    ]
    write_json(tmp_path / "results.json", {"sae": {"members": measured}})
    assert best_of(every, tmp_path) == ["b", "a"] == best_of(every, tmp_path / "dictionaries")
    write_json(tmp_path / "results.json", {"sae": {"members": measured[1:]}})  # one of them was not measured
    assert best_of(every, tmp_path) == ["a", "b", "c"] == best_of(every, tmp_path / "elsewhere" / "deep")


def test_a_directory_without_dictionaries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="holds no dictionary"):
        one_for_each_site(tmp_path, "")


def test_of_each_site_one_dictionary_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    every = dictionaries(a="", b="", c="", nowhere="")
    for name, site in (("a", "x"), ("b", "y"), ("c", "x"), ("nowhere", "")):
        every[name].config.site = site
    monkeypatch.setattr(stored, "layers_named", lambda directory, names: None)
    monkeypatch.setattr(stored, "load_given", lambda directory, flatten, model, layers: every)
    assert list(one_for_each_site("d", "a,b")) == ["a", "b"]
    with pytest.raises(MechintError, match=r"x has several dictionaries \(a, c\)"):
        one_for_each_site("d", "a,b,c")
    with pytest.raises(MechintError, match="nowhere does not say of which site"):
        one_for_each_site("d", "nowhere")
