"""A stand-in for the Hugging Face hub, as far as huggingface_hub asks it for an upload of a model: on loopback, in a thread.

`create repo`, `model info`, `validate-yaml`, `preupload`, the LFS batch and its `PUT`, and the commit. A file of `LARGE` bytes or
more goes by LFS. `refuse` names an endpoint and the answer that it gives in place of its own.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LARGE = 100


@dataclass
class Hub:
    """What it has, and what it was asked."""

    url: str = ""
    private: bool | None = None  # of the repository; None: there is none
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])  # of the last commit
    asked: list[str] = field(default_factory=list[str])  # endpoints in their order
    tokens: dict[str, str] = field(default_factory=dict[str, str])  # endpoint -> what came along as authorization
    stored: dict[str, bytes] = field(default_factory=dict[str, bytes])  # LFS objects
    refuse: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict[str, tuple[int, dict[str, Any]]])

    def answer(self, endpoint: str, path: str, body: bytes) -> dict[str, Any]:
        """The values of an answer; does what was asked."""
        if endpoint == "put":
            self.stored[path.rsplit("/", 1)[1]] = body
            return {}
        lines = [json.loads(line) for line in body.splitlines()]
        match endpoint:
            case "create":
                self.private = lines[0]["visibility"] == "private" if self.private is None else self.private
                return {"url": f"{self.url}/org/name"}
            case "validate":
                return {"errors": [], "warnings": []}
            case "preupload":
                modes = [("lfs" if each["size"] >= LARGE else "regular", each["path"]) for each in lines[0]["files"]]
                return {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for m, p in modes]}
            case "batch":
                asked = lines[0]["objects"]
                return {"objects": [{**o, "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}} for o in asked]}
            case "commit":
                for line in lines:
                    value = line["value"]
                    if line["key"] == "file":
                        self.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        self.files[value["path"]] = self.stored[value["oid"]]
                return {"commitUrl": f"{self.url}/org/name/commit/1", "commitOid": "1" * 40}
            case _:
                return {"id": "org/name", "private": bool(self.private), "siblings": []}


def endpoint_of(method: str, path: str) -> str:
    """Which one a request is to."""
    if method == "PUT":
        return "put"
    named = {"/api/repos/create": "create", "/api/validate-yaml": "validate", "/preupload/": "preupload", "/commit/": "commit"}
    return next((name for part, name in {**named, "/lfs/objects/batch": "batch"}.items() if part in path), "info")


@contextmanager
def hub() -> Iterator[Hub]:
    """One that runs until the end of the block."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            endpoint = endpoint_of(self.command, path)
            status, values = found.refuse.get(endpoint) or (200, found.answer(endpoint, path, body))
            if endpoint == "info" and found.private is None:
                status, values = 404, {"error": "Repository not found"}
            found.asked.append(endpoint)
            found.tokens[endpoint] = self.headers.get("authorization", "")
            sent = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            if status >= 400 and "error" in values:
                self.send_header("X-Error-Message", values["error"])
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = do

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length") or 0))
            parts = list[bytes]()
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
