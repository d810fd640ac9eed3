"""A small disk: a tmpfs of a few megabytes over a directory, which only the servers see that are started on it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from larder_env.process import DIE_WITH_PARENT

MB = 1 << 20


class SmallDisk:
    """Made in a mount namespace of its own, so that it needs no privilege where users may have namespaces.

    A holder process keeps it over a server's restart; it ends with this process.
    """

    def __init__(self, directory: Path, megabytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = f'mount -t tmpfs -o size={megabytes}m tmpfs "$1" && echo ready && exec cat'
        command = ["unshare", "--mount", *user, "--", *DIE_WITH_PARENT, "sh", "-c", script, "sh", str(directory)]
        # `cat` waits for its end of the pipe to close
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline().strip() != b"ready":
            _, errors = self._holder.communicate(timeout=10)
            raise RuntimeError(f"no tmpfs could be mounted (root or user namespaces are needed): {errors.decode()}")
        pid = self._holder.pid
        users = [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"] if user else []
        self.enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", *users, "--"]
        self.path = Path(f"/proc/{pid}/root{directory}")

    def fill(self, leaving: int = 0) -> None:
        """Leave so many bytes free, about; take more where it was filled before."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            missing = self.free() - leaving
            while missing > 0:
                try:
                    missing -= file.write(bytes(min(missing, MB)))
                except OSError:
                    return

    def empty(self) -> None:
        """Give back what `fill` took."""
        (self.path / "ballast").unlink()

    def free(self) -> int:
        """Free bytes."""
        state = os.statvfs(self.path)
        return state.f_bavail * state.f_frsize

    def files(self, pattern: str) -> list[str]:
        """The files that match, but for the ballast."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.glob(pattern) if path.is_file())

    def close(self) -> None:
        """Let it go; whoever is on it keeps it until then."""
        self._holder.communicate(timeout=10)
