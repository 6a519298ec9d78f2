"""The one rule between Kconfig symbols and the runners' flags, in both directions.

``KNLP_MECHINT_SSM_STEPS`` is ``--ssm-steps`` of the analysis runner, ``KNLP_TRAIN_LR`` is ``--train-lr`` of the
trainer, ``KNLP_TASK_NAME`` (a choice) is ``--task-name`` of both. A symbol that is not visible is not passed on;
the switch of an analysis that the family does not have is passed on as off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kconfiglib

from .defconfigs import ConfigError

TRAIN, MECHINT = "train", "mechint"
RUNNERS = {TRAIN: "scripts/train.py", MECHINT: "scripts/run_mechint_analysis.py"}

# Symbol prefix -> (what the flag begins with, the runners that take it).
PREFIXES = {
    "KNLP_MECHINT_": ("", (MECHINT,)),
    "KNLP_TASK_": ("task-", (TRAIN, MECHINT)),
    "KNLP_TRAIN_": ("train-", (TRAIN,)),
    "KNLP_MAMBA_": ("mamba-", (TRAIN,)),
    "KNLP_GPT2_": ("gpt2-", (TRAIN,)),
    "KNLP_OTHER_": ("other-", (TRAIN,)),
}
# Names that were documented before there was a rule, and the family, which the trainer alone needs to be told.
NAMES = {
    "BATCH_SIZE": ("--batch-size", (MECHINT,)),
    "WANDB_PROJECT": ("--wandb-project", (MECHINT,)),
    "KNLP_FAMILY": ("--family", (TRAIN,)),
}
# Symbols that reach no runner: they say which runners there are to run.
MASTERS = ("KNLP_TRAIN", "KNLP_MECHINT")

Item = Any  # a kconfiglib.Symbol or kconfiglib.Choice, which have no types


def items(menu: kconfiglib.Kconfig) -> Iterator[Item]:
    """Every symbol that stands for itself and every choice for its members, in the menus' order, each once."""
    seen = set()
    for node in menu.node_iter(unique_syms=True):
        if isinstance(node.item, (kconfiglib.Symbol, kconfiglib.Choice)) and node.item not in seen:
            seen.add(node.item)
            if isinstance(node.item, kconfiglib.Choice) or node.item.choice is None:
                yield node.item


def destination(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(flag, runners) of a symbol or choice; None for those that reach no runner; an unknown kind is an error."""
    if name in NAMES:
        return NAMES[name]
    if name in MASTERS:
        return None
    for prefix, (group, runners) in PREFIXES.items():
        if name.startswith(prefix):
            return "--" + group + name[len(prefix) :].lower().replace("_", "-"), runners
    raise ConfigError(f"the menus declare {name}, which reaches no option; name it KNLP_MECHINT_…, or see {__name__}")


def member_value(symbol: kconfiglib.Symbol) -> str:
    """``KNLP_MECHINT_SSM_METRIC_LOGIT_DIFF`` of the choice ``KNLP_MECHINT_SSM_METRIC`` is 'logit_diff'.

    Members that were documented without the choice's last word keep their names: ``KNLP_MECHINT_KV_FROM_RUNS`` of
    ``KNLP_MECHINT_KV_MODE`` is 'from_runs'.
    """
    choice = str(symbol.choice.name)
    stem = choice if symbol.name.startswith(choice + "_") else choice.rpartition("_")[0]
    return str(symbol.name[len(stem) + 1 :]).lower()


def member(choice: kconfiglib.Choice, value: str) -> str:
    """The name of the member that stands for an option's value."""
    return next(str(symbol.name) for symbol in choice.syms if member_value(symbol) == value)


_SHOWN = {code: 0x2400 + code for code in range(32)} | {0x7F: 0x2421}
_MARK = "\u2426"
_SPECIAL = {*map(chr, _SHOWN.values()), "\u2424", _MARK}


def shown(text: str) -> str:
    """A text as one line of a configuration: a control character as its picture, a line break as ␤ (see :func:`meant`).

    A text that has such a picture itself has ␦ in front of it.
    """
    text = "".join(_MARK + character if character in _SPECIAL else character for character in text)
    return text.translate({**_SHOWN, 0x0A: 0x2424})


def meant(text: str) -> str:
    """The text that :func:`shown` made a line of."""
    codes = {chr(picture): chr(code) for code, picture in _SHOWN.items()} | {"\u2424": "\n"}
    replace = lambda match: match[1] or codes.get(match[0], match[0])
    return re.sub(f"{_MARK}(.)|[\u2400-\u241f\u2421\u2424]", replace, text)


def arguments(menu: kconfiglib.Kconfig, runner: str) -> list[str]:
    """The command-line arguments that ``runner`` ('train' or 'mechint') gets from a configuration."""
    found = []
    switches = analyses(menu)
    for item in items(menu):
        target = destination(item.name)
        if target is None or runner not in target[1] or not (item.visibility or item in switches):
            continue
        flag = target[0]
        if isinstance(item, kconfiglib.Choice):
            found.append(f"{flag}={member_value(item.selection)}")
        elif item.orig_type == kconfiglib.BOOL:
            found.append(flag if item.tri_value else f"--no-{flag[2:]}")
        else:
            value = meant(item.str_value)
            if "\0" in value:
                raise ConfigError(f"CONFIG_{item.name} holds the character NUL, which no program takes; leave it out")
            found.append(f"{flag}={value}")
    return found


def analyses(menu: kconfiglib.Kconfig) -> list[kconfiglib.Symbol]:
    """The switch of every analysis: a yes-or-no symbol of the analyses' menus with a menu of its own."""
    switches = [item for item in items(menu) if isinstance(item, kconfiglib.Symbol) and item.nodes[0].is_menuconfig]
    return [switch for switch in switches if switch.name not in MASTERS]


def sources(menu: kconfiglib.Kconfig) -> list[str]:
    """Prefixes of the symbols that say where models are: those of all, and of the analyses that have their own."""
    own = [switch.name for switch in analyses(menu) if switch.str_value == "y"]
    return ["KNLP_MECHINT", *(name for name in own if f"{name}_CHECKPOINT" in menu.syms)]
