"""A schema registry with Confluent's REST interface, as far as readers ask it; it can be made to fail."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

USER, PASSWORD = "larder", "se:cret"


class SchemaRegistry:
    """Schemas by id and by subject, behind a user and a password."""

    def __init__(self) -> None:
        self.away = False
        self.asked: list[str] = []
        self._by_path: dict[str, dict[str, object]] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                """No lines on stderr."""

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                status, body = registry.answer(self.path, self.headers.get("Authorization", ""))
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = cast(tuple[str, int], self._server.server_address)[:2]
        return f"http://{host}:{port}"

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, object]]:
        """Status and body."""
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.away:
            return 503, {"error_code": 50301, "message": "away"}
        if authorization != wanted:
            return 401, {"error_code": 40101, "message": "Unauthorized"}
        found = self._by_path.get(path)
        return (200, found) if found else (404, {"error_code": 40403, "message": "Schema not found"})

    def add(self, number: int, schema: object, references: list[tuple[str, str, int]] | None = None) -> None:
        """A schema with that id; references are name, subject and version."""
        body: dict[str, object] = {"schema": json.dumps(schema)}
        if references:
            body["references"] = [{"name": n, "subject": s, "version": v} for n, s, v in references]
        self._by_path[f"/schemas/ids/{number}"] = body

    def add_subject(self, subject: str, version: int, schema: object) -> None:
        """A version of a subject, for references."""
        self._by_path[f"/subjects/{subject}/versions/{version}"] = {
            "subject": subject,
            "version": version,
            "id": 0,
            "schema": json.dumps(schema),
        }

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
