"""Features for other programs: dashboards, contexts, explanations in, and a judge whose scores are known by hand."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint import sae
from mechint.analyses.dictionaries.evaluation import Windows
from mechint.analyses.dictionaries.exchange import detection
from mechint.analyses.dictionaries.exchange.contexts import FEWEST, HELD_OUT, SHOWN, fires, write_contexts
from mechint.analyses.dictionaries.exchange.dashboards import UNMEASURED, dashboard, share, write_dashboards
from mechint.analyses.dictionaries.exchange.detection import Judge, exchanged, score
from mechint.analyses.dictionaries.exchange.explanations import Asked, read_explanations, read_held_out
from mechint.analyses.dictionaries.exchange.stored_latents import Latents, read_run
from mechint.analyses.dictionaries.features import read_features, save_features
from mechint.runner.latents import command
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.dictionaries import dictionary
from tests.helpers.dictionary_runs import features, results, write_run

SITE = "layers.0.out"


def invented(directory: Path, **changes: Any) -> Path:
    """A finished run with the features of one invented dictionary."""
    write_run(directory, results())
    (directory / "features").mkdir(exist_ok=True)
    (directory / "features" / "a.json").write_text(json.dumps({**features(), **changes}))
    (directory / "features" / "a.causal.json").write_text("{}")
    return directory


def real(directory: Path) -> tuple[Any, Any, Latents]:
    """A run whose features are a random dictionary's, read on random rows of a random model."""
    model, made, text = tiny_mamba(2), dictionary(10, 16, 0), tokens(32, 5, 3)
    found = read_features(made, model, [Windows(text)], SITE, lambda token: f"t{token}")
    directory.mkdir(parents=True, exist_ok=True)
    save_features(found, directory / "features" / "a.json")
    raw = {
        **results(),
        "task": {"name": "recall", "description": "a task"},
        "config": {"exclude": "", "flatten": "all"},
    }
    write_run(directory, raw)
    return model, made, read_run(directory)[0]


# ---- dashboards --------------------------------------------------------------------------------------------------


def test_a_dashboard_has_every_entry_of_the_format(tmp_path: Path) -> None:
    [latents] = read_run(invented(tmp_path))
    found = dashboard(latents, latents.features[2], "a text")
    assert found["feature_index"] == 2 and found["frac_nonzero"] == pytest.approx(0.2) and found["dataset"] == "a text"
    assert (found["pos_str"], found["pos_values"]) == (["<b>"], [1.5])
    assert (found["neg_str"], found["neg_values"]) == (["</script>"], [-2.0])
    assert found["freq_hist_data_bar_values"] == [0.5, 1.5] and found["freq_hist_data_bar_heights"] == [3.0, 1.0]
    assert found["n_prompts_total"] == 9 and found["n_tokens_in_prompt"] == 3
    assert all(found[name] == [] for name in UNMEASURED)
    strongest, drawn = found["activations"]
    assert strongest == {
        "bin_min": -1.0, "bin_max": 2.0, "bin_contains": -1.0, "tokens": ["<b>", "</script>", "x"],
        "values": [0.5, 2.0, 0.0],
    }  # fmt: skip
    assert (drawn["bin_min"], drawn["bin_max"], drawn["bin_contains"]) == (1.0, 2.0, 0.25)
    assert dashboard(latents, latents.features[0], "")["activations"] == []


def test_the_share_of_an_interval_is_that_of_its_bins() -> None:
    assert share([1, 2, 3, 4], 0.0, 2.0, 8.0) == pytest.approx(0.1)
    assert share([1, 2, 3, 4], 4.0, 8.0, 8.0) == pytest.approx(0.7)


def test_batches_hold_all_features_and_files_of_an_earlier_export_go(tmp_path: Path) -> None:
    [latents] = read_run(invented(tmp_path / "run"))
    assert len(write_dashboards(latents, tmp_path / "out", "m", "s", 1)) == 3
    [path] = write_dashboards(latents, tmp_path / "out", "m", "s", 128)
    found = json.loads(path.read_text())
    assert {name: found[name] for name in ("model_id", "layer", "sae_set")} == {
        "model_id": "m", "layer": 0, "sae_set": "s"
    }  # fmt: skip
    assert [one["feature_index"] for one in found["features"]] == [0, 1, 2]
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["batch-0.json"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"schema": 2}, "has the schema 2, and this version reads 1"),
    ({"rows": {}}, "is not valid"),
    ({"features": [{"id": 0}]}, "is not valid"),
])  # fmt: skip
def test_damaged_features_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError, match=said):
        read_run(invented(tmp_path, **changes))


def test_a_run_without_features_or_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="holds no features of a dictionary"):
        read_run(write_run(tmp_path / "bare", results()))
    with pytest.raises(MechintError, match="no dictionary 'b'"):
        read_run(invented(tmp_path / "run"), "b")
    with pytest.raises(MechintError, match=r"results\.json is missing"):
        read_run(tmp_path / "nothing")


# ---- contexts ----------------------------------------------------------------------------------------------------


def test_held_out_contexts_are_active_or_silent_and_none_is_shown(tmp_path: Path) -> None:
    """Judged by encoding every row again."""
    model, made, latents = real(tmp_path / "run")
    text = {row: torch.tensor([ids]) for row, ids in latents.rows.items()}
    encode = functools.cache(lambda row: made.encode(mechint.run(model, text[row], [SITE])[SITE])[0].detach())
    peaks = fires(latents, model, made)
    for row in latents.rows:
        torch.testing.assert_close(peaks[row], encode(row).amax(0), rtol=1e-4, atol=1e-5)
    count, left_out, _ = write_contexts([(latents, made)], model, tmp_path, 0)
    read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    shown, asked = read(SHOWN), read(HELD_OUT)
    assert len(shown) == len(asked) == count > 0 and count + left_out == 16
    where = {latents.text(ids): row for row, ids in latents.rows.items()}
    for explained, judged in zip(shown, asked, strict=True):
        number = explained["latent"]
        assert number == judged["latent"]
        seen = {one["text"] for one in explained["contexts"]}
        texts = [one["text"] for one in judged["contexts"]]
        assert len(texts) == len(set(texts)) >= 2 * FEWEST and not seen & set(texts)
        assert sum(one["active"] for one in judged["contexts"]) * 2 == len(texts)
        for one in judged["contexts"]:  # rows of five tokens are shown whole
            assert (float(encode(where[one["text"]])[:, number].max()) > 0) is one["active"]
        for one in explained["contexts"]:
            assert len(one["tokens"]) == len(one["values"]) and one["values"][one["peak"]] == max(one["values"])


def test_features_of_another_model_are_refused(tmp_path: Path) -> None:
    _, made, latents = real(tmp_path)
    with pytest.raises(MechintError, match="name the model and the run that belong together"):
        fires(latents, tiny_mamba(9), made)


# ---- explanations ------------------------------------------------------------------------------------------------


def held(directory: Path, names: tuple[str, ...] = ("a",)) -> Path:
    contexts = [{"text": "x", "active": True}, {"text": "y", "active": False}]
    lines = [{"dictionary": name, "latent": n, "contexts": contexts} for name in names for n in range(3)]
    path = directory / HELD_OUT
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def explained(directory: Path, *lines: str) -> list[Asked]:
    path = directory / "explanations.jsonl"
    path.write_text("\n".join(lines))
    return read_explanations(path, read_held_out(directory / HELD_OUT))


def test_explanations_are_read(tmp_path: Path) -> None:
    held(tmp_path)
    found = explained(tmp_path, '{"latent": 2, "explanation": " a\\n b "}', "", '{"latent": 0, "explanation": "c"}')
    assert [(one.latent, one.explanation, one.dictionary) for one in found] == [(2, "a b", "a"), (0, "c", "a")]
    assert found[0].contexts == (("x", True), ("y", False))


@pytest.mark.parametrize(("line", "said"), [
    ("nonsense", "line 1 is not valid JSON"),
    ("[1]", "line 1 is not a JSON object"),
    ('{"explanation": "a"}', "names no latent by a whole number"),
    ('{"latent": true, "explanation": "a"}', "names no latent by a whole number"),
    ('{"latent": 1}', "has no explanation"),
    ('{"latent": 1, "explanation": "  "}', "has no explanation"),
    ('{"latent": 7, "explanation": "a"}', "latent 7 of 'a' has no held-out contexts"),
    ('{"latent": 1, "explanation": "a"}\n{"latent": 1, "explanation": "b"}', "line 2.*explained a second time"),
    ("", "explanations .* is empty"),
])  # fmt: skip
def test_bad_explanations_are_one_line(line: str, said: str, tmp_path: Path) -> None:
    held(tmp_path)
    with pytest.raises(MechintError, match=said):
        explained(tmp_path, line)


def test_several_dictionaries_must_be_named(tmp_path: Path) -> None:
    held(tmp_path, ("a", "b"))
    with pytest.raises(MechintError, match="names no dictionary, and there are a, b"):
        explained(tmp_path, '{"latent": 1, "explanation": "a"}')
    [found] = explained(tmp_path, '{"latent": 1, "explanation": "a", "dictionary": "b"}')
    assert found.dictionary == "b"


@pytest.mark.parametrize(("text", "said"), [
    ("", "is empty"), ('{"latent": 1}', "holds no contexts of a latent"),
    ('{"dictionary": "a", "latent": 1, "contexts": [{"text": "x", "active": true}]}', "with and without an activation"),
])  # fmt: skip
def test_damaged_contexts_are_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / HELD_OUT).write_text(text)
    with pytest.raises(MechintError, match=said):
        read_held_out(tmp_path / HELD_OUT)


# ---- the judge ---------------------------------------------------------------------------------------------------


class Word:
    """A judge that says yes where the explanation's word is in the text, by a margin."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def leanings(self, questions: list[tuple[str, str]], title: str) -> Any:
        return np.array([self.bias + (1.0 if said in text.split() else -1.0) for said, text in questions])


def latents_of(count: int) -> list[Asked]:
    """Latent k is active where its own word is."""
    texts = [f"w{k} and more" for k in range(count)]
    return [
        Asked("a", k, f"w{k}", ((texts[k], True), (texts[(k + 1) % count], False), (f"only w{k}", True), ("no", False)))
        for k in range(count)
    ]


def test_a_judge_that_understands_scores_one_and_exchanged_explanations_a_half() -> None:
    found = score(latents_of(24), Word(), 0, 200)  # type: ignore[arg-type]
    assert found["balanced_accuracy"]["value"] == found["auroc"]["value"] == 1.0 and found["notes"] == []
    assert found["exchanged_balanced_accuracy"]["value"] <= 0.6
    assert found["balanced_accuracy_difference"]["low"] > 0.3
    assert found["p"]["balanced_accuracy"] < 0.05 and found["p"]["auroc"] < 0.05
    row = found["latents"][3]
    assert row["contexts"] == 4 and row["balanced_accuracy"]["value"] == row["auroc"] == 1.0
    assert row["exchanged"]["explanation"] != row["explanation"]


def test_a_judge_that_always_says_yes_is_at_a_half_and_its_leanings_still_tell() -> None:
    found = score(latents_of(12), Word(bias=5.0), 0, 200)  # type: ignore[arg-type]
    assert found["balanced_accuracy"]["value"] == 0.5 and found["says_yes"] == 1.0
    assert found["auroc"]["value"] == 1.0 and "says yes to every question" in found["notes"][0]


def test_one_explanation_has_no_control() -> None:
    found = score(latents_of(2)[:1], Word(), 0, 200)  # type: ignore[arg-type]
    assert "p" not in found and "no other to be exchanged with" in found["notes"][0]


def test_no_latent_keeps_its_explanation() -> None:
    for count in (2, 3, 9):
        asked = latents_of(count)
        found = exchanged(asked, count)
        assert found is not None and sorted(found) == sorted(one.explanation for one in asked)
        assert all(theirs != one.explanation for theirs, one in zip(found, asked, strict=True))
    assert exchanged(latents_of(2)[:1], 0) is None


def test_balanced_accuracy_by_hand() -> None:
    row = detection.of_latent(np.array([1.0, 1, 1, 0]), np.array([2.0, -1, -1, -3]), 0, 100)
    assert row["balanced_accuracy"]["value"] == pytest.approx((1 / 3 + 1) / 2) and row["auroc"] == 1.0


def test_a_local_judge_leans_as_its_logits_do() -> None:
    pytest.importorskip("tokenizers")
    from tests.helpers.tokenizers import byte_level

    made = byte_level()
    model = tiny_gpt2(1, vocab_size=made.get_vocab_size(), n_ctx=512)
    with pytest.raises(MechintError, match="has no tokenizer to read explanations with"):
        Judge(model)
    model.tokenizer = made
    judge = Judge(model.requires_grad_(False))
    questions = [("a city", "Paris"), ("god", "Mars is the god of war"), ("god", "Paris")]
    found = judge.leanings(questions, "judging")
    for k, (explanation, text) in enumerate(questions):
        logits = model(torch.tensor([judge.prompt(explanation, text)]))[0, -1]
        assert found[k] == pytest.approx(float(logits[judge.yes] - logits[judge.no]), abs=1e-4)
        assert explanation in made.decode(judge.prompt(explanation, text))


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_dashboards_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = str(invented(tmp_path / "run")), f"--output-dir={tmp_path / 'out'}"
    command.main(["dashboards", run, out, "--set-id=mine"])
    assert "3 features in 1 files" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "a" / "batch-0.json").read_text())["sae_set"] == "mine"
    for words, said in (
        (["dashbords", run], "no work 'dashbords'.*dashboards"), ([], "name what to do"),
        (["dashboards"], "needs --run"), (["score"], "needs --explanations"),
        (["score", "--explanations=x"], "needs --judge"),
        (["score", "--explanations=x", "--judge=y"], "held-out contexts .*no such file"),
        (["contexts", run, "--checkpoint=nowhere.pt"], "nowhere.pt"),
    ):  # fmt: skip
        with pytest.raises(MechintError, match=said):
            command.main([*words, out])


def test_the_command_from_a_run_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made, _ = real(tmp_path / "run")
    raw = json.loads((tmp_path / "run" / "results.json").read_text())
    sae.save(made, tmp_path / "run" / "dictionaries" / "a")
    monkeypatch.setattr(command, "load", lambda *_, **__: model)
    words = ["contexts", str(tmp_path / "run"), f"--output-dir={tmp_path / 'out'}"]
    raw["model"]["sha256"] = "0"
    write_run(tmp_path / "run", raw)
    with pytest.raises(MechintError, match="its weights are others"):
        command.main(words)
    raw["model"]["sha256"] = command.weights_digest(model)
    write_run(tmp_path / "run", raw)
    command.main(words)
    lines = [json.loads(line) for line in (tmp_path / "out" / SHOWN).read_text().splitlines()]
    said = tmp_path / "said.jsonl"
    said.write_text("".join(json.dumps({"latent": one["latent"], "explanation": "t"}) + "\n" for one in lines))
    monkeypatch.setattr(command, "Judge", lambda model: Word())
    command.main(["score", f"--output-dir={tmp_path / 'out'}", f"--explanations={said}", "--judge=mine"])
    found = json.loads((tmp_path / "out" / command.SCORES).read_text())
    assert found["schema"] == 1 and found["judge"] == "mine" and len(found["latents"]) == len(lines)
    assert found["says_yes"] == 0.0 and found["balanced_accuracy"]["value"] == 0.5
