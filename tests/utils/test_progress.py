"""Lines of progress by a clock of the test: what is left of a line, of its part, and of the whole command."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from mechint.utils import progress
from mechint.utils.progress import Command, Part, Progress, command, counted, current


class Clock:
    """A clock that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_line_outside_a_command_says_its_own_time_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("search", 10, every=0) as line:
        for _ in range(5):
            clock.now += 4
            line.step("loss 2.0")
    assert last_line(capsys) == " 50% search 5/10 0:20 left loss 2.0"
    assert current().groups == []


@pytest.mark.parametrize(("left", "said"), [(0.2, "1 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_in_words(left: float, said: str) -> None:
    assert progress.in_time(left) == said


def test_what_is_not_known_is_at_least_so_long_and_never_guessed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with command([[Part("trace"), Part("sae")]]) as work:
        work.enter(0)
        with work.part("trace"), Progress("sweep", 4, quiet=0, every=0) as line:
            clock.now += 30
            line.step()
    assert last_line(capsys) == " 25% sweep 1/4 1:30 left; at least 2 min of this command left"


def test_finished_parts_say_how_long_their_kind_takes_in_relation_to_size(clock: Clock) -> None:
    groups = [[Part("trace", 10.0), Part("sae", 10.0)], [Part("trace", 30.0), Part("sae", 30.0)]]
    with command(groups) as work:
        work.enter(0)
        for kind, seconds in (("trace", 20), ("sae", 50)):
            with work.part(kind):
                clock.now += seconds
                work.measured()
        work.enter(1)
        with work.part("trace"):
            clock.now += 15
            assert work.left(clock.now, 5.0) == (pytest.approx(60 - 15 + 150), True)
            clock.now += 60  # longer than the first one said: its own line is all that is known of it
            assert work.left(clock.now, 5.0) == (pytest.approx(5 + 150), False)
        with work.part("sae"):
            assert work.left(clock.now, 0.0) == (pytest.approx(150), True)


def test_rounds_of_a_loop_and_an_announcement_say_what_is_left_of_a_part(clock: Clock) -> None:
    with command([[Part("patch"), Part("ssm")]]) as work:
        work.enter(0)
        with work.part("patch"):
            rounds = counted("abcd", 4)
            assert next(rounds) == "a" and work.left(clock.now, 7.0) == (7.0, False)
            clock.now += 10
            assert next(rounds) == "b"
            clock.now += 4  # the rest of this round, and two more
            assert work.left_of_part(clock.now, 1.0) == (pytest.approx(26), True)
            assert work.left(clock.now, 1.0) == (pytest.approx(26), False)  # the circuit waits
            assert list(rounds) == ["c", "d"]
        with work.part("ssm"):
            clock.now += 3
            current().expect(100.0)
            clock.now += 40
            assert work.left(clock.now, 9.0) == (pytest.approx(60), True)
            clock.now += 70
            assert work.left(clock.now, 9.0) == (9.0, False)


def test_processes_share_what_no_one_has_taken(clock: Clock) -> None:
    taken = itertools.chain([2], itertools.repeat(4))
    with command([[Part("ssm")] for _ in range(5)], hands=2) as work:
        work.enter(0)
        with work.part("ssm"):
            clock.now += 60
            work.measured()
        work.enter(1, lambda: next(taken))
        with work.part("ssm"):
            assert work.left(clock.now, 0.0) == (pytest.approx(60 + 3 * 60 / 2), True)
            assert work.left(clock.now, 0.0) == (pytest.approx(60 + 60 / 2), True)


def test_what_was_thought_to_be_finished_is_no_measure(clock: Clock) -> None:
    with command([[]]) as work:
        work.enter(0)
        with work.part("ssm"):
            clock.now += 60
            work.measured()
        assert work.seconds == {} and work.of(Part("ssm")) is None
        with pytest.raises(ValueError, match="stopped"), work.part("ssm"):
            raise ValueError("stopped")
        assert work.running is None


def test_a_command_within_a_command_gives_it_back(clock: Clock) -> None:
    with command([[Part("a")]]) as outer, command([[Part("b")]]):
        assert current() is not outer
    assert current() is not outer and current().groups == []


def test_a_loop_outside_a_command_is_a_plain_loop() -> None:
    assert list(counted(iter(range(3)), 3)) == [0, 1, 2]
    assert isinstance(current(), Command) and isinstance(counted([], 0), Iterator)
