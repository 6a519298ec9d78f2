"""LongRoPE's scaling of a rotation by the prompt's length, on both sides of the length of the first training."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.interventions.continuations import continuations
from mechint.interventions.sweep import sweep
from mechint.interventions.transplant import taken, transplant_state
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.models.parts.attention import Attention
from mechint.models.parts.rotation import Long, Rotation
from mechint.models.stack import Stack
from mechint.utils.errors import MechintError

pytest.importorskip("transformers")

from tests.helpers.judges.base import Judge, judged, logits_of, promoted
from tests.helpers.judges.transformers import phi3
from tests.helpers.sweeps import one_by_one
from tests.models.families.test_parity import TIGHT, error, prompt

BORDER = 6
JUDGE = Judge("phi3", lambda rng: phi3(rng, BORDER, ("longrope",)))
SEEDS = [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
CROSSES = "all positions of a prompt longer than 6 are turned otherwise"


def both(seed: int, path: Path) -> tuple[Any, Stack]:
    """transformers' model in float64, and ours."""
    theirs = judged(JUDGE, seed)
    theirs.save_pretrained(path)
    ours = mechint.load(path, dtype="float64")
    assert isinstance(ours, Stack) and ours.border == BORDER
    return theirs, ours


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1, 2 * BORDER])
@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_gradients_are_those_of_transformers_on_both_sides(seed: int, length: int, tmp_path: Path) -> None:
    theirs, ours = both(seed, tmp_path)
    ids = prompt(length=length)
    expected, found = logits_of(theirs, ids), ours(ids)
    assert error(found, expected) <= TIGHT
    with promoted():
        expected[..., 3].sum().backward()
    found[..., 3].sum().backward()
    wanted = theirs.get_input_embeddings().weight.grad
    assert error(ours.get_parameter("embed_tokens.weight").grad, wanted) <= TIGHT
    again = from_state_dict(to_hf_state_dict(ours), hf_config(ours), "m", dtype="float64")
    assert again.config.rotation == ours.config.rotation
    assert torch.equal(again(ids), found)


def test_the_length_changes_the_past(tmp_path: Path) -> None:
    """The first positions of a long prompt have other logits than they have alone: a cache cannot lead there."""
    theirs, ours = both(0, tmp_path)
    ids = prompt(length=BORDER + 1)
    for logits in (lambda ids: logits_of(theirs, ids), ours):
        assert error(logits(ids[:, :BORDER]), logits(ids)[:, :BORDER]) > 1e-3


def test_a_memory_goes_on_on_its_own_side_and_never_across(tmp_path: Path) -> None:
    _, ours = both(0, tmp_path)
    ids = prompt(length=2 * BORDER)
    with torch.no_grad():
        for whole, start in ((ids[:, :BORDER], 3), (ids, BORDER + 1)):
            first = mechint.run(ours, whole[:, :start])
            rest = mechint.run(ours, whole[:, start:], cache=first.cache)
            assert error(torch.cat([first.logits, rest.logits], 1), ours(whole)) <= TIGHT
        within = mechint.run(ours, ids[:, :BORDER])
        with pytest.raises(MechintError, match=CROSSES) as found:
            mechint.run(ours, ids[:, BORDER:], cache=within.cache)
        assert "12 positions cannot go on from a memory of 6; run the 12 at once" in str(found.value)
        with pytest.raises(MechintError, match=CROSSES):
            mechint.generate(ours, ids[:, :4], 4)
        with pytest.raises(MechintError, match=CROSSES):
            continuations(ours, ids[:, :4], [[]], 4)
        with pytest.raises(MechintError, match=CROSSES):
            transplant_state(ours, ids, ids, position=3)
        # a layer is no better than the run: its own memory says how its keys are turned
        memory = ours.empty_cache(0, 2)
        stream = ours.begin(ids, mechint.interventions.taps.Tap())
        _, memory = ours.block(0, stream[:, :4], memory, mechint.interventions.taps.Tap())
        with pytest.raises(MechintError, match=CROSSES):
            ours.block(0, stream[:, 4:], memory, mechint.interventions.taps.Tap(offset=4))


def test_generation_on_one_side_says_what_whole_runs_say(tmp_path: Path) -> None:
    _, ours = both(1, tmp_path)
    ids, count = prompt(length=2 * BORDER), 4
    with torch.no_grad():
        for start in (2, BORDER + 1):
            made = mechint.generate(ours, ids[:, :start], count)
            assert error(made.logits, ours(made.tokens[:, :-1])) <= TIGHT
            edits = [mechint.Edit("layers.0.resid_post", "scale", 0.5, positions=[1])]
            expected = [
                mechint.generate(ours, ids[:, :start], count, edits=each).tokens[:, start:] for each in ([], edits)
            ]
            assert torch.equal(continuations(ours, ids[:, :start], [[], edits], count), torch.stack(expected))


def test_what_is_taken_early_from_a_long_prompt_is_that_of_the_whole(tmp_path: Path) -> None:
    _, ours = both(0, tmp_path)
    ids, sites = prompt(length=2 * BORDER), ["layers.0.k_rot", "layers.0.resid_post"]
    with torch.no_grad():
        whole = mechint.run(ours, ids, sites)
        for start, count in ((0, 1), (2, 3), (BORDER, 2)):
            for site, value in taken(ours, ids, sites, start, count).items():
                assert error(value, whole[site][:, start : start + count]) <= TIGHT, (site, start)


def test_a_sweep_of_a_long_prompt_is_one_run_for_each(tmp_path: Path) -> None:
    """Cells start at positions below the border and above it, behind the memory of the whole prompt."""
    _, ours = both(1, tmp_path)
    ids = prompt(length=2 * BORDER)
    cells = [
        [mechint.Edit(site, "scale", 0.4, positions=[position])]
        for site in ours.sites if not site.endswith((".scores", ".pattern")) for position in (1, BORDER, 9)
    ]  # fmt: skip
    with torch.no_grad():
        assert error(sweep(ours, ids, cells), one_by_one(ours, ids, cells)) <= TIGHT


def test_frequencies_and_size_by_hand(tmp_path: Path) -> None:
    rotation = Rotation(16.0, 0, original=4, long=Long((1.0, 2.0), (3.0, 5.0), 1.5))
    x = torch.zeros(1, 5, 1, 4, dtype=torch.float64)
    x[..., :2] = 1.0
    for length, (a, b) in ((4, (1.0, 2.0)), (5, (3.0, 5.0))):
        found = rotation.turn(x[:, :length], torch.arange(length))[0, :, 0]
        for p in range(length):
            angles = p / a, p / (4.0 * b)
            wanted = [1.5 * math.cos(angle) for angle in angles] + [1.5 * math.sin(angle) for angle in angles]
            assert found[p].tolist() == pytest.approx(wanted, rel=1e-14)


def published(**changes: Any) -> dict[str, Any]:
    """A configuration as Phi-4-mini's, small: earlier keys, and the factor only as a quotient of two lengths."""
    said = {
        "model_type": "phi3", "vocab_size": 37, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "rope_theta": 10000.0, "partial_rotary_factor": 0.75, "sliding_window": 262144,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "interpolate_factor": 1,
        "full_attn_mod": 1, "lm_head_bias": False, "mlp_bias": False, "attention_bias": False, "embd_pdrop": 0.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [1.0, 1.5, 2, 4, 8, 16]},
    }  # fmt: skip
    return {**said, **changes}


def state() -> dict[str, torch.Tensor]:
    random.seed(0)
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "model.embed_tokens.weight": (37, 32), "model.norm.weight": (32,),
        "model.layers.0.input_layernorm.weight": (32,), "model.layers.0.post_attention_layernorm.weight": (32,),
        "model.layers.0.self_attn.qkv_proj.weight": (64, 32), "model.layers.0.self_attn.o_proj.weight": (32, 32),
        "model.layers.0.mlp.gate_up_proj.weight": (16, 32), "model.layers.0.mlp.down_proj.weight": (32, 8),
    }  # fmt: skip
    return {name: torch.randn(*size, generator=generator) for name, size in sizes.items()}


def test_the_keys_of_published_files_mean_what_transformers_makes_of_them() -> None:
    model = from_state_dict(state(), published(), "m")
    rotation = model.config.rotation
    assert (rotation.size, rotation.original) == (12, 4096)
    assert rotation.long == Long(
        (1.0,) * 6, (1.0, 1.5, 2.0, 4.0, 8.0, 16.0), math.sqrt(1 + math.log(32) / math.log(4096))
    )
    for earlier in ("su", "yarn"):
        scaling = {**published()["rope_scaling"], "type": earlier}
        assert from_state_dict(state(), published(rope_scaling=scaling), "m").config.rotation == rotation


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"short_factor": [1.0] * 5}, "short_factor of the rotation"),
        ({"long_factor": [0.0] * 6}, "which is no list of 6 numbers above 0"),
        ({"long_factor": None}, "long_factor of the rotation = None"),
        ({"original_max_position_embeddings": 64}, "is 64 in the rotation and 4096 beside it"),
        ({"attention_factor": -1.0}, "attention_factor of the rotation = -1.0"),
        ({"odd": 2}, "the rotation has odd = 2"),
        ({"type": "llama3"}, "known here for a Phi-3 are default and longrope"),
        ({"type": "default"}, "the rotation has short_factor"),
    ],
)
def test_a_wrong_rotation_is_one_line(change: dict[str, Any], said: str) -> None:
    scaling = {**published()["rope_scaling"], **change}
    with pytest.raises(MechintError) as found:
        from_state_dict(state(), published(rope_scaling=scaling), "m")
    assert said in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("change", [{"interpolate_factor": 2}, {"full_attn_mod": 2}, {"lm_head_bias": True}])
def test_a_setting_that_transformers_leaves_out_is_refused(change: dict[str, Any]) -> None:
    [name] = change
    with pytest.raises(MechintError, match=name):
        from_state_dict(state(), published(**change), "m")


def test_other_rotations_have_no_border(tmp_path: Path) -> None:
    model = from_state_dict(state(), published(rope_scaling=None), "m")
    part = model.parts_of(0)["self_attn"]  # type: ignore[union-attr]
    assert isinstance(part, Attention) and (model.border, part.border) == (0, 0)
    model.check_behind(3, 10**6)
