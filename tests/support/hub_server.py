"""A stand-in for the Hugging Face Hub's protocol, on loopback: `huggingface_hub` pushes to it and pulls from it.

    with HubServer() as hub:
        subprocess.run(command, env=hub.environment(tmp_path), check=True)
        assert hub.repos["me/model"].files("v1")["config.json"] == expected

The client reads `HF_ENDPOINT` at its import, so that a script runs in another process. Faults are arranged beforehand:
`fail`, `drop`, `lose_answer`, `move_on`. Their path is a shell pattern for the unquoted path; its `*` matches slashes
too. What is answered is in hub_api.py, what is kept in hub_store.py.
"""

import os
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_api import Answer, Request
from hub_store import Hub, HubError

TOKEN = "hf_loopback"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match. One that sets nothing is harmless."""

    method: str = ""
    pattern: str = ""
    times: int = 0
    answer: Answer | None = None
    upload_bytes: int | None = None  # of the request's body, read before the connection is reset
    download_bytes: int | None = None  # of the answer's body, sent before the connection is closed
    silent: bool = False

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method == method and fnmatchcase(path, self.pattern)


class HubServer(Hub):
    """The repositories behind a server, the log of its requests and the faults to come.

    `log` has (method, unquoted path) of every request, of failed ones too.
    """

    def __init__(self, token: str = TOKEN) -> None:
        super().__init__(token)
        self.log: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def constants(self, folder: Path) -> dict[str, Any]:
        """The client's constants for this process, as `environment` makes them for another."""
        return {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_XET_CACHE": str(folder / "xet"),
            "HF_TOKEN_PATH": str(folder / "token"),
            "HF_STORED_TOKENS_PATH": str(folder / "stored_tokens"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }

    def environment(self, folder: Path) -> dict[str, str]:
        """For a process that talks to this server only and keeps its cache in `folder`. Has no token."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(foreign) and not name.upper().endswith("_PROXY")
        }
        return inherited | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def count(self, method: str, pattern: str) -> int:
        """How many requests arrived."""
        return sum(method == logged and fnmatchcase(path, pattern) for logged, path in self.log)

    def fail(
        self, method: str, pattern: str, status: int = 503, times: int = 1, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error. With `Retry-After: 0` in `headers` the client waits one second before each retry."""
        answer = Answer.of_error(HubError(status, HTTPStatus(status).phrase, headers=headers))
        self.faults.append(Fault(method, pattern, times, answer=answer))

    def drop(self, method: str, pattern: str, after_bytes: int = 0, times: int = 1) -> None:
        """Cut the connection in the middle of a body: a download's is closed, an upload's is reset."""
        upload, download = (None, after_bytes) if method == "GET" else (after_bytes, None)
        self.faults.append(Fault(method, pattern, times, upload_bytes=upload, download_bytes=download))

    def lose_answer(self, method: str, pattern: str, times: int = 1) -> None:
        """Do what is asked, then hang up without a word."""
        self.faults.append(Fault(method, pattern, times, silent=True))

    def observe(self, method: str, path: str) -> Fault:
        """Log a request and find what goes wrong with it."""
        with self.lock:
            self.log.append((method, path))
            fault = next((fault for fault in self.faults if fault.matches(method, path)), Fault())
            fault.times -= 1
            return fault


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64  # a client's threads connect at once; one that finds no room tries again a second later
    hub: HubServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the body does not wait until the headers are acknowledged
    server: _Server

    def serve(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        fault = hub.observe(self.command, unquote(url.path))
        length = int(self.headers.get("Content-Length", 0))
        if fault.upload_bytes is not None:
            self.rfile.read(min(length, fault.upload_bytes))
            return self.reset()
        body = self.rfile.read(length)
        request = Request(hub, self.command, url.path, parse_qs(url.query), self.headers, body)
        with hub.lock:
            answer = fault.answer or request.answer()
        self.close_connection = fault.silent or fault.download_bytes is not None
        if not fault.silent:
            self.send(answer, fault.download_bytes)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def send(self, answer: Answer, limit: int | None) -> None:
        self.send_response(answer.status)
        for name, text in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:limit])

    def reset(self) -> None:
        """Close so that the client notices even when all that it had to say is on its way."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """The server has its own log."""
