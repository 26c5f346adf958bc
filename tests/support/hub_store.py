"""What the stand-in for the Hugging Face Hub keeps in memory: model repositories, as git and LFS describe them."""

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

MAIN = "refs/heads/main"
LFS_SUFFIXES = (".bin", ".onnx", ".pth", ".safetensors")
LFS_THRESHOLD = 10 * 2**20
SAMPLE_SIZE = 512  # bytes of a file that the client shows before it uploads
GIT_ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


class HubError(Exception):
    """An error answer. The client chooses its exception by `code`, or else by `status`."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


def needs_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether LFS stores a file: weights, large and binary ones; empty ones the client never uploads that way."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_THRESHOLD or b"\0" in sample)


def is_lfs(path: str, content: bytes) -> bool:
    return needs_lfs(path, len(content), content[:SAMPLE_SIZE])


def blob_id(content: bytes) -> str:
    """Git's."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs(path, content) else blob_id(content)


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it; `lfs` is there for LFS only, whose blob is a pointer."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_lfs(path, content):
        sha256 = etag(path, content)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
        entry["oid"] = blob_id(pointer)
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return entry


@dataclass(frozen=True)
class Commit:
    """`parent` is the id of the commit before, `files` the whole tree: path to content."""

    oid: str
    parent: str | None
    title: str
    description: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class PullRequest:
    """Its commits are below `refs/pr/<num>`."""

    num: int
    title: str
    description: str


class Repo:
    """A model repository. Tests read all of it, and set `private`, `gated` and `writable`.

    `gated`: nobody has been let in, so that no file can be downloaded. `writable`: the server's token may write.
    """

    def __init__(self, repo_id: str, private: bool = False) -> None:
        self.repo_id = repo_id
        self.private = private
        self.gated = False
        self.writable = True
        self.refs: dict[str, Commit] = {}
        self.commits: dict[str, Commit] = {}
        self.announced: set[str] = set()  # SHA-256 of what may be uploaded to LFS
        self.objects: dict[str, bytes] = {}  # what LFS stores, committed or not
        self.pull_requests: list[PullRequest] = []
        self.commit(MAIN, {".gitattributes": GIT_ATTRIBUTES}, "initial commit")

    @property
    def branches(self) -> dict[str, Commit]:
        return self.refs_below("refs/heads/")

    @property
    def tags(self) -> dict[str, Commit]:
        return self.refs_below("refs/tags/")

    def refs_below(self, prefix: str) -> dict[str, Commit]:
        return {ref.removeprefix(prefix): commit for ref, commit in self.refs.items() if ref.startswith(prefix)}

    def ref(self, revision: str) -> str:
        """The full name of what a commit can move: a branch or a pull request. Anything else is an error."""
        for ref in (f"refs/heads/{revision}", revision):
            if ref in self.refs:
                return ref
        raise HubError(HTTPStatus.NOT_FOUND, "Invalid rev id", "RevisionNotFound")

    def head(self, revision: str = "main") -> Commit:
        """Of a branch, a tag, a pull request (`refs/pr/1`) or a commit's id, which may be cut to seven characters."""
        named = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        return named[0] if named else self.tags.get(revision) or self.refs[self.ref(revision)]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return dict(self.head(revision).files)

    def commit(self, ref: str, files: Mapping[str, bytes], title: str, description: str = "") -> Commit:
        """Put a tree on top of a reference."""
        parent = self.refs[ref].oid if ref in self.refs else None
        blobs = sorted((path, blob_id(content)) for path, content in files.items())
        oid = hashlib.sha1(repr((len(self.commits), parent, title, blobs)).encode()).hexdigest()
        commit = Commit(oid, parent, title, description, files)
        self.commits[oid] = self.refs[ref] = commit
        return commit

    def add_ref(self, ref: str, head: Commit) -> None:
        if ref in self.refs:
            raise HubError(HTTPStatus.CONFLICT, "Reference already exists")
        self.refs[ref] = head

    def open_pull_request(self, title: str, description: str, base: Commit) -> str:
        """Returns the reference that belongs to it."""
        pull_request = PullRequest(len(self.pull_requests) + 1, title, description)
        self.pull_requests.append(pull_request)
        ref = f"refs/pr/{pull_request.num}"
        self.add_ref(ref, base)
        return ref


def changed(
    files: Mapping[str, bytes], operations: Iterable[Mapping[str, Any]], objects: Mapping[str, bytes]
) -> dict[str, bytes]:
    """A tree after the operations of a commit; `objects` are those of LFS."""
    files = dict(files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        path = value["path"]
        if kind == "file":
            files[path] = base64.b64decode(value["content"])
        elif kind == "lfsFile" and value["oid"] in objects:
            files[path] = objects[value["oid"]]
        elif kind == "lfsFile":
            raise HubError(HTTPStatus.BAD_REQUEST, "An LFS pointer points to a file that was not uploaded")
        elif kind == "deletedFile" and path in files:
            del files[path]
        else:
            raise HubError(HTTPStatus.NOT_FOUND, "A file with this name doesn't exist", "EntryNotFound")
    return files


class Hub:
    """The repositories, and the only token that is known."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.url = ""
        self.repos: dict[str, Repo] = {}
        self.others: dict[str, Mapping[str, bytes]] = {}  # what somebody else is about to commit

    def create_repo(self, repo_id: str, files: Mapping[str, bytes] | None = None, private: bool = False) -> Repo:
        """A repository with `files` on its main branch, nobody knows from where."""
        repo = self.repos[repo_id] = Repo(repo_id, private)
        if files:
            repo.commit(MAIN, repo.files() | dict(files), "files")
        return repo

    def move_on(self, repo_id: str, files: Mapping[str, bytes] | None = None) -> None:
        """Somebody else commits `files` to the main branch, just before the next commit to it arrives."""
        self.others[repo_id] = files or {"elsewhere.txt": b"by somebody else\n"}

    def let_others_commit(self, repo: Repo) -> None:
        if repo.repo_id in self.others:
            repo.commit(MAIN, repo.files() | dict(self.others.pop(repo.repo_id)), "by somebody else")
