"""Every line of a defconfig or .config takes effect as written, or is an error that says where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.kconfig import mapping, menus
from scripts.kconfig.defconfigs import ConfigError, describe, find, find_all, listing
from scripts.kconfig.loading import Menu, check_together, load, minimal, save, write
from tests.helpers.examples import examples
from tests.helpers.paths import ROOT

ON = "CONFIG_KNLP_MECHINT=y\n"

BAD = {
    "misspelt": (
        "CONFIG_KNLP_MECHINT_SSM_STEP=60",
        ["file:2", "CONFIG_KNLP_MECHINT_SSM_STEP ", "no menu", "did you mean KNLP_MECHINT_SSM_STEPS"],
    ),
    "undeclared and off": ("# CONFIG_KNLP_NOTHING is not set", ["file:2", "KNLP_NOTHING", "no menu"]),
    "a choice, not a member": (
        "CONFIG_KNLP_MECHINT_SSM_METRIC=y",
        ["file:2", "is a choice", "CONFIG_KNLP_MECHINT_SSM_METRIC_LOGIT_DIFF"],
    ),
    "text for int": ("CONFIG_BATCH_SIZE=many", ["file:2", "BATCH_SIZE=many", "a whole number from 1 to 65536"]),
    "quoted int": ('CONFIG_BATCH_SIZE="4"', ["file:2", "a whole number from 1 to 65536"]),
    "fraction for int": ("CONFIG_BATCH_SIZE=4.5", ["file:2", "a whole number from 1 to 65536"]),
    "hex for int": ("CONFIG_BATCH_SIZE=0x4", ["file:2", "a whole number from 1 to 65536"]),
    "int too low": ("CONFIG_BATCH_SIZE=0", ["file:2", "BATCH_SIZE=0", "from 1 to 65536"]),
    "int too high": ("CONFIG_BATCH_SIZE=65537", ["file:2", "from 1 to 65536"]),
    "int unset": ("# CONFIG_BATCH_SIZE is not set", ["file:2", "BATCH_SIZE", "from 1 to 65536"]),
    "empty int": ("CONFIG_BATCH_SIZE=", ["file:2", "from 1 to 65536"]),
    "yes for y": ("CONFIG_KNLP_MECHINT_RERUN=yes", ["file:2", "RERUN=yes", "y or n"]),
    "module for y": ("CONFIG_KNLP_MECHINT_RERUN=m", ["file:2", "y or n"]),
    "fraction too high": (
        'CONFIG_KNLP_MECHINT_SSM_TARGET_FAITHFULNESS="1.5"',
        ["file:2", 'FAITHFULNESS="1.5"', "a number from 0.05 to 0.999"],
    ),
    "fraction too low": ('CONFIG_KNLP_MECHINT_SSM_LR="0"', ["file:2", "a number from 1e-05 to 10"]),
    "no number": ('CONFIG_KNLP_MECHINT_SSM_LR="fast"', ["file:2", "a number from 1e-05 to 10"]),
    "nan": ('CONFIG_KNLP_MECHINT_SSM_LR="nan"', ["file:2", "a number from"]),
    "infinite": ('CONFIG_KNLP_MECHINT_SSM_LR="inf"', ["file:2", "a number from"]),
    "unquoted fraction": ("CONFIG_KNLP_MECHINT_SSM_LR=0.5", ["file:2", "double quotes"]),
    "unquoted text": ("CONFIG_KNLP_MECHINT_OUTPUT_DIR=here", ["file:2", "double quotes"]),
    "open quote": ('CONFIG_KNLP_MECHINT_OUTPUT_DIR="here', ["file:2", "double quotes"]),
    "unmet": ("CONFIG_KNLP_MECHINT_SSM_BUDGET=8", ["file:2", "depends on KNLP_MECHINT_SSM_SEARCH_BUDGET (now n)"]),
    "unmet unset": ("CONFIG_KNLP_TRAIN_STEPS=8", ["file:2", "depends on KNLP_TRAIN (now n)"]),
    "unmet, two": (
        "CONFIG_KNLP_FAMILY_GPT2=y\nCONFIG_KNLP_MECHINT_SSM=y",
        ["file:3", "KNLP_MECHINT_SSM=y has no effect", "KNLP_FAMILY_MAMBA || KNLP_FAMILY_OTHER (now n)"],
    ),
    "two members": (
        "CONFIG_KNLP_MECHINT_SSM_METRIC_KL=y\nCONFIG_KNLP_MECHINT_SSM_METRIC_LOSS=y",
        ["file:2", "METRIC_KL=y has no effect", "CONFIG_KNLP_MECHINT_SSM_METRIC_LOSS is y too"],
    ),
    "no member": ("# CONFIG_KNLP_FAMILY_MAMBA is not set", ["file:2", "CONFIG_KNLP_FAMILY_GPT2"]),
    "twice": ("CONFIG_BATCH_SIZE=4\nCONFIG_BATCH_SIZE=4", ["file:3", "was set before, at file:2"]),
    "no prefix": ("KNLP_TRAIN=y", ["file:2", "malformed line 'KNLP_TRAIN=y'"]),
    "spaces": ("CONFIG_BATCH_SIZE = 4", ["file:2", "malformed line"]),
    "indented": (" CONFIG_BATCH_SIZE=4", ["file:2", "malformed line"]),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_a_bad_line_is_an_error_that_names_it(tmp_path: Path, text: str, says: list[str]) -> None:
    file = tmp_path / "file"
    file.write_text(f"{ON}{text}\n")
    with pytest.raises(ConfigError) as caught:
        load(ROOT, file, "file")
    message = str(caught.value)
    assert "\n" not in message
    for part in says:
        assert part in message, message


def test_a_file_that_is_no_text_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00CONFIG")
    with pytest.raises(ConfigError, match="binary is not a text file"):
        load(ROOT, tmp_path / "binary")
    with pytest.raises(ConfigError, match="absent: No such file"):
        load(ROOT, tmp_path / "absent")


def test_comments_and_blank_lines_are_fine(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(
        "# a comment\n\n# CONFIG_BATCH_SIZE=1 was too small\n" + ON + "CONFIG_BATCH_SIZE=9  \n"
    )
    assert load(ROOT, tmp_path / "file").syms["BATCH_SIZE"].str_value == "9"


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(st.integers(-10, 70000))
def test_a_whole_number_is_taken_exactly_within_its_range(number: int) -> None:
    _taken("CONFIG_BATCH_SIZE", str(number), 1 <= number <= 65536, number)


@pytest.mark.slow
@settings(deadline=None, max_examples=examples(40))
@given(st.floats(-1, 12, allow_nan=False))
def test_a_fraction_is_taken_exactly_within_its_range(number: float) -> None:
    _taken("CONFIG_KNLP_MECHINT_SSM_LR", f'"{number!r}"', 1e-5 <= number <= 10, number)


def _taken(name: str, text: str, good: bool, number: float) -> None:
    from scripts.kconfig.loading import Assignment, apply

    assignments = [Assignment("here:1", "KNLP_MECHINT", "y"), Assignment("here:2", name[len("CONFIG_") :], text)]
    menu = Menu(ROOT)
    if not good:
        with pytest.raises(ConfigError, match="here:2"):
            apply(menu, assignments)
        return
    apply(menu, assignments)
    assert float(menu.syms[name[len("CONFIG_") :]].str_value) == number


def test_a_broken_menu_names_its_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "Kconfig").write_text("config A\n\tbool 'a'\n\tnonsense here\n")
    with pytest.raises(ConfigError, match="Kconfig:3"):
        Menu(tmp_path)
    (tmp_path / "Kconfig").write_text('config A\n\tint "a"\n\tdefault many\n')
    with pytest.raises(ConfigError, match=r"many"):
        Menu(tmp_path)


def test_training_analyses_what_it_trains(tmp_path: Path) -> None:
    text = ON + "CONFIG_KNLP_TRAIN=y\n" + 'CONFIG_KNLP_TRAIN_OUTPUT_DIR="output/new"\n'
    file = tmp_path / "file"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r'set CONFIG_KNLP_MECHINT_CHECKPOINT="output/new/final_model_step\*.pt"'):
        check_together(load(ROOT, file), "file")
    for good in ("output/new", "output/new/final_model_stepV0.pt", "output/*/best_model_step*.pt", "./output/new/*"):
        file.write_text(f'{text}CONFIG_KNLP_MECHINT_CHECKPOINT="{good}"\n')
        check_together(load(ROOT, file), "file")


def test_directories_that_are_trained_are_analysed(tmp_path: Path) -> None:
    text = "CONFIG_KNLP_FAMILY_OTHER=y\nCONFIG_KNLP_MECHINT_SSM=y\n" + ON + "CONFIG_KNLP_TRAIN=y\n"
    file = tmp_path / "file"
    file.write_text(text)
    menu = load(ROOT, file)
    check_together(menu, "file")
    assert menu.syms["KNLP_MECHINT_CHECKPOINT"].str_value == "output/final_model_step*"
    file.write_text(text + 'CONFIG_KNLP_MECHINT_CHECKPOINT="output/final_model_step*.pt"\n')
    with pytest.raises(ConfigError, match=r'training writes output/final_model_stepV0; set .*final_model_step\*"'):
        check_together(load(ROOT, file), "file")
    both = ON + 'CONFIG_KNLP_TRAIN=y\nCONFIG_KNLP_TRAIN_VARIANTS="baseline,family=other+d_state=8"\n'
    file.write_text(both)
    with pytest.raises(ConfigError, match=r'training writes output/final_model_stepV1; set .*final_model_step\*"'):
        check_together(load(ROOT, file), "file")
    file.write_text(both + 'CONFIG_KNLP_MECHINT_CHECKPOINT="output/final_model_step*"\n')
    check_together(load(ROOT, file), "file")


@pytest.mark.parametrize("name", find_all(ROOT))
def test_a_defconfig_is_minimal_and_survives_a_round_trip(tmp_path: Path, name: str) -> None:
    file = find_all(ROOT)[name]
    assert len(describe(file)) > 10
    menu = load(ROOT, file)
    check_together(menu, name)
    _, *lines = file.read_text().splitlines()
    assert minimal(menu).splitlines() == lines
    save(menu, ROOT, tmp_path / ".config")
    again = load(ROOT, tmp_path / ".config")
    assert minimal(again).splitlines() == lines
    for runner in mapping.RUNNERS:
        assert mapping.arguments(again, runner) == mapping.arguments(menu, runner)
    assert menus.new_symbols(again) == []


@pytest.mark.slow
def test_defconfigs_write_to_directories_of_their_own() -> None:
    places = []
    for name, file in find_all(ROOT).items():
        menu = load(ROOT, file)
        if menu.syms["KNLP_MECHINT"].str_value == "y":
            places.append((menu.syms["KNLP_MECHINT_OUTPUT_DIR"].str_value, name))
    assert len({place for place, _ in places}) == len(places) >= 6


@pytest.mark.parametrize("value", [0, 2])
def test_everything_on_and_everything_off_are_valid(tmp_path: Path, value: int) -> None:
    menu = Menu(ROOT)
    menus.set_all(menu, value)
    save(menu, ROOT, tmp_path / ".config")
    again = load(ROOT, tmp_path / ".config")
    assert again.syms["KNLP_MECHINT"].str_value == ("y" if value else "n")
    assert ("KNLP_MECHINT_SSM_STEPS" in (tmp_path / ".config").read_text()) == bool(value)


def test_new_symbols_are_those_that_the_configuration_does_not_set(tmp_path: Path) -> None:
    save(load(ROOT, find(ROOT, "mamba-130m-mechint")), ROOT, tmp_path / ".config")
    kept = [line for line in (tmp_path / ".config").read_text().splitlines() if "BATCH_SIZE" not in line]
    (tmp_path / ".config").write_text("\n".join(kept))
    assert menus.new_symbols(load(ROOT, tmp_path / ".config")) == ["CONFIG_BATCH_SIZE=64"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / ".config"
    file.write_text("old")
    menu = load(ROOT, find(ROOT, "mamba-tiny-recall-mechint"))
    menu.syms["KNLP_MECHINT_SSM_LR"].set_value("99")
    with pytest.raises(ConfigError, match="SSM_LR"):
        save(menu, ROOT, file)

    def full(temporary: str) -> None:
        Path(temporary).write_text("half")
        raise OSError(28, "No space left on device", temporary)

    with pytest.raises(OSError, match="No space"):
        write(file, full)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == [".config"]


def test_names_are_found_listed_and_suggested(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean mamba-130m-mechint"):
        find(ROOT, "mamba-130-mechint")
    lines = listing(ROOT).splitlines()
    assert [line.split()[0] for line in lines] == sorted(find_all(ROOT))
    assert sum("[default]" in line for line in lines) == 1
    for folder in ("defconfigs", "mamba/defconfigs"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "defconfigs/both").write_text("# general\n")
    (tmp_path / "mamba/defconfigs/own~").write_text("an editor's copy")
    assert list(find_all(tmp_path)) == ["both"]
    (tmp_path / "mamba/defconfigs/both").touch()
    with pytest.raises(ConfigError, match="same name"):
        find_all(tmp_path)


def test_an_odd_path_survives_writing_and_loading(tmp_path: Path) -> None:
    menu = load(ROOT, find(ROOT, "mamba-130m-mechint"))
    odd = "a b/$HOME/`x`/'q'/\"d\"/\\/#/*.pt"
    menu.syms["KNLP_MECHINT_CHECKPOINT"].set_value(odd)
    save(menu, ROOT, tmp_path / ".config")
    assert load(ROOT, tmp_path / ".config").syms["KNLP_MECHINT_CHECKPOINT"].str_value == odd


@pytest.mark.slow
@given(st.text(max_size=40))
def test_a_text_of_any_characters_is_one_line_and_itself_again(text: str) -> None:
    line = mapping.shown(text)
    assert not any(ord(character) < 32 for character in line) and mapping.meant(line) == text


def test_a_line_break_is_shown_as_one() -> None:
    assert mapping.shown("one\ntwo\\n") == "one␤two\\n" and mapping.meant("one␤two") == "one\ntwo"
    assert mapping.meant(mapping.shown("␤ ␦ ␛ \x1b")) == "␤ ␦ ␛ \x1b"
    assert mapping.shown("plain C:\\new") == "plain C:\\new"


@pytest.mark.parametrize(
    ("symbol", "answers", "taken"),
    [("BATCH_SIZE", ["5000000", "0", "32"], "32"), ("KNLP_MECHINT_SSM_LR", ["100", "fast", "0.5"], "0.5")],
)
def test_oldconfig_asks_again_for_what_no_number_can_be(
    symbol: str, answers: list[str], taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A value outside the range is not clamped, and what is saved "as answered" is what was answered."""
    save(load(ROOT, find(ROOT, "mamba-tiny-recall-mechint")), ROOT, tmp_path / ".config")
    kept = [line for line in (tmp_path / ".config").read_text().splitlines(True) if f"CONFIG_{symbol}=" not in line]
    (tmp_path / ".config").write_text("".join(kept))
    menu, left = load(ROOT, tmp_path / ".config"), iter(answers)
    monkeypatch.setattr("builtins.input", lambda _: next(left))
    menus.oldconfig(menu)
    assert menu.syms[symbol].str_value == taken and next(left, None) is None
    assert f"{answers[0]!r} is not allowed; it must be" in capsys.readouterr().err
