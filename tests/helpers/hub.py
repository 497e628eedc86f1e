"""A small model hub on loopback: what huggingface_hub asks of the real one, with its headers and refusals."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}  # of a repository: id -> files
        self.branches: dict[str, dict[str, str]] = {}  # of a repository: name -> id
        self.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_) -> None:
        """Print nothing about clients that hang up."""

    def add(self, name: str, folder: Path, branch: str = "main") -> str:
        """Put a folder's files on a branch as a new commit; return the commit's id."""
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        commit = hashlib.sha1(json.dumps([name, branch, *map(git_blob, files.values())]).encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.branches.setdefault(name, {})[branch] = commit
        return commit


class RefusedError(Exception):
    """A status and the hub's error code."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    log_message = Hub.handle_error

    def do_GET(self) -> None:
        try:
            self._get(unquote(urlsplit(self.path).path).strip("/"))
        except RefusedError as refused:
            status, code = refused.args
            self._send(status, b"{}", X_Error_Code=code, X_Error_Message=code)

    do_HEAD = do_GET

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _find(self, name: str, revision: str, gate: bool) -> tuple[str, dict[str, bytes]]:
        token = "Authorization" in self.headers
        if name not in self.server.commits:  # the hub does not tell strangers whether a repository exists
            raise RefusedError(404 if token else 401, "RepoNotFound")
        commit = self.server.branches[name].get(revision, revision)
        if commit not in self.server.commits[name]:
            raise RefusedError(404, "RevisionNotFound")
        if gate and "gated" in name:
            raise RefusedError(403 if token else 401, "GatedRepo")
        return commit, self.server.commits[name][commit]

    def _get(self, path: str) -> None:
        match path.split("/"):
            case ["api", "models", owner, name, "tree", revision, *_]:
                _, files = self._find(f"{owner}/{name}", revision, gate=True)
                entries = [(path, {"oid": git_blob(data), "size": len(data)}) for path, data in files.items()]
                answer = [{"type": "file", "path": path} | entry for path, entry in entries]
            case ["api", "models", owner, name, *rest]:
                commit, files = self._find(f"{owner}/{name}", rest[1] if rest else "main", gate=False)
                answer = {"_id": "0", "id": f"{owner}/{name}", "sha": commit, "siblings": [], "tags": []}
            case [owner, name, "resolve", revision, *file]:
                return self._file("/".join(file), *self._find(f"{owner}/{name}", revision, gate=True))
            case _:
                raise RefusedError(404, "")
        return self._send(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _file(self, path: str, commit: str, files: dict[str, bytes]) -> None:
        if path not in files:
            raise RefusedError(404, "EntryNotFound")
        etag = f'"{git_blob(files[path])}"'
        return self._send(200, files[path], ETag=etag, X_Repo_Commit=commit)


def git_blob(data: bytes) -> str:
    """Return git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub in a thread until the block ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()
