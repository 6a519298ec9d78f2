"""Keys of a configuration that may change the computation are understood or refused by name, in every loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mechint
from mechint.models.loading.config_keys import is_architecture
from mechint.models.loading.config_reader import ConfigReader
from mechint.models.loading.load import from_state_dict, hf_config, to_hf_state_dict
from tests.helpers import gpt2_oracle, llama_oracle, oracle
from tests.helpers.builders import tiny_gpt2, tiny_llama, tiny_mamba, tokens
from tests.helpers.refusals import refusal
from tests.helpers.standins import save_hf

MAKERS: dict[str, Any] = {"mamba": tiny_mamba, "gpt2": tiny_gpt2, "llama": tiny_llama}
UNKNOWN = {"qk_norm": True, "attn_logit_softcapping": 30.0, "residual_multiplier": 0.5, "sliding_window": 4,
           "use_rope": True, "n_experts": 8, "quantization_config": {"bits": 4}}  # fmt: skip


@pytest.mark.parametrize("family", MAKERS)
def test_unknown_keys_are_refused_unless_they_are_off(family: str, tmp_path: Path) -> None:
    model = MAKERS[family]()
    directory = save_hf(model, tmp_path / "m")
    plain = json.loads((directory / "config.json").read_text())
    for key, value in {**UNKNOWN, "brand_new": 3}.items():
        for said in (value, None, False):
            (directory / "config.json").write_text(json.dumps({**plain, key: said}))
            if said is value:
                assert key in refusal(lambda: mechint.load(directory))
            else:
                mechint.load(directory)
        if key != "brand_new":  # of a trainer's options those with the words of an architecture
            torch.save({"model": to_hf_state_dict(model), "config": {**plain, key: value}}, tmp_path / "m.pt")
            assert key in refusal(lambda: mechint.load(tmp_path / "m.pt"))


@pytest.mark.parametrize("family", MAKERS)
def test_what_transformers_writes_is_understood(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = {"mamba": "MambaConfig", "gpt2": "GPT2Config", "llama": "LlamaConfig"}[family]
    model = MAKERS[family](**{"mamba": {"d_inner": 20}, "llama": {"d_model": 24}}.get(family, {}))
    config = getattr(transformers, kind)(**hf_config(model)).to_dict()
    from_state_dict(to_hf_state_dict(model), config, "here")


def test_a_trainers_options_are_about_training() -> None:
    for name in ("lr", "attn_dropout", "max_grad_norm", "wandb_group", "embed_lr", "use_flash_attn_impl", "warmup",
                 "random_state", "out_dir", "eval_interval", "compile", "norm_weight_decay"):  # fmt: skip
        assert not is_architecture(name), name
    for name in ("n_kv_groups", "useRope", "qk_norm", "logit_softcap", "parallel_residual", "mla", "head_gating"):
        assert is_architecture(name), name


@pytest.mark.parametrize("wrap", ["_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_wrappers_anywhere_in_a_name(wrap: str) -> None:
    model = tiny_gpt2()
    state = {name.replace(".h.", f".h.{wrap}.").replace("attn.", f"attn.{wrap}."): t
             for name, t in to_hf_state_dict(model).items()}  # fmt: skip
    loaded = from_state_dict(state, hf_config(model), "here")
    assert torch.equal(loaded(tokens(1, 5)), model(tokens(1, 5)))


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("front", ["net.", "mamba.", "lm.model."])
def test_what_stands_in_front_of_all_names(family: str, front: str) -> None:
    model = MAKERS[family]()
    state = {front + name: tensor for name, tensor in to_hf_state_dict(model).items()}
    loaded = from_state_dict(state, hf_config(model), "here")
    assert torch.equal(loaded(tokens(1, 5)), model(tokens(1, 5)))


def test_numpy_scalars_are_numbers(tmp_path: Path) -> None:
    model = tiny_gpt2()
    value = {"model": to_hf_state_dict(model), "config": hf_config(model), "best_val_loss": np.float64(1.25),
             "iter_num": np.int64(-7), "half": np.float32(0.5), "done": np.bool_(True)}  # fmt: skip
    torch.save(value, tmp_path / "m.pt")
    metadata = mechint.load(tmp_path / "m.pt").metadata
    assert [metadata[name] for name in ("best_val_loss", "iter_num", "half", "done")] == [1.25, -7, 0.5, True]


def test_a_bare_file_that_may_be_a_falcon_mamba(tmp_path: Path) -> None:
    model = tiny_mamba()
    torch.save(to_hf_state_dict(model), tmp_path / "m.pt")
    assert "FalconMamba has tensors of the same names" in refusal(lambda: mechint.load(tmp_path / "m.pt"))
    for config in ({"model_type": "falcon_mamba"}, {"_name_or_path": "tiiuae/falcon-mamba-7b"}, {"mixer_rms_eps": 1e-6},
                   {"architectures": ["FalconMambaForCausalLM"]}):  # fmt: skip
        torch.save({"model": to_hf_state_dict(model), "config": config}, tmp_path / "m.pt")
        refusal(lambda: mechint.load(tmp_path / "m.pt"))
    torch.save({"model": to_hf_state_dict(model), "config": {"model_type": "mamba"}}, tmp_path / "m.pt")
    mechint.load(tmp_path / "m.pt")


def test_a_llama_whose_head_is_lost() -> None:
    model = tiny_llama(tied=False)
    state = {name: t for name, t in to_hf_state_dict(model).items() if name != "lm_head.weight"}
    config = {name: value for name, value in hf_config(model).items() if name != "tie_word_embeddings"}
    assert "missing: 1 (lm_head.weight)" in refusal(lambda: from_state_dict(state, config, "here"))


def test_grouped_queries_are_not_keys_that_are_values() -> None:
    model = tiny_gpt2(n_head=4, kv_tied=True)
    for key in ("n_kv_head", "num_key_value_heads", "n_query_groups"):
        said = {**hf_config(model), key: 2}
        assert f"{key} = 2" in refusal(lambda: from_state_dict(to_hf_state_dict(model), said, "here"))  # noqa: B023


@pytest.mark.parametrize("sizes", [{"norms": False}, {"final_norm": False}, {"norms": False, "final_norm": False}])
@pytest.mark.parametrize("family", MAKERS)
def test_models_without_norms(family: str, sizes: dict[str, bool]) -> None:
    bias = {"norm_bias": False} if family == "gpt2" else {}  # without any norm no tensor shows it
    model = MAKERS[family](1, torch.float64, **sizes, **bias)
    state, config = to_hf_state_dict(model), hf_config(model)
    loaded = from_state_dict(state, config, "here", dtype="float64")
    assert loaded.config == model.config
    judge = {"mamba": oracle.forward, "gpt2": gpt2_oracle.forward, "llama": llama_oracle.oracle}[family]
    expected = judge(loaded, tokens(2, 7).numpy())
    run = mechint.run(loaded, tokens(2, 7), record=["*"])
    for name, value in expected.items():
        if name in run.values:
            np.testing.assert_allclose(run[name].detach().numpy(), value, rtol=1e-9, atol=1e-9, err_msg=name)
    silent = {name: value for name, value in config.items() if name not in ("use_norm", "final_norm")}
    assert "tensors missing" in refusal(lambda: from_state_dict(state, silent, "here"))
    if not any(sizes.values()) and len(sizes) == 2:
        for words in ({"norm": "none"}, {"norm_type": "identity"}, {"no_norm": True}):
            assert from_state_dict(state, {**silent, **words}, "here", dtype="float64").config == model.config


def test_numbers_that_are_no_sizes() -> None:
    model = tiny_llama()
    for change in ({"num_hidden_layers": 10**18}, {"num_attention_heads": 10**30}, {"rope_parameters": [1]},
                   {"rms_norm_eps": float("nan")}, {"num_hidden_layers": True}, {"hidden_size": -4},
                   {"vocab_size": 10**5000}, {"num_attention_heads": 0}):  # fmt: skip
        refusal(lambda: from_state_dict(to_hf_state_dict(model), {**hf_config(model), **change}, "here"))  # noqa: B023


def test_a_mistyped_path_is_no_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "output" / "model").mkdir(parents=True)
    for name in ("output/modle", "./x/y", "~/nothing"):
        assert "no such file" in refusal(lambda: mechint.load(name))  # noqa: B023
        assert "no such file" in refusal(lambda: mechint.models.loading.discover.find_checkpoints(name))  # noqa: B023
    assert "openai-community/gpt2" in refusal(lambda: mechint.load("gpt2"))


def test_generation_keeps_no_gradients() -> None:
    model = tiny_gpt2()
    assert not mechint.generate(model, tokens(1, 3), 2, record=["layers.0.q"]).logits.requires_grad
    assert mechint.generate(model, tokens(1, 3), 2, gradients=True).logits.requires_grad


@pytest.mark.parametrize(
    ("said", "with_keys", "found"),
    [({}, 4, 4), ({}, 0, 8), ({"num_key_value_heads": None}, 4, 8), ({"num_key_value_heads": 2}, 4, 2)],
)
def test_heads_with_keys_that_are_null_are_one_each(said: dict[str, Any], with_keys: int, found: int) -> None:
    """As transformers reads null, which is not the same as no key where the family has a number of its own."""
    reader = ConfigReader({"num_attention_heads": 8, "head_dim": 4, **said}, "config.json", "a family")
    assert reader.heads(with_keys=with_keys) == {"n_head": 8, "n_kv_head": found, "d_head": 4}
