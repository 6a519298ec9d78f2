"""Runs a command to its end, in one process or in several that know of each other, and passes signals on to them.

``python -m scripts.kconfig.processes COUNT COMMAND…`` does what ``torchrun --standalone`` does on one machine, without
its report of several pages when a process ends with an error that it has told in one line.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
"""Signals that end a process by themselves; an interrupt from the keyboard reaches all of a terminal's processes
without help."""
PATIENCE = 2.0
"""Seconds that the others have to end by themselves when one has failed, since they may wait for it for ever."""
AFTER_SIGNAL = 10.0
"""Seconds after which a process that was told to end is killed."""
POLL = 0.05


class Group:
    """Processes of one command, and the signals that are passed on to them while they run."""

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]], cwd: str | None = None) -> None:
        self.told: int | None = None
        """The signal that this process was sent."""
        self.later: list[tuple[float, int]] = []
        """(time, signal) of what is sent to those that run then."""
        self.processes: list[subprocess.Popen[bytes]] = []
        before = {number: signal.getsignal(number) for number in (*PASSED_ON, signal.SIGINT)}
        try:
            for number, handler in before.items():
                if handler is not signal.SIG_IGN:  # whoever had it ignored (nohup) had it ignored by all below
                    signal.signal(number, self.interrupted if number == signal.SIGINT else self.pass_on)
            for environment in environments:
                self.processes.append(subprocess.Popen(command, env=environment, cwd=cwd))
            self.status = self.wait()
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def interrupted(self, number: int, frame: FrameType | None) -> None:
        self.told = number

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        self.told = number
        self.send(number)
        self.later = [(time.monotonic() + AFTER_SIGNAL, signal.SIGKILL)]

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> int:
        """The status of the first process that failed, 0 when all did well; 128 + a signal where one ended it."""
        first = 0
        while any(process.poll() is None for process in self.processes):
            first = first or self.failed()
            now = time.monotonic()
            if first and not self.later:
                self.later = [(now + PATIENCE, signal.SIGTERM), (now + PATIENCE + AFTER_SIGNAL, signal.SIGKILL)]
            elif self.later and now >= self.later[0][0]:
                self.send(self.later.pop(0)[1])
            time.sleep(POLL)
        return first or self.failed() or (128 + self.told if self.told and self.told != signal.SIGINT else 0)

    def failed(self) -> int:
        """The status of a process that failed, 0 where none has."""
        found = [status for process in self.processes if (status := process.poll())]
        return 0 if not found else found[0] if found[0] > 0 else 128 - found[0]


def run(command: Sequence[str], count: int, environment: dict[str, str], cwd: str | None = None) -> int:
    """Runs a command in ``count`` processes that know of each other, and returns its status."""
    if count == 1:
        return Group(command, [environment], cwd).status
    together = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(),
        "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count)),
    }  # fmt: skip
    each = [{**environment, **together, "RANK": str(k), "LOCAL_RANK": str(k)} for k in range(count)]
    return Group(command, each, cwd).status


def free_port() -> str:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


if __name__ == "__main__":
    sys.exit(run(sys.argv[2:], int(sys.argv[1]), dict(os.environ)))
