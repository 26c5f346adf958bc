"""What the stand-in for the Hugging Face Hub answers to each request that `huggingface_hub` makes for a model.

Written from what the client sends and reads; it is not the Hub. There are no datasets and no spaces, no Xet, no uploads
in parts, no redirects to a CDN, no pages and no opinion on a card's metadata. A request that is not known is answered
with 501, which the client does not repeat.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_store import Hub, HubError, Repo, changed, etag, is_lfs, needs_lfs, tree_entry

USER = "tester"
DATE = "2026-01-01T00:00:00.000Z"

Handler = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


@dataclass(frozen=True)
class Answer:
    """What goes back over the wire."""

    body: bytes = b""
    status: int = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_error(cls, error: HubError) -> "Answer":
        return cls(json.dumps({"error": str(error)}).encode(), error.status, error.headers)


@dataclass(frozen=True)
class Request:
    """A request that arrived in full; `path` is still quoted."""

    hub: Hub
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def answer(self) -> Answer:
        method = "GET" if self.method == "HEAD" else self.method
        for route_method, pattern, handler in ROUTES:
            if route_method == method and (match := pattern.fullmatch(self.path)):
                try:
                    result = handler(self, **{name: unquote(text) for name, text in match.groupdict().items()})
                except HubError as error:
                    return Answer.of_error(error)
                return result if isinstance(result, Answer) else Answer(json.dumps(result).encode())
        message = f"The stand-in for the Hub does not know {method} {self.path}"
        return Answer.of_error(HubError(HTTPStatus.NOT_IMPLEMENTED, message))

    @property
    def opens_pull_request(self) -> bool:
        return "create_pr" in self.query

    def has_token(self) -> bool:
        """A wrong one is an error everywhere, public repositories included."""
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {self.hub.token}"):
            raise HubError(HTTPStatus.UNAUTHORIZED, "Invalid credentials in Authorization header")
        return sent is not None

    def require_token(self, code: str = "") -> None:
        if not self.has_token():
            raise HubError(HTTPStatus.UNAUTHORIZED, "Invalid username or password.", code)

    def readable(self, repo_id: str) -> Repo:
        """Strangers are not told whether a private repository exists."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private:
            # Without this code the client takes such a 401 for a missing repository too, but over https only.
            self.require_token("RepoNotFound")
        if repo is None:
            raise HubError(HTTPStatus.NOT_FOUND, "Repository not found", "RepoNotFound")
        self.has_token()
        return repo

    def writable(self, repo_id: str, revision: str = "main") -> Repo:
        """For a pull request it is enough that the repository can be read."""
        repo = self.readable(repo_id)
        self.require_token("RepoNotFound")
        if not (repo.writable or self.opens_pull_request or revision.startswith("refs/pr/")):
            raise HubError(HTTPStatus.FORBIDDEN, "pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """`{repo}` is one or two segments, `{path}` any number of them, any other `{name}` one. They become arguments."""
    segments = {"repo": "[^/]+(?:/[^/]+)?", "path": ".+"}
    texts = re.split(r"{(\w+)}", path)  # text, name, text, name, ..., text
    groups = [f"(?P<{name}>{segments.get(name, '[^/]+')})" for name in texts[1::2]]
    literals = [re.escape(text) for text in texts[::2]]
    pattern = re.compile("".join(literal + group for literal, group in zip(literals, [*groups, ""], strict=True)))

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, pattern, handler))
        return handler

    return register


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> dict[str, Any]:
    request.require_token()
    return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}}


@route("POST", "/api/validate-yaml")
def validate_card(request: Request) -> dict[str, Any]:
    return {"errors": [], "warnings": []}


@route("POST", "/api/repos/create")
def create_repo(request: Request) -> Answer:
    request.require_token()
    repo_id = named_repo(request.json)
    body = {"url": f"{request.hub.url}/{repo_id}", "name": repo_id}
    if repo_id in request.hub.repos:  # the client reads the address here too when it may exist
        body["error"] = "You already created this model repo"
        return Answer(json.dumps(body).encode(), HTTPStatus.CONFLICT)
    request.hub.create_repo(repo_id, private=request.json.get("visibility") == "private")
    return Answer(json.dumps(body).encode())


def named_repo(payload: Mapping[str, Any]) -> str:
    if payload.get("type", "model") != "model":
        raise HubError(HTTPStatus.NOT_IMPLEMENTED, "The stand-in for the Hub has models only")
    return f"{payload.get('organization') or USER}/{payload['name']}"


@route("GET", "/api/models/{repo}/tree/{revision}")
@route("GET", "/api/models/{repo}/tree/{revision}/{path}")
def list_tree(request: Request, repo: str, revision: str, path: str = "") -> list[dict[str, Any]]:
    prefix = f"{path}/" if path else ""
    all_files = request.readable(repo).files(revision)
    files = {name: content for name, content in all_files.items() if name.startswith(prefix)}
    if path and not files:
        raise HubError(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound")
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    inside = (name for name in folders if name.startswith(prefix))
    entries = {name: {"type": "directory", "path": name, "oid": ""} for name in inside}
    entries |= {name: tree_entry(name, content) for name, content in files.items()}
    recursive = request.query.get("recursive") == ["true"]
    return [entry for name, entry in entries.items() if recursive or "/" not in name.removeprefix(prefix)]


@route("POST", "/api/models/{repo}/paths-info/{revision}")
def paths_info(request: Request, repo: str, revision: str) -> list[dict[str, Any]]:
    files = request.readable(repo).files(revision)
    return [tree_entry(path, files[path]) for path in parse_qs(request.body.decode())["paths"] if path in files]


@route("GET", "/api/models/{repo}/refs")
def list_refs(request: Request, repo: str) -> dict[str, Any]:
    stored = request.readable(repo)

    def listed(prefix: str) -> list[dict[str, str]]:
        heads = stored.refs_below(prefix).items()
        return [{"name": name, "ref": prefix + name, "targetCommit": head.oid} for name, head in heads]

    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    return {"converts": []} | {kind: listed(prefix) for kind, prefix in kinds.items()}


@route("POST", "/api/models/{repo}/tag/{revision}")
def create_tag(request: Request, repo: str, revision: str) -> dict[str, Any]:
    stored = request.writable(repo)
    stored.add_ref(f"refs/tags/{request.json['tag']}", stored.head(revision))
    return {}


@route("GET", "/api/models/{repo}/discussions")
def list_discussions(request: Request, repo: str) -> dict[str, Any]:
    same = {"status": "open", "isPullRequest": True, "createdAt": DATE, "author": {"name": USER}}
    same["repo"] = {"name": repo, "type": "model"}
    opened = request.readable(repo).pull_requests
    listed = [{"num": pull_request.num, "title": pull_request.title, **same} for pull_request in opened]
    return {"count": len(listed), "start": 0, "discussions": listed}


@route("GET", "/api/models/{repo}/revision/{revision}")
@route("GET", "/api/models/{repo}")
def model_info(request: Request, repo: str, revision: str = "main") -> dict[str, Any]:
    stored = request.readable(repo)
    head = stored.head(revision)
    siblings = []
    for entry in (tree_entry(path, content) for path, content in sorted(head.files.items())):
        lfs = entry.get("lfs") and {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
        siblings.append({"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], "lfs": lfs})
    return {
        "id": repo,
        "author": repo.split("/")[0],
        "sha": head.oid,
        "private": stored.private,
        "gated": "manual" if stored.gated else False,
        "lastModified": DATE,
        "tags": [],
        "siblings": siblings,
    }


@route("POST", "/api/models/{repo}/preupload/{revision}")
def preupload(request: Request, repo: str, revision: str) -> dict[str, Any]:
    """`oid` tells the client what is there already, so that it commits only what has changed."""
    known = request.writable(repo, revision).files(revision)
    files = []
    for shown in request.json["files"]:
        path = shown["path"]
        mode = "lfs" if needs_lfs(path, shown["size"], base64.b64decode(shown["sample"])) else "regular"
        oid = etag(path, known[path]) if path in known else None
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": files}


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def announce_objects(request: Request, repo: str) -> dict[str, Any]:
    # The client leaves the branch out when it opens a pull request.
    stored = request.writable(repo, request.json.get("ref", {"name": "refs/pr/"})["name"])
    objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in request.json["objects"]]
    for answered in objects:
        oid = answered["oid"]
        if oid not in stored.objects:
            stored.announced.add(oid)
            upload = {"href": f"{request.hub.url}/lfs/{repo}/{oid}"}
            verify = {"href": f"{request.hub.url}/{repo}.git/info/lfs/objects/verify"}
            answered["actions"] = {"upload": upload, "verify": verify}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs/{repo}/{oid}")
def upload_object(request: Request, repo: str, oid: str) -> dict[str, Any]:
    """Comes without a token: on the Hub the address is signed, here it is announced."""
    stored = request.hub.repos.get(repo)
    if stored is None or oid not in stored.announced:
        raise HubError(HTTPStatus.FORBIDDEN, "The upload was not announced")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise HubError(HTTPStatus.BAD_REQUEST, "The content does not have the announced SHA-256")
    stored.objects[oid] = request.body
    return {}


@route("POST", "/{repo}.git/info/lfs/objects/verify")
def verify_object(request: Request, repo: str) -> dict[str, Any]:
    content = request.readable(repo).objects.get(request.json["oid"])
    if content is None or len(content) != request.json["size"]:
        raise HubError(HTTPStatus.NOT_FOUND, "Object not found")
    return {}


@route("POST", "/api/models/{repo}/commit/{revision}")
def create_commit(request: Request, repo: str, revision: str) -> dict[str, Any]:
    stored = request.writable(repo, revision)
    request.hub.let_others_commit(stored)

    header, *operations = (json.loads(line) for line in request.body.splitlines())
    title, description = header["value"]["summary"], header["value"]["description"]
    head = stored.head(revision)
    parent = stored.head(header["value"].get("parentCommit", head.oid))
    if parent != head and not request.opens_pull_request:
        message = "A commit has happened since. Please refresh and try again."
        raise HubError(HTTPStatus.PRECONDITION_FAILED, message)
    files = changed(parent.files, operations, stored.objects)
    ref = stored.open_pull_request(title, description, parent) if request.opens_pull_request else stored.ref(revision)
    commit = stored.commit(ref, files, title, description)
    return {
        "success": True,
        "commitOid": commit.oid,
        "commitUrl": f"{request.hub.url}/{repo}/commit/{commit.oid}",
        "pullRequestUrl": f"{request.hub.url}/{repo}/discussions/{len(stored.pull_requests)}",
    }


@route("GET", "/{repo}/resolve/{revision}/{path}")
def resolve(request: Request, repo: str, revision: str, path: str) -> Answer:
    stored = request.readable(repo)
    if stored.gated:
        status = HTTPStatus.FORBIDDEN if request.has_token() else HTTPStatus.UNAUTHORIZED
        raise HubError(status, f"Access to model {repo} is restricted", "GatedRepo")
    head = stored.head(revision)
    headers = {"X-Repo-Commit": head.oid, "Accept-Ranges": "bytes"}
    if path not in head.files:
        raise HubError(HTTPStatus.NOT_FOUND, "Entry not found", "EntryNotFound", headers)
    content = head.files[path]
    headers["ETag"] = f'"{etag(path, content)}"'
    if is_lfs(path, content):
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
    wanted = request.headers.get("Range")
    return part(content, wanted, headers) if wanted else Answer(content, headers=headers)


def part(content: bytes, wanted: str, headers: Mapping[str, str]) -> Answer:
    """`wanted` is a Range header: `bytes=3-`, `bytes=3-7`."""
    first, last = wanted.removeprefix("bytes=").split("-")
    start, stop = int(first), min(int(last or len(content)) + 1, len(content))
    if start >= len(content):
        length = {"Content-Range": f"bytes */{len(content)}"}
        raise HubError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "Range not satisfiable", headers=length)
    located = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
    return Answer(content[start:stop], HTTPStatus.PARTIAL_CONTENT, located)
