"""A server on loopback that plays a hub for the real huggingface_hub client: model info, and files with ranges."""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

COMMIT = "c0ffee" + "0" * 34
PIECE = 16 << 10


@dataclass
class Repository:
    """One model. The refusals are those of the real hub: a status and its header `X-Error-Code`."""

    files: dict[str, bytes]
    token: str | None = None  # without it 401
    refusal: tuple[int, str | None] | None = None
    cuts: int = 0  # so many downloads of weights break off half way
    bytes_per_s: float = float("inf")  # of each download of weights

    @classmethod
    def of_folder(cls, folder: Path, **options: object) -> Self:
        return cls({path.name: path.read_bytes() for path in folder.iterdir()}, **options)  # type: ignore[arg-type]


@dataclass
class FakeHub:
    """Its models by name, and what was asked of it."""

    models: dict[str, Repository]
    downloads: list[str] = field(default_factory=list)  # names of files, one entry a GET
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path and Authorization
    bytes_sent: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            """Knows its hub."""

            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    owner: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.owner.requests.append((self.path, self.headers["Authorization"]))
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/(.+?)/revision/([^/]+)", path):
            name, revision = found.groups()
            if repository := self._repository(name, revision):
                self._send_info(name, repository)
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if repository := self._repository(name, revision):
                self._send_file(repository, file)
        else:
            self._refuse(404, None)

    def _repository(self, name: str, revision: str) -> Repository | None:
        repository = self.owner.models.get(name)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif repository.refusal is not None:
            self._refuse(*repository.refusal)
        elif repository.token is not None and self.headers["Authorization"] != f"Bearer {repository.token}":
            self._refuse(401, None if self.headers["Authorization"] else "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send_info(self, name: str, repository: Repository) -> None:
        siblings = [{"rfilename": file, "size": len(data)} for file, data in repository.files.items()]
        body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, repository: Repository, file: str) -> None:
        data = repository.files.get(file)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self.owner.downloads.append(file)
            self._send_data(repository, file, data[start:])

    def _send_data(self, repository: Repository, file: str, data: bytes) -> None:
        is_weights = file.endswith(".safetensors")
        if cut := is_weights and repository.cuts > 0:
            repository.cuts -= 1
            data = data[: len(data) // 2]
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            try:
                self.wfile.write(piece)
            except OSError:
                return
            self.owner.bytes_sent[file] = self.owner.bytes_sent.get(file, 0) + len(piece)
            if is_weights:
                time.sleep(len(piece) / repository.bytes_per_s)
        if cut:
            self.close_connection = True
            self.connection.close()
