"""A bad checkpoint is refused in one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mechint
from mechint import MechintError
from mechint.models.loading.checkpoints import LLM_C
from mechint.models.loading.discover import find_checkpoints
from mechint.models.loading.load import from_state_dict, to_hf_state_dict
from mechint.models.loading.strictness import check_names, prefix_hint
from tests.helpers.builders import tiny_mamba
from tests.helpers.refusals import refusal
from tests.helpers.standins import save_hf, save_tokenizer

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    return to_hf_state_dict(tiny_mamba())


def refused(state: State, config: dict[str, Any] | None = None, **options: Any) -> str:
    return refusal(lambda: from_state_dict(state, config, "m.pt", **options))


class Payload:
    """Runs a command when an ordinary pickle of it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_missing_tensors_are_named(state: State) -> None:
    for part in ("A_log", "dt_proj.bias", "in_proj.weight"):
        del state[f"backbone.layers.1.mixer.{part}"]
    message = refused(state)
    assert message.startswith("m.pt ")
    assert "missing: 3 (" in message
    assert "backbone.layers.1.mixer.A_log" in message


def test_missing_embedding_and_layers(state: State) -> None:
    assert "backbone.embeddings.weight" in refused({k: v for k, v in state.items() if "embeddings" not in k})
    assert "backbone.layers.2.norm.weight" in refused(state, {"num_hidden_layers": 3})
    rest = {name: tensor for name, tensor in state.items() if "layers" not in name}
    assert "a Mamba of 0 layers; tensors not used: 1 (A_log)" in refused({**rest, "A_log": torch.ones(2)})


def test_left_over_tensors_are_named(state: State) -> None:
    state["backbone.layers.0.mixer.b_norm.weight"] = torch.ones(5)
    assert "not used: 1 (backbone.layers.0.mixer.b_norm.weight)" in refused(state)
    del state["backbone.layers.0.mixer.b_norm.weight"]
    assert "not used: 10 (backbone.layers.1." in refused(state, {"num_hidden_layers": 1})


def test_a_bias_in_one_layer_only(state: State) -> None:
    state["backbone.layers.0.mixer.in_proj.bias"] = torch.zeros(28)
    assert "missing: 3 (backbone.layers.0.mixer.out_proj.bias" in refused(state)


def test_an_untied_head_that_is_not_there(state: State) -> None:
    assert "missing: 1 (lm_head.weight)" in refused(state, {"tie_word_embeddings": False})


@pytest.mark.parametrize("name", ["layers.1.mixer.A_log", "layers.0.mixer.conv1d.weight", "norm_f.weight"])
def test_wrong_shapes_are_named(state: State, name: str) -> None:
    full = f"backbone.{name}"
    right = list(state[full].shape)
    state[full] = torch.ones(*right[:-1], right[-1] + 1)
    if "layers" in name:  # another layer of the right shape outvotes it
        assert f"{full} is {[*right[:-1], right[-1] + 1]}" in refused(
            {**to_hf_state_dict(tiny_mamba(n_layer=3)), full: state[full]}
        )
    else:
        assert f"{full} is {[right[-1] + 1]} and should be {right}" in refused(state)


def test_a_configuration_that_disagrees(state: State) -> None:
    assert "state_size = 16, but the tensors have 5" in refused(state, {"state_size": 16})
    assert "vocab_size = 50280, but the tensors have 24" in refused(state, {"vocab_size": 50280})
    assert "hidden_size = 'wide'" in refused(state, {"hidden_size": "wide"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(state: State, value: float) -> None:
    state["backbone.layers.1.mixer.x_proj.weight"][2, 3] = value
    message = refused(state)
    assert "backbone.layers.1.mixer.x_proj.weight has 1 NaN or infinite" in message


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_not_real_numbers(state: State, dtype: torch.dtype) -> None:
    state["backbone.norm_f.weight"] = torch.ones(10).to(dtype)
    assert f"backbone.norm_f.weight is {str(dtype)[6:]}" in refused(state)


def test_weights_too_large_for_half_precision(state: State) -> None:
    state["backbone.norm_f.weight"][0] = 1e6
    assert "too large for float16" in refused(state, dtype="float16")
    from_state_dict(state, None, "m.pt", dtype="bfloat16")


def test_other_families_are_refused_by_name(state: State) -> None:
    gpt2 = {"transformer.wte.weight": torch.ones(4, 2), "transformer.h.0.attn.c_attn.weight": torch.ones(6, 2)}
    assert "is not exactly a GPT-2 of 1 layers; tensors missing: 7 (transformer.wpe.weight" in refused(gpt2)
    assert "holds a GPT-2 model, and this configuration is for mamba" in refused(gpt2, expect_family="mamba")
    assert "this configuration is for gpt2" in refused(state, expect_family="gpt2")
    mamba2 = {"backbone.layers.0.mixer.A_log": torch.ones(4), "backbone.layers.0.mixer.dt_bias": torch.ones(4)}
    assert "holds a Mamba-2 model, or a hybrid with its mixers" in refused(mamba2)
    assert "no model of a known family; its tensors are 1 (model.embed.weight)" in refused(
        {"model.embed.weight": torch.ones(2)}
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "falcon_mamba"}, "lacks hidden_size, which a Falcon-Mamba needs"),
        ({"mixer_rms_eps": 1e-6}, "FalconMamba"),
        ({"model_type": "mamba", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "Mamba-2"),
        ({"d_intermediate": 64}, "d_intermediate is 64"),
        ({"attn_layer_idx": [3]}, "attn_layer_idx"),
        ({"rms_norm": False}, "rms_norm"),
    ],
)
def test_architectures_with_the_same_tensor_names(state: State, config: dict[str, Any], said: str) -> None:
    assert said in refused(state, config)


@pytest.mark.parametrize("how", ["zip", "old", "pickle", "pickle0"])
def test_a_pickle_that_would_run_code(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "ran"
    value = {"model": Payload(trace)}
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(value, protocol=0 if how == "pickle0" else None))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=how == "zip")
    message = refusal(lambda: mechint.load(path))
    assert not trace.exists()
    assert f"{path} is refused" in message
    assert f"{os.name}.system" in message


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    for name, content in {
        "text.pt": b"hello, this is a text\n" * 20, "empty.pt": b"", "json.pt": b'{"a": 1}', "zip.pt": b"PK" * 50,
        "numbers.pt": pickle.dumps([1, 2, 3]), "binary.bin": bytes(range(256)), "empty.safetensors": b"",
        "text.safetensors": b"hello, this is a text\n" * 20, "notes.txt": b"hello",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
        message = refusal(lambda: mechint.load(tmp_path / name))  # noqa: B023
        assert message.startswith(str(tmp_path / name))
        assert "not a checkpoint" in message or "cut short or damaged" in message


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    for value, said in [
        ([torch.ones(2)], "holds a list"),
        ({"model": {}}, "nothing is there"),
        ({"lr": 0.1, "steps": 3}, "'lr' is no tensor"),
        ({"model": {"a": torch.ones(2), "b": 3}}, "'b' is no tensor"),
        ({"masks": torch.ones(3)}, "no model of a known family"),
    ]:
        torch.save(value, path)
        assert said in refusal(lambda: mechint.load(path))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(state: State, tmp_path: Path, share: float) -> None:
    whole, zipped = tmp_path / "m.safetensors", tmp_path / "m.pt"
    save_file(state, whole)
    torch.save({"model": state}, zipped)
    for path in (whole, zipped):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        assert f"{path} is cut short or damaged" in refusal(lambda: mechint.load(path))  # noqa: B023


def test_masks_in_a_checkpoints_place(tmp_path: Path) -> None:
    run = tmp_path / "mechint_analysis"
    run.mkdir()
    torch.save({"layers.0": torch.ones(4)}, run / "final_masks.pt")
    for action in (mechint.load, find_checkpoints):
        for path in (run, run / "final_masks.pt"):
            message = refusal(lambda: action(str(path)))  # noqa: B023
            assert "finished analysis" in message
            assert f"write_report('{run}')" in message


def test_directories(state: State, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no checkpoint" in refusal(lambda: mechint.load(empty))
    assert "holds no checkpoint" in refusal(lambda: find_checkpoints(str(empty)))
    (empty / "config.json").write_text("{}")
    assert "a config.json but no weights" in refusal(lambda: find_checkpoints(str(empty)))
    for name in ("a.pt", "b.pt"):
        torch.save({"model": state}, tmp_path / name)
    assert "holds 2 checkpoints (a.pt, b.pt); name one" in refusal(lambda: mechint.load(tmp_path))
    directory = save_hf(tiny_mamba(), tmp_path / "hf")
    (directory / "config.json").write_text("{")
    assert "config.json is not valid JSON" in refusal(lambda: mechint.load(directory))


def test_shards(state: State, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    save_file(state, tmp_path / names[0])
    index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    assert f"1 of 2 shards are missing ({names[1]}" in refusal(lambda: mechint.load(tmp_path))
    assert "one shard of several" in refusal(lambda: mechint.load(tmp_path / names[0]))
    save_file({"backbone.norm_f.weight": torch.ones(10)}, tmp_path / names[1])
    assert "in another shard too (backbone.norm_f.weight" in refusal(lambda: mechint.load(tmp_path))
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    assert "outside its directory" in refusal(lambda: mechint.load(tmp_path))
    index.write_text("{}")
    assert "no weight_map" in refusal(lambda: mechint.load(tmp_path))


def test_tokenizers(tmp_path: Path) -> None:
    directory = save_tokenizer(save_hf(tiny_mamba(), tmp_path / "m"), 300)
    assert "another model's tokenizer?" in refusal(lambda: mechint.load(directory))
    (directory / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in refusal(lambda: mechint.load(directory))


def test_names_that_are_nothing(tmp_path: Path) -> None:
    assert "no such file" in refusal(lambda: mechint.load("nothing-here"))
    assert "no such file" in refusal(lambda: mechint.load("output/nothing.pt"))
    assert "no such file" in refusal(lambda: mechint.load(tmp_path / "a" / "b"))
    assert "no such file" in refusal(lambda: find_checkpoints("nothing-here"))
    assert "no checkpoint matches" in refusal(lambda: find_checkpoints(str(tmp_path / "*.pt")))
    (tmp_path / "notes.txt").write_text("")
    assert "none of them a checkpoint" in refusal(lambda: find_checkpoints(str(tmp_path / "*")))


def test_links_to_nothing_are_named_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step1.pt").touch()
    (tmp_path / "last.pt").symlink_to("step2.pt")
    for name in ("last.pt", "*.pt", ""):
        assert "last.pt is a link to step2.pt, which is not there" in refusal(
            lambda: find_checkpoints(str(tmp_path / name))  # noqa: B023
        )
    assert "is a link to step2.pt" in refusal(lambda: mechint.load(tmp_path / "last.pt"))
    (tmp_path / "notes").symlink_to("nowhere")  # no checkpoint by its name
    (tmp_path / "last.pt").unlink()
    (tmp_path / "last.pt").symlink_to("step1.pt")
    assert find_checkpoints(str(tmp_path)) == [str(tmp_path / "step1.pt")]


def test_a_home_directory_in_a_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.pt").touch()
    for name in ("~/m.pt", "~/*.pt", "~"):
        assert find_checkpoints(name) == [str(tmp_path / "m.pt")]
    assert "no checkpoint matches" in refusal(lambda: find_checkpoints("~no_such_user/*.pt"))


def test_options(state: State) -> None:
    assert "did you mean float32" in refused(state, dtype="float23")
    assert "int8" in refused(state, dtype=torch.int8)
    assert "device 'gpu'" in refused(state, device="gpu")
    if not torch.cuda.is_available():
        assert "torch sees no GPU" in refused(state, device="cuda")
    from_state_dict(state, None, "m.pt", device="auto")


def test_names_with_a_prefix_or_without_one_say_which(state: State) -> None:
    """Every tensor is both missing and not used: the prefix is what is wrong, and the message says it."""
    more = {f"student.core.{name}": tensor for name, tensor in state.items()}
    wanted = sorted(state)
    assert prefix_hint(wanted, sorted(more)).startswith("; most of the names have the prefix 'student.core.' in front")
    assert prefix_hint(sorted(more), wanted).startswith("; most of the names lack the prefix 'student.core.'")
    assert prefix_hint(wanted, ["a.b", "c.d"]) == "" == prefix_hint([], [])
    with pytest.raises(
        MechintError, match=rf"missing: {len(state)} .*not used: {len(more)} .*prefix 'student\.core\.'"
    ):
        check_names(more, wanted, (), "m.pt is no such model")


@pytest.mark.parametrize("magic", sorted(LLM_C))
def test_files_of_llm_c_are_named_for_what_they_are(magic: int, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(np.array([magic, 1, 64], "<i4").tobytes().ljust(1024, b"\0") + b"\1" * 64)
    renamed = tmp_path / "model.pt"
    renamed.write_bytes(path.read_bytes())
    assert LLM_C[magic].partition(",")[0] in refusal(lambda: mechint.load(renamed))
