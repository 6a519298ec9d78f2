"""YaRN's scaling of a rotation against transformers promoted to float64, and against itself behind a cache."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechint
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from mechint.models.parts.rotation import Rotation, Yarn

T = pytest.importorskip("transformers")

from tests.helpers.examples import examples  # noqa: E402
from tests.helpers.judges.base import Judge, judged, logits_of, promoted  # noqa: E402
from tests.helpers.judges.transformers import sizes  # noqa: E402
from tests.models.families.test_parity import TIGHT, error, prompt  # noqa: E402


def yarn(rng: random.Random) -> dict[str, Any]:
    """A setting with any of its parts said or left out."""
    said: dict[str, Any] = {"rope_type": "yarn", "rope_theta": rng.choice([50.0, 10000.0]),
                            "factor": rng.choice([1.0, 4.0, 8.0]),
                            "original_max_position_embeddings": rng.choice([8, 16, 64])}  # fmt: skip
    for name, values in {"beta_fast": [4.0, 32.0], "beta_slow": [0.5, 1.0], "attention_factor": [1.0, 0.75],
                         "truncate": [True, False]}.items():  # fmt: skip
        if rng.random() < 0.5:
            said[name] = rng.choice(values)
    if rng.random() < 0.5:
        said |= {"mscale": 1.0, "mscale_all_dim": rng.choice([0.5, 2.0])}
    return said


def qwen3(rng: random.Random) -> Any:
    return T.Qwen3ForCausalLM(T.Qwen3Config(**sizes(rng, head_dim=rng.choice([4, 8])), rope_parameters=yarn(rng)))


def neox(rng: random.Random) -> Any:
    said = sizes(rng, hidden_size=16, num_attention_heads=rng.choice([1, 2]))
    del said["num_key_value_heads"]
    return T.GPTNeoXForCausalLM(T.GPTNeoXConfig(**said, rope_parameters={**yarn(rng), "partial_rotary_factor": 0.5}))


def olmo3(rng: random.Random) -> Any:
    """Its long context is of full attention alone."""
    said = sizes(rng)
    by_kind = {"full_attention": {**yarn(rng), "truncate": True},
               "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip
    return T.Olmo3ForCausalLM(T.Olmo3Config(
        **said, rope_parameters=by_kind, sliding_window=3,
        layer_types=[rng.choice([*by_kind]) for _ in range(said["num_hidden_layers"])],
    ))  # fmt: skip


MAKERS = {"qwen3": qwen3, "gpt_neox": neox, "olmo3": olmo3}


@pytest.mark.parametrize("family", MAKERS)
@settings(max_examples=examples(3), deadline=None)
@given(seed=st.integers(0, 9999))
def test_logits_and_gradients_are_those_of_transformers(
    family: str, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs, path, ids = judged(Judge(family, MAKERS[family]), seed), tmp_path_factory.mktemp("m"), prompt()
    theirs.save_pretrained(path)
    ours = mechint.load(path, dtype="float64")
    expected, found = logits_of(theirs, ids), ours(ids)
    assert error(found, expected) <= TIGHT
    with promoted():
        expected[..., 3].sum().backward()
    found[..., 3].sum().backward()
    wanted = theirs.get_input_embeddings().weight.grad
    assert error(ours.get_parameter("embed_tokens.weight").grad, wanted) <= TIGHT
    parts, cache = [], None
    for piece in ids.split([1, 4, 6], 1):
        run = mechint.run(ours, piece, cache=cache)
        parts, cache = [*parts, run.logits], run.cache
    assert error(torch.cat(parts, 1), found) <= TIGHT
    again = from_state_dict(to_hf_state_dict(ours), hf_config(ours), "m", dtype="float64")
    assert error(again(ids), found) <= TIGHT


def test_frequencies_by_hand() -> None:
    """Six pairs at base 16 with 32 positions: those that turn 4 times and more are kept, once or less are stretched."""
    rotation = Rotation(16.0, 0, 2.0, original=32, yarn=Yarn(4.0, 1.0, False, 0.5))
    found = rotation.frequencies(12, torch.device("cpu"), torch.float64)
    base = 16 ** -(torch.arange(6, dtype=torch.float64) / 6)
    turns = 32 * base / (2 * torch.pi)  # 5.09, 3.21, 2.02, 1.27, 0.80, 0.51
    kept = (turns.log() / torch.tensor(4.0, dtype=torch.float64).log()).clamp(0, 1)
    torch.testing.assert_close(found, kept * base + (1 - kept) * base / 2)
    x = torch.randn(1, 3, 1, 12, dtype=torch.float64)
    assert torch.equal(rotation.turn(x, torch.arange(3))[:, 0], x[:, 0] * 0.5)  # position 0 turns nothing
