"""The commands behind the Makefile's targets: ``python -m scripts.kconfig COMMAND``.

Every command reads and writes ``.config`` strictly; one that fails prints one line, leaves ``.config`` as it was and
exits with a status that is not zero.
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from . import INTERRUPTED, loading, mapping, menus, merging, models, processes
from .defconfigs import DEFAULT, OFF, ConfigError, did_you_mean, find, listing

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.path.abspath(os.path.join(ROOT, os.path.expanduser(os.environ.get("O") or "."))))
"""Directory of .config, and of every relative path in it: the one that O= names, else the repository."""
CONFIG = WORK / os.path.expanduser(os.environ.get("KCONFIG_CONFIG") or ".config")
START = "run `make defconfig`, `make defconfig-NAME` or `make menuconfig` first"


def main() -> int:
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        args = _parser().parse_args()
        for name, value in vars(args).items():
            if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
                raise ConfigError(f"what is said for {name} is not UTF-8: {value}")
        return args.command(args) or 0
    except ConfigError as error:
        return _say(str(error), 2)
    except OSError as error:
        return _say(f"{error.strerror or error} ({error.filename or CONFIG})", 2)
    except KeyboardInterrupt:
        return _say(INTERRUPTED, 130)


def _say(message: str, status: int) -> int:
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts.kconfig", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=function)
        if name in ("defconfig", "run", "score", "submit"):
            command.add_argument("--models", default="", help="what MODELS= says: a path, a glob or a hub id")
            command.add_argument("--baseline", default="", help="what BASELINE= says: a finished run")
            command.add_argument("--skip-steps", default="", help="what SKIP_STEPS= says: steps a study leaves out")
        if name in ("defconfig", "run", "submit"):
            command.add_argument("--set", default="", help="what SET= says: NAME=value …")
            command.add_argument("--rerun", default="", help="what RERUN= says: 1 repeats what is finished")
        if name in ("defconfig", "mergeconfig"):
            command.add_argument("--fragments", default="", help="what FRAGMENTS= says: files or named experiments")
        if name == "diffconfig":
            command.add_argument("--from", dest="other", default="", help="what FROM= says: a file or an experiment")
        if name == "defconfig":
            command.add_argument("name", nargs="?", default=DEFAULT, help=f"the experiment's name (default: {DEFAULT})")
        if name == "get":
            command.add_argument("symbol", help="its name, without CONFIG_")
        if name == "arguments":
            command.add_argument("runner", choices=tuple(mapping.RUNNERS))
        if name in ("run", "score", "submit"):
            command.add_argument("--processes", default="", help="what PROCESSES= says: processes that share the work")
            command.add_argument("--dry-run", action="store_true", help="say what would run and run nothing")
            command.add_argument("--verbose", action="store_true", help="print the commands")
        if name in ("score", "export", "latents", "submit"):
            said = f"what {name.upper()}= says: options as a shell would read them"
            command.add_argument("--options", default="", help=said)
        if name == "score":
            command.add_argument("more", nargs="*", help="options one by one, after --")
        if name == "run":
            command.add_argument("target", choices=("default", "train", "mechint", "report"))
    return parser


def _named() -> bool:
    """True if KCONFIG_CONFIG names the configuration: where it is missing, no other one was meant."""
    return bool(os.environ.get("KCONFIG_CONFIG"))


def _current() -> loading.Menu:
    if not os.path.lexists(CONFIG):
        raise ConfigError(f"there is no {_called(CONFIG)}; {START}")
    menu = loading.load(ROOT, CONFIG)
    loading.check_together(menu, _called(CONFIG))
    return menu


def _called(file: Path) -> str:
    """A file as messages call it: its path below the repository where it lies there."""
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def _save(menu: loading.Menu, why: str) -> None:
    loading.save(menu, ROOT, CONFIG)
    print(f"{why}: {_called(CONFIG)} written")


def defconfig(args: argparse.Namespace) -> None:
    file = find(ROOT, args.name)
    menu = loading.load(ROOT, file)
    _merge(menu, args.fragments)
    _override(menu, args, args.name)
    _save(menu, _called(file))


def mergeconfig(args: argparse.Namespace) -> None:
    """Sets every line of the fragments in .config, and says what changed."""
    if not args.fragments.strip():
        raise ConfigError('mergeconfig needs FRAGMENTS="file or experiment …"; each is set over those before it')
    menu = _current()
    _merge(menu, args.fragments)
    _save(menu, f"merged {args.fragments.strip()}")


def _merge(menu: loading.Menu, fragments: str) -> None:
    pieces = [merging.fragment(ROOT, WORK, name) for name in merging.words("FRAGMENTS", fragments)]
    for line in merging.merge(menu, pieces):
        print(line, flush=True)


def diffconfig(args: argparse.Namespace) -> None:
    """Prints what .config changes of .config.old, or of the file or experiment that FROM= names."""
    old = CONFIG.with_name(f"{CONFIG.name}.old")
    if not args.other and not old.exists():
        raise ConfigError(f"there is no {_called(old)} yet; name a file or an experiment with FROM=")
    _current()
    other = merging.fragment(ROOT, WORK, args.other) if args.other else (_called(old), old)
    print("\n".join(merging.compared(ROOT, other, (_called(CONFIG), CONFIG))) or "no difference")


def _override(menu: loading.Menu, args: argparse.Namespace, name: str) -> None:
    """Puts MODELS=, BASELINE=, SKIP_STEPS=, SET= and RERUN= into the configuration and prints them."""
    chosen = merging.settings(menu, args.set)
    if args.rerun.strip().lower() not in OFF:
        chosen.append(loading.Assignment("RERUN=", "KNLP_MECHINT_RERUN", "y"))
    if chosen:
        before = merging.values(menu)
        loading.apply(menu, chosen)
        for line in merging.differences(before, merging.values(menu)):
            print(f"for this configuration: {line}", flush=True)
    if args.models:
        print(models.override(menu, args.models, WORK, name), flush=True)
    if args.baseline:
        print(models.compare_with(menu, args.baseline, WORK, name), flush=True)
    if args.skip_steps:
        print(models.skip(menu, args.skip_steps, name), flush=True)


def olddefconfig(args: argparse.Namespace) -> None:
    _save(_current(), "new symbols at their defaults")


def oldconfig(args: argparse.Namespace) -> None:
    menu = _current()
    menus.oldconfig(menu)
    _save(menu, "new symbols as answered")


def savedefconfig(args: argparse.Namespace) -> None:
    text = loading.minimal(_current())
    file = WORK / "defconfig"
    loading.write(file, lambda temporary: _fill(temporary, text))
    print(f"{_called(file)} written; give it a first comment line and copy it to FAMILY/defconfigs/NAME to keep it")


def _fill(path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")


def listnewconfig(args: argparse.Namespace) -> None:
    print("\n".join(menus.new_symbols(_current())) or "no new symbols")


def allyesconfig(args: argparse.Namespace) -> None:
    _all(2, "everything yes")


def allnoconfig(args: argparse.Namespace) -> None:
    _all(0, "everything no")


def _all(value: int, why: str) -> None:
    menu = loading.Menu(ROOT)
    menus.set_all(menu, value)
    _save(menu, why)


def menuconfig(args: argparse.Namespace) -> None:
    menus.menuconfig(ROOT, CONFIG)


def list_defconfigs(args: argparse.Namespace) -> None:
    print(listing(ROOT))


def get(args: argparse.Namespace) -> None:
    menu = _current()
    symbol = menu.syms.get(args.symbol)
    if symbol is None or not symbol.nodes:
        names = [known.name for known in menu.unique_defined_syms]
        raise ConfigError(f"{args.symbol} is declared in no menu{did_you_mean(args.symbol, names)}")
    print(symbol.str_value)


def arguments(args: argparse.Namespace) -> None:
    print(shlex.join(mapping.arguments(_current(), args.runner)))


def run(args: argparse.Namespace) -> int:
    """Loads .config (or the default experiment), applies MODELS=, and runs what the target asks for."""
    if args.target == "train" and args.models:
        raise ConfigError("MODELS= chooses what is analysed, so it goes with `make mechint`, not with `make train`")
    menu = _for_run(args)
    asked = how_many(args.processes)  # a dry run refuses what is no number, too
    count = 1 if args.dry_run else asked  # what would run is said once
    steps = _steps(menu, args.target)
    made = next(filter(None, (menu.syms[f"{place}_CHECKPOINT"].str_value for place in mapping.sources(menu)[::-1])), "")
    if (
        args.dry_run
        and len(steps) == 2
        and not glob.glob(made if os.path.isabs(made) else os.path.join(glob.escape(str(WORK)), made))
    ):
        steps.pop()
        wanted = ", ".join(switch.name for switch in mapping.analyses(menu) if switch.str_value == "y")
        print(f"would train first, and then analyse what that leaves in {made}: {wanted}", flush=True)
    for number, command in enumerate(steps, 1):
        command += ["--dry-run"] if args.dry_run else []
        several = count if command[1] == str(ROOT / mapping.RUNNERS[mapping.MECHINT]) else 1
        if args.verbose:
            print("+ " + shlex.join(command) + (f"  in {several} processes" if several > 1 else ""), flush=True)
        if number == len(steps) and several == 1:
            os.chdir(_work())
            os.execve(command[0], command, _environment())  # the last program answers to signals itself
        status = processes.run(command, several, _environment(), _work())
        if status:
            return status
    return 0


def _work() -> str:
    """The directory that commands run in, which is made for them."""
    WORK.mkdir(parents=True, exist_ok=True)
    return str(WORK)


def _for_run(args: argparse.Namespace) -> loading.Menu:
    """The configuration to run. Without .config it is the default experiment, which is written unless variables of this
    one command change it; what they change is never written. One that KCONFIG_CONFIG names must be there."""
    if CONFIG.exists() or _named():
        menu = _current()
    else:
        file = find(ROOT, DEFAULT)
        menu = loading.load(ROOT, file)
        print(f"no .config: using {file.relative_to(ROOT)}; `make menuconfig` changes it", flush=True)
    _override(menu, args, _called(CONFIG) if CONFIG.exists() else DEFAULT)
    once = args.models or args.baseline or args.skip_steps or args.set.strip() or args.rerun.strip()
    if not (once or args.dry_run or args.target == "report" or CONFIG.exists()):
        loading.save(menu, ROOT, CONFIG)
    loading.check_together(menu, _called(CONFIG) if CONFIG.exists() else DEFAULT)
    return menu


MOST_PROCESSES = 1024


def how_many(said: str) -> int:
    """Returns the number of processes that PROCESSES= asks for; one where it says nothing."""
    if not said.strip():
        return 1
    count = int(said) if re.fullmatch(r"\s*[0-9]{1,6}\s*", said) else 0
    if not 1 <= count <= MOST_PROCESSES:
        raise ConfigError(f"PROCESSES={said} is not a number of processes; say 2 to {MOST_PROCESSES}, or leave it out")
    return count


def _steps(menu: loading.Menu, target: str) -> list[list[str]]:
    """The commands of a target, in order; where it analyses, that is the last one."""
    trains, analyses = (menu.syms[name].str_value == "y" for name in mapping.MASTERS)
    if target == "default":
        if not (trains or analyses):
            raise ConfigError("this configuration neither trains nor analyses; `make menuconfig` turns one on")
        target = "train" if trains else "mechint"
    if target == "train" and not trains:
        raise ConfigError("this configuration does not train (KNLP_TRAIN is off); `make menuconfig` turns it on")
    if target != "train" and not analyses:
        raise ConfigError(
            "this configuration does not analyse (KNLP_MECHINT is off); turn it on with `make menuconfig`, "
            "or choose an experiment of `make list-defconfigs` that ends in -mechint"
        )
    wanted = [mapping.TRAIN] if target == "train" or (target == "mechint" and trains) else []
    wanted += [mapping.MECHINT] if target != "train" else []
    steps = [[sys.executable, str(ROOT / mapping.RUNNERS[name]), *mapping.arguments(menu, name)] for name in wanted]
    if target == "report" and menu.syms["KNLP_MECHINT_MODE_FROM_RUNS"].str_value != "y":
        steps[-1] += ["--mode=from_runs", f"--run-dir={menu.syms['KNLP_MECHINT_OUTPUT_DIR'].str_value}"]
    return steps


def score(args: argparse.Namespace) -> int:
    """Scores what SCORE= says; several processes start only for a request that one of them has looked at."""
    for name in ("MODELS", "BASELINE", "SKIP_STEPS"):
        if getattr(args, name.lower()):
            raise ConfigError(
                f"{name}= goes with `make mechint`, not with `make ground-truth`; say what is scored by "
                f'SCORE="--models …"'
            )
    count = how_many(args.processes)
    options = merging.words("SCORE", args.options) + args.more + (["--dry-run"] if args.dry_run else [])
    command = lambda *more: [sys.executable, str(ROOT / "scripts/ground_truth.py"), *options, *more]
    if {"--dry-run", "--check", "--help", "-h"} & set(options):
        count = 1
    if count > 1:
        status = processes.run(command("--check"), 1, _environment(), _work())
        if status:
            return status
    if args.verbose:
        print("+ " + shlex.join(command()), flush=True)
    return processes.run(command(), count, _environment(), _work())


def submit(args: argparse.Namespace) -> int:
    """Runs the analyses of .config as jobs of one checkpoint and one analysis, here or where SUBMIT= says."""
    if args.processes.strip():
        raise ConfigError('PROCESSES= goes with `make mechint`; say SUBMIT="--submit-at-once 2" instead')
    args.target = "submit"
    menu = _for_run(args)
    python, runner, *flags = _steps(menu, "mechint")[-1]
    words = merging.words("SUBMIT", args.options) + (["--dry-run"] if args.dry_run else [])
    command = [python, "-m", "mechint", "submit", f"--submit-program={runner}", *flags, *words]
    if args.verbose:
        print("+ " + shlex.join(command), flush=True)
    return processes.run(command, 1, _environment(), _work())


def export(args: argparse.Namespace) -> int:
    """Exports the finished analyses of .config's output directory, or what EXPORT= names."""
    return _of_results("export", "runs", merging.words("EXPORT", args.options))


def latents(args: argparse.Namespace) -> int:
    """Does what LATENTS= says with the dictionaries of .config's output directory, or of the run that it names."""
    return _of_results("latents", "run", merging.words("LATENTS", args.options))


def _of_results(command: str, option: str, options: list[str]) -> int:
    """Runs a command of the library that reads finished analyses, those of .config where the options name no others."""
    menu = _current() if os.path.lexists(CONFIG) or _named() else loading.load(ROOT, find(ROOT, DEFAULT))
    placed = f"--{option}={menu.syms['KNLP_MECHINT_OUTPUT_DIR'].str_value or 'mechint_analysis'}"
    environment = _environment()
    del environment["MECHINT_CALLED_BY"]  # what the options hold are flags
    return processes.run([sys.executable, "-m", "mechint", command, placed, *options], 1, environment, _work())


def _environment() -> dict[str, str]:
    paths = [str(ROOT / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MECHINT_CALLED_BY": "make"}


COMMANDS = {
    "menuconfig": (menuconfig, "change .config in menus"),
    "oldconfig": (oldconfig, "ask for the symbols that .config does not set"),
    "olddefconfig": (olddefconfig, "set the symbols that .config does not set to their defaults"),
    "defconfig": (defconfig, "write .config from a named experiment"),
    "mergeconfig": (mergeconfig, "set the lines of fragments in .config"),
    "diffconfig": (diffconfig, "print what .config changes of .config.old, or of another configuration"),
    "savedefconfig": (savedefconfig, "write what differs from the defaults to ./defconfig"),
    "list-defconfigs": (list_defconfigs, "list the named experiments"),
    "listnewconfig": (listnewconfig, "list the symbols that .config does not set"),
    "allyesconfig": (allyesconfig, "write .config with everything on"),
    "allnoconfig": (allnoconfig, "write .config with everything off"),
    "get": (get, "print one symbol's value"),
    "arguments": (arguments, "print the arguments that a runner gets"),
    "run": (run, "run what .config says"),
    "submit": (submit, "run the analyses of .config as jobs, here or on a cluster"),
    "export": (export, "write the numbers of finished analyses as CSV, Parquet or LaTeX"),
    "latents": (latents, "write features of dictionaries for other programs, and score explanations"),
    "score": (score, "score every method on models whose circuit is known"),
}

if __name__ == "__main__":
    sys.exit(main())
