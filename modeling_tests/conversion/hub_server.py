"""A small local Hub: the part of the HTTP API that huggingface_hub and transformers use for models.

It keeps repositories in memory: branches of commits, a commit being a table of files. Large files come by the LFS
protocol, all others inside the commits, as on the Hub. It binds a free port of the loopback address.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

USER, TOKEN = "someone", "hf_of_the_test"
LFS_ENDINGS = (".safetensors", ".bin")


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class RefusedError(Exception):
    """A response with a status other than 200."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub:` serves at `hub.endpoint`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.uploads: list[str] = []  # hashes of large files, in order of upload
        self.uploads_to_break_off = 0
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Do not log requests."""

    def do(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command != "GET" else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        with self.server.lock:
            self.server.requests.append((self.command, path))
            try:
                for method, pattern, answer in ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        return answer(self, body, *match.groups())
                raise RefusedError(404, "", f"no route for {self.command} {path}")
            except RefusedError as refused:
                self.send(refused.status, {"error": str(refused)}, refused.headers)
        return None

    do_GET = do_POST = do_PUT = do_HEAD = do  # noqa: N815 (http.server's names)

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def check_write(self, repo: str) -> None:
        if not self.is_known:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if repo.split("/")[0] != USER:
            raise RefusedError(403, "", "You may not write there")

    def repository(self, repo: str, write: bool = False) -> Repository:
        if write:
            self.check_write(repo)
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self.is_known):
            raise RefusedError(404 if self.is_known else 401, "RepoNotFound", "Repository not found")
        return found

    def revision(self, repo: str, revision: str, write: bool = False) -> tuple[Repository, str]:
        repository = self.repository(repo, write)
        commit = repository.commit_of(revision)
        if commit is None:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        self.check_write(repo)
        url = {"url": f"{self.server.endpoint}/{repo}"}
        if repo in self.server.repositories:
            return self.send(409, {**url, "error": "You already created this model repo"})
        private = bool(asked.get("private") or asked.get("visibility") == "private")
        self.server.repositories[repo] = Repository(private)
        return self.send(200, url)

    def who_am_i(self, body: bytes) -> None:
        if not self.is_known:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        self.send(200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})

    def info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        repository, commit = self.revision(repo, revision or "main")
        files = repository.commits[commit]
        self.send(
            200,
            {
                "id": repo,
                "sha": commit,
                "private": repository.private,
                "tags": [],
                "siblings": [{"rfilename": name} for name in sorted(files)],
            },
        )

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        repository, commit = self.revision(repo, revision)
        prefix = f"{folder}/" if folder else ""
        files = {name: content for name, content in repository.commits[commit].items() if name.startswith(prefix)}
        if folder and not files:
            raise RefusedError(404, "EntryNotFound", f"{folder} does not exist")
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
            for name, content in sorted(files.items())
        ]
        self.send(200, entries)

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        repository = self.repository(repo, write=True)
        if branch in repository.branches:
            raise RefusedError(409, "", "Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.send(200, {})

    def validate_card(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.send(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        repository, commit = self.revision(repo, revision, write=True)
        answer = []
        for file in json.loads(body)["files"]:
            there = repository.commits[commit].get(file["path"])
            large = file["path"].endswith(LFS_ENDINGS)
            answer.append({"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False})
            if there is not None:
                answer[-1]["oid"] = hashlib.sha256(there).hexdigest() if large else git_hash(there)
        self.send(200, {"files": answer})

    def batch(self, body: bytes, repo: str) -> None:
        self.repository(repo, write=True)
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.large_files:
                wanted["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{wanted['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    def put_large_file(self, body: bytes, oid: str) -> None:
        if self.server.uploads_to_break_off:
            self.server.uploads_to_break_off -= 1
            raise RefusedError(400, "", "broken off")
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "", "the content is not what was announced")
        self.server.uploads.append(oid)
        self.server.large_files[oid] = body
        self.send(200, {})

    def commit(self, body: bytes, repo: str, branch: str) -> None:
        repository, parent = self.revision(repo, branch, write=True)
        files = dict(repository.commits[parent])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            else:
                raise RefusedError(400, "", f"unknown operation {entry['key']}")
        commit = hashlib.sha1(parent.encode() + body).hexdigest()
        repository.commits[commit] = files
        repository.branches[branch] = commit
        self.send(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}"}
        )

    def download(self, body: bytes, repo: str, revision: str, name: str) -> None:
        repository, commit = self.revision(repo, revision)
        headers = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(name)
        if content is None:
            raise RefusedError(404, "EntryNotFound", f"{name} does not exist")
        self.send(200, content, {**headers, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})


MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", Handler.create),
    ("GET", r"/api/whoami-v2", Handler.who_am_i),
    ("POST", r"/api/validate-yaml", Handler.validate_card),
    ("GET", MODEL, Handler.info),
    ("GET", MODEL + r"/revision/(.+)", Handler.info),
    ("GET", MODEL + r"/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("POST", MODEL + r"/branch/(.+)", Handler.branch),
    ("POST", MODEL + r"/preupload/(.+)", Handler.preupload),
    ("POST", MODEL + r"/commit/(.+)", Handler.commit),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.put_large_file),
    ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.download),
]
