"""Scores on hard models: questions, shares, files of outside methods, and the page of methods and circuits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mechint.ground_truth import MODELS, Compiled
from mechint.ground_truth.together import share_scores
from mechint.scorecard import METHODS, ScorecardConfig
from mechint.scorecard.card import scored
from mechint.scorecard.hard.from_file import method_from
from mechint.scorecard.hard.several import rank_correlation, several_scores
from mechint.scorecard.hard.which_method import KINDS, as_text, kept, main, page
from mechint.scorecard.summary import several
from mechint.utils.errors import MechintError
from tests.helpers.paths import ROOT


def compiled(name: str) -> Compiled:
    found: Compiled = MODELS[name]().compile(seed=3)
    return found


def test_each_question_has_its_own_right_answer() -> None:
    model = compiled("backup")
    assert model.truth.questions is not None
    masks = model.truth.questions.masks(model.model)
    first, second = masks["sufficient"]
    found = several_scores(model, masks["together"][0], "zero")["several"]
    assert set(found) == {"together", "sufficient"}  # no unit is needed alone
    assert found["together"] == {"auroc": 1.0, "exact": True}
    assert not found["sufficient"]["exact"]
    for way in (first, second):
        found = several_scores(model, way, "zero")["several"]
        assert found["sufficient"] == {"auroc": 1.0, "exact": True}
        assert not found["together"]["exact"]
    assert several_scores(compiled("shift"), first[:1], "zero") == {}


def test_shares_are_compared_by_rank() -> None:
    model = compiled("superposed_latch")
    shares = share_scores(model.truth, model.model, "channel")
    assert several_scores(model, shares**3, "zero")["several"]["shares"] == pytest.approx(1.0)
    assert several_scores(model, -shares, "zero")["several"]["shares"] == pytest.approx(-1.0)
    assert several_scores(model, shares.sign(), "zero")["several"]["shares"] == 0.0


def test_rank_correlation_by_hand() -> None:
    """Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, sums of squares 4.5 and 5."""
    found = rank_correlation(torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert found == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


# ---- a file of scores --------------------------------------------------------------------------------------------


def write(folder: Path, content: Any) -> Path:
    (folder / "mine.json").write_text(json.dumps(content))
    return folder / "mine.json"


def test_a_file_is_scored_as_a_function_is(tmp_path: Path) -> None:
    model = compiled("shift")
    truth = model.truth.mask(model.model, "channel")
    name, method = method_from(write(tmp_path, {"method": "mine", "scores": {"shift 3": truth.tolist()}}))
    assert (name, method.title, method.ablation) == ("mine", "mine", "zero")
    row = scored(model, name, method, ScorecardConfig(), of=("shift", 3))
    assert row["exact"] and row["auroc"] == 1.0
    with pytest.raises(MechintError, match="no scores of 'shift 4'; the file has shift 3"):
        scored(model, name, method, ScorecardConfig(), of=("shift", 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "no name of a method; give"),
        ({"scores": {"shift 3": [1]}}, "no name of a method"),
        ({"method": "mine"}, "no scores of mine; give"),
        ({"method": "mine", "scores": {"shift 3": [1]}, "ablation": "meen"}, r"no ablation 'meen' \(did you mean mean"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(MechintError, match=message):
        method_from(write(tmp_path, content))


def test_methods_are_chosen_by_name() -> None:
    assert ScorecardConfig().chosen(METHODS) == list(METHODS)
    assert ScorecardConfig(methods="reach, search_mean").chosen(METHODS) == ["search_mean", "reach"]
    with pytest.raises(MechintError, match=r"no method 'serch_mean' \(did you mean search_mean"):
        ScorecardConfig(methods="serch_mean").chosen(METHODS)


# ---- the page ----------------------------------------------------------------------------------------------------


def card(*rows: tuple[str, str, int, float, dict[str, Any]]) -> dict[str, Any]:
    parts = [
        {
            "model": model,
            "seed": seed,
            "compiled": [{"method": method, "auroc": auroc, "exact": auroc == 1.0, "several": beside}],
        }
        for method, model, seed, auroc, beside in rows
    ]
    budget = {"prompts": 64, "patch_prompts": 16, "steps": 60}
    return {"parts": parts, "methods": {"a": "good one", "b": "bad one"}, "order": ["a", "b"], "config": budget}


def test_the_page_says_what_finds_and_what_fails(tmp_path: Path) -> None:
    together = {"together": {"auroc": 0.75, "exact": False}}
    done = card(
        ("a", "backup", 0, 1.0, {}), ("a", "backup", 1, 1.0, {}), ("b", "backup", 0, 0.8, together),
        ("b", "backup", 1, 0.6, together),
    )  # fmt: skip
    text = page(kept([done]))
    assert "* **a backup**: to the unit on every model and seed: good one. Mean AUROC below 0.95: bad one." in text
    assert "1.000 ●" in text and "0.700 (0 of 2)" in text and "0.750 (0 of 2)" in text
    assert "-0.300 [-1.571, 0.971]" in text  # two seeds: 0.1 · 12.706 on either side
    assert "loud decoys" not in text
    (tmp_path / "results.json").write_text(json.dumps(done))
    write = ["--page", str(tmp_path / "page.md")]
    with pytest.raises(MechintError, match="no numbers to write a page from"):
        main(write)
    main([str(tmp_path / "results.json"), *write])
    assert (tmp_path / "page.md").read_text() == text
    (tmp_path / "page.md").unlink()
    main(write)  # from the numbers beside it
    assert (tmp_path / "page.md").read_text() == text
    with pytest.raises(MechintError, match="none of these scorecards has a model of a known kind"):
        page(kept([card()]))


def test_a_later_card_adds_cells_and_replaces_its_own(tmp_path: Path) -> None:
    first = card(("a", "backup", 0, 0.5, {}), ("b", "backup", 0, 0.625, {}))
    second = card(("a", "backup", 0, 1.0, {}), ("a", "rare", 0, 0.75, {}))
    for number, done in enumerate((first, second)):
        (tmp_path / f"{number}.json").write_text(json.dumps(done))
        main([str(tmp_path / f"{number}.json"), "--page", str(tmp_path / "page.md")])
    data = json.loads((tmp_path / "page.json").read_text())
    assert [(part["model"], [cell["auroc"] for cell in part["compiled"]]) for part in data["parts"]] == [
        ("backup", [1.0, 0.625]), ("rare", [0.75])
    ]  # fmt: skip
    assert (tmp_path / "page.json").read_text() == as_text(kept([first, second]))
    main([str(tmp_path / "1.json"), "--fresh", "--page", str(tmp_path / "page.md")])
    assert "bad one" not in (tmp_path / "page.md").read_text()


def test_cards_of_different_budgets_are_not_mixed() -> None:
    one, other = (card(("a", model, 0, 0.5, {})) for model in ("backup", "rare"))
    other["config"] = {**other["config"], "steps": 10}
    with pytest.raises(MechintError, match=r"different budgets .*steps 60; .*steps 10"):
        kept([one, other])


def test_sizes_stand_on_the_page_with_their_intervals() -> None:
    done = card(("a", "backup", 0, 1.0, {}), ("a", "backup", 1, 1.0, {}), ("b", "backup", 0, 0.5, {}))
    for part, size in zip(done["parts"][:2], (8, 6), strict=True):
        part["compiled"][0]["stops"] = {"size": size, "true": 8, "faithfulness": 0.96}
    text = page(kept([done])).split("## Where `smallest` stops")[1].split("##")[0]
    assert "| good one | 0.88 [-0.71, 2.46] (1 of 2) |" in text and "bad one" not in text  # 0.125 · 12.706
    assert "`smallest`" not in page(kept([card(("a", "backup", 0, 1.0, {}))]))


def test_the_page_of_the_docs_is_that_of_the_numbers_beside_it() -> None:
    text = (ROOT / "docs" / "which_method.json").read_text()
    data = json.loads(text)
    assert len(text) < 300_000 and as_text(kept([data])) == text
    assert page(data) == (ROOT / "docs" / "which_method.md").read_text()
    kinds = {kind for kind, own in KINDS.items() if {part["model"] for part in data["parts"]} & set(own)}
    assert kinds >= {"loud decoys", "a Mamba-2", "a delta rule", "units in two roles", "a hybrid"}


def test_every_model_is_of_one_kind() -> None:
    every = [model for models in KINDS.values() for model in models]
    assert sorted(every) == sorted(MODELS)


def test_questions_are_summed_up_over_seeds() -> None:
    cells = [{"alone": {"auroc": a, "exact": a == 1.0}, "shares": a} for a in (0.5, 1.0)]
    found = several(cells)["several"]
    assert (found["alone"]["auroc"]["value"], found["alone"]["exact"]["value"]) == (0.75, 0.5)
    assert found["shares"]["low"] == 0.5
    assert several([{}, {}]) == {}
