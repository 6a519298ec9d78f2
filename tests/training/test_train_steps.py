"""Ablation studies: one line of variants is several models, and every mistake is found before the first is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mechint.models.loading.load import load
from mechint.tasks import TaskConfig
from mechint.training.options import GPT2Architecture, MambaArchitecture, TrainConfig
from mechint.training.variants import plan_steps, steps, train_steps
from mechint.utils.errors import MechintError
from scripts.kconfig.defconfigs import ConfigError
from scripts.kconfig.loading import check_together
from scripts.kconfig.loading import load as load_menu
from tests.helpers.paths import ROOT

TASK = TaskConfig(pairs=2, keys=9, values=4)
GPT2 = GPT2Architecture(n_layer=1, n_head=2, n_embd=16)
QUICK = TrainConfig(steps=2, batch_size=8, warmup=1, eval_prompts=8)


def study(variants: str, directory: Path | None = None) -> TrainConfig:
    return dataclasses.replace(QUICK, variants=variants, output_dir=str(directory or "output"))


def test_variants() -> None:
    found = steps(study("baseline, kv=tied,kv=tied+bias=n+seed=3"), GPT2)
    assert [step.config.step_name for step in found] == ["V0", "V1", "V2"]
    assert [step.architecture for step in found] == [
        GPT2,
        dataclasses.replace(GPT2, kv="tied"),
        dataclasses.replace(GPT2, kv="tied", bias=False),
    ]
    assert [step.config.seed for step in found] == [0, 0, 3]
    assert steps(study("d_conv=1"), MambaArchitecture())[0].architecture == MambaArchitecture(d_conv=1)
    twins = steps(study("baseline,family=mamba+seed=2,family=mamba+d_conv=1,family=gpt2"), GPT2)
    assert [step.architecture for step in twins] == [
        GPT2, MambaArchitecture(), MambaArchitecture(d_conv=1), GPT2Architecture()
    ]  # fmt: skip
    assert [step.config.seed for step in twins] == [0, 2, 0, 0]
    [alone] = steps(study(""), GPT2)
    assert alone.config == study("") and alone.architecture == GPT2


def test_a_study_trains_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = train_steps(TASK, study("baseline,kv=tied,seed=1", tmp_path), GPT2)
    assert [path.name for path in paths] == [f"final_model_stepV{i}.pt" for i in range(3)]
    models = [load(path) for path in paths]
    assert [model.config.kv_tied for model in models] == [False, True, False]
    for kind in ("best_model", "training_metrics"):
        assert len(list(tmp_path.glob(f"{kind}_stepV*"))) == 3
    assert "step V1 of 3: kv=tied" in capsys.readouterr().out
    train_steps(TASK, study("baseline,kv=tied,seed=1,n_layer=2", tmp_path), GPT2)
    out = capsys.readouterr().out
    assert out.count("already trained") == 3 and out.count("trained: ") == 4
    assert "step     V1: kv=tied" in plan_steps(TASK, study("baseline,kv=tied", tmp_path), GPT2)


@pytest.mark.parametrize(
    ("variants", "says"),
    [
        ("baseline,,kv=tied", "a word is missing beside a comma"),
        ("baseline,tied", "'tied' does not parse"),
        ("baseline,kv=", "'kv=' does not parse"),
        ("baseline,n_heads=2", "a gpt2 has no 'n_heads' (did you mean n_head"),
        ("baseline,n_head=two", "n_head=two is not allowed"),
        ("baseline,bias=maybe", "it must be y or n"),
        ("baseline,kv=shared", "it must be one of separate, tied"),
        ("baseline,n_head=3", "can't be divided among 3 heads"),
        ("baseline,kv=separate", "baseline and kv=separate are the same model"),
        ("baseline,seed=-1", "seed is -1"),
        ("baseline,family=mambo", "no family 'mambo' (did you mean mamba?)"),
        ("baseline,family=mamba+n_head=2", "a mamba has no 'n_head'"),
    ],
)
def test_mistakes_are_found_before_the_first_step(variants: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(MechintError) as caught:
        train_steps(TASK, study(variants, tmp_path), GPT2)
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_name_for_several_steps(tmp_path: Path) -> None:
    with pytest.raises(MechintError, match="step_name names one model"):
        steps(dataclasses.replace(study("baseline"), step_name="V7"), GPT2)


def test_the_menus_know_the_steps(tmp_path: Path) -> None:
    lines = "CONFIG_KNLP_FAMILY_GPT2=y\nCONFIG_KNLP_TRAIN=y\nCONFIG_KNLP_MECHINT=y\nCONFIG_KNLP_MECHINT_KV=y\n"
    lines += 'CONFIG_KNLP_TRAIN_VARIANTS="baseline,kv=tied"\n'
    for step, good in ((1, True), (2, False)):
        file = tmp_path / f"config{step}"
        file.write_text(f'{lines}CONFIG_KNLP_MECHINT_CHECKPOINT="output/final_model_stepV{step}.pt"\n')
        menu = load_menu(ROOT, file)
        if good:
            check_together(menu, "file")
        else:
            with pytest.raises(ConfigError, match=r"training writes output/final_model_stepV0\.pt"):
                check_together(menu, "file")
