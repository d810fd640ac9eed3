"""One child process with a log file, and waiting for conditions instead of sleeping."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# makes the kernel end the child when this process ends, however it ends; from util-linux, always there on Debian
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]


class ProcessError(RuntimeError):
    """A child died, or did not do in time what was waited for; the message ends with its log."""


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30.0, pause: float = 0.05) -> None:
    """Return as soon as `condition()` is true; raise TimeoutError naming `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(pause)  # the one place that polls: what other processes do cannot be waited for otherwise


class Process:
    """A child of this process. It dies with its parent unless started with `outlive=True`."""

    def __init__(self, name: str, log: Path, outlive: bool = False) -> None:
        self.name = name
        self.log = log
        self._outlive = outlive
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the child that was started last."""
        if self._child is None:
            raise ProcessError(f"{self.name} was never started")
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return None if self._child is None else self._child.poll()

    @property
    def running(self) -> bool:
        """Whether there is a live child."""
        return self._child is not None and self._child.poll() is None

    def spawn(self, command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> None:
        """Start the command; its stdout and stderr are appended to the log."""
        if self.running:
            raise ProcessError(f"{self.name} runs already, pid {self.pid}")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                [*([] if self._outlive else DIE_WITH_PARENT), *map(str, command)],
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=self._outlive,
            )

    def wait_ready(self, ready: Callable[[], object], seconds: float) -> None:
        """Wait until `ready()`; an early death or a time-out raises with the end of the log."""

        def ready_or_dead() -> bool:
            return not self.running or bool(ready())

        try:
            wait_until(ready_or_dead, f"{self.name} to be ready", seconds)
        except TimeoutError as late:
            raise ProcessError(f"{late}\n{self.log_tail()}") from late
        if not self.running:
            raise ProcessError(f"{self.name} exited with {self.exit_code} at once\n{self.log_tail()}")

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM, wait, and return the exit code. A child that will not go is killed, and that is an error."""
        return self.end(signal.SIGTERM, seconds)

    def kill(self) -> int:
        """SIGKILL: no chance to clean up. Returns the exit code, -9."""
        return self.end(signal.SIGKILL, 10.0)

    def end(self, how: signal.Signals, seconds: float) -> int:
        """Send a signal and wait; returns the exit code. A child that will not go is killed, and that is an error."""
        if self._child is None:
            return 0
        self.signal(how)
        return self.wait(seconds, f"ignored {how.name}")

    def signal(self, how: signal.Signals) -> None:
        """Send a signal, and do not wait for what comes of it."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(how)

    def wait(self, seconds: float, otherwise: str = "did not end") -> int:
        """Wait for the end; returns the exit code. A child that does not come to it is killed, and that is an error."""
        if self._child is None:
            return 0
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired as late:
            self._child.kill()
            self._child.wait()
            raise ProcessError(f"{self.name} {otherwise} for {seconds:g} s\n{self.log_tail()}") from late

    def log_text(self) -> str:
        """All that the child has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the log, under a heading."""
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"--- {self.log} ---\n{tail}"
