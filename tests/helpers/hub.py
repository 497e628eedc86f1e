"""A small model hub on loopback: what huggingface_hub asks of the real one, with its headers, redirects and refusals.

Weights are redirected to another host name ("localhost"), as the real hub does with its CDN; other files to a path of
the same host. A repository is a list of commits; `main` and other branches name one. What was asked is in `log`.
"""

import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".bin", ".safetensors", ".onnx", ".png")
TOKEN = "hf_rehearsal"


@dataclasses.dataclass
class Request:
    """One request as the hub saw it, and the status it answered."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None
    status: int


@dataclasses.dataclass
class Repository:
    """Commits by id, each with its files, and the branches that name them."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False


class Hub(ThreadingHTTPServer):
    """Repositories by name, a log of all requests, and faults that each happen once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # by SHA-256: what was redirected to, and what was uploaded
        self.log: list[Request] = []
        self.cut: set[str] = set()  # file names of which the connection is cut in the middle, once each
        self.busy: set[str] = set()  # names of files and repositories that get 429 and Retry-After, once each
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"

    def handle_error(self, request, client_address) -> None:
        """Say nothing of clients that hang up."""

    def add(self, name: str, files: dict[str, bytes] | Path, branch: str = "main", gated: bool = False) -> str:
        """Put files (a dict, or a folder's) on a branch of a repository as a new commit; return the commit's id."""
        if isinstance(files, Path):
            folder = files
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        text = json.dumps([name, branch, {path: hashlib.sha1(data).hexdigest() for path, data in files.items()}])
        commit = hashlib.sha1(text.encode()).hexdigest()
        repository = self.repositories.setdefault(name, Repository({}, {}, gated))
        repository.commits[commit] = files
        repository.branches[branch] = commit
        self.objects |= {hashlib.sha256(data).hexdigest(): data for path, data in files.items() if path.endswith(LFS)}
        return commit

    def asked(self, text: str, method: str | None = None) -> list[Request]:
        """Return the requests whose path holds `text`."""
        return [request for request in list(self.log) if text in request.path and method in (None, request.method)]


class RefusedError(Exception):
    """A status, the hub's error code and message."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message} | headers


class Handler(BaseHTTPRequestHandler):
    """The hub's routes."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        """Keep quiet; `Hub.log` has it."""

    def do_GET(self) -> None:
        self._answer(self._get)

    do_HEAD = do_GET

    # 1. What every route shares
    def _answer(self, route) -> None:
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            route(unquote(url.path).strip("/"))
        except RefusedError as refused:
            self._send(refused.status, json.dumps({"error": str(refused)}).encode(), **refused.headers)

    def _send(self, status: int, content: bytes = b"", *, cut: bool = False, **headers: str) -> None:
        fields = (self.command, self.path, self.headers.get("Host", ""), self.headers.get("Range"), self.token, status)
        self.server.log.append(Request(*fields))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) * 9 // 10] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def _json(self, value: object, **headers: str) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _repository(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None:  # the hub tells strangers nothing about what there is
            message = "Repository not found" if self.token else "Invalid username or password."
            raise RefusedError(404 if self.token else 401, "RepoNotFound", message)
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        found = repository.branches.get(revision, revision)
        if found not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _refuse_once(self, name: str) -> None:
        if name in self.server.busy:
            self.server.busy.remove(name)
            raise RefusedError(429, "", "Too many requests", **{"Retry-After": "0"})

    def _open(self, repository: Repository, name: str) -> None:
        if repository.gated:
            status, what = (403, "not in the authorized list") if self.token else (401, "restricted")
            raise RefusedError(status, "GatedRepo", f"Access to model {name} is {what}. Ask for access.")

    # 2. Reading
    def _get(self, path: str) -> None:
        words = path.split("/")
        if words[0] == "cdn":
            return self._file(self.server.objects[words[1]], words[2])
        if words[:2] == ["api", "whoami-v2"]:
            if self.token != TOKEN:
                raise RefusedError(401, "", "Invalid credentials in Authorization header")
            return self._json({"type": "user", "name": "rehearsal", "orgs": []})
        if words[:3] == ["api", "resolve-cache", "models"]:
            name, commit, file = "/".join(words[3:5]), words[5], "/".join(words[6:])
            return self._file(self.server.repositories[name].commits[commit][file], file, X_Repo_Commit=commit)
        if words[:2] == ["api", "models"]:
            return self._api("/".join(words[2:4]), words[4:])
        if words[2:3] == ["resolve"]:
            return self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        raise RefusedError(404, "", f"no such page: {path}")

    def _api(self, name: str, words: list[str]) -> None:
        repository = self._repository(name)
        if words[:1] == ["discussions"]:
            raise RefusedError(403, "", "Discussions are disabled for this repo")
        revision = words[1] if len(words) > 1 else "main"
        if words[:1] == ["refs"]:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            return self._json({"branches": branches, "converts": [], "tags": []})
        commit = self._commit(repository, revision)
        files = repository.commits[commit]
        if words[:1] == ["tree"]:
            self._open(repository, name)
            folder = "".join(f"{word}/" for word in words[2:])
            inside = {path: data for path, data in files.items() if path.startswith(folder)}
            if folder and not inside:
                raise RefusedError(404, "EntryNotFound", f"{folder} does not exist on {revision}")
            return self._json([self._entry(path, data) for path, data in inside.items()], X_Repo_Commit=commit)
        if words[:1] not in ([], ["revision"]):
            raise RefusedError(404, "", "no such page")
        self._refuse_once(name)
        siblings = [{"rfilename": path} for path in files]
        about = {"_id": commit[:24], "id": name, "modelId": name, "sha": commit, "private": False}
        about |= {"gated": "auto" if repository.gated else False, "siblings": siblings, "tags": [], "disabled": False}
        return self._json(about)

    def _entry(self, path: str, data: bytes) -> dict:
        entry = {"type": "file", "oid": git_blob(data), "size": len(data), "path": path}
        if path.endswith(LFS):
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        self._open(repository, name)
        data = repository.commits[commit].get(file)
        if data is None:
            raise RefusedError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        self._refuse_once(file)
        if file.endswith(LFS):
            sha = hashlib.sha256(data).hexdigest()
            headers = {"X_Repo_Commit": commit, "X_Linked_Etag": f'"{sha}"', "X_Linked_Size": str(len(data))}
            place = f"{self.server.cdn}/cdn/{sha}/{Path(file).name}?Signature=signed"
            return self._send(302, Location=place, ETag=f'"{git_blob(data)}"', **headers)
        place = f"/api/resolve-cache/models/{name}/{commit}/{file}"
        return self._send(307, Location=place, X_Repo_Commit=commit, X_Linked_Size=str(len(data)))

    def _file(self, data: bytes, name: str, **headers: str) -> None:
        headers |= {"ETag": f'"{git_blob(data)}"', "Accept_Ranges": "bytes"}
        cut = name in self.server.cut and self.command == "GET"
        if cut:
            self.server.cut.remove(name)
        if (start := self.headers.get("Range")) is None:
            return self._send(200, data, cut=cut, **headers)
        first = int(start.removeprefix("bytes=").split("-")[0])
        headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        return self._send(206, data[first:], cut=cut, **headers)


def git_blob(data: bytes) -> str:
    """Return git's id of a file's content, which the hub uses as ETag of small files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub in a thread until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
