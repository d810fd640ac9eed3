"""What the demo says: one numbered line a step, with its time, and the reason when something is not as it should be."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class DemoError(RuntimeError):
    """A result is not what it has to be."""


def check(fact: object, message: str) -> None:
    """Raise DemoError with the message unless the fact holds."""
    if not fact:
        raise DemoError(message)


class Step:
    """One step; set `says` to what came of it."""

    def __init__(self) -> None:
        self.says = ""


class Report:
    """Numbers and times the steps."""

    def __init__(self) -> None:
        self._number = 0
        self._started = time.monotonic()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Run one step and print its line."""
        self._number += 1
        step, began = Step(), time.monotonic()
        yield step
        first, *rest = step.says.splitlines() or [""]
        print(f"{self._number:>2}  {name:<11} {first:<84} {time.monotonic() - began:6.2f} s")
        for line in rest:
            print(f"    {'':<11} {line}")
        sys.stdout.flush()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started
