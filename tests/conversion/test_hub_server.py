"""The stand-in for the Hub as the real client meets it: in another process, since it reads `HF_ENDPOINT` at import."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from hub_server import TOKEN, HubServer
from hub_store import GIT_ATTRIBUTES, LFS_THRESHOLD
from huggingface_hub import CommitOperationAdd, HfApi
from paths import SUPPORT

REPO = "me/model"
CONFIG = b'{"model_type": "pvt_v2"}\n'
WEIGHTS = bytes(range(256)) * 2000
CARD = b"---\nlicense: mit\n---\n# A card\n"
FILES = {"README.md": CARD, "config.json": CONFIG, "model.safetensors": WEIGHTS, "nested/notes.txt": b"notes\n"}
RUN = "import json, sys, test_hub_server as t; print(json.dumps(getattr(t, sys.argv[1])(*json.loads(sys.argv[2]))))"


def in_client(hub: HubServer, folder: Path, function: Callable[..., Any], *arguments: str) -> Any:
    """What a function of this module returns in a fresh process whose Hub is `hub`."""
    command = [sys.executable, "-c", RUN, function.__name__, json.dumps(arguments)]
    result = subprocess.run(command, cwd=SUPPORT, env=hub.environment(folder), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The exception's name and the answer's status."""
    try:
        call(*arguments, **options)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", "")
        return f"{type(error).__name__} {status}".strip()
    return "done"


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read_files(folder: str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def client_pushes_and_pulls(folder: str) -> dict[str, Any]:
    api = HfApi(token=TOKEN)
    created = [
        outcome(api.create_repo, REPO),
        outcome(api.create_repo, REPO),
        outcome(api.create_repo, REPO, exist_ok=True),
    ]
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    again = api.upload_folder(repo_id=REPO, folder_path=folder)
    api.create_tag(REPO, tag="v1")
    second = api.upload_file(repo_id=REPO, path_or_fileobj=b"{}", path_in_repo="config.json", parent_commit=first.oid)
    return {
        "user": api.whoami()["name"],
        "created": created,
        "commits": [first.oid, again.oid, second.oid],
        "same tag": [outcome(api.create_tag, REPO, tag="v1"), outcome(api.create_tag, REPO, tag="v1", exist_ok=True)],
        "snapshot": api.snapshot_download(REPO),
        "tagged": api.hf_hub_download(REPO, "config.json", revision="v1"),
        "at commit": api.hf_hub_download(REPO, "config.json", revision=first.oid),
        "listed": sorted(api.list_repo_files(REPO)),
        "top": sorted(entry.path for entry in api.list_repo_tree(REPO)),
        "nested": [entry.path for entry in api.list_repo_tree(REPO, "nested")],
        "nowhere": outcome(lambda: list(api.list_repo_tree(REPO, "nowhere"))),
        "sizes": {entry.path: entry.size for entry in api.get_paths_info(REPO, ["config.json", "model.safetensors"])},
        "lfs": {
            file.rfilename: file.lfs.sha256 for file in api.model_info(REPO, files_metadata=True).siblings if file.lfs
        },
    }


@dataclass(frozen=True)
class Session:
    """A hub after `client_pushes_and_pulls`, and what that returned."""

    hub: HubServer
    result: dict[str, Any]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("session")
    with HubServer() as hub:
        files = write_files(folder / "model", FILES)
        yield Session(hub, in_client(hub, folder, client_pushes_and_pulls, str(files)))


def test_what_is_pushed_comes_back(session: Session) -> None:
    files = {**FILES, "config.json": b"{}", ".gitattributes": GIT_ATTRIBUTES}
    assert session.hub.repos[REPO].files() == files
    assert read_files(session.result["snapshot"]) == files


def test_a_tag_and_a_commit_keep_what_they_had(session: Session) -> None:
    repo, (first, _, second) = session.hub.repos[REPO], session.result["commits"]
    assert Path(session.result["tagged"]).read_bytes() == CONFIG
    assert Path(session.result["at commit"]).read_bytes() == CONFIG
    assert {tag: commit.oid for tag, commit in repo.tags.items()} == {"v1": first}
    assert {branch: commit.oid for branch, commit in repo.branches.items()} == {"main": second}
    assert session.result["same tag"] == ["HfHubHTTPError 409", "done"]


def test_a_second_push_uploads_and_commits_nothing(session: Session) -> None:
    first, again, _ = session.result["commits"]
    assert again == first
    assert session.hub.count("PUT", "/lfs/*") == 1
    assert session.hub.count("POST", "*/commit/main") == 2
    assert [commit.title for commit in session.hub.repos[REPO].commits.values()] == [
        "initial commit",
        "Upload folder using huggingface_hub",
        "Upload config.json with huggingface_hub",
    ]


def test_weights_go_by_lfs_and_text_does_not(session: Session) -> None:
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert session.hub.repos[REPO].objects == {sha256: WEIGHTS}
    assert session.result["lfs"] == {"model.safetensors": sha256}
    assert session.result["sizes"] == {"config.json": 2, "model.safetensors": len(WEIGHTS)}


def test_listings(session: Session) -> None:
    assert session.result["user"] == "tester"
    assert session.result["created"] == ["done", "HfHubHTTPError 409", "done"]
    assert session.result["listed"] == [".gitattributes", *sorted(FILES)]
    assert session.result["top"] == [".gitattributes", "README.md", "config.json", "model.safetensors", "nested"]
    assert session.result["nested"] == ["nested/notes.txt"]
    assert session.result["nowhere"] == "RemoteEntryNotFoundError 404"


def test_the_log_has_each_request_and_no_token(session: Session) -> None:
    assert ("POST", "/api/repos/create") in session.hub.log
    assert TOKEN not in repr(session.hub.log)


def client_opens_a_pull_request(repo_id: str) -> dict[str, Any]:
    api = HfApi(token=TOKEN)
    weights = CommitOperationAdd("model.safetensors", WEIGHTS)
    opened = api.create_commit(repo_id, [weights], commit_message="Add weights", create_pr=True)
    api.upload_file(repo_id=repo_id, path_or_fileobj=b"more", path_in_repo="more.txt", revision=opened.pr_revision)
    return {
        "to main": outcome(api.upload_file, repo_id=repo_id, path_or_fileobj=b"1", path_in_repo="a.txt"),
        "opened": [opened.pr_num, opened.pr_revision],
        "listed": [[found.num, found.title] for found in api.get_repo_discussions(repo_id)],
        "refs": [ref.ref for ref in api.list_repo_refs(repo_id, include_pull_requests=True).pull_requests],
        "weights": api.hf_hub_download(repo_id, "model.safetensors", revision="refs/pr/1"),
    }


def test_a_pull_request_leaves_main_alone(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.create_repo("somebody/model", {"config.json": CONFIG})
    repo.writable = False
    before = repo.files()
    result = in_client(hub, tmp_path, client_opens_a_pull_request, "somebody/model")
    assert Path(result.pop("weights")).read_bytes() == WEIGHTS
    assert result == {
        "to main": "HfHubHTTPError 403",
        "opened": [1, "refs/pr/1"],
        "listed": [[1, "Add weights"]],
        "refs": ["refs/pr/1"],
    }
    assert repo.files() == before
    assert repo.files("refs/pr/1") == {**before, "model.safetensors": WEIGHTS, "more.txt": b"more"}


def client_tidies_up() -> dict[str, Any]:
    api = HfApi(token=TOKEN)
    draft = api.create_repo("draft", private=True).repo_id
    draft_is_private = api.model_info(draft).private
    api.delete_repo(draft)
    api.create_branch(REPO, branch="a/b", revision="v1")
    api.create_branch(REPO, branch="gone")
    api.delete_branch(REPO, branch="gone")
    api.delete_tag(REPO, tag="v1")
    api.delete_file("config.json", REPO)
    api.delete_folder("nested", REPO, revision="a/b")
    return {
        "draft": [draft, draft_is_private],
        "missing": outcome(api.delete_file, "config.json", REPO),
        "same branch": outcome(api.create_branch, REPO, branch="a/b"),
        "missing tag": outcome(api.delete_tag, REPO, tag="v1"),
    }


def test_what_is_deleted_is_gone(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.create_repo(REPO, FILES)
    repo.add_ref("refs/tags/v1", repo.head())
    repo.commit("refs/heads/main", {**repo.files(), "later.txt": b"later"}, "later")
    assert in_client(hub, tmp_path, client_tidies_up) == {
        "draft": ["tester/draft", True],
        "missing": "RemoteEntryNotFoundError 404",
        "same branch": "HfHubHTTPError 409",
        "missing tag": "RevisionNotFoundError 404",
    }
    assert set(hub.repos) == {REPO}
    assert repo.tags == {}
    assert set(repo.branches) == {"main", "a/b"}
    assert set(repo.files()) == {*FILES, ".gitattributes", "later.txt"} - {"config.json"}
    assert set(repo.files("a/b")) == {*FILES, ".gitattributes"} - {"nested/notes.txt"}


def client_asks_for_what_it_may_not_have() -> dict[str, list[str]]:
    owner, stranger, impostor = HfApi(token=TOKEN), HfApi(token=False), HfApi(token="hf_wrong")
    upload = {"path_or_fileobj": b"1", "path_in_repo": "a.txt"}
    return {
        "private": [outcome(api.snapshot_download, "me/private") for api in (stranger, impostor, owner)],
        "write": [outcome(api.upload_file, repo_id=REPO, **upload) for api in (stranger, impostor)],
        "create": [outcome(api.create_repo, "me/new") for api in (stranger, impostor)],
        "public": [outcome(api.hf_hub_download, REPO, "config.json") for api in (impostor, stranger)],
        "gated": [outcome(api.hf_hub_download, "me/gated", "config.json") for api in (stranger, owner)],
        "missing": [outcome(api.model_info, "me/missing") for api in (stranger, owner)],
        "revision": [outcome(owner.hf_hub_download, REPO, "config.json", revision="v9")],
        "file": [outcome(owner.hf_hub_download, REPO, "nothing.txt")],
    }


def test_the_client_sees_the_errors_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    hub.create_repo("me/private", {"config.json": CONFIG}, private=True)
    hub.create_repo("me/gated", {"config.json": CONFIG}).gated = True
    repo = hub.create_repo(REPO, {"config.json": CONFIG})
    before = repo.files()
    assert in_client(hub, tmp_path, client_asks_for_what_it_may_not_have) == {
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


def client_commits_on_what_it_has_read() -> list[str]:
    api = HfApi(token=TOKEN)
    outcomes = []
    for _ in range(2):
        head = api.model_info(REPO).sha
        upload = {"path_or_fileobj": b"{}", "path_in_repo": "config.json", "parent_commit": head}
        outcomes.append(outcome(api.upload_file, repo_id=REPO, **upload))
    return outcomes


def test_a_commit_of_somebody_else_makes_the_parent_stale(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.create_repo(REPO, {"config.json": CONFIG})
    hub.move_on(REPO, {"theirs.txt": b"theirs"})
    assert in_client(hub, tmp_path, client_commits_on_what_it_has_read) == ["HfHubHTTPError 412", "done"]
    titles = [commit.title for commit in repo.commits.values()]
    assert titles == ["initial commit", "files", "by somebody else", "Upload config.json with huggingface_hub"]
    assert repo.files() == {".gitattributes": GIT_ATTRIBUTES, "theirs.txt": b"theirs", "config.json": b"{}"}


def client_uploads_a_folder(folder: str) -> str:
    return outcome(HfApi(token=TOKEN).upload_folder, repo_id=REPO, folder_path=folder)


def test_the_client_repeats_a_failed_upload(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.create_repo(REPO)
    files = {f"{name}.safetensors": name.encode() * 500_000 for name in ("failed", "dropped", "unheard", "fine")}
    failed, dropped, unheard, _ = paths = [f"/lfs/{REPO}/{hashlib.sha256(file).hexdigest()}" for file in files.values()]
    hub.fail("PUT", failed)
    hub.drop("PUT", dropped, after_bytes=1000)
    hub.lose_answer("PUT", unheard)
    assert in_client(hub, tmp_path, client_uploads_a_folder, str(write_files(tmp_path / "model", files))) == "done"
    assert [hub.count("PUT", path) for path in paths] == [2, 2, 2, 1]
    assert repo.files() == {**files, ".gitattributes": GIT_ATTRIBUTES}


def client_commits_twice() -> dict[str, list[str]]:
    api = HfApi(token=TOKEN)

    def commit(name: str) -> str:
        weights = CommitOperationAdd("model.safetensors", WEIGHTS)
        return outcome(api.create_commit, f"me/{name}", [weights], commit_message="Add weights")

    return {name: [commit(name), commit(name)] for name in ("failed", "dropped", "unheard")}


def test_the_client_does_not_repeat_a_failed_commit(hub: HubServer, tmp_path: Path) -> None:
    """A second run does: what LFS has is not uploaded again, and what is committed is not committed again."""
    repos = {name: hub.create_repo(f"me/{name}") for name in ("failed", "dropped", "unheard")}
    hub.fail("POST", "*/failed/commit/*")
    hub.drop("POST", "*/dropped/commit/*", after_bytes=20)
    hub.lose_answer("POST", "*/unheard/commit/*")
    assert in_client(hub, tmp_path, client_commits_twice) == {
        "failed": ["HfHubHTTPError 503", "done"],
        "dropped": ["ReadError", "done"],
        "unheard": ["RemoteProtocolError", "done"],
    }
    for name, commits in {"failed": 2, "dropped": 2, "unheard": 1}.items():
        assert hub.count("POST", f"*/{name}/commit/*") == commits
        assert hub.count("PUT", f"/lfs/me/{name}/*") == 1
        assert repos[name].files()["model.safetensors"] == WEIGHTS
        assert [commit.title for commit in repos[name].commits.values()] == ["initial commit", "Add weights"]


def client_downloads_weights() -> list[str]:
    api = HfApi(token=TOKEN)
    return [api.hf_hub_download(REPO, name) for name in ("asked twice.safetensors", "cut.safetensors")]


def test_the_client_resumes_a_cut_download(hub: HubServer, tmp_path: Path) -> None:
    hub.create_repo(REPO, {"asked twice.safetensors": WEIGHTS[::-1], "cut.safetensors": WEIGHTS})
    hub.fail("HEAD", "*/asked twice.safetensors")
    hub.drop("GET", "*/cut.safetensors", after_bytes=200_000, times=2)
    asked_twice, cut = in_client(hub, tmp_path, client_downloads_weights)
    assert Path(asked_twice).read_bytes() == WEIGHTS[::-1]
    assert Path(cut).read_bytes() == WEIGHTS
    assert hub.count("HEAD", "*/asked twice.safetensors") == 2
    assert hub.count("GET", "*/cut.safetensors") == 3


def ask(hub: HubServer, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
    """Status, headers and body, without the client."""
    request = Request(hub.url + path, body, {"Authorization": f"Bearer {TOKEN}", **headers}, method=method)
    try:
        with build_opener(ProxyHandler({})).open(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_headers_of_a_file(hub: HubServer) -> None:
    head = hub.create_repo(REPO, FILES).head()
    status, headers, body = ask(hub, "HEAD", f"/{REPO}/resolve/main/config.json")
    assert (status, body) == (200, b"")
    assert headers["X-Repo-Commit"] == head.oid
    assert headers["Content-Length"] == str(len(CONFIG))
    blob = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert headers["ETag"] == f'"{blob}"'
    assert "X-Linked-Etag" not in headers

    _, headers, _ = ask(hub, "HEAD", f"/{REPO}/resolve/main/model.safetensors")
    assert headers["X-Linked-Etag"] == headers["ETag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert headers["X-Linked-Size"] == headers["Content-Length"] == str(len(WEIGHTS))


@pytest.mark.parametrize(
    ("wanted", "expected"), [("3-7", slice(3, 8)), ("20-", slice(20, None)), ("9-999", slice(9, None))]
)
def test_a_part_of_a_file(hub: HubServer, wanted: str, expected: slice) -> None:
    hub.create_repo(REPO, FILES)
    status, headers, body = ask(hub, "GET", f"/{REPO}/resolve/main/config.json", Range=f"bytes={wanted}")
    start, stop, _ = expected.indices(len(CONFIG))
    assert (status, body) == (206, CONFIG[expected])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(CONFIG)}"


def test_a_part_beyond_the_end(hub: HubServer) -> None:
    hub.create_repo(REPO, FILES)
    status, headers, _ = ask(hub, "GET", f"/{REPO}/resolve/main/config.json", Range=f"bytes={len(CONFIG)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(CONFIG)}")


def test_what_goes_by_lfs(hub: HubServer) -> None:
    hub.create_repo(REPO)
    sizes = {"a.txt": LFS_THRESHOLD, "b.txt": LFS_THRESHOLD + 1, "c.png": 9, "d.safetensors": 1, "e.safetensors": 0}
    samples = {"c.png": base64.b64encode(b"\x89PNG\r\n\0").decode()}
    shown = [{"path": path, "size": size, "sample": samples.get(path, "")} for path, size in sizes.items()]
    answer = ask(hub, "POST", f"/api/models/{REPO}/preupload/main", json.dumps({"files": shown}).encode())[2]
    modes = [file["uploadMode"] for file in json.loads(answer)["files"]]
    assert modes == ["regular", "lfs", "lfs", "lfs", "regular"]


def test_lfs_takes_only_what_was_announced(hub: HubServer) -> None:
    repo = hub.create_repo(REPO)
    oid = hashlib.sha256(WEIGHTS).hexdigest()
    upload = f"/lfs/{REPO}/{oid}"
    assert ask(hub, "PUT", upload, WEIGHTS)[0] == 403

    wanted = json.dumps({"ref": {"name": "main"}, "objects": [{"oid": oid, "size": len(WEIGHTS)}]}).encode()
    actions = json.loads(ask(hub, "POST", f"/{REPO}.git/info/lfs/objects/batch", wanted)[2])["objects"][0]["actions"]
    assert actions["upload"]["href"] == hub.url + upload
    assert ask(hub, "PUT", upload, WEIGHTS[:-1])[0] == 400
    verify = actions["verify"]["href"].removeprefix(hub.url)
    size = json.dumps({"oid": oid, "size": len(WEIGHTS)}).encode()
    assert ask(hub, "POST", verify, size)[0] == 404
    assert ask(hub, "PUT", upload, WEIGHTS)[0] == 200
    assert ask(hub, "POST", verify, size)[0] == 200
    assert repo.objects == {oid: WEIGHTS}


def test_a_commit_of_weights_that_were_not_uploaded(hub: HubServer) -> None:
    repo = hub.create_repo(REPO)
    header = {"key": "header", "value": {"summary": "Add weights", "description": ""}}
    pointer = {"key": "lfsFile", "value": {"path": "model.safetensors", "algo": "sha256", "oid": "0" * 64}}
    body = b"".join(json.dumps(line).encode() + b"\n" for line in (header, pointer))
    assert ask(hub, "POST", f"/api/models/{REPO}/commit/main", body)[0] == 400
    assert repo.files() == {".gitattributes": GIT_ATTRIBUTES}


def test_an_unknown_request_says_so(hub: HubServer) -> None:
    status, _, body = ask(hub, "GET", "/api/spaces/me/demo")
    assert status == 501
    assert json.loads(body) == {"error": "The stand-in for the Hub does not know GET /api/spaces/me/demo"}
    assert hub.log == [("GET", "/api/spaces/me/demo")]


def test_faults_end(hub: HubServer) -> None:
    hub.create_repo(REPO, FILES)
    path = f"/{REPO}/resolve/main/config.json"
    hub.fail("GET", "*/config.json", status=429, times=2, headers={"Retry-After": "7"})
    statuses = [ask(hub, "GET", path)[0:2] for _ in range(3)]
    assert [status for status, _ in statuses] == [429, 429, 200]
    assert [headers.get("Retry-After") for _, headers in statuses] == ["7", "7", None]


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
