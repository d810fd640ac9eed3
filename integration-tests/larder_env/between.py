"""What stands between a client and an S3 server: it says "slow down", or does something in mid-read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

from larder_env.s3 import S3
from larder_env.server import HOST

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Between:
    """A proxy; `before` sees each request (method, path) and says whether it goes through or gets 503 SlowDown."""

    def __init__(self, s3: S3, before: Callable[[str, str], bool]) -> None:
        self.asked: list[tuple[str, str]] = []
        # S3 checks and puts in one step; S3Proxy on files does not, where two come at a time.
        self.putting = threading.Lock()
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                """Nothing to say."""

            def any(self) -> None:
                between.asked.append((self.command, self.path))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if before(self.command, self.path):
                    # With all headers as they are: Host is signed, too.
                    with between.putting if self.command == "PUT" else nullcontext():
                        answer = requests.request(
                            self.command, f"{s3.endpoint}{self.path}", headers=dict(self.headers), data=body, timeout=60
                        )
                    self.answer(answer.status_code, dict(answer.headers), answer.content)
                else:
                    self.answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                headers = {k: v for k, v in headers.items() if k.lower() not in ("transfer-encoding", "connection")}
                length = str(len(content))
                if self.command != "HEAD" or "Content-Length" not in headers:
                    headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
                    headers["Content-Length"] = length
                self.send_response_only(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = any

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """As `s3_endpoint_override` has it."""
        return f"http://{HOST}:{self.server.server_address[1]}"

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
