"""The stand-in for the Hub as the real client meets it, and as bare requests do."""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import huggingface_hub
import pytest
from hub_server import TOKEN, HubServer
from hub_store import GIT_ATTRIBUTES, LFS_THRESHOLD
from huggingface_hub import CommitOperationAdd, HfApi

REPO = "me/model"
CONFIG = b'{"model_type": "pvt_v2"}\n'
WEIGHTS = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
CARD = b"---\nlicense: mit\n---\n# A card\n"
FILES = {"README.md": CARD, "config.json": CONFIG, "model.safetensors": WEIGHTS, "nested/notes.txt": b"notes\n"}


@pytest.fixture
def client(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., HfApi]]:
    """Makes a client of `hub` for a token; with a cache of its own, without proxies, Xet and pauses."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in os.environ:
        if name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    huggingface_hub.close_session()  # one that knows of proxies
    yield lambda token=TOKEN: HfApi(endpoint=hub.url, token=token)
    huggingface_hub.close_session()


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The exception's name and the answer's status."""
    try:
        call(*arguments, **options)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", "")
        return f"{type(error).__name__} {status}".strip()
    return "done"


def read_files(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_round_trip(hub: HubServer, client: Callable[..., HfApi], tmp_path: Path) -> None:
    """What is pushed comes back; a second push sends nothing; a tag and a commit keep what they had."""
    for name, content in FILES.items():
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    api = client()
    assert api.whoami()["name"] == "tester"
    assert [outcome(api.create_repo, REPO) for _ in range(2)] == ["done", "HfHubHTTPError 409"]
    assert outcome(api.create_repo, REPO, exist_ok=True) == "done"
    first = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "model")
    again = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "model")
    assert again.oid == first.oid and hub.count("PUT", "/lfs/*") == 1 and hub.count("POST", "*/commit/main") == 1
    api.create_tag(REPO, tag="v1")
    assert outcome(api.create_tag, REPO, tag="v1") == "HfHubHTTPError 409"
    assert outcome(api.create_tag, REPO, tag="v1", exist_ok=True) == "done"
    second = api.upload_file(repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="config.json", parent_commit=first.oid)

    repo, files = hub.repos[REPO], {**FILES, "config.json": b"{}", ".gitattributes": GIT_ATTRIBUTES}
    assert repo.files() == read_files(api.snapshot_download(REPO)) == files
    assert {tag: commit.oid for tag, commit in repo.tags.items()} == {"v1": first.oid}
    assert {branch: commit.oid for branch, commit in repo.branches.items()} == {"main": second.oid}
    for revision in ("v1", first.oid):
        assert Path(api.hf_hub_download(REPO, "config.json", revision=revision)).read_bytes() == CONFIG, revision
    assert [commit.title for commit in repo.commits.values()] == [
        "initial commit",
        "Upload folder using huggingface_hub",
        "Upload config.json with huggingface_hub",
    ]

    assert sorted(api.list_repo_files(REPO)) == [".gitattributes", *sorted(FILES)]
    top = [".gitattributes", "README.md", "config.json", "model.safetensors", "nested"]
    assert sorted(entry.path for entry in api.list_repo_tree(REPO)) == top
    assert [entry.path for entry in api.list_repo_tree(REPO, "nested")] == ["nested/notes.txt"]
    assert outcome(lambda: list(api.list_repo_tree(REPO, "nowhere"))) == "RemoteEntryNotFoundError 404"
    sizes = {entry.path: entry.size for entry in api.get_paths_info(REPO, ["config.json", "model.safetensors"])}
    assert sizes == {"config.json": 2, "model.safetensors": len(WEIGHTS)}
    siblings = api.model_info(REPO, files_metadata=True).siblings
    assert {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs} == {"model.safetensors": SHA256}
    assert ("POST", "/api/repos/create") in hub.log and TOKEN not in repr(hub.log)
    assert outcome(api.delete_repo, REPO) == "HfHubHTTPError 501"  # what it does not know


def test_a_pull_request_leaves_main_alone(hub: HubServer, client: Callable[..., HfApi]) -> None:
    repo = hub.create_repo("somebody/model", {"config.json": CONFIG})
    repo.writable = False
    before, api = repo.files(), client()
    weights = CommitOperationAdd("model.safetensors", WEIGHTS)
    opened = api.create_commit(repo.repo_id, [weights], commit_message="Add weights", create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    upload: dict[str, Any] = {"repo_id": repo.repo_id, "path_or_fileobj": b"more", "path_in_repo": "more.txt"}
    api.upload_file(**upload, revision=opened.pr_revision)
    assert outcome(api.upload_file, **upload) == "HfHubHTTPError 403"
    listed = [(found.num, found.title) for found in api.get_repo_discussions(repo.repo_id)]
    assert listed == [(1, "Add weights")]
    refs = api.list_repo_refs(repo.repo_id, include_pull_requests=True).pull_requests
    assert [ref.ref for ref in refs] == ["refs/pr/1"]
    downloaded = api.hf_hub_download(repo.repo_id, "model.safetensors", revision="refs/pr/1")
    assert Path(downloaded).read_bytes() == WEIGHTS
    assert repo.files() == before
    assert repo.files("refs/pr/1") == {**before, "model.safetensors": WEIGHTS, "more.txt": b"more"}


def test_the_client_sees_the_errors_of_the_hub(hub: HubServer, client: Callable[..., HfApi]) -> None:
    hub.create_repo("me/private", {"config.json": CONFIG}, private=True)
    hub.create_repo("me/gated", {"config.json": CONFIG}).gated = True
    repo = hub.create_repo(REPO, {"config.json": CONFIG})
    before = repo.files()
    owner, stranger, impostor = client(), client(False), client("hf_wrong")
    upload = {"path_or_fileobj": b"1", "path_in_repo": "a.txt"}
    assert {
        "private": [outcome(api.snapshot_download, "me/private") for api in (stranger, impostor, owner)],
        "write": [outcome(api.upload_file, repo_id=REPO, **upload) for api in (stranger, impostor)],
        "create": [outcome(api.create_repo, "me/new") for api in (stranger, impostor)],
        "public": [outcome(api.hf_hub_download, REPO, "config.json") for api in (impostor, stranger)],
        "gated": [outcome(api.hf_hub_download, "me/gated", "config.json") for api in (stranger, owner)],
        "missing": [outcome(api.model_info, "me/missing") for api in (stranger, owner)],
        "revision": [outcome(owner.hf_hub_download, REPO, "config.json", revision="v9")],
        "file": [outcome(owner.hf_hub_download, REPO, "nothing.txt")],
    } == {
        "private": ["RepositoryNotFoundError 401", "HfHubHTTPError 401", "done"],
        "write": ["RepositoryNotFoundError 401", "HfHubHTTPError 401"],
        "create": ["HfHubHTTPError 401", "HfHubHTTPError 401"],
        "public": ["HfHubHTTPError 401", "done"],
        "gated": ["GatedRepoError 401", "GatedRepoError 403"],
        "missing": ["RepositoryNotFoundError 401", "RepositoryNotFoundError 404"],
        "revision": ["RevisionNotFoundError 404"],
        "file": ["RemoteEntryNotFoundError 404"],
    }
    assert repo.files() == before


def test_a_commit_of_somebody_else_makes_the_parent_stale(hub: HubServer, client: Callable[..., HfApi]) -> None:
    repo, api = hub.create_repo(REPO, {"config.json": CONFIG}), client()
    hub.move_on(REPO, {"theirs.txt": b"theirs"})
    outcomes = []
    for _ in range(2):
        upload = {"path_or_fileobj": b"{}", "path_in_repo": "config.json", "parent_commit": api.model_info(REPO).sha}
        outcomes.append(outcome(api.upload_file, repo_id=REPO, **upload))
    assert outcomes == ["HfHubHTTPError 412", "done"]
    titles = [commit.title for commit in repo.commits.values()]
    assert titles == ["initial commit", "files", "by somebody else", "Upload config.json with huggingface_hub"]
    assert repo.files() == {".gitattributes": GIT_ATTRIBUTES, "theirs.txt": b"theirs", "config.json": b"{}"}


def test_faults_end(hub: HubServer, client: Callable[..., HfApi]) -> None:
    """Uploads are repeated by the client, commits by the next run, and a cut download goes on where it was."""
    api = client()
    names = ("failed", "dropped", "unheard")
    for name in names:
        hub.create_repo(f"me/{name}")
    for kind, of_kind in (("PUT", "/lfs/me/{}/*"), ("POST", "*/{}/commit/*")):
        hub.fail(kind, of_kind.format("failed"))
        hub.drop(kind, of_kind.format("dropped"), after_bytes=20)
        hub.lose_answer(kind, of_kind.format("unheard"))

    def commit(name: str) -> str:
        weights = CommitOperationAdd("model.safetensors", WEIGHTS)
        return outcome(api.create_commit, f"me/{name}", [weights], commit_message="Add weights")

    assert {name: (commit(name), commit(name)) for name in names} == {
        "failed": ("HfHubHTTPError 503", "done"),
        "dropped": ("ReadError", "done"),
        "unheard": ("RemoteProtocolError", "done"),
    }
    for name, commits in {"failed": 2, "dropped": 2, "unheard": 1}.items():
        assert hub.count("POST", f"*/{name}/commit/*") == commits, name
        assert hub.count("PUT", f"/lfs/me/{name}/*") == 2, name  # what LFS has is not uploaded again
        titles = [commit.title for commit in hub.repos[f"me/{name}"].commits.values()]
        assert titles == ["initial commit", "Add weights"], name

    hub.drop("GET", "*/model.safetensors", after_bytes=200_000, times=2)
    hub.fail("HEAD", "*/model.safetensors", status=429, headers={"Retry-After": "0"})
    assert Path(api.hf_hub_download("me/failed", "model.safetensors")).read_bytes() == WEIGHTS
    assert (hub.count("HEAD", "*/model.safetensors"), hub.count("GET", "*/model.safetensors")) == (2, 3)


def ask(hub: HubServer, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    """Status, headers and body, without the client."""
    request = Request(hub.url + path, body, {"Authorization": f"Bearer {TOKEN}", **headers}, method=method)
    try:
        with build_opener(ProxyHandler({})).open(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_headers_and_parts_of_a_file(hub: HubServer) -> None:
    head, path = hub.create_repo(REPO, FILES).head(), f"/{REPO}/resolve/main/config.json"
    status, headers, body = ask(hub, "HEAD", path)
    assert (status, body) == (200, b"")
    assert (headers["X-Repo-Commit"], headers["Content-Length"]) == (head.oid, str(len(CONFIG)))
    blob = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert headers["ETag"] == f'"{blob}"' and "X-Linked-Etag" not in headers

    _, headers, _ = ask(hub, "HEAD", f"/{REPO}/resolve/main/model.safetensors")
    assert headers["X-Linked-Etag"] == headers["ETag"] == f'"{SHA256}"'
    assert headers["X-Linked-Size"] == headers["Content-Length"] == str(len(WEIGHTS))

    length = len(CONFIG)
    for wanted, start, stop in (("3-7", 3, 8), ("20-", 20, length), ("9-999", 9, length)):
        status, headers, body = ask(hub, "GET", path, Range=f"bytes={wanted}")
        assert (status, body) == (206, CONFIG[start:stop]), wanted
        assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{length}", wanted
    status, headers, _ = ask(hub, "GET", path, Range=f"bytes={length}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{length}")


def test_lfs(hub: HubServer) -> None:
    """Weights, large and binary files go by it; it takes what was announced, and a commit takes what it has."""
    repo = hub.create_repo(REPO)
    sizes = {"a.txt": LFS_THRESHOLD, "b.txt": LFS_THRESHOLD + 1, "c.png": 9, "d.safetensors": 1, "e.safetensors": 0}
    samples = {"c.png": base64.b64encode(b"\x89PNG\r\n\0").decode()}
    shown = [{"path": path, "size": size, "sample": samples.get(path, "")} for path, size in sizes.items()]
    answer = ask(hub, "POST", f"/api/models/{REPO}/preupload/main", json.dumps({"files": shown}).encode())[2]
    modes = [file["uploadMode"] for file in json.loads(answer)["files"]]
    assert modes == ["regular", "lfs", "lfs", "lfs", "regular"]

    upload = f"/lfs/{REPO}/{SHA256}"
    assert ask(hub, "PUT", upload, WEIGHTS)[0] == 403
    wanted = json.dumps({"ref": {"name": "main"}, "objects": [{"oid": SHA256, "size": len(WEIGHTS)}]}).encode()
    actions = json.loads(ask(hub, "POST", f"/{REPO}.git/info/lfs/objects/batch", wanted)[2])["objects"][0]["actions"]
    assert actions["upload"]["href"] == hub.url + upload
    verify = actions["verify"]["href"].removeprefix(hub.url)
    size = json.dumps({"oid": SHA256, "size": len(WEIGHTS)}).encode()
    header = {"key": "header", "value": {"summary": "Add weights", "description": ""}}
    pointer = {"key": "lfsFile", "value": {"path": "model.safetensors", "algo": "sha256", "oid": SHA256}}
    commit = b"".join(json.dumps(line).encode() + b"\n" for line in (header, pointer))
    assert ask(hub, "PUT", upload, WEIGHTS[:-1])[0] == 400
    assert ask(hub, "POST", verify, size)[0] == 404
    assert ask(hub, "POST", f"/api/models/{REPO}/commit/main", commit)[0] == 400
    assert repo.files() == {".gitattributes": GIT_ATTRIBUTES}
    assert ask(hub, "PUT", upload, WEIGHTS)[0] == 200
    assert ask(hub, "POST", verify, size)[0] == 200
    assert ask(hub, "POST", f"/api/models/{REPO}/commit/main", commit)[0] == 200
    assert repo.files()["model.safetensors"] == WEIGHTS and repo.objects == {SHA256: WEIGHTS}


def test_the_environment_leads_nowhere_else(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = {
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "HUGGING_FACE_HUB_TOKEN",
        "TRANSFORMERS_OFFLINE",
        "https_proxy",
        "ALL_PROXY",
    }
    for name in elsewhere:
        monkeypatch.setenv(name, "1")
    environment = hub.environment(tmp_path)
    assert environment.items() - os.environ.items() == {
        ("HF_ENDPOINT", hub.url),
        ("HF_HOME", str(tmp_path / "hf_home")),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_DISABLE_XET", "1"),
    }
    assert not elsewhere & set(environment)
