"""The analysis: its numbers against single edits, its page, the checkpoint that it saves, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.analyses.base import analyses
from mechint.analyses.editing.analyzer import ANALYSIS, EditAnalyzer
from mechint.analyses.editing.compare import write_edit_comparison
from mechint.analyses.editing.maps import changed
from mechint.analyses.editing.options import EditConfig, refuse
from mechint.report import write_report
from mechint.tasks import TaskConfig
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from mechint.utils.rundir import weights_digest
from tests.helpers.builders import tiny_gpt2, tiny_mamba
from tests.helpers.families import falcon_h1
from tests.helpers.run_files import write_results
from tests.helpers.tracing import loaders

SMALL = EditConfig(steps=3, eval_prompts=12, prompts=12, neighbours=2, bootstrap=100, maps="usual")


def config_of(**changes: Any) -> EditConfig:
    return dataclasses.replace(SMALL, **changes)


def finished(directory: Path, model: Any, config: EditConfig, count: int = 12) -> dict[str, Any]:
    """A run directory as the runner leaves it."""
    analyzer = EditAnalyzer(model, config, run_dir=directory, key="a")
    found = analyzer.run_analysis(loaders(model, batch=12)[0], loaders(model, count, batch=12)[1])
    analyzer.save_results()
    return write_results(
        directory, "edit", "Editing of facts", config, {"report": "edit", **found}, family=model.config.family
    )


def test_numbers_are_the_means_of_the_facts_and_weights_come_back() -> None:
    model = tiny_mamba(1)
    digest = weights_digest(model)
    analyzer = EditAnalyzer(model, config_of(maps="in_x", layers="1", generate=4))
    results = analyzer.run_analysis(*loaders(model))
    assert weights_digest(model) == digest
    [entry] = results["edits"]
    rows = analyzer.tensors["layers.1.in_x.edit"].numpy()
    assert (entry["name"], entry["layer"], entry["site"]) == ("in_x", 1, "out")
    assert entry["efficacy"]["value"] == pytest.approx(rows[:, 0].mean()) and entry["efficacy"]["n"] == len(rows)
    assert entry["rewrite"]["value"] == pytest.approx(rows[:, 3].mean()) and "fluency" in entry
    control = analyzer.tensors["layers.1.in_x.random direction"].numpy()
    first, second = entry["controls"]  # the other layer is not among those that are edited
    assert first["above"]["value"] == pytest.approx((rows[:, 3] - control[:, 3]).mean())
    assert second["control"] == "other layer" and "layers.0.in_x.edit" not in analyzer.tensors
    assert (
        results["metrics"]["facts_edited"]["value"]
        == len(rows)
        == len(set(map(str, results["facts"])) | set(range(8, len(rows))))
    )
    assert [row["layer"] for row in results["traced"] if row["site"] == "out"] == [0, 1]
    assert all(row["over"] != "layers" for row in results["correlations"])  # two layers have no order
    assert "best            in_x of layer 1" in "\n".join(ANALYSIS.summary(results))


@pytest.mark.slow_except("memit")
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_page_and_the_checkpoint(method: str, tmp_path: Path) -> None:
    model = tiny_gpt2(1, n_layer=4)
    digest = weights_digest(model)
    config = config_of(method=method, save=True, window=2, trace_window=3, tracing=method == "rome", weight=1.0)
    raw = finished(tmp_path, model, config)
    assert weights_digest(model) == digest
    written = write_report(tmp_path)
    figures = {"edit_layers.png", *(["edit_tracing.png"] if method == "rome" else [])}
    assert {path.name for path in written} == figures | {"edit_report.md", "report.html"}
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "edit_report.md").read_text()
    assert "&lt;b&gt;x.pt" in page and "<b>x.pt" not in page and "nan" not in page.lower().split()
    assert f"{method.upper()} succeeds best at down_proj" in text
    assert ("Does tracing say where to edit?" in text) == (method == "rome")
    assert method == "memit" or any(row["over"] == "layers" for row in raw["correlations"])
    found = mechint.results(tmp_path)
    [row] = [r for r in found.rows() if r["metric"] == "efficacy" and r["layer"] == 2 and r["name"] == "down_proj"]
    assert row["value"] == raw["edits"][2]["efficacy"]["value"]
    edited = mechint.load(tmp_path / "edited")
    changes = [name for name, value in edited.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert changes and all("mlp.c_proj.weight" in name for name in changes)
    assert len(changes) == 1 if method == "rome" else len(changes) <= 2
    broken = {**raw, "edits": [{"name": "down_proj"}]}
    write_json(tmp_path / "results.json", broken)
    with pytest.raises(MechintError, match=r"results\.json is not valid"):
        write_report(tmp_path)


@pytest.mark.slow
def test_several_models_are_compared_on_one_page(tmp_path: Path) -> None:
    runs = []
    for name, model in (("a", tiny_gpt2(1)), ("b", tiny_mamba(2))):
        runs.append(tmp_path / name)
        finished(runs[-1], model, config_of(maps="usual"))
    written = write_edit_comparison(runs, tmp_path / "both")
    assert {path.name for path in written} == {
        "comparison.json", "comparison_tracing.png", "comparison.md", "comparison.html",
    }  # fmt: skip
    text = (tmp_path / "both" / "comparison.md").read_text()
    assert "gpt2 (a)" in text and "mamba (b)" in text and "in_x" in text
    assert json.loads((tmp_path / "both" / "comparison.json").read_text())["runs"][1]["name"] == "b"
    with pytest.raises(MechintError, match="at least two"):
        write_edit_comparison(runs[:1], tmp_path / "one")
    along = write_edit_comparison([runs[0]] + [copied(runs[1], tmp_path / str(k)) for k in range(12)], tmp_path / "c")
    assert {path.name for path in along} >= {"comparison.html", "comparison.png"}


def copied(run: Path, to: Path) -> Path:
    for name in ("results.json", "manifest.json"):
        write_json(to / name, json.loads((run / name).read_text()))
    return to


def test_one_fact_has_a_page_without_intervals(tmp_path: Path) -> None:
    raw = finished(tmp_path, tiny_mamba(1), config_of(), count=1)
    assert raw["edits"][0]["efficacy"]["low"] is None and any("One prompt" in note for note in raw["notes"])
    assert "no interval" in (write_report(tmp_path)[-1]).read_text()


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: Any) -> None:
    model, config = tiny_mamba(1), config_of(layers="0")
    whole = EditAnalyzer(model, config).run_analysis(*loaders(model))
    first = EditAnalyzer(model, config, run_dir=tmp_path, key="k")
    monkeypatch.setattr(first, "traces", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        first.run_analysis(*loaders(model))
    again = EditAnalyzer(model, config, run_dir=tmp_path, key="k")
    monkeypatch.setattr(again, "edit", lambda *_: pytest.fail("was finished"))
    assert again.run_analysis(*loaders(model)) == whole


def test_what_cannot_be_done_is_refused_before_work() -> None:
    facts = TaskConfig(name="facts")
    assert refuse(EditConfig(), facts) is None
    prompt = TaskConfig(name="prompt", prompt="a b", subject="b", answer="c")
    assert "what the prompt should be answered with" in str(refuse(EditConfig(), prompt))
    assert "too little text" in str(refuse(EditConfig(target="d"), prompt))
    assert "no counterfactual twin" in str(refuse(EditConfig(target="d", text="topics"), prompt))
    assert refuse(EditConfig(target="d", text="topics", corruption="noise"), prompt) is None
    assert "a target is for one prompt" in str(refuse(EditConfig(target="d"), facts))
    assert "plain text" in str(refuse(EditConfig(), TaskConfig(name="text")))
    assert "one token" in str(refuse(EditConfig(), TaskConfig(name="file", answers="whole")))
    with pytest.raises(MechintError, match="no layer 2"):
        EditAnalyzer(tiny_mamba(1), config_of(layers="2"))
    with pytest.raises(MechintError, match=r"memit.*layers\.0\.in_x gives is not added"):
        EditAnalyzer(tiny_mamba(1), config_of(method="memit", maps="out_proj,in_x"))
    with pytest.raises(MechintError, match=r"layers\.0\.out_proj gives is not added"):
        EditAnalyzer(falcon_h1(), config_of(method="memit", maps="out_proj"))
    model = tiny_gpt2(1, d_mlp=200)
    with pytest.raises(MechintError, match="at least 800 tokens of text"):
        EditAnalyzer(model, SMALL).check(*loaders(model))
    long = tiny_gpt2(1)
    with pytest.raises(MechintError, match="positions are too many"):
        EditAnalyzer(long, config_of(generate=100)).check(*loaders(long))
    with pytest.raises(MechintError, match="positions are too many"):
        EditAnalyzer(long, config_of(prefixes=2, prefix_length=50)).check(*loaders(long))
    discovery, evaluation = loaders(model)
    for batch in evaluation.batches:
        object.__setattr__(batch, "twins", None)
    with pytest.raises(MechintError, match="no counterfactual twins to trace with"):
        EditAnalyzer(tiny_gpt2(1), SMALL).check(discovery, evaluation)


def test_one_prompt_is_edited_to_its_target_and_not_to_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    from mechint.analyses.loader import PromptLoader
    from mechint.tasks import task_of
    from tests.helpers.tokenizers import byte_level

    made = byte_level()
    model = tiny_mamba(1, vocab_size=made.get_vocab_size())
    model.tokenizer = made
    with torch.no_grad():
        said = int(model(torch.tensor([made.encode("ab cd").ids]))[0, -1].argmax())
    answer = made.decode([said])
    asked = TaskConfig(name="prompt", prompt="ab cd", subject="ab", answer=answer, space="no", stored=False)
    config = config_of(text="topics", text_tokens=600, target="z", tracing=False)
    for target, reason in (("z", None), (answer, "the model already says")):
        task = task_of(model, asked)
        load = [PromptLoader(task, split, 2, 2, 0) for split in ("discovery", "evaluation")]
        analyzer = EditAnalyzer(model, dataclasses.replace(config, target=target))
        if reason is None:
            results = analyzer.run_analysis(*load)
            assert results["facts"][0]["new"] == "z" and results["edits"][0]["efficacy"]["low"] is None
        else:
            with pytest.raises(MechintError, match=reason):
                analyzer.run_analysis(*load)


def test_the_update_that_is_saved_is_the_best_ones() -> None:
    model = tiny_mamba(1)
    analyzer = EditAnalyzer(model, config_of(save=True, layers="0", tracing=False))
    results = analyzer.run_analysis(*loaders(model))
    [(one, update)] = analyzer.saved
    assert np.isfinite(float(update.norm())) and one.layer == 0 and analyses()["edit"] is ANALYSIS
    best = max(results["edits"], key=lambda e: (e.get("score", e["rewrite"])["value"], e["rewrite"]["value"]))
    assert one.name == best["name"]
    order = int(analyzer.tensors[f"{one}.edit"][:, 3].argmax())
    assert order >= 8 or results["saved"] == [results["facts"][order]]
    before = weights_digest(model)
    with changed(analyzer.saved):
        assert weights_digest(model) != before
    assert weights_digest(model) == before
