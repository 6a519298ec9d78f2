"""Work of a compiled library, shared among torch's threads or, where those cannot be had, among threads of ours."""

from __future__ import annotations

import threading

import pytest

from mechint.utils import compiled


@pytest.fixture(params=["torch's", "ours"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "ours":
        monkeypatch.setattr(compiled, "_openmp", lambda: None)
    elif compiled._openmp() is None:
        pytest.skip("torch's threads are not those of an OpenMP with GOMP's names")


@pytest.mark.parametrize(("pieces", "count"), [(1, 4), (3, 4), (10, 3), (1000, 2), (0, 2)])
def test_every_piece_is_done_once(pieces: int, count: int) -> None:
    done = [0] * pieces

    def work(first: int, last: int) -> None:
        for piece in range(first, last):
            done[piece] += 1

    compiled.share(work, pieces, count)
    assert done == [1] * pieces


def test_the_pieces_run_at_once() -> None:
    """Each of two waits for the other."""
    meeting = threading.Barrier(2, timeout=30)
    compiled.share(lambda first, last: meeting.wait() and None, 2, 2)


def test_what_fails_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if last == 4:
            raise KeyError("the last piece")

    with pytest.raises(KeyError, match="the last piece"):
        compiled.share(work, 4, 2)
