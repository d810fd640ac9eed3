"""The binary `larder` as a child process, and the addresses at which it listens."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from larder_env.process import Process, free_ports

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Ports:
    """The four ports of one server."""

    online: int
    registry: int
    offline: int
    metrics: int

    @classmethod
    def free(cls) -> Ports:
        """Four ports nobody listens on."""
        return cls(*free_ports(4))


class Larder:
    """`larder serve -c DIR`. Ports stay the same over restarts, so that a client survives one."""

    def __init__(
        self,
        binary: Path,
        repo: Path,
        ports: Ports,
        log: Path | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        outlive: bool = False,
        cert: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.binary = binary
        self.repo = repo
        self.ports = ports
        self.args = list(args)
        self.env = dict(env or {})
        self.cert = cert
        self.prefix = list(prefix)
        self.process = Process("larder", log or repo / "larder.log", outlive)

    @property
    def online_url(self) -> str:
        """HTTP (and gRPC) address of the online server."""
        return f"{'https' if self.cert else 'http'}://{HOST}:{self.ports.online}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus would scrape."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server has logged so far."""
        return self.process.log_text()

    def command(self) -> list[str]:
        """The command line."""
        ports = self.ports
        return [
            *self.prefix,
            str(self.binary),
            "serve",
            *("-c", str(self.repo)),
            *("--host", HOST),
            *("--online-port", str(ports.online)),
            *("--registry-port", str(ports.registry)),
            *("--offline-port", str(ports.offline)),
            *("--metrics-port", str(ports.metrics)),
            *self.args,
        ]

    def start(self, seconds: float = 30.0) -> Larder:
        """Start, and wait until it is ready. A server that dies or dawdles raises with its log."""
        self.process.spawn(self.command(), cwd=self.repo, env=self.env)
        self.process.wait_ready(self.ready, seconds)
        return self

    def ready(self) -> bool:
        """Whether /health answers 200, or /metrics where the online service was not asked for."""
        if "--services" in self.args and "online" not in self.args[self.args.index("--services") + 1].split(","):
            return self._answers(self.metrics_url)
        return self.healthy()

    def healthy(self) -> bool:
        """Whether /health answers 200 right now."""
        return self._answers(f"{self.online_url}/health")

    def _answers(self, url: str) -> bool:
        try:
            return requests.get(url, timeout=2, verify=self._verify).status_code == 200
        except requests.RequestException:
            return False

    @property
    def _verify(self) -> str | bool:
        return str(self.cert) if self.cert else True

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.process.kill()

    def restart(self, how: signal.Signals = signal.SIGTERM) -> Larder:
        """Stop (SIGTERM) or kill (SIGKILL), and start again on the same data and ports."""
        if how == signal.SIGKILL:
            self.kill()
        else:
            self.stop()
        return self.start()

    def post(self, path: str, body: object, **options: object) -> requests.Response:
        """POST JSON to the online server; the response as it is, whatever its status."""
        url = f"{self.online_url}{path}"
        return requests.post(url, json=body, timeout=60, verify=self._verify, **options)  # type: ignore[arg-type]

    def metrics(self) -> str:
        """The page /metrics."""
        response = requests.get(self.metrics_url, timeout=5)
        response.raise_for_status()
        return response.text
