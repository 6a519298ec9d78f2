"""GGUF files: what a writer of that format puts there comes back, tensor by tensor, and bad files are one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import mechint
from mechint.models.loading.gguf import CONFIG, LAYER, WHOLE, unpaired
from mechint.models.loading.load import hf_config, to_hf_state_dict
from mechint.utils.errors import MechintError
from tests.helpers.builders import tiny_llama, tokens

gguf = pytest.importorskip("gguf")


def paired(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter orders the rows: dimension m and m + half of a head side by side."""
    rows = weight.shape[0] // heads
    order = [h * rows + m + half * rows // 2 for h in range(heads) for m in range(rows // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, model: Any, architecture: str = "llama", quantised: bool = False, **more: Any) -> None:
    said = {**hf_config(model), "rope_theta": model.config.rope_theta}
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, theirs in CONFIG.items():
        if theirs in said:
            add = writer.add_float32 if isinstance(said[theirs], float) else writer.add_uint32
            add(f"{architecture}.{name}", said[theirs])
    for name, value in more.items():
        writer.add_string(f"{architecture}.{name if '.' in name else name.replace('_', '.')}", value)
    back = {theirs: ours for ours, theirs in WHOLE.items()}
    for name, tensor in to_hf_state_dict(model).items():
        bare = name.removesuffix(".weight")
        if bare.startswith("model.layers."):
            _, _, layer, part = bare.split(".", 3)
            [bare] = [ours for ours, theirs in LAYER.items() if theirs == f"{part}.weight"]
            bare = f"blk.{layer}.{bare.removesuffix('.weight')}"
            for kind, heads in (("q", model.config.n_head), ("k", model.config.n_kv_head)):
                tensor = paired(tensor, heads) if part == f"self_attn.{kind}_proj" else tensor
        else:
            bare = back[bare]
        if quantised and tensor.dim() > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{bare}.weight", gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{bare}.weight", tensor.numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """These files have none, and reading one takes transformers seconds."""
    monkeypatch.setattr(
        "mechint.models.loading.tokenizer.gguf_tokenizer",
        lambda path: pytest.importorskip("tokenizers").Tokenizer(
            pytest.importorskip("tokenizers").models.WordLevel({"a": 0}, unk_token="a")
        ),
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_comes_back_to_the_bit(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(1, tied=tied, norm_eps=1e-5)
    write(tmp_path / "m.gguf", model)
    for source in (tmp_path / "m.gguf", tmp_path):  # the file, or the directory that holds it alone
        found = mechint.load(source)
        assert found.config.tied == tied and found.config.n_kv_head == model.config.n_kv_head
        for name, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    assert found.tokenizer.get_vocab() == {"a": 0}
    ids = tokens(2, 7)
    torch.testing.assert_close(found(ids), model(ids), rtol=0, atol=1e-4)


def test_quantised_weights_are_near(tmp_path: Path) -> None:
    model = tiny_llama(1, d_model=32, d_mlp=64, d_head=16, n_head=2, n_kv_head=2)
    write(tmp_path / "m.gguf", model, quantised=True)
    found = mechint.load(tmp_path)
    for name, tensor in model.state_dict().items():
        assert (found.state_dict()[name] - tensor).abs().max() <= tensor.abs().max() / 127 + 1e-6, name


def test_rows_of_a_head_go_back() -> None:
    weight = torch.arange(24.0).view(12, 2)
    assert torch.equal(unpaired(paired(weight, 2), 2), weight) and not torch.equal(paired(weight, 2), weight)


def test_bad_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = tiny_llama(1), tmp_path / "m.gguf"
    write(path, model, "bloom")
    with pytest.raises(
        MechintError, match="holds a bloom model; of GGUF files these are read: llama, qwen2, qwen3, phi2, mamba"
    ):
        mechint.load(path)
    write(path, model, rope_scaling_type="yarn")
    with pytest.raises(MechintError, match="rope_type is 'yarn'"):
        mechint.load(path)
    write(path, model)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MechintError, match="cut short or damaged"):
        mechint.load(path)
    path.write_bytes(b"no such thing")
    with pytest.raises(MechintError, match="cut short or damaged"):
        mechint.load(path)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(MechintError, match="pip install gguf"):
        mechint.load(path)


def test_metadata_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    """A setting that may change the model must be off; one that no forward needs is let through."""
    model, path = tiny_llama(1), tmp_path / "m.gguf"
    for name in ("attention.sliding_window", "rope.scaling_factor_new", "logit.scale", "expert.count"):
        write(path, model, **{name: "8"})
        with pytest.raises(MechintError, match=rf"llama\.{name} = '8', which may change"):
            mechint.load(path)
    write(path, model, **{"expert.used": "none", "attention.sliding_window": ""})
    assert mechint.load(path).config.n_layer == model.config.n_layer


# ---- other architectures: written as llama.cpp's converter writes them, from what transformers has ------------------

transformers = pytest.importorskip("transformers")
VOCABULARY = 40


def qwen(kind: str, **more: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rope_theta=5000.0, rms_norm_eps=1e-5, **more,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def mamba(**more: Any) -> Any:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        num_hidden_layers=2,
        state_size=3,
        time_step_rank=2,
        conv_kernel=3,
        **more,
    )
    return transformers.MambaForCausalLM(config)


def falcon_h1(**more: Any) -> Any:
    config = transformers.FalconH1Config(
        vocab_size=VOCABULARY, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=6, mamba_d_ssm=24, mamba_n_heads=4, mamba_d_head=6, mamba_d_state=5,
        mamba_n_groups=2, mamba_d_conv=3, mamba_rms_norm=False, tie_word_embeddings=False, rope_theta=1e6,
        embedding_multiplier=1.5, lm_head_multiplier=0.5, key_multiplier=0.25, attention_in_multiplier=1.25,
        attention_out_multiplier=0.75, ssm_in_multiplier=1.5, ssm_out_multiplier=0.5, mlp_multipliers=[0.75, 1.25],
        ssm_multipliers=[0.5, 0.75, 1.25, 1.5, 0.25], **more,
    )  # fmt: skip
    return transformers.FalconH1ForCausalLM(config)


def phi(**more: Any) -> Any:
    config = transformers.PhiConfig(
        vocab_size=VOCABULARY, hidden_size=40, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2,
        layer_norm_eps=1e-3, **more,
    )  # fmt: skip
    return transformers.PhiForCausalLM(config)


def uint(c: Any, **names: str) -> dict[str, int]:
    return {name.replace("__", "."): getattr(c, field) for name, field in names.items()}


def written_by_llama_cpp(model: Any) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """The architecture, its metadata, and every tensor by llama.cpp's name, by the rules of its converter."""
    c, kind = model.config, model.config.model_type
    said: dict[str, Any] = {"context_length": 99, "block_count": c.num_hidden_layers, "embedding_length": c.hidden_size}
    transformer = {
        **uint(c, feed_forward_length="intermediate_size", attention__head_count="num_attention_heads",
               attention__head_count_kv="num_key_value_heads"),
        "attention.layer_norm_rms_epsilon": getattr(c, "rms_norm_eps", 0.0),
    } if kind != "mamba" else {}  # fmt: skip
    if kind == "mamba":
        said |= uint(c, ssm__conv_kernel="conv_kernel", ssm__inner_size="intermediate_size",
                     ssm__state_size="state_size", ssm__time_step_rank="time_step_rank")  # fmt: skip
        said |= {"feed_forward_length": 0, "attention.head_count": 0, "ssm.dt_b_c_rms": False,
                 "attention.layer_norm_rms_epsilon": c.layer_norm_epsilon}  # fmt: skip
    else:
        said |= transformer | {"rope.freq_base": float(c.rope_parameters["rope_theta"])}
    if kind == "phi":
        size = c.hidden_size // c.num_attention_heads
        said |= {"rope.dimension_count": int(c.rope_parameters["partial_rotary_factor"] * size),
                 "attention.layer_norm_epsilon": c.layer_norm_eps}  # fmt: skip
        del said["rope.freq_base"], said["attention.layer_norm_rms_epsilon"]  # the converter does not say the base
    if kind in ("qwen3", "falcon_h1"):
        said |= {"attention.key_length": c.head_dim, "attention.value_length": c.head_dim}
    if kind == "falcon_h1":
        said |= uint(c, vocab_size="vocab_size", ssm__conv_kernel="mamba_d_conv", ssm__inner_size="mamba_d_ssm",
                     ssm__state_size="mamba_d_state", ssm__time_step_rank="mamba_n_heads",
                     ssm__group_count="mamba_n_groups")  # fmt: skip
    architecture = {"falcon_h1": "falcon-h1", "phi": "phi2"}.get(kind, kind)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper().replace("-", "_")), c.num_hidden_layers
    )
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        place = name.replace(".dt_bias", ".dt_proj.bias")
        tensor = tensor.clone()
        if kind == "falcon_h1":
            tensor = folded(place, tensor, c)
        if place.endswith(".A_log"):
            tensor = -tensor.exp()
        if place.endswith((".A_log", ".D")) and kind == "falcon_h1":
            tensor = tensor.unsqueeze(-1)
        if "conv1d.weight" in place:
            tensor = tensor.squeeze(1)
        found = names.get_name(place, (".weight", ".bias"))
        assert found is not None, place
        tensors[found] = tensor
    return architecture, said, tensors


def folded(name: str, tensor: torch.Tensor, c: Any) -> torch.Tensor:
    """A weight of Falcon-H1 with the multipliers that the converter multiplies it by."""
    if "mamba.in_proj.weight" in name:
        inner, shared = c.mamba_d_ssm, c.mamba_n_groups * c.mamba_d_state
        sizes = [inner, inner, shared, shared, c.mamba_n_heads]
        each = torch.cat([torch.full((n,), m) for n, m in zip(sizes, c.ssm_multipliers, strict=True)])
        return tensor * (c.ssm_in_multiplier * each).unsqueeze(1)
    factors = {
        "k_proj": c.key_multiplier * c.attention_in_multiplier, "q_proj": c.attention_in_multiplier,
        "v_proj": c.attention_in_multiplier, "o_proj": c.attention_out_multiplier,
        "mamba.out_proj": c.ssm_out_multiplier, "gate_proj": c.mlp_multipliers[0], "down_proj": c.mlp_multipliers[1],
        "lm_head": c.lm_head_multiplier, "embed_tokens": c.embedding_multiplier,
    }  # fmt: skip
    return tensor * next((value for part, value in factors.items() if part in name), 1.0)


def write_file(path: Path, architecture: str, said: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in said.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{architecture}.{name}", value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.detach().numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize(
    ("make", "more"),
    [(lambda **m: qwen("Qwen2", **m), {}), (lambda **m: qwen("Qwen2", **m), {"tie_word_embeddings": True}),
     (lambda **m: qwen("Qwen3", **m), {"head_dim": 6}),
     (lambda **m: qwen("Qwen3", **m), {"head_dim": 4, "attention_bias": True}),
     (phi, {}), (phi, {"partial_rotary_factor": 0.4}), (phi, {"partial_rotary_factor": 1.0}),
     (mamba, {}), (mamba, {"use_bias": True, "tie_word_embeddings": False}), (falcon_h1, {}),
     (falcon_h1, {"mamba_conv_bias": False, "mlp_bias": True})],
)  # fmt: skip
def test_other_architectures_compute_what_transformers_computes(
    make: Any, more: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = make(**more).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases and norms begin as constants
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = mechint.load(write_file(tmp_path / "m.gguf", *written_by_llama_cpp(theirs)))
    assert found.config.family == theirs.config.model_type
    ids = torch.randint(0, VOCABULARY, (2, 9))
    torch.testing.assert_close(found(ids), theirs(ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)


def test_what_a_file_does_not_tell_is_refused(tmp_path: Path) -> None:
    """Norms of another epsilon, a norm whose place is not said, and a head that shares a multiplied embedding."""
    architecture, said, tensors = written_by_llama_cpp(mamba())
    with pytest.raises(MechintError, match=r"mamba\.ssm\.dt_b_c_rms = True, which may change what the model computes"):
        mechint.load(write_file(tmp_path / "m.gguf", architecture, said | {"ssm.dt_b_c_rms": True}, tensors))
    architecture, said, tensors = written_by_llama_cpp(phi())
    path = write_file(tmp_path / "m.gguf", architecture, said, {k: x for k, x in tensors.items() if k != "output.bias"})
    with pytest.raises(MechintError, match=r"tensors missing: 1 \(lm_head\.bias\)"):
        mechint.load(path)
    full = {name: value for name, value in said.items() if name != "rope.dimension_count"}
    assert mechint.load(write_file(tmp_path / "m.gguf", architecture, full, tensors)).config.rotation.size == 0
    architecture, said, tensors = written_by_llama_cpp(qwen("Qwen2"))
    with pytest.raises(MechintError, match=r"no plain Qwen2 has the tensor output\.bias"):
        mechint.load(write_file(tmp_path / "m.gguf", architecture, said, tensors | {"output.bias": torch.zeros(40)}))
    architecture, said, tensors = written_by_llama_cpp(falcon_h1())
    normed = tensors | {"blk.0.ssm_norm.weight": torch.ones(2, 12)}
    with pytest.raises(MechintError, match=r"no plain Falcon-H1 has the tensor blk\.0\.ssm_norm\.weight"):
        mechint.load(write_file(tmp_path / "m.gguf", architecture, said, normed))
    biased = tensors | {"blk.0.attn_q.bias": torch.ones(24)}
    with pytest.raises(MechintError, match=r"no plain Falcon-H1 has the tensor blk\.0\.attn_q\.bias"):
        mechint.load(write_file(tmp_path / "m.gguf", architecture, said, biased))
    tied = {name: tensor for name, tensor in tensors.items() if name != "output.weight"}
    with pytest.raises(MechintError, match="two multipliers of one matrix"):
        mechint.load(write_file(tmp_path / "m.gguf", architecture, said, tied))
