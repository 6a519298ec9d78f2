"""Path patching: every direct effect against a run by hand in which one receiver alone sees the other value."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mechint.analyses.metrics import answer_metric
from mechint.ground_truth import BLUEPRINTS, GPT2_BLUEPRINTS
from mechint.ground_truth.edges import link_pairs, links
from mechint.interventions import path_patching
from mechint.interventions.edits import Edit
from mechint.interventions.path_patching import Node, PathPatching, places
from mechint.interventions.run import run
from mechint.interventions.sweep import sweep
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.families import falcon_h1, zamba2

ROWS, LENGTH = 3, 6
OWN, OTHER = tokens(ROWS, LENGTH), tokens(ROWS, LENGTH, seed=1)
AT = torch.tensor([[5], [4], [5]])
TOLERANCE = 1e-10


def difference(logits: Tensor) -> Tensor:
    """The metric: one logit less another, [..., row, wanted, vocabulary] -> [..., row]."""
    return logits[..., 0, 3] - logits[..., 0, 5]


def patching(model: Any, *senders: str, **options: Any) -> PathPatching:
    return PathPatching(model, OWN, OTHER, [Node.parse(name) for name in senders], difference, AT, **options)


def effect(model: Any, sender: str, receiver: str) -> Tensor:
    return patching(model, sender).effects([Node.parse(sender)], [Node.parse(receiver)])[0, 0]


# ---- by hand: torch's own hooks, and nothing of sites or edits ---------------------------------------------------


@contextlib.contextmanager
def hooked(module: torch.nn.Module, replace: Callable[[tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """Every output of the module is what ``replace(arguments, output)`` makes of it."""
    handle = module.register_forward_hook(lambda _, arguments, output: replace(arguments, output))
    try:
        yield
    finally:
        handle.remove()


def seen(model: Any, prompts: Tensor, module: torch.nn.Module, output: bool = False) -> Tensor:
    """A module's first input, or its output, in a plain run."""
    found: list[Tensor] = []

    def keep(arguments: tuple[Any, ...], given: Any) -> None:
        found.append((given[0] if isinstance(given, tuple) else given) if output else arguments[0])

    with hooked(module, keep):
        model(prompts)
    return found[0]


def metric_of(logits: Tensor) -> Tensor:
    rows = torch.arange(ROWS)
    return logits[rows, AT[:, 0], 3] - logits[rows, AT[:, 0], 5]


def swapped(model: Any, module: torch.nn.Module, part: slice, value: Tensor) -> Tensor:
    """The change of the metric once a slice of a module's output has the value of the same slice."""

    def replace(_: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., part] = value[..., part]
        return output

    with hooked(module, replace):
        changed = model(OWN)
    return metric_of(changed) - metric_of(model(OWN))


def change(model: Any, module: torch.nn.Module, weight: Tensor | None = None, part: slice = slice(None)) -> Tensor:
    """What the counterparts' run gives at a module less what our own does; through a slice of a weight, its input's."""
    if weight is None:
        return seen(model, OTHER, module, output=True) - seen(model, OWN, module, output=True)
    return (seen(model, OTHER, module)[..., part] - seen(model, OWN, module)[..., part]) @ weight[:, part].T


@torch.no_grad()
def gpt2_by_hand(model: Any, sender: str, receiver: str) -> Tensor:
    first, second = model.layers
    given = {
        "embed": lambda: model.wte(OTHER) - model.wte(OWN),
        "layers.0.head_out[1]": lambda: change(model, first.attn.c_proj, first.attn.c_proj.weight, slice(4, 8)),
        "layers.0.attn_out": lambda: change(model, first.attn.c_proj),
        "layers.0.mlp_out": lambda: change(model, first.mlp),
    }[sender]()
    attention = lambda layer: layer.attn.c_attn(layer.ln_1(seen(model, OWN, layer.ln_1) + given))
    if receiver == "logits":
        stream = seen(model, OWN, model.ln_f)
        head = lambda r: metric_of(F.linear(model.ln_f(r), model.wte.weight))
        return head(stream + given) - head(stream)
    if receiver == "layers.0.mlp_out":
        return swapped(model, first.mlp, slice(None), first.mlp.forward(
            first.ln_2(seen(model, OWN, first.ln_2) + given), lambda name, tensor: tensor))  # fmt: skip
    part = {"layers.1.q[2]": slice(8, 12), "layers.1.k[0]": slice(12, 16), "layers.1.v[1]": slice(28, 32)}[receiver]
    return swapped(model, second.attn.c_attn, part, attention(second))


@pytest.mark.parametrize("sender", ["embed", "layers.0.head_out[1]", "layers.0.attn_out", "layers.0.mlp_out"])
def test_every_input_of_a_gpt2_is_that_of_a_run_by_hand(sender: str) -> None:
    model = tiny_gpt2(dtype=torch.float64)
    for receiver in ("layers.1.q[2]", "layers.1.k[0]", "layers.1.v[1]", "layers.0.mlp_out", "logits"):
        found = effect(model, sender, receiver)
        if sender == "layers.0.mlp_out" and receiver == "layers.0.mlp_out":
            assert found.isnan().all()
            continue
        wanted = gpt2_by_hand(model, sender, receiver)
        assert (found - wanted).abs().max() <= TOLERANCE
        assert wanted.abs().max() > 1e-3, receiver


@torch.no_grad()
@pytest.mark.parametrize("sender", ["embed", "layers.0.out", "layers.0.gated[3]"])
def test_every_input_of_a_mamba_is_that_of_a_run_by_hand(sender: str) -> None:
    model = tiny_mamba(dtype=torch.float64)
    first, second = model.layers
    E, N, R = 14, 5, 3
    given = {
        "embed": lambda: model.embedding(OTHER) - model.embedding(OWN),
        "layers.0.out": lambda: change(model, first.out_proj),
        "layers.0.gated[3]": lambda: change(model, first.out_proj, first.out_proj.weight, slice(3, 4)),
    }[sender]()
    projected = second.in_proj(second.norm(seen(model, OWN, second.norm) + given))
    padded = F.pad(projected[..., :E].transpose(1, 2), (3, 0))
    u = F.silu(F.conv1d(padded, second.conv1d.weight, second.conv1d.bias, groups=E)).transpose(1, 2)
    selected = second.x_proj(u)
    stream = seen(model, OWN, model.norm_f)
    head = lambda r: metric_of(F.linear(model.norm_f(r), model.embedding.weight))
    wanted = {
        "layers.1.x": swapped(model, second.in_proj, slice(0, E), projected),
        "layers.1.z": swapped(model, second.in_proj, slice(E, 2 * E), projected),
        "layers.1.dt": swapped(model, second.x_proj, slice(0, R), selected),
        "layers.1.B": swapped(model, second.x_proj, slice(R, R + N), selected),
        "layers.1.C": swapped(model, second.x_proj, slice(R + N, R + 2 * N), selected),
        "logits": head(stream + given) - head(stream),
    }
    for receiver, value in wanted.items():
        assert (effect(model, sender, receiver) - value).abs().max() <= TOLERANCE, receiver
        assert value.abs().max() > 1e-5, receiver


@torch.no_grad()
def test_a_llama_whose_heads_share_keys_is_that_of_a_run_by_hand() -> None:
    model = tiny_llama(dtype=torch.float64)
    first, second = model.layers
    given = change(model, first.self_attn.o_proj, first.self_attn.o_proj.weight, slice(6, 12))
    normed = second.input_layernorm(seen(model, OWN, second.input_layernorm) + given)
    for receiver, name, part in (("q[3]", "q_proj", slice(18, 24)), ("k[1]", "k_proj", slice(6, 12)),
                                 ("v[0]", "v_proj", slice(0, 6))):  # fmt: skip
        module = second.self_attn.get_submodule(name)
        wanted = swapped(model, module, part, module(normed))
        assert (effect(model, "layers.0.head_out[1]", f"layers.1.{receiver}") - wanted).abs().max() <= TOLERANCE


@torch.no_grad()
def test_parts_side_by_side_read_what_earlier_steps_have_written() -> None:
    model = falcon_h1()
    first, second = (layer.parts for layer in model.layers)
    given = change(model, first["mamba"])
    normed = model.layers[1]["input_layernorm"](seen(model, OWN, model.layers[1]["input_layernorm"]) + given)
    v_proj, in_proj = second["self_attn"].v_proj, second["mamba"].in_proj
    wanted = {
        "layers.1.v[1]": swapped(model, v_proj, slice(4, 8), v_proj(1.3 * normed)),
        "layers.1.z": swapped(model, in_proj, slice(0, 8), in_proj(0.9 * normed)),
    }
    for receiver, value in wanted.items():
        assert (effect(model, "layers.0.ssm_out", receiver) - value).abs().max() <= TOLERANCE, receiver
        assert value.abs().max() > 1e-6, receiver
    assert effect(model, "layers.0.ssm_out", "layers.0.q[0]").isnan().all()  # side by side: reads nothing of it
    assert not effect(model, "layers.0.ssm_out", "layers.0.mlp_out").isnan().any()  # the step behind


@torch.no_grad()
def test_embeddings_that_are_read_beside_the_stream_are_part_of_their_direct_effect() -> None:
    model = zamba2()
    block = model.layers[1].parts["mixer"].block
    embeddings, others = model.embed_tokens(OWN), model.embed_tokens(OTHER)
    both = seen(model, OWN, block.input_layernorm)  # the stream, and the embeddings behind it
    stream = both[..., :8] + others - embeddings
    q_proj = block.self_attn.q_proj
    value = q_proj(block.input_layernorm(torch.cat([stream, others], -1)))
    wanted = swapped(model, q_proj, slice(0, 8), value)
    assert (effect(model, "embed", "layers.1.q[0]") - wanted).abs().max() <= TOLERANCE
    assert wanted.abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("sender", ["layers.0.state", "layers.0.state[1]", "layers.0.state[1]@2", "layers.0.state@-2"])
@pytest.mark.parametrize(
    ("family", "out", "end"),
    [(lambda: tiny_mamba(dtype=torch.float64), "out", "norm_f"), (falcon_h1, "ssm_out", "norm")],
    ids=["mamba", "falcon_h1"],
)
def test_a_memory_sends_what_its_layer_adds_with_it(family: Any, out: str, end: str, sender: str) -> None:
    """The forward takes the other state one position at a time, whether all positions have it or some."""
    model, node = family(), Node.parse(sender)
    site = f"layers.0.{out}"
    others = run(model, OTHER, [node.site]).values[node.site]
    at = [p % LENGTH for p in node.positions or range(LENGTH)]
    units = [*range(others.shape[2])] if node.unit is None else [node.unit]
    swap = Edit(node.site, "replace", others[:, at][:, :, units], positions=at, units=units)
    given = run(model, OWN, [site], [swap]).values[site] - run(model, OWN, [site]).values[site]
    norm = getattr(model, end)
    stream = seen(model, OWN, norm)
    with hooked(norm, lambda _, output: norm.forward(stream + given)):
        changed = metric_of(model(OWN))
    wanted = changed - metric_of(model(OWN))
    found = effect(model, sender, "logits")
    assert (found - wanted).abs().max() <= TOLERANCE and wanted.abs().max() > 1e-6
    path = patching(model, "embed").along([Node("embed"), node, Node("logits")])
    assert path.isfinite().all() and path.abs().max() > 0


# ---- paths that add up -------------------------------------------------------------------------------------------


def linear_gpt2() -> Any:
    """Without norms and with feed-forward parts that give nothing: linear once attention weighs as it does."""
    model = tiny_gpt2(dtype=torch.float64, n_layer=3, norms=False, final_norm=False)
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.c_proj.weight.zero_()
    return model


@torch.no_grad()
def test_all_disjoint_paths_of_a_linear_model_add_up_to_the_total_effect() -> None:
    model = linear_gpt2()
    frozen = run(model, OWN, ["layers.*.pattern", "embed"]).values
    edits = [Edit(site, "replace", value) for site, value in frozen.items() if site != "embed"]
    other = run(model, OTHER, ["embed"]).values["embed"]
    total = metric_of(run(model, OWN, (), [*edits, Edit("embed", "replace", other)]).logits) - metric_of(model(OWN))
    found = patching(model, "embed")
    # through the values of one head or of none in each layer: 4³ paths
    ways = [[None, *(Node(f"layers.{layer}.v", head) for head in range(3))] for layer in range(3)]
    paths = [[node for node in way if node] for way in itertools.product(*ways)]
    added = torch.stack([found.along([Node("embed"), *path, Node("logits")]) for path in paths]).sum(0)
    assert total.abs().min() > 1e-2
    assert (added - total).abs().max() <= TOLERANCE
    # and those that leave each layer's heads directly, by where they are read first
    first = found.effects([Node("embed")], [Node("logits")])[0, 0]
    assert (found.along([Node("embed"), Node("logits")]) - first).abs().max() == 0


def test_a_path_of_two_is_the_direct_effect_and_the_last_part_is_free() -> None:
    model = tiny_mamba(dtype=torch.float64, n_layer=3)
    found = patching(model, "embed")
    nodes = [Node.parse(name) for name in ("embed", "layers.0.out", "layers.1.dt")]
    # by hand: what layer 0 gives once it has read the embeddings, read by Δ of layer 1 alone, and all behind it free
    one = run(model, OWN, ["layers.0.out", "layers.1.resid_pre"]).values
    changed = run(model, OWN, ["layers.0.out"], [Edit("embed", "replace", found.other.values["embed"])]).values
    stream = one["layers.1.resid_pre"] + changed["layers.0.out"] - one["layers.0.out"]
    step = run(model, OWN, ["layers.1.dt"], [Edit("layers.1.resid_pre", "replace", stream)]).values["layers.1.dt"]
    wanted = metric_of(run(model, OWN, (), [Edit("layers.1.dt", "replace", step)]).logits) - metric_of(model(OWN))
    assert (found.along(nodes) - wanted).abs().max() <= TOLERANCE
    assert torch.equal(found.along(nodes[::2]), found.effects(nodes[:1], nodes[2:])[0, 0])


def test_positions_say_from_where_and_to_where_through_time() -> None:
    """From one position of a sender through the recurrence to what a later position reads."""
    model = tiny_mamba(dtype=torch.float64)
    sender, readers = Node("layers.0.out", None, (1,)), [Node("layers.1.scan_out", None, (p,)) for p in (0, 4)]
    found = patching(model, "layers.0.out@1").effects([sender], readers)[0]
    assert (found[0] == 0).all()  # position 0 comes before it
    own = run(model, OWN, ["layers.0.out", "layers.1.resid_pre"]).values
    stream = own["layers.1.resid_pre"].clone()
    stream[:, 1] += run(model, OTHER, ["layers.0.out"]).values["layers.0.out"][:, 1] - own["layers.0.out"][:, 1]
    read = run(model, OWN, ["layers.1.scan_out"], [Edit("layers.1.resid_pre", "replace", stream)]).values
    edit = Edit("layers.1.scan_out", "replace", read["layers.1.scan_out"][:, 4:5], positions=[4])
    wanted = metric_of(run(model, OWN, (), [edit]).logits) - metric_of(model(OWN))
    assert (found[1] - wanted).abs().max() <= TOLERANCE and wanted.abs().max() > 1e-8


def test_groups_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gpt2(dtype=torch.float64)
    senders = [Node("embed"), Node("layers.0.head_out", 1), Node("layers.0.mlp_out")]
    receivers = [Node("layers.1.q", 0), Node("layers.1.mlp_out"), Node("logits")]
    found = patching(model, *map(str, senders))
    whole = found.effects(senders, receivers)
    calls = []

    def roomy(*arguments: Any, memory_mib: float, **named: Any) -> Tensor:
        calls.append(memory_mib)
        return sweep(*arguments, **named)

    monkeypatch.setattr(path_patching, "sweep", roomy)
    monkeypatch.setattr(path_patching, "TOGETHER", 1)
    found.memory_mib = 1e-3
    assert torch.allclose(found.effects(senders, receivers), whole, atol=1e-12, rtol=0)
    assert len(calls) == 6  # one sender at a time, at two places of the forward


def test_counterparts_that_are_the_prompts_have_no_effect_at_all() -> None:
    model = tiny_mamba()
    nodes = [Node("embed"), Node("layers.0.out")]
    found = PathPatching(model, OWN, OWN, nodes, difference, AT)
    assert (found.effects(nodes, [Node("layers.1.x"), Node("logits")]) == 0).all()


# ---- models whose links are known --------------------------------------------------------------------------------


def units(model: Any, per_layer: dict[str, int]) -> list[list[Node]]:
    """The units of some kinds of site, one kind behind another in every layer."""
    return [
        [Node(f"layers.{layer}.{kind}", unit) for kind, count in per_layer.items() for unit in range(count)]
        for layer in range(model.num_layers)
    ]


def known_links(name: str) -> tuple[Any, Tensor, Tensor, list[list[Node]], list[list[Node]]]:
    """A compiled model, its links and its pairs [layer, writer, layer, reader], and the nodes; heads are one unit."""
    compiled = BLUEPRINTS[name]().compile(seed=0) if name in BLUEPRINTS else GPT2_BLUEPRINTS[name]().compile(seed=0)
    model, truth, there = compiled.model, links(compiled), link_pairs(compiled)
    c = model.config
    if name in BLUEPRINTS:
        return compiled, truth, there, units(model, {"gated": c.d_inner}), units(model, {"x": c.d_inner})

    def by_head(x: Tensor, kinds: int) -> Tensor:
        heads = x[..., : kinds * c.d_model].unflatten(-1, (-1, c.d_head)).any(-1)
        return torch.cat([heads, x[..., kinds * c.d_model :]], -1)

    truth, there = (by_head(by_head(x, 3).movedim(1, -1), 1).movedim(-1, 1) for x in (truth, there))
    writers = units(model, {"head_out": c.n_head, "mlp_post": c.d_mlp})
    return compiled, truth, there, writers, units(model, {**dict.fromkeys("qkv", c.n_head), "mlp_pre": c.d_mlp})


def some(nodes: list[list[Node]], wanted: Tensor) -> dict[tuple[int, int], Node]:
    """The wanted nodes and a few others, by layer and unit."""
    every = [((layer, k), node) for layer, row in enumerate(nodes) for k, node in enumerate(row)]
    return {at: node for at, node in every if wanted[at] or not at[1] % 31}


def moved(model: Any, prompts: Any, writer: Node) -> bool:
    """True if the twins change what a unit writes."""
    values = [run(model, tokens, [writer.site])[writer.site] for tokens in (prompts.tokens, prompts.twins)]
    one, other = (value[:, :, writer.unit] for value in values)
    return bool((one - other).abs().max() > 1e-4 * one.abs().max())


@pytest.mark.slow_except("count-6-0|selective_copy-3-3")
@pytest.mark.parametrize(
    ("name", "seen", "unmoved"),
    [
        ("count", 6, 0), ("modular_sum", 20, 10), ("induction", 8, 0), ("selective_copy", 3, 3), ("gpt2_count", 13, 0),
        ("gpt2_modular_sum", 22, 0), ("gpt2_induction", 1, 0), ("gpt2_selective_copy", 8, 0),
    ],
)  # fmt: skip
def test_the_links_of_a_compiled_model_have_an_effect_and_others_have_none(name: str, seen: int, unmoved: int) -> None:
    """In logits, over all answers, with other prompts of the task as twins.

    The exceptions are writers that no twin moves: a sum's constant 1, and a count of markers that all prompts share.
    Norms pass hundredths on where there is no link.
    """
    compiled, truth, there, writers, readers = known_links(name)
    model, prompts = compiled.model, compiled.task.sample(32, "evaluation", 0)
    prompts = dataclasses.replace(prompts, twins=prompts.tokens.roll(1, 0))
    senders, receivers = some(writers, truth.any(3).any(2)), some(readers, truth.any(1).any(0))
    change = {at: moved(model, prompts, node) for at, node in senders.items()}
    metric = answer_metric("logit_diff", prompts)
    found = PathPatching(model, prompts.tokens, prompts.twins, list(senders.values()), metric, prompts.positions)
    largest = found.effects(list(senders.values()), list(receivers.values())).abs().amax(-1)
    most, count = (0.01 if name.startswith("gpt2") else 1e-5), Counter[bool]()
    for s, at in enumerate(senders):
        for r, to in enumerate(receivers):
            effect, where = float(largest[s, r]), f"{senders[at]} → {receivers[to]}: {largest[s, r]}"
            if not there[at + to]:
                assert effect != effect, where  # NaN: it reads before the sender writes
            elif not truth[at + to]:
                assert effect <= most, where
            else:
                assert effect >= 2.5 if change[at] else effect == 0, where
                count[change[at]] += 1
    assert (count[True], count[False]) == (seen, unmoved)


def test_a_link_that_moves_both_answers_alike_is_seen_by_another_metric() -> None:
    """The ramp of the largest sum, 9, writes 1 · 0, -2 · 2 and 1 · 1 times the gain to the three answers: where the
    twin's sum is two less, without the ramp the right answer 0 and the twin's answer 1 fall alike, and 2 rises."""
    compiled, truth, _, writers, readers = known_links("modular_sum")
    meaning = {part.meaning: (part.layer, *part.unit) for part in compiled.truth.parts if part.kind == "channel"}
    (i, e), (j, f) = meaning["counts 2"], meaning["the sum is at least 9"]
    assert truth[i, e, j, f]
    prompts = compiled.task.sample(200, "evaluation", 0).last()
    pair = [writers[i][e]], [readers[j][f]]
    found = {}
    for name in ("logit_diff", "answer_logprob"):
        metric = answer_metric(name, prompts)
        patching = PathPatching(compiled.model, prompts.tokens, prompts.twins, pair[0], metric, prompts.positions)
        found[name] = float(patching.effects(*pair).abs().max())
    assert found["logit_diff"] < 0.01 and found["answer_logprob"] > 1


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sender", "receiver", "said"), [
    ("layers.0.atn_out", "logits", "no such site.*attn_out"),
    ("layers.0.resid_post", "logits", "no sender: it is the residual stream"),
    ("layers.0.head_out[3]", "logits", "has 3 units"),
    ("layers.0.head_out[1]@6", "logits", "6 positions"),
    ("logits", "logits", "no sender; logits stands at the end"),
    ("embed[", "logits", "not a site; write layers.1.q"),
    ("embed", "layers.1.pattern", "no receiver"),
    ("embed", "layers.1.q[9]", "has 3 units"),
    ("embed", "logits@-1", "without unit or position"),
])  # fmt: skip
def test_a_node_that_there_is_not_is_refused(sender: str, receiver: str, said: str) -> None:
    with pytest.raises(MechintError, match=said):
        effect(tiny_gpt2(), sender, receiver)


@pytest.mark.parametrize(("path", "said"), [
    (["embed"], "at least a sender and a receiver"),
    (["embed", "layers.1.q[0]", "layers.0.mlp_out", "logits"], "layers.0.mlp_out reads the stream before"),
    (["embed", "layers.1.q[0]", "layers.1.v[0]"], "no path leads there"),
    (["embed", "logits", "logits"], "logits is no part on the way"),
    (["embed", "layers.7.q", "logits"], "no such site"),
])  # fmt: skip
def test_a_path_that_leads_nowhere_is_refused(path: list[str], said: str) -> None:
    with pytest.raises(MechintError, match=said):
        patching(tiny_gpt2(), path[0]).along([Node.parse(name) for name in path])


def test_counterparts_of_another_length_are_refused() -> None:
    with pytest.raises(MechintError, match="as many and as long"):
        PathPatching(tiny_gpt2(), OWN, OTHER[:, 1:], [Node("embed")], difference, AT)


def test_every_site_that_is_written_as_text_is_read_again() -> None:
    known = places(tiny_llama())
    assert not [site for site in known if "resid" in site or "scores" in site]
    for node in (Node("embed"), Node("layers.0.q", 2), Node("layers.1.mlp_out", None, (-1,)), Node("x.y", 0, (3,))):
        assert Node.parse(str(node)) == node
