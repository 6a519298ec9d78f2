"""Files of declared families that are wrong: one line that says what was found and what is needed, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mechint
from mechint.models.loading.load import supported

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.helpers.judges.base import judged  # noqa: E402
from tests.helpers.judges.recurrent import JUDGES  # noqa: E402

INFINITE = float("inf")
Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]
NAMES = {judge.family: judge for judge in JUDGES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of small models, each as transformers saves it."""
    made = tmp_path_factory.mktemp("models")
    for name in ("mamba2", "falcon_h1", "qwen3_5"):
        judged(NAMES[name], 0).float().save_pretrained(made / name)
    return made


def changed(folder: Path, name: str, at: Path, change: Change) -> Path:
    """A copy of a model's directory with its configuration and tensors changed."""
    config = json.loads((folder / name / "config.json").read_text())
    tensors = load_file(folder / name / "model.safetensors")
    change(config, tensors)
    at.mkdir()
    (at / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, at / "model.safetensors")
    return at


def retied(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config["tie_word_embeddings"] = True
    tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"] + 1


WRONG: dict[str, tuple[str, Change, str]] = {
    "a key that is missing": ("mamba2", lambda c, t: c.pop("state_size"), "lacks state_size"),
    "a key that nobody knows": ("mamba2", lambda c, t: c.update(use_rotation=True), "use_rotation = True"),
    "a size of another type": ("mamba2", lambda c, t: c.update(num_heads="4"), "num_heads = '4'"),
    "a size of nothing": ("mamba2", lambda c, t: c.update(n_groups=0), "n_groups = 0"),
    "another size than the tensors": ("mamba2", lambda c, t: c.update(state_size=9), "wrong shape"),
    "more layers than the tensors": ("mamba2", lambda c, t: c.update(num_hidden_layers=9), "tensors missing"),
    "a tensor too many": ("mamba2", lambda c, t: t.update({"backbone.extra": torch.zeros(2)}), "not used: 1"),
    "a head that is and is not the embedding": ("mamba2", retied, "has other numbers"),
    "limits the wrong way round": ("mamba2", lambda c, t: c.update(time_step_limit=[2, 1]), "time_step_limit"),
    "a NaN": ("mamba2", lambda c, t: t["backbone.norm_f.weight"].fill_(torch.nan), "NaN"),
    "an activation that is not known": ("falcon_h1", lambda c, t: c.update(hidden_act="snake"), "is 'snake'"),
    "four multipliers of five": ("falcon_h1", lambda c, t: c.update(ssm_multipliers=[1] * 4), "list of 5 numbers"),
    "a multiplier that is infinite": ("falcon_h1", lambda c, t: c.update(key_multiplier=INFINITE), "key_multiplier"),
    "a rotation that is not known": (
        "falcon_h1", lambda c, t: c.update(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "'spiral'",
    ),
    "a rotation of nothing": (
        "falcon_h1", lambda c, t: c.update(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta",
    ),
    "a pattern of the wrong length": (
        "qwen3_5", lambda c, t: c.update(layer_types=["full_attention"] * 7), "names 7 layers",
    ),
    "a kind of layer that is not known": (
        "qwen3_5", lambda c, t: c.update(layer_types=["hyena"] * c["num_hidden_layers"]), "'hyena'",
    ),
    "a family that is not known": ("mamba2", lambda c, t: c.update(model_type="hyena"), "of the type 'hyena'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_one_line(case: str, folder: Path, tmp_path: Path) -> None:
    name, change, said = WRONG[case]
    path = changed(folder, name, tmp_path / name, change)
    with pytest.raises(mechint.MechintError, match=f"(?s).*{name}.*") as error:
        mechint.load(path)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_infinite_limits_are_read_as_every_release_of_transformers_writes_them(folder: Path, tmp_path: Path) -> None:
    for k, limits in enumerate(([0.0, INFINITE], [0.0, {"__float__": "Infinity"}])):
        change: Change = lambda c, t, limits=limits: c.update(time_step_limit=limits)
        assert mechint.load(changed(folder, "mamba2", tmp_path / str(k), change)).config.dt_limits == (0.0, INFINITE)


def test_a_family_that_is_not_known_is_refused_with_the_list_of_those_that_are(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, "mamba2", tmp_path / "m", lambda c, t: c.update(model_type="rwkv"))
    with pytest.raises(mechint.MechintError, match="rwkv") as error:
        mechint.load(path)
    assert all(name in str(error.value) for name in supported())


def test_tensors_without_their_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes((folder / "mamba2" / "model.safetensors").read_bytes())
    with pytest.raises(mechint.MechintError, match=r"config\.json"):
        mechint.load(path)


def test_another_family_than_was_asked_for_is_refused(folder: Path) -> None:
    with pytest.raises(mechint.MechintError, match="holds a Falcon-H1 model"):
        mechint.load(folder / "falcon_h1", expect_family="mamba")
    assert mechint.load(folder / "falcon_h1", expect_family="falcon_h1").config.family == "falcon_h1"


def test_what_is_no_part_of_the_language_model_is_left_out_and_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A published Qwen3.5: the text part has a prefix, and vision and further heads stand beside it."""

    def published(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        text = dict(config)
        config.clear()
        config |= {"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 2}, "image_token_id": 5,
                   "tie_word_embeddings": text["tie_word_embeddings"]}  # fmt: skip
        for key in [key for key in tensors if key.startswith("model.")]:
            tensors[f"model.language_model.{key.removeprefix('model.')}"] = tensors.pop(key)
        tensors |= {"model.visual.patch.weight": torch.zeros(2), "mtp.fc.weight": torch.zeros(2)}

    model = mechint.load(changed(folder, "qwen3_5", tmp_path / "published", published))
    assert "left out: 2 (model.visual.patch.weight, mtp.fc.weight)" in capsys.readouterr().err
    plain = mechint.load(folder / "qwen3_5")
    tokens = torch.arange(12).view(2, 6)
    assert torch.equal(model(tokens), plain(tokens))
    assert "mtp.fc.weight" in str(model.left_out) and "model.visual.patch.weight" in str(model.left_out)  # type: ignore[attr-defined]
