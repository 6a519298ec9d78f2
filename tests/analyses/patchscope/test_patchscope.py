"""Patchscopes: readings against runs by hand, target prompts, partners, controls, the page, and what is refused.

One file, past 500 lines, because all of it reads the same few models and finished runs.
"""

from __future__ import annotations

import dataclasses
import functools
import html
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import mechint
from mechint.analyses.lens.reading import stream_sites
from mechint.analyses.loader import PromptLoader
from mechint.analyses.options import RunConfig
from mechint.analyses.patchscope import analyzer as scopes
from mechint.analyses.patchscope import grid, reading
from mechint.analyses.patchscope.analyzer import ANALYSIS, Scope, mentions
from mechint.analyses.patchscope.grid import together
from mechint.analyses.patchscope.options import TARGETS, ScopeConfig, refuse
from mechint.analyses.patchscope.reading import Place, places, scores
from mechint.analyses.patchscope.report import continuations, lead, shuffled_better, side
from mechint.analyses.patchscope.results import best_of, quantities
from mechint.analyses.patchscope.targets import (
    PAIRS,
    Target,
    fixed_target,
    pairs,
    partners,
    read_text,
    sharing,
    sources,
    subject_end,
)
from mechint.interventions import continuations as continuing
from mechint.interventions import sweep as sweeping
from mechint.report import write_report
from mechint.report.content import Table
from mechint.report.control import better_shuffled, control_findings
from mechint.runner.preparation import loaders as runner_loaders
from mechint.tasks import Prompts, TaskConfig, make_task
from mechint.utils.errors import MechintError
from mechint.utils.files import write_json
from tests.helpers.builders import tiny_gpt2, tiny_mamba, tokens
from tests.helpers.run_files import write_results

TASK = TaskConfig(name="recall", pairs=3, keys=8, values=8)
SMALL = ScopeConfig(prompts=12, eval_prompts=12, bootstrap=100, controls=0, examples=1, others=2, generate=2, top=3)
MADE: dict[str, Any] = {"mamba": tiny_mamba, "gpt2": tiny_gpt2}


def loaders(task: TaskConfig = TASK, count: int = 12) -> tuple[PromptLoader, PromptLoader]:
    made = make_task(task)
    return PromptLoader(made, "discovery", 12, 5, 0), PromptLoader(made, "evaluation", count, 5, 0)


def model(family: str = "mamba") -> Any:
    sizes = {} if family == "mamba" else {"n_ctx": 32}
    return MADE[family](3, vocab_size=16, dtype=torch.float64, **sizes).requires_grad_(False)


def by_hand(net: Any, target: list[int], at: int, site: str, into: str, value: Tensor, token: int) -> float:
    """−log of the probability of a token at the end of a target prompt with a value at one position."""
    edit = mechint.Edit(into, "replace", value, positions=[at])
    logits = mechint.run(net, torch.tensor([target]), edits=[edit]).logits[0, -1]
    return -float(logits.log_softmax(-1)[token])


# ---- the numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MADE)
def test_a_reading_is_a_run_by_hand(family: str) -> None:
    """Own and other prompts' representations, of the stream and the state, in the same and in other layers."""
    net, (learnt, asked) = model(family), loaders()
    config = dataclasses.replace(SMALL, into="all", generate=0, examples=0)
    scope = Scope(net, config)
    raw = scope.run_analysis(learnt, asked)
    target, at = pairs(learnt, 0)
    rows = torch.cat([batch.tokens for batch in asked])
    said = net(rows)[:, -1].argmax(-1)
    work = scope.prepared(learnt, asked)
    for place in scope.places:
        values = mechint.run(net, rows, [place.site])[place.site][:, -1:]
        for k, there in enumerate(place.into):
            found = scope.tensors[f"own {place.site}"][k, :, 1]
            for row in (0, 7)[: 2 - k]:
                own = by_hand(net, target, at, place.site, there, values[row : row + 1], int(said[row]))
                assert float(found[row]) == pytest.approx(own, abs=1e-10)
                assert work.others is not None
                other = int(work.others[1, row])
                theirs = by_hand(net, target, at, place.site, there, values[other : other + 1], int(said[row]))
                drawn = scope.tensors[f"others {place.site}"][1, k, row, 1]
                assert float(drawn) == pytest.approx(theirs, abs=1e-10)
    assert len(raw["readings"]) == sum(len(place.into) for place in scope.places)
    bare = -net(torch.tensor([target]))[0, -1].log_softmax(-1)[said]
    torch.testing.assert_close(scope.tensors["unpatched"][:, 1], bare)


def looped(scope: Scope, work: Any, place: Place, slot: int, k: int) -> tuple[Tensor, Tensor]:
    """The reference: −log p [n] and continuations [n, token], a whole run of the target prompt for each number.

    The representation in slot 0 is a source prompt's own, in others that of another prompt.
    """
    net, count = scope.model, len(work.ids)
    rows: Any = [None] * count
    for part, target in zip(work.parts, work.into, strict=True):
        for m, row in enumerate(part.rows.tolist()):
            rows[row] = (part.prompts.tokens[m : m + 1], part.at, target.tokens[m : m + 1], target.position)
    values, longer = [], []
    for row in range(count):
        source, at, _, _ = rows[int(work.others[slot - 1, row])] if slot else rows[row]
        _, _, target, position = rows[row]
        value = mechint.run(net, source, [place.site])[place.site][:, at : at + 1]
        edit = mechint.Edit(place.into[k], "replace", value, positions=[position])
        logits = mechint.run(net, target, edits=[edit]).logits[0, -1].log_softmax(-1)
        ids = work.ids[row][work.ids[row] >= 0]
        values.append(-logits[ids].logsumexp(0))
        tokens = mechint.generate(net, target, scope.config.generate, edits=[edit]).tokens[0, target.shape[1] :]
        longer.append(tokens)
    return torch.stack(values), torch.stack(longer)


@pytest.mark.parametrize("memory", [1024, 64])
@pytest.mark.parametrize("target", ["identity", "other"])
@pytest.mark.parametrize("family", MADE)
def test_the_one_sweep_is_the_loop_over_sites_layers_and_prompts(
    family: str, target: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number and every generated token of the grid, with little room in pieces."""
    if memory == 64:
        monkeypatch.setattr(grid, "SHARE", 1 << 30)
        monkeypatch.setattr(continuing, "TOGETHER", 5)
        monkeypatch.setattr(reading, "ROOM", 64)
    net, (learnt, asked) = model(family), loaders(count=4)
    config = dataclasses.replace(
        SMALL, into="all", sites="resid_post,mlp_out,v" if family == "gpt2" else "resid_post,state,out", examples=0,
        target=target, back=int(target == "other"), memory_mib=memory, generate=3,
    )  # fmt: skip
    scope = Scope(net, config)
    scope.run_analysis(learnt, asked)
    work = scope.prepared(learnt, asked)
    pieces = list(together(net, scope.places, work.asked, memory))
    assert len(pieces) == (len(scope.places) if memory == 64 else 1)
    for place in scope.places:
        for k in range(len(place.into)):
            for slot in (0, 2):
                by_loop, longer = looped(scope, work, place, slot, k)
                own, others = (scope.tensors[f"{name} {place.site}"] for name in ("own", "others"))
                found = others[slot - 1, k, :, 1] if slot else own[k, :, 1]
                assert float((found - by_loop).abs().max()) <= 1e-10
                if slot == 0:
                    assert torch.equal(scope.tensors[f"generated {place.site}"][k], longer)


def test_the_layers_below_run_for_one_row_and_those_above_for_a_cell_each(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (learnt, asked) = model("gpt2"), loaders()
    scope = Scope(net, dataclasses.replace(SMALL, generate=0, examples=0, sites="resid_post"))
    work = scope.prepared(learnt, asked)
    values = scope.values([place.site for place in scope.places], work.parts)
    [one] = work.asked
    positions = [0] * net.num_layers
    block = type(net).block

    def counted(self: Any, i: int, r: Tensor, *others: Any) -> Any:
        positions[i] += r.shape[0] * r.shape[1]
        return block(self, i, r, *others)

    monkeypatch.setattr(type(net), "block", counted)
    grid.readings(net, scope.places, [one], values, work.ids, 1024)
    length, count = one.target.tokens.shape[1], len(work.ids)
    # the target once; above layer 0 one position for each source, however many draw it
    assert positions == [length, length + count]


@pytest.mark.parametrize("family", MADE)
def test_read_where_it_is_put_the_last_layer_is_the_logit_lens_and_counts_for_nothing(family: str) -> None:
    net = model(family)
    scope = Scope(net, dataclasses.replace(SMALL, sites="resid_post", generate=0))
    raw = scope.run_analysis(*loaders())
    last = stream_sites(net)[-1]
    torch.testing.assert_close(scope.tensors[f"own {last}"][0], scope.tensors[f"lens {last}"])
    [row] = [row for row in raw["readings"] if row["trivial"]]
    assert row["layer"] == net.num_layers - 1 and row["right"]["value"] == 1.0 and row["p"] is None
    assert raw["best"]["layer"] != row["layer"] and any(last in note for note in raw["notes"])
    assert all(entry["layer"] != row["layer"] for entry in quantities(raw))
    assert best_of([row]) is None


def test_a_state_asked_in_another_prompt() -> None:
    """The target is another prompt up to the position, then the source prompt; the state goes on from there."""
    net, (learnt, asked) = model(), loaders()
    config = dataclasses.replace(SMALL, target="other", back=1, scored="answer", generate=0, sites="state")
    scope = Scope(net, config)
    scope.run_analysis(learnt, asked)
    work = scope.prepared(learnt, asked)
    rows = torch.cat([batch.tokens for batch in asked])
    length, answers = rows.shape[1], torch.cat([batch.answers[:, -1] for batch in asked])
    templates = asked.templates()
    for part, target in zip(work.parts, work.into, strict=True):
        assert part.at == length - 2 and target.position == length - 2 and not target.read_there
        for k, row in enumerate(part.rows.tolist()):
            assert target.tokens[k, -1] == rows[row, -1]
            [host] = [
                n for n in range(len(rows)) if torch.equal(rows[n, : length - 1], target.tokens[k, :-1])
            ]  # fmt: skip
            assert templates[host] != templates[row] and answers[host] != answers[row]
            value = mechint.run(net, rows[row : row + 1], ["layers.0.state"])["layers.0.state"][
                :, part.at : part.at + 1
            ]
            own = by_hand(net, target.tokens[k].tolist(), part.at, "", "layers.0.state", value, int(answers[row]))
            assert float(scope.tensors["own layers.0.state"][0, row, 1]) == pytest.approx(own, abs=1e-10)


def test_tokens_that_are_looked_for() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], dtype=torch.float64))
    found = scores(logits, torch.tensor([[1, 2], [2, -1]]))
    assert found.shape == (2, 3)
    expected = torch.tensor([[1.0, 0.9, 1.0], [0.0, 0.2, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack([found[:, 0], (-found[:, 1]).exp(), found[:, 2].exp()], 1), expected)
    said = mentions(torch.tensor([[[4, 2], [4, 4]], [[1, 1], [2, 4]]]), torch.tensor([[1, 2], [2, -1]]))
    assert said.tolist() == [[1.0, 0.0], [1.0, 1.0]]


def test_many_short_readings_show_how_far_they_are(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is long enough to say anything itself, and a real model has dozens."""
    for module in (continuing, sweeping):
        monkeypatch.setattr(module, "Progress", functools.partial(module.Progress, quiet=0.0, every=0.0))
    scope = Scope(model(), dataclasses.replace(SMALL, generate=2, examples=0))
    scope.run_analysis(*loaders())
    told, count = capsys.readouterr().err, 12 * len(scope.places)
    assert f"100% readings {count}/{count}" in told and f"100% continuations {count}/{count}" in told


def test_shuffled_weights_are_read_in_the_same_way() -> None:
    raw = Scope(model(), dataclasses.replace(SMALL, controls=1, generate=0, sites="state", examples=0)).run_analysis(
        *loaders()
    )
    assert raw["control"]["models"] == 1 and not raw["control"]["failed"]
    assert [(r["quantity"], r["site"], r["layer"]) for r in raw["control"]["quantities"]] == [
        (measure, row["site"], row["layer"])
        for measure in ("right", "surprisal") for row in raw["readings"] if not row["trivial"]
    ]  # fmt: skip


# ---- prompts -----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20), st.integers(0, 9))
def test_partners_have_another_template_and_look_for_another_token(kinds: list[tuple[int, int]], seed: int) -> None:
    clusters, ids = torch.tensor(kinds).T
    found = partners(clusters, ids[:, None], 3, seed, "a draw")
    possible = all(any(a != c and b != d for c, d in kinds) for a, b in kinds)
    assert (found is not None) is possible
    if found is not None:
        assert found.shape == (3, len(kinds))
        assert bool((clusters[found] != clusters).all()) and bool((ids[found] != ids).all())
        again = partners(clusters, ids[:, None], 3, seed, "a draw")
        assert again is not None and torch.equal(found, again)


def test_a_prompt_that_accepts_a_common_answer_is_no_other_prompt() -> None:
    """Sets by hand: what a prompt is put beside must not be a prompt whose representation may say its answer."""
    accepted = [{5, 6}, {5}, {6, 7}, {8}, {8, 9}, {7, 5}]
    ids = torch.tensor([sorted(one) + [-1] * (2 - len(one)) for one in accepted])
    by_hand = [[bool(one & other) for other in accepted] for one in accepted]
    assert sharing(ids).tolist() == by_hand
    found = partners(torch.arange(6), ids, 40, 0, "a draw")
    assert found is not None
    for prompt, drawn in enumerate(found.T.tolist()):
        assert set(drawn) == {other for other in range(6) if not accepted[prompt] & accepted[other]}
    assert partners(torch.arange(6), torch.cat([ids, torch.full((6, 1), 4)], 1), 1, 0, "a draw") is None


def test_what_a_prompt_is_about_is_not_looked_for_behind_its_answer() -> None:
    """A whole answer of two tokens, the second of which differs from the twin's, too: the subject stands before."""
    here = torch.tensor([[4, 5, 1, 7, 8], [4, 6, 1, 7, 9]])
    asked = Prompts(
        here, torch.tensor([[2, 3], [2, 3]]), here[:, 3:], torch.tensor([[4, 9, 1, 7, 1], [3, 6, 1, 2, 1]]), None,
        torch.arange(2), whole=True,
    )  # fmt: skip
    assert subject_end(asked, make_task(TASK)).tolist() == [1, 0]


def test_prompts_of_one_template_are_read_without_intervals() -> None:
    run = RunConfig(checkpoint="none", output_dir="none")
    task = make_task(TASK)
    few = PromptLoader(task, "evaluation", 1, 1, 0)
    config = dataclasses.replace(SMALL, eval_prompts=1)
    assert runner_loaders(run, ANALYSIS, config, task)[1].templates().tolist() == few.templates().tolist()


def test_pairs_of_equal_tokens_are_of_the_prompts() -> None:
    learnt, _ = loaders()
    ids, at = pairs(learnt, 0)
    assert at == len(ids) - 1 == 2 * PAIRS and ids[: 2 * PAIRS : 2] == ids[1 : 2 * PAIRS : 2]
    assert len(set(ids)) == PAIRS + 1 and set(ids) <= set(torch.cat([b.tokens.flatten() for b in learnt]).tolist())
    assert ids == pairs(learnt, 0)[0] != pairs(learnt, 1)[0]
    learnt.batches = [dataclasses.replace(batch, tokens=batch.tokens % PAIRS) for batch in learnt]
    with pytest.raises(MechintError, match="have 3 different tokens, and pairs of equal tokens take 4"):
        pairs(learnt, 0)


def test_sources_are_read_at_the_answer_the_subject_and_before() -> None:
    _, asked = loaders(TaskConfig(name="facts"))
    at_answer = sources(SMALL, asked)
    assert {part.at for part in at_answer} == {4} and sum(len(part.rows) for part in at_answer) == 12
    for part in sources(dataclasses.replace(SMALL, source="subject"), asked):
        ends = part.prompts.subject
        assert ends is not None and bool((ends[:, 1] - 1 == part.at).all())
    assert {part.at for part in sources(dataclasses.replace(SMALL, back=4), asked)} == {0}
    with pytest.raises(MechintError, match="5 tokens before the answer there is no token"):
        sources(dataclasses.replace(SMALL, back=5), asked)
    with pytest.raises(MechintError, match="nothing says what the prompts"):
        sources(dataclasses.replace(SMALL, source="subject"), loaders(TaskConfig(name="text", length=8))[1])


def test_a_text_needs_its_placeholder_and_a_tokenizer() -> None:
    pytest.importorskip("tokenizers")
    from mechint.models.loading.tokenizer import Encoder
    from tests.helpers.tokenizers import byte_level

    net, encoder = model(), Encoder(byte_level())
    text = "x is a; x is b"
    ids, at = read_text(net, encoder, text, "x")
    made = encoder.prompt(text)
    low, high = made.offsets[at]
    assert ids == made.ids and low <= text.rfind("x") < high and at > 0
    assert read_text(net, encoder, text, "")[1] == len(ids) - 1
    with pytest.raises(MechintError, match="does not contain the placeholder 'y'"):
        read_text(net, encoder, text, "y")
    with pytest.raises(MechintError, match="without tokens"):
        read_text(net, encoder, "", "")
    with pytest.raises(MechintError, match="no tokenizer to read the target prompt with"):
        fixed_target(dataclasses.replace(SMALL, target="description"), net, loaders()[0], 0)


def test_layers_to_put_into() -> None:
    net = model()
    assert [place.into for place in places(net, ["layers.0.state"], "all", "here")] == [
        ("layers.0.state", "layers.1.state")
    ]
    [place] = places(net, ["layers.1.resid_post"], "0", "here")
    assert place.into == ("layers.0.resid_post",)
    with pytest.raises(MechintError, match="no layer 7"):
        places(net, ["layers.0.state"], "7", "here")


# ---- a notebook --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MADE)
def test_a_notebook_reads_one_prompt_and_what_follows_the_placeholder_sees_it(family: str) -> None:
    net, source, target = model(family), tokens(1, 6)[0] % 16, torch.tensor([1, 2, 3, 4, 5])
    found = mechint.patchscope(net, source, target, placeholder=2, position=3, generate=2)
    value = mechint.run(net, source[None], ["layers.0.resid_post"])["layers.0.resid_post"][:, 3:4]
    token = int(found.answer)
    assert token == int(net(source[None])[0, -1].argmax())
    assert -torch.tensor(found.readings[0].answer).log().item() == pytest.approx(
        by_hand(net, target.tolist(), 2, "", "layers.0.resid_post", value, token), abs=1e-6
    )
    assert found.readings[0].answer != found.unpatched.answer  # two positions behind the placeholder
    assert found.readings[-1].answer == pytest.approx(found.unpatched.answer)  # nothing above the last layer reads it
    edit = mechint.Edit("layers.0.resid_post", "replace", value, positions=[2])
    longer = mechint.generate(net, target[None], 2, edits=[edit]).tokens[0, 5:]
    assert found.readings[0].text == " ".join(map(str, longer.tolist()))
    assert [row["layer"] for row in found.rows()] == [0, 1] and "target as it is" in repr(found)


@pytest.mark.parametrize(("asked", "said"), [
    ({"position": 9}, "position 9 does not exist in the source prompt"),
    ({"placeholder": 5}, "position 5 does not exist in the target prompt"),
    ({"placeholder": "x"}, "its placeholder is a position"),
    ({"target": "identity"}, "has no tokenizer"),
    ({"sites": "resid"}, "no site 'resid'"),
    ({"answer": 99}, "patchscope: answer has the token 99"),
    ({"top": 0}, "top is 0"),
])  # fmt: skip
def test_what_a_notebook_cannot_ask(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        mechint.patchscope(model(), torch.tensor([1, 2]), **{"target": torch.tensor([1, 2, 3]), **asked})


# ---- what is refused, and the page -------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "task", "said"), [
    ({"target": "own"}, {}, "no target prompt is given"),
    ({"text": "a b"}, {}, "is given and not used"),
    ({"target": "other"}, {"name": "prompt"}, "no other prompt"),
    ({"source": "subject"}, {"name": "prompt"}, "what the prompt is about"),
    ({"source": "subject"}, {"name": "text"}, "about nothing in particular"),
])  # fmt: skip
def test_requests_that_cannot_be_done(change: dict[str, str], task: dict[str, str], said: str) -> None:
    found = refuse(dataclasses.replace(SMALL, **change), TaskConfig(**task))
    assert found is not None and said in found


def test_every_target_is_possible() -> None:
    for target in TARGETS:
        text = "a" if target == "own" else ""
        assert refuse(dataclasses.replace(SMALL, target=target, text=text), TASK) is None


def test_prompts_of_one_answer_have_no_other() -> None:
    net, (learnt, asked) = model(), loaders()
    for batch in [*learnt, *asked]:
        batch.answers[:] = 9
    raw = Scope(net, dataclasses.replace(SMALL, scored="answer", examples=0)).run_analysis(learnt, asked)
    assert raw["best"]["gain"] is None and raw["best"]["p"] is None
    assert any("look for one token" in note for note in raw["notes"])
    with pytest.raises(MechintError, match="no other prompt of another template"):
        Scope(net, dataclasses.replace(SMALL, scored="answer", target="other")).run_analysis(learnt, asked)


def test_an_example_shows_what_its_own_prompt_says_from_the_first_layer_it_is_put_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Symbols of a task stand apart, with a space between them. The continuations are numbered tokens."""
    learnt, asked = loaders()

    def continued(net: Any, places: Any, sets: Any, values: Any, count: int, memory: float) -> dict[str, Tensor]:
        return {place.site: torch.arange(2 * 12 * count).view(2, 12, count) % 16 for place in places}

    monkeypatch.setattr(scopes, "continued", continued)
    scope = Scope(model(), dataclasses.replace(SMALL, into="all", sites="resid_post", examples=3, generate=3))
    scope.run_analysis(learnt, asked)
    assert len(scope.examples) == 3
    for row, example in enumerate(scope.examples):
        said = " ".join(asked.task.decode((3 * row + k) % 16) for k in range(3))
        assert example["generated"] == {f"layers.{layer}.resid_post": said for layer in range(2)}


def test_continuations_come_in_the_order_of_the_layers_though_the_file_sorts_names() -> None:
    sites = [f"layers.{layer}.resid_post" for layer in (0, 6, 12)]
    example = {"tokens": ["a", "b"], "answer": "c", "lenses": {"patchscope": {"sites": sites}}}
    generated = {site: f"from {site}" for site in sorted(sites)}
    [table] = [one for one in continuations([{**example, "generated": generated}]).blocks if isinstance(one, Table)]
    assert [row[2] for row in table.rows] == ["layer 0", "layer 6", "layer 12"]
    assert [row[4] for row in table.rows] == [f"from {site}" for site in sites]


@pytest.mark.parametrize(("words", "shown"), [(["a;", " x"], "a; [x]"), (["a", "x"], "a[x]"), (["a", " "], "a[ ]")])
def test_the_placeholder_stands_in_brackets_behind_its_space(words: list[str], shown: str) -> None:
    work: Any = SimpleNamespace(into=[Target(torch.tensor([[0, 1]]), 1)])
    task: Any = SimpleNamespace(decode=words.__getitem__, tokenizer="any")
    assert Scope(model(), SMALL).target_words(work, task) == shown


def test_the_page_has_no_continuations_where_none_were_asked_for(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, generate=0)
    scope = Scope(model(), config, run_dir=tmp_path, key="a")
    found = scope.run_analysis(*loaders())
    scope.save_results()
    write_results(tmp_path, "patchscope", "Patchscope", config, found)
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Token by token" in page and "What the model goes on with" not in page


def test_the_page_says_where_shuffled_weights_read_better() -> None:
    """A difference in the wrong direction is no evidence, though intervals are apart."""
    of = lambda value: {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9, "interval": "95 %"}
    entry = lambda name, layer, trained, shuffled: {
        "quantity": name, "site": "resid_post", "layer": layer, "trained": of(trained), "shuffled": of(shuffled),
        "differs": abs(trained - shuffled) > 0.2,
    }  # fmt: skip
    rows = [
        entry("right", 0, 0.2, 0.9), entry("surprisal", 0, 5.0, 1.0), entry("right", 1, 0.9, 0.2),
        entry("surprisal", 1, 1.0, 5.0), entry("surprisal in layer 3", 1, 1.0, 1.1),
    ]  # fmt: skip
    control = {"models": 1, "failed": [], "quantities": rows}
    assert better_shuffled(control, side) == rows[:2]
    (all_of_it, counted), (fine, named), _ = control_findings(control, side)
    assert all_of_it and "4 of 5 quantities differ" in counted and "2 in the trained model's favour" in counted
    assert "2 in that of shuffled weights" in counted
    assert not fine and named.startswith("Better with shuffled weights than with the trained ones: right (resid_post")
    assert control_findings(control)[0] == (True, counted.split(":")[0] + ".")
    best = {"site": "resid_post", "layer": 0}
    [said] = shuffled_better({"control": control, "best": best})
    assert "in 2 of 5 compared numbers, the best reading's among them; a reading there" in said
    [said] = shuffled_better({"control": control, "best": {**best, "layer": 1}})
    assert "in 2 of 5 compared numbers; a reading there does not show what training made" in said
    assert not shuffled_better({"control": {**control, "quantities": rows[2:]}, "best": best})
    assert not shuffled_better({"control": None, "best": best})
    nothing = {**control, "quantities": rows[:1]}
    assert "none in the trained model's favour, 1 in" in control_findings(nothing, side)[0][1]


@pytest.mark.slow
def test_the_report(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, into="all", controls=1)
    scope = Scope(model(), config, run_dir=tmp_path, key="a")
    found = scope.run_analysis(*loaders())
    scope.save_results()
    about = write_results(tmp_path, "patchscope", "Patchscope", config, found)
    lines = ANALYSIS.summary(found)
    assert len(lines) >= 5 and lines[0] == f"  {lead(found)}"
    names = {"patchscope_curves.png", "patchscope_map.png", "patchscope_report.md", "report.html"}
    assert {path.name for path in write_report(tmp_path)} == names
    page = (tmp_path / "report.html").read_text()
    assert f'<p class="lead">{html.escape(lead(found))}</p>' in page
    assert "&lt;b&gt;x.pt" in page and 'src="http' not in page and "Token by token" in page
    rows = mechint.results(tmp_path).rows()
    assert any(row["value"] == found["readings"][0]["surprisal"]["value"] for row in rows)
    [example] = scope.examples
    [entry] = example["lenses"].values()
    at = entry["sites"].index("layers.0.resid_post")
    own = float(scope.tensors["own layers.0.resid_post"][0, 0, 1])
    assert entry["answer"][at][-1] == pytest.approx(2.718281828459045**-own, rel=1e-3)
    assert len(entry["top"][at]) == len(example["tokens"]) and len(entry["top"][at][0]) == 3
    write_json(tmp_path / "results.json", {**about, **found, "readings": [{}]})
    with pytest.raises(MechintError, match=r"results\.json"):
        write_report(tmp_path)
