"""From the options of a run back to the configuration that repeats it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import kconfiglib

from . import mapping
from .defconfigs import ConfigError, did_you_mean
from .loading import Assignment, Menu, apply, minimal

ROOT = Path(__file__).resolve().parents[2]


def defconfig_text(run: Any, task: Any, configs: dict[str, Any], root: Path = ROOT) -> str:
    """The minimal defconfig that gives the analysis runner these options, whatever it was started by.

    Args:
        run: The run's ``RunConfig``.
        task: Its ``TaskConfig``.
        configs: Analysis name -> its configuration, for those that are on; all others are off in the text.
        root: Directory of the menus.

    Options that have no meaning beside the others (the budget of a search that has none) are left out.
    """
    values: dict[str, Any] = {f"--{name}": True for name in configs}
    for group, config in {"": run, "task": task, **configs}.items():
        for field in dataclasses.fields(config):
            flag = "--" + "-".join(filter(None, [group, field.name.replace("_", "-")]))
            values[flag] = getattr(config, field.name)
    return _minimal(root, values)


def _minimal(root: Path, values: dict[str, Any]) -> str:
    menu = Menu(root)
    menu.syms["KNLP_MECHINT"].set_value(2)
    _choose_family(menu, {flag for flag, value in values.items() if value is True})
    for switch in mapping.analyses(menu):
        switch.set_value(0)
    known = {}
    for item in mapping.items(menu):
        target = mapping.destination(item.name)
        if target and mapping.MECHINT in target[1]:
            known[target[0]] = item
    for flag in values:
        if flag not in known:
            raise ConfigError(f"no menu declares a symbol for {flag}{did_you_mean(flag, list(known))}")
    assignments = [_assignment(known[flag], value) for flag, value in values.items()]
    for assignment in assignments:
        menu.syms[assignment.name].set_value(_bare(assignment.text))
    apply(menu, [assignment for assignment in assignments if menu.syms[assignment.name].visibility])
    return minimal(menu)


def _choose_family(menu: Menu, on: set[str]) -> None:
    """The first family whose menus show every analysis that is on."""
    for family in menu.named_choices["KNLP_FAMILY"].syms:
        family.set_value(2)
        flags = {(mapping.destination(switch.name) or ("",))[0]: switch for switch in mapping.analyses(menu)}
        if all(switch.visibility for flag, switch in flags.items() if flag in on):
            return


def _assignment(item: mapping.Item, value: Any) -> Assignment:
    if isinstance(item, kconfiglib.Choice):
        return Assignment("options", mapping.member(item, str(value)), "y")
    if item.orig_type == kconfiglib.BOOL:
        return Assignment("options", item.name, "y" if value else "n")
    if item.orig_type == kconfiglib.STRING:
        return Assignment("options", item.name, f'"{kconfiglib.escape(mapping.shown(str(value)))}"')
    return Assignment("options", item.name, str(value))


def _bare(text: str) -> str:
    return str(kconfiglib.unescape(text[1:-1])) if text.startswith('"') else text
