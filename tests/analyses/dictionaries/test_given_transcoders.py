"""Transcoders named in the menu: every number by hand, layouts, pages, and where they are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mechint
from mechint import sae
from mechint.analyses.circuits.features import FeatureCircuitConfig
from mechint.analyses.circuits.features import refuse as refuse_circuit
from mechint.analyses.dictionaries.analyzer import ANALYSIS, SAEAnalysisConfig, SAEAnalyzer
from mechint.analyses.dictionaries.causal import causal_effects
from mechint.analyses.dictionaries.evaluation import evaluate_all
from mechint.analyses.dictionaries.report import to_log
from mechint.analyses.dictionaries.stored import changed, load_given, one_for_each_site
from mechint.analyses.loader import PromptLoader
from mechint.report import write_report
from mechint.sae.transcoder import Transcoder, TranscoderConfig
from mechint.tasks import TaskConfig, make_task
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.run_files import write_results
from tests.sae.test_transcoder_sets import configured, layer_file
from tests.sae.test_transcoders import LATENTS, READ, WRITTEN, D, hookpoint, published, tensors

TASK = TaskConfig(pairs=3, keys=8, values=8)
CONFIG = SAEAnalysisConfig(prompts=12, eval_prompts=12, bootstrap=100, causal=2, read=1)
READS, WRITES = "layers.1.ln_2", "layers.1.mlp_out"


def model(seed: int = 1) -> Any:
    made = make_task(TASK)
    return tiny_gpt2(seed, vocab_size=made.vocab_size, n_ctx=32, dtype=torch.float64).requires_grad_(False)


def double(one: Any) -> Any:
    """In float64, which buffers of the files are not."""
    return one.double()


def attached(kind: str, *more: str, seed: int = 1) -> Any:
    c = TranscoderConfig(kind, D, LATENTS, D, k=4 if kind == "topk" else 0, site=READS, site_out=WRITES)
    return double(Transcoder(c, tensors(*more)))


@pytest.mark.parametrize(
    ("kind", "more"), [("relu", ()), ("topk", ("W_skip",)), ("jumprelu", ("threshold",))],
)  # fmt: skip
def test_what_stands_in_the_place_of_the_written_site_is_a_run_by_hand(kind: str, more: tuple[str, ...]) -> None:
    net, found, text = model(), attached(kind, *more), tokens(6, 9) % 16
    told = evaluate_all({"t": found}, net, [text[:2], text[2:]], WRITES, read=READS, draws=100)["t"]
    clean = mechint.run(net, text, [READS, WRITES])
    x, y = clean[READS], clean[WRITES]
    made = found(x)
    put = mechint.run(net, text, edits=[mechint.Edit(WRITES, "replace", made)]).logits
    ce = lambda logits: float(F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten()))
    kl = (clean.logits.softmax(-1) * (clean.logits.log_softmax(-1) - put.log_softmax(-1))).sum(-1)[:, :-1].mean()
    flat = y.flatten(0, 1)
    expected = {
        "ce": ce(clean.logits), "ce_sae": ce(put), "kl": float(kl),
        "ce_zero": ce(mechint.run(net, text, edits=[mechint.Edit(WRITES, "replace", 0.0)]).logits),
        "variance_explained": float(1 - (y - made).square().sum() / (flat - flat.mean(0)).square().sum()),
        "l0": float((found.encode(x) > 0).sum(-1).double().mean()), "mse": float((y - made).square().mean()),
    }  # fmt: skip
    for name, value in expected.items():
        assert told["metrics"][name]["value"] == pytest.approx(value, rel=1e-10, abs=1e-10), name
    assert told["site"] == WRITES and told["baselines"] == {}


@pytest.mark.parametrize("mode", ["ablate", "steer"])
def test_a_feature_acts_where_the_transcoder_writes(mode: str) -> None:
    net, found, text = model(), attached("relu", "W_skip"), tokens(6, 9) % 16
    told = causal_effects(found, net, [text], READS, [3], mode=mode, amounts={3: 1.5}, controls=0, draws=100)
    clean = mechint.run(net, text, [READS, WRITES])
    amount = -found.encode(clean[READS])[..., 3, None] if mode == "ablate" else 1.5
    edit = mechint.Edit(WRITES, "replace", clean[WRITES] + amount * found.W_dec[3])
    put = mechint.run(net, text, edits=[edit]).logits
    ce = lambda logits: float(F.cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten()))
    assert told["features"][0]["metrics"]["loss"]["value"] == pytest.approx(ce(put) - ce(clean.logits), abs=1e-10)
    if mode == "ablate":
        assert told["features"][0]["active"] == int((found.encode(clean[READS])[:, :-1, 3] > 0).sum())


def layouts(top: Path) -> Path:
    """A directory with a transcoder of each layout."""
    published(top / "lens")
    published(top / "skip", "jumprelu_skip_transcoder", tensors("threshold", "W_skip"))
    hookpoint(top / "h.1.mlp", "W_skip")
    return top


def analysed(directory: Path, given: Path | str, config: SAEAnalysisConfig = CONFIG) -> tuple[SAEAnalyzer, Any]:
    task, net = make_task(TASK), tiny_gpt2(1, vocab_size=make_task(TASK).vocab_size, n_ctx=32)
    loaders = [PromptLoader(task, split, 12, 4, 0) for split in ("discovery", "evaluation")]
    config = replace(config, dictionaries=str(given))
    analyzer = SAEAnalyzer(net, config, run_dir=directory, key="a")
    found = analyzer.run_analysis(*loaders)
    analyzer.save_results()
    write_results(directory, "sae", analyzer.title, config, found)
    return analyzer, net


def test_the_menu_takes_every_layout_and_makes_pages(tmp_path: Path) -> None:
    analyzer, net = analysed(tmp_path / "run", layouts(tmp_path / "given"), replace(CONFIG, read=3))
    members = {member["name"]: member for member in analyzer.results["sae"]["members"]}
    assert list(members) == ["h.1.mlp", "lens", "skip"]
    assert {(m["reads"], m["site"]) for m in members.values()} == {(READS, WRITES)}
    assert [members[name]["architecture"].partition("_")[0] for name in members] == ["topk", "relu", "jumprelu"]
    assert all(not member["baselines"] for member in members.values())
    [said] = [note for note in analyzer.results["notes"] if note.startswith("Transcoders: ")]
    assert all(f"{name} reads layers.1.ln_2 and writes layers.1.mlp_out" in said for name in members)
    assert analyzer.title == "Transcoders" and members["h.1.mlp"]["sparsity"] == {"name": "k", "value": 4.0}
    l0 = {name: member["metrics"]["l0"]["value"] for name, member in members.items()}
    for name in ("lens", "skip"):  # their files do not say a sparsity
        found = members[name]["sparsity"]
        assert found["name"] == "L0" and found["value"] == pytest.approx(l0[name], rel=5e-3)
    assert sum("may not fit" in note for note in analyzer.results["notes"]) == 3  # drawn at random
    assert len(ANALYSIS.summary(analyzer.results)) == 4
    assert [one["site"] for one in analyzer.results["sae"]["read"]] == [READS] * 3
    again = load_given(tmp_path / "run", model=net)  # what the run keeps is the same transcoders
    text = tokens(2, 7) % 16
    x = mechint.run(net, text, [READS])[READS]
    for name, one in again.items():
        assert torch.equal(one.encode(x), analyzer.trained[name].encode(x))
        assert torch.equal(one(x), analyzer.trained[name](x))
    (tmp_path / "run/results.json").read_text()
    paths = {path.name for path in write_report(tmp_path / "run")}
    assert {"lens.html", "skip.html", "h.1.mlp.html", "report.html"} <= paths
    assert "neurons" not in analyzer.results["sae"]["read_rule"]  # none stand beside
    page = (tmp_path / "run/report.html").read_text()
    assert "lens reads layers.1.ln_2 and writes layers.1.mlp_out" in page and "<h1>Transcoders</h1>" in page
    assert "relu transcoders at layers.1.mlp_out" in page and "autoencoder" not in page and "3 given" in page
    assert "Dictionaries" not in page and "<td>layers.1.ln_2 → layers.1.mlp_out</td>" in page
    assert not [
        name for name in paths if "heatmaps" in name or "curves" in name
    ]  # one of each kind: nothing to compare
    logged = to_log(tmp_path / "run")
    assert list(logged.tables) == ["transcoders"] and logged.tables["transcoders"][0][0] == "transcoder"
    assert ANALYSIS.summary(analyzer.results)[0].split()[0] == "transcoder"
    features = (tmp_path / "run/features/lens.html").read_text()
    assert "layers.1.ln_2 → layers.1.mlp_out" in features and "relu transcoder, d_in" in features
    json.dumps(analyzer.results, allow_nan=False)


def test_a_set_is_read_for_the_layers_that_are_chosen(tmp_path: Path) -> None:
    given = configured(tmp_path / "set", feature_output_hook="hook_mlp_out")
    for layer in range(2):
        layer_file(given / f"layer_{layer}.safetensors", layer, "W_skip")
    analyzer, _ = analysed(tmp_path / "one", given, replace(CONFIG, layers="1", read=0, controls=False))
    assert list(analyzer.members) == ["layer_1"] and analyzer.sites == [WRITES]
    analyzer, _ = analysed(tmp_path / "all", given, replace(CONFIG, read=0))
    assert list(analyzer.members) == ["layer_0", "layer_1"]
    assert [member["layer"] for member in analyzer.results["sae"]["members"]] == [0, 1]


def test_a_circuit_reads_of_a_set_what_it_is_told(tmp_path: Path) -> None:
    given = configured(tmp_path / "set", feature_output_hook="hook_mlp_out")
    layer_file(given / "layer_1.safetensors", 1)
    (given / "layer_0.safetensors").write_text("not a file of tensors")
    found = one_for_each_site(given, "layer_1", model=model())
    assert [(name, changed(one.config)) for name, one in found.items()] == [("layer_1", WRITES)]
    with pytest.raises(MechintError, match="layer_0"):
        one_for_each_site(given, "", model=model())


def test_a_dictionary_and_a_transcoder_of_one_site_stand_side_by_side(tmp_path: Path) -> None:
    top = tmp_path / "given"
    published(top / "lens")
    sae.save(sae.make(sae.SAEConfig("relu", D, LATENTS, site=WRITES)), top / "plain")
    analyzer, _ = analysed(tmp_path / "run", top, replace(CONFIG, read=0))
    members = {member["name"]: member for member in analyzer.results["sae"]["members"]}
    assert "reads" not in members["plain"] and members["plain"]["baselines"] and not members["lens"]["baselines"]
    assert analyzer.title == "Sparse autoencoders and transcoders"
    write_report(tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "relu dictionaries at layers.1.mlp_out" in page and "relu transcoders at layers.1.mlp_out" in page
    assert (
        "<td>layers.1.mlp_out → layers.1.mlp_out</td>" in page and "<td>layers.1.ln_2 → layers.1.mlp_out</td>" in page
    )
    assert members["plain"]["metrics"]["ce"]["value"] == pytest.approx(members["lens"]["metrics"]["ce"]["value"])


def test_where_transcoders_are_refused_and_why(tmp_path: Path) -> None:
    top = layouts(tmp_path / "given")
    given = configured(tmp_path / "set", feature_output_hook="hook_mlp_out")
    layer_file(given / "layer_0.safetensors", 0)
    for place in (top, top / "lens", given):
        assert refuse_circuit(FeatureCircuitConfig(dictionaries=str(place)), TASK) is None
    with pytest.raises(MechintError, match=r"layers.1.mlp_out has several dictionaries \(h.1.mlp, lens, skip\)"):
        one_for_each_site(top, "", model=model())
    said = refuse_circuit(FeatureCircuitConfig(dictionaries=str(given), choose="layer_9"), TASK)
    assert said == "no dictionary 'layer_9' (did you mean layer_0?); there are layer_0"
    with pytest.raises(MechintError, match=r"transcoder lens: .* is the site layers\.1\.mlp_out, which"):
        load_given(top / "lens", model=tiny_mamba())
    backwards = {"hook_name": "blocks.1.hook_mlp_out", "hook_name_out": "blocks.1.hook_resid_pre"}
    with pytest.raises(MechintError, match="what is written must come behind what is read"):
        load_given(published(tmp_path / "back", metadata=backwards), model=tiny_gpt2())
    with pytest.raises(MechintError, match="no layer 7"):
        analysed(tmp_path / "run", given, replace(CONFIG, layers="7"))
    with pytest.raises(MechintError, match="lists no transcoder of layer 1"):
        analysed(tmp_path / "other", given, replace(CONFIG, layers="1"))
    assert (READ, WRITTEN) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
