"""A field of a configuration, its flag and its Kconfig symbol are one thing said three ways."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import kconfiglib
import pytest

from mechint.analyses.base import analyses
from mechint.analyses.options import RunConfig
from mechint.tasks.config import TaskConfig
from mechint.training.options import ARCHITECTURES, TrainConfig
from mechint.utils.options import flag, from_flags, options
from scripts import run_mechint_analysis, train
from scripts.kconfig import mapping
from scripts.kconfig.defconfig_text import defconfig_text
from scripts.kconfig.defconfigs import find_all
from scripts.kconfig.loading import Menu, help_text, is_fraction, load, number_range
from tests.helpers.paths import ROOT

CONFIGS = {
    mapping.MECHINT: {
        "": RunConfig,
        "task": TaskConfig,
        **{name: analysis.config for name, analysis in analyses().items()},
    },
    mapping.TRAIN: {"task": TaskConfig, "train": TrainConfig, **ARCHITECTURES},
}
FIELDS = [
    (runner, flag(group, field.name), field, kind, option)
    for runner, groups in CONFIGS.items()
    for group, config in groups.items()
    for field, kind, option in options(config)
]
SWITCHES = {f"--{name}" for name in analyses()}


def by_flag(menu: Menu, runner: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for item in mapping.items(menu):
        target = mapping.destination(item.name)
        if target and runner in target[1]:
            found.setdefault(target[0], []).append(item)
    return found


@pytest.fixture(scope="module")
def menu() -> Menu:
    return Menu(ROOT)


def parser(runner: str) -> argparse.ArgumentParser:
    """The runner's own."""
    return {mapping.MECHINT: run_mechint_analysis, mapping.TRAIN: train}[runner].parser()


def default_of(item: Any) -> Any:
    """The default of a symbol (as text) or choice (as the option's value) where no condition gives it another."""
    if isinstance(item, kconfiglib.Choice):
        return mapping.member_value(item.defaults[0][0])
    return item.defaults[-1][0].str_value if item.defaults else "n"


@pytest.mark.parametrize(("runner", "name", "field", "kind", "option"), FIELDS, ids=[f"{f[0]}{f[1]}" for f in FIELDS])
def test_every_field_has_its_symbol(menu: Menu, runner: str, name: str, field: Any, kind: type, option: Any) -> None:
    items = by_flag(menu, runner).get(name, [])
    assert len(items) == 1, f"{len(items)} symbols for {name}"
    item = items[0]
    if option.choices:
        assert isinstance(item, kconfiglib.Choice)
        assert {mapping.member_value(member) for member in item.syms} == set(option.choices)
        assert default_of(item) == field.default
        return
    expected = {bool: kconfiglib.BOOL, int: kconfiglib.INT, float: kconfiglib.STRING, str: kconfiglib.STRING}[kind]
    assert item.orig_type == expected
    assert is_fraction(item) == (kind is float)
    default = default_of(item)
    assert (default == "y" if kind is bool else kind(default)) == field.default
    if kind in (int, float):
        assert option.low is not None and option.high is not None, "a number of a menu has a range"
        low, high, unit = number_range(item) or ("nan", "nan", "")
        assert (float(low), float(high), unit) == (option.low, option.high, option.unit)
    if kind is int:
        [(low_symbol, high_symbol, _)] = item.ranges
        assert (int(low_symbol.str_value), int(high_symbol.str_value)) == (option.low, option.high)


@pytest.mark.parametrize("runner", mapping.RUNNERS)
def test_every_symbol_reaches_one_option(menu: Menu, runner: str) -> None:
    known = {name for owner, name, *_ in FIELDS if owner == runner}
    known |= SWITCHES if runner == mapping.MECHINT else {"--family"}
    reached = by_flag(menu, runner)
    assert set(reached) == known
    assert all(len(items) == 1 for items in reached.values())


def test_the_symbols_that_reach_nothing_are_the_listed_ones(menu: Menu) -> None:
    lost = {item.name for item in mapping.items(menu) if mapping.destination(item.name) is None}
    assert lost == set(mapping.MASTERS)


def test_the_switch_of_every_analysis_has_its_default(menu: Menu) -> None:
    switches = {mapping.destination(item.name)[0]: item for item in mapping.analyses(menu)}  # type: ignore[index]
    assert set(switches) == SWITCHES
    for name, analysis in analyses().items():
        shown = default_of(switches[f"--{name}"]) == "y"
        # where the documented choice KNLP_MECHINT_KV_POSTTRAIN is all that is asked for, the menu has it on already
        assert shown == (analysis.default or name == "kv")


def test_every_symbol_has_a_help_text(menu: Menu) -> None:
    for symbol in menu.unique_defined_syms:
        assert len(help_text(symbol).strip()) > 20, symbol.name
        assert symbol.nodes[0].prompt, symbol.name
    for choice in menu.unique_choices:
        assert len(help_text(choice).strip()) > 20, choice.name


def plain(text: str) -> str:
    """A sentence in the form in which two are compared: without quotes and the last stop, in small letters."""
    return " ".join(re.sub(r"['`]", "", text).replace(";", ".").split()).rstrip(".").lower()


@pytest.mark.parametrize(("runner", "name", "field", "kind", "option"), FIELDS, ids=[f"{f[0]}{f[1]}" for f in FIELDS])
def test_a_help_begins_with_the_sentence_of_its_option(
    menu: Menu, runner: str, name: str, field: Any, kind: type, option: Any
) -> None:
    """A menu may say more. Of a choice the first clause is enough: each member has a help of its own."""
    [item] = by_flag(menu, runner)[name]
    sentence = re.split(r"[:;,(]", option.help)[0] if isinstance(item, kconfiglib.Choice) else option.help
    said, begins = plain(help_text(item)), plain(sentence)
    assert said.startswith(begins) and not said[len(begins) : len(begins) + 1].isalnum(), (option.help, help_text(item))


@functools.lru_cache(maxsize=1)
def loaded(name: str) -> Menu:
    """The menus of one experiment, which each runner is asked about in turn."""
    return load(ROOT, find_all(ROOT)[name])


@pytest.mark.parametrize("runner", mapping.RUNNERS)
@pytest.mark.parametrize("name", find_all(ROOT))
def test_generated_arguments_parse_to_what_the_menus_say(name: str, runner: str) -> None:
    menu = loaded(name)
    arguments = mapping.arguments(menu, runner)
    flags = parser(runner).parse_args(arguments)
    passed = {argument.split("=")[0].replace("--no-", "--") for argument in arguments}
    reached = by_flag(menu, runner)
    for group, config in CONFIGS[runner].items():
        values = from_flags(flags, config, group)
        for field in dataclasses.fields(config):
            [item] = reached[flag(group, field.name)]
            if flag(group, field.name) not in passed:
                assert not item.visibility, f"{item.name} is shown and not passed on"
                continue
            said = mapping.member_value(item.selection) if isinstance(item, kconfiglib.Choice) else item.str_value
            value = getattr(values, field.name)
            assert (said == "y") == value if isinstance(value, bool) else type(value)(said) == value


def test_a_changed_symbol_changes_its_option_and_no_other() -> None:
    menu = load(ROOT, find_all(ROOT)["mamba-tiny-recall-mechint"])
    before = mapping.arguments(menu, mapping.MECHINT)
    changes = {"KNLP_MECHINT_SSM_METRIC_LOGIT_DIFF": 2, "KNLP_MECHINT_SSM_LR": "0.5", "KNLP_MECHINT_SAVE_MASKS": 0}
    for symbol, value in {**changes, "BATCH_SIZE": "7"}.items():
        menu.syms[symbol].set_value(value)
    changed = set(mapping.arguments(menu, mapping.MECHINT)) - set(before)
    assert changed == {"--ssm-metric=logit_diff", "--ssm-lr=0.5", "--no-save-masks", "--batch-size=7"}


def test_the_options_of_a_run_give_back_its_defconfig(tmp_path: Path) -> None:
    file = find_all(ROOT)["mamba-130m-mechint"]
    flags = parser(mapping.MECHINT).parse_args(mapping.arguments(load(ROOT, file), mapping.MECHINT))
    configs = {
        name: from_flags(flags, analysis.config, name)
        for name, analysis in analyses().items()
        if getattr(flags, f"run_{name}")
    }
    run, task = from_flags(flags, RunConfig), from_flags(flags, TaskConfig, "task")
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# Find")]
    assert defconfig_text(run, task, configs).splitlines() == lines

    odd = dataclasses.replace(run, checkpoint='a "b" \\ c.pt', mode="posttrain", rerun=True)
    (tmp_path / "config").write_text(defconfig_text(odd, task, {}))
    menu = load(ROOT, tmp_path / "config")
    assert menu.syms["KNLP_MECHINT_CHECKPOINT"].str_value == 'a "b" \\ c.pt'
    assert menu.syms["KNLP_MECHINT_SSM"].str_value == "n"
    assert "--rerun" in mapping.arguments(menu, mapping.MECHINT)


def test_a_run_of_another_family_gives_back_its_defconfig_too() -> None:
    file = find_all(ROOT)["gpt2-124m-mechint"]
    flags = parser(mapping.MECHINT).parse_args(mapping.arguments(load(ROOT, file), mapping.MECHINT))
    assert flags.run_kv and not flags.run_ssm  # an analysis that the family lacks is off
    run, task = from_flags(flags, RunConfig), from_flags(flags, TaskConfig, "task")
    lines = file.read_text().splitlines()[1:]
    text = defconfig_text(run, task, {"kv": from_flags(flags, analyses()["kv"].config, "kv")})
    assert text.splitlines() == lines
