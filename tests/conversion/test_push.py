"""convert.py --push-to-hub against the stand-in for the Hub: what arrives, what comes back, and every fault.

The client knows the loopback server as the Hub; reading back happens in a fresh process.
"""

import contextlib
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convert
import export_original
import huggingface_hub
import pytest
import torch
from conversion_runs import SCRIPTS, checkpoint, tiny
from families import P2T, PVT_V2
from hub_api import Answer
from hub_server import TOKEN, Fault, HubServer
from transformers import AutoModelForSemanticSegmentation

import hf_pvt

pytestmark = pytest.mark.slow

TAG = f"v{hf_pvt.__version__}"
COMMANDS = {"convert": convert, "export_original": export_original}


@dataclass
class Workplace:
    """A hub, three checkpoints, and the commands."""

    hub: HubServer
    folder: Path

    def run(self, *arguments: object, token: str | None = TOKEN, script: str = "convert") -> tuple[Any, str]:
        """Exit status (a sentence on failure) and output of a command."""
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            patch.setattr(time, "sleep", lambda seconds: None)  # between the client's own tries
            patch.delenv("HF_TOKEN", raising=False)
            if token:
                patch.setenv("HF_TOKEN", token)
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                try:
                    COMMANDS[script].main()
                    status: Any = 0
                except SystemExit as ended:
                    status = ended.code
        assert TOKEN not in printed.getvalue() and TOKEN not in str(status)
        return status, printed.getvalue()

    def push(self, repo_id: str, *flags: str, source: str = "pvt_v2.pth", token: str | None = TOKEN) -> tuple[Any, str]:
        """Convert and push; every repository has a folder of its own."""
        output = self.folder / "out" / repo_id.replace("/", "--")
        return self.run(self.folder / source, output, "--push-to-hub", repo_id, *flags, token=token)

    def failure(self, repo_id: str, *flags: str, **options: Any) -> str:
        status, _ = self.push(repo_id, *flags, **options)
        assert isinstance(status, str) and status.startswith("error: ") and status.endswith(".") and "\n" not in status
        return status

    def written(self, repo_id: str) -> dict[str, bytes]:
        """The files that were converted."""
        output = self.folder / "out" / repo_id.replace("/", "--")
        return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def assert_complete(self, repo_id: str) -> None:
        """Every file is on the Hub, in one commit after the first, and tagged."""
        repo = self.hub.repos[repo_id]
        files = repo.files()
        files.pop(".gitattributes")
        assert files == self.written(repo_id)
        assert repo.tags[TAG].oid == repo.head().oid


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    folder = tmp_path_factory.mktemp("push")
    checkpoint(tiny(PVT_V2), folder / "pvt_v2.pth")
    checkpoint(tiny(PVT_V2, "segmenter"), folder / "pvt_v2_fpn.pth")
    checkpoint(tiny(P2T, "segmenter"), folder / "p2t_fpn.pth")
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in hub.constants(folder).items():
            patch.setattr(huggingface_hub.constants, name, value)
        yield Workplace(hub, folder)


def test_push(workplace: Workplace) -> None:
    """One commit, a tag, everything as it was written, public; a second run sends nothing."""
    status, printed = workplace.push("org/plain")
    assert status == 0, status
    repo = workplace.hub.repos["org/plain"]
    head = repo.head()
    workplace.assert_complete("org/plain")
    assert len(repo.commits) == 2 and not repo.private
    assert f"commit {head.oid[:8]}" in printed
    assert 'model="org/plain"' in repo.files()["README.md"].decode()
    uploads = workplace.hub.count("PUT", "*")
    status, printed = workplace.push("org/plain")
    assert status == 0, status
    assert "holds the conversion of" in printed
    assert repo.head() == head
    assert workplace.hub.count("PUT", "*") == uploads


def test_onnx_files_come_along(workplace: Workplace) -> None:
    """In the same commit; asked for later, they need the folder written again."""
    status, _ = workplace.push("org/onnx", "--onnx")
    assert status == 0, status
    workplace.assert_complete("org/onnx")
    repo = workplace.hub.repos["org/onnx"]
    assert len(repo.commits) == 2 and "onnx/model.onnx" in repo.files()
    assert 'hf_hub_download("org/onnx", "onnx/model.onnx")' in repo.files()["README.md"].decode()
    workplace.push("org/without-onnx")
    assert "replace it with --overwrite" in workplace.failure("org/without-onnx", "--onnx")


def test_private(workplace: Workplace) -> None:
    assert workplace.push("org/hidden", "--private")[0] == 0
    assert workplace.hub.repos["org/hidden"].private


def test_a_converted_folder_can_be_pushed_later(workplace: Workplace) -> None:
    """Its card then speaks of the repository."""
    output = workplace.folder / "out" / "org--later"
    workplace.run(workplace.folder / "pvt_v2.pth", output)
    assert 'model="org/org--later"' in (output / "README.md").read_text()
    assert workplace.push("org/later")[0] == 0
    workplace.assert_complete("org/later")
    card = workplace.hub.repos["org/later"].files()["README.md"].decode()
    assert 'model="org/later"' in card and "org/org--later" not in card


def test_pull_request(workplace: Workplace) -> None:
    """The main branch stays as it is, and nothing is tagged."""
    repo = workplace.hub.create_repo("org/reviewed")
    before = repo.head()
    status, printed = workplace.push("org/reviewed", "--pr")
    assert status == 0, status
    assert repo.head() == before and not repo.tags
    proposed = repo.files("refs/pr/1")
    proposed.pop(".gitattributes")
    assert proposed == workplace.written("org/reviewed")
    assert f"{workplace.hub.url}/org/reviewed/discussions/1" in printed
    status, printed = workplace.push("org/reviewed", "--pr")
    assert status == 0, status
    assert "opened before: " in printed and len(repo.pull_requests) == 1


def test_dry_run(workplace: Workplace) -> None:
    """Names and sizes of what would go; no request is made, and no login is needed."""
    requests = len(workplace.hub.log)
    status, printed = workplace.push("org/maybe", "--dry-run", token=None)
    assert status == 0, status
    listed = dict(re.findall(r"^  (\S+) +([\d,]+) bytes$", printed, flags=re.MULTILINE))
    written = workplace.written("org/maybe")
    assert listed == {name: f"{len(content):,}" for name, content in written.items()}
    assert len(workplace.hub.log) == requests


def test_the_tag_stays_where_people_pinned_it(workplace: Workplace) -> None:
    workplace.push("org/pinned")
    repo = workplace.hub.repos["org/pinned"]
    tagged = repo.tags[TAG]
    status, printed = workplace.push("org/pinned", "--overwrite", source="pvt_v2_fpn.pth")
    assert status == 0, status
    assert repo.tags[TAG] == tagged and repo.head() != tagged
    assert f"the tag {TAG} of org/pinned stays at {tagged.oid[:8]}" in printed
    files = repo.files()
    files.pop(".gitattributes")
    assert files == workplace.written("org/pinned")  # and nothing of the classifier is left


# What is refused


def test_noncommercial_weights(workplace: Workplace) -> None:
    message = workplace.failure("org/p2t", source="p2t_fpn.pth")
    assert "cc-by-nc-sa-4.0: not for commercial use" in message and "--accept-noncommercial-license" in message
    assert "org/p2t" not in workplace.hub.repos and not workplace.written("org/p2t")
    assert workplace.push("org/p2t", "--accept-noncommercial-license", source="p2t_fpn.pth")[0] == 0
    workplace.assert_complete("org/p2t")
    assert "license: cc-by-nc-sa-4.0" in workplace.hub.repos["org/p2t"].files()["README.md"].decode()


def test_another_model(workplace: Workplace) -> None:
    config = json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}).encode()
    repo = workplace.hub.create_repo("org/vit", {"config.json": config, "pytorch_model.bin": b"weights"})
    head = repo.head()
    message = workplace.failure("org/vit")
    assert "holds another model (model_type 'vit', here 'pvt_v2')" in message and "--overwrite" in message
    assert repo.head() == head
    assert workplace.push("org/vit", "--overwrite")[0] == 0
    workplace.assert_complete("org/vit")
    assert "pytorch_model.bin" not in repo.files()


def test_another_task(workplace: Workplace) -> None:
    workplace.push("org/task")
    config = workplace.hub.repos["org/task"].files()["config.json"]
    other = workplace.folder / "out" / "other"
    status, _ = workplace.run(workplace.folder / "pvt_v2_fpn.pth", other, "--push-to-hub", "org/task")
    assert "(architectures ['PvtV2ForImageClassification'], here ['PvtV2ForSemanticSegmentation'])" in status
    assert workplace.hub.repos["org/task"].files()["config.json"] == config


def test_refused_before_anything_is_written(workplace: Workplace) -> None:
    message = workplace.failure("org/nobody", token=None)
    assert "no login for the Hub was found; run `hf auth login`, or set HF_TOKEN" in message
    assert not workplace.written("org/nobody")
    assert "is no name of a repository, expected org/name" in workplace.failure("org/a/b")


# Faults: one sentence, and the same command completes


def test_no_right_to_write(workplace: Workplace) -> None:
    message = workplace.failure("org/unknown", token="hf_wrong")
    assert "the Hub does not accept the login (401)" in message
    repo = workplace.hub.create_repo("org/foreign")
    repo.writable = False
    assert "the login may not write to org/foreign (403)" in workplace.failure("org/foreign")
    repo.writable = True
    workplace.hub.fail("POST", "/api/models/org/gone/preupload/*", status=404)
    assert "org/gone cannot be found (404)" in workplace.failure("org/gone")
    for repo_id in ("org/unknown", "org/foreign", "org/gone"):
        assert workplace.push(repo_id)[0] == 0, repo_id
        workplace.assert_complete(repo_id)


def test_the_hub_is_down_for_a_moment(workplace: Workplace) -> None:
    """The client tries uploads again by itself."""
    workplace.hub.fail("PUT", "*", status=503, times=1)
    assert workplace.push("org/moment")[0] == 0
    workplace.assert_complete("org/moment")


@pytest.mark.parametrize(
    ("method", "name"), [("PUT", "lfs"), ("POST", "commit"), ("POST", "tag")], ids=["upload", "commit", "tag"]
)
def test_the_hub_is_down(method: str, name: str, workplace: Workplace) -> None:
    repo_id = f"org/down-{name}"
    workplace.hub.fail(method, f"*/{name}/*" if method == "POST" else "*", status=503, times=20)
    message = workplace.failure(repo_id)
    assert "the Hub answered with an error (503); nothing is lost: run the same command again" in message
    workplace.hub.faults.clear()
    uploads = workplace.hub.count("PUT", "*")
    assert workplace.push(repo_id)[0] == 0
    workplace.assert_complete(repo_id)
    assert (workplace.hub.count("PUT", "*") == uploads) == (method != "PUT")  # what was stored is not sent again
    assert len(workplace.hub.repos[repo_id].commits) == 2


def test_a_broken_connection(workplace: Workplace) -> None:
    """Cut in the middle of a file or of the commit, again and again."""
    faults = {"org/cut-upload": ("PUT", "*", 10_000), "org/cut-commit": ("POST", "*/commit/*", 500)}
    for repo_id, (method, pattern, after_bytes) in faults.items():
        workplace.hub.drop(method, pattern, after_bytes, times=20)
        message = workplace.failure(repo_id)
        assert re.search(
            r"the connection to the Hub broke \(\w+\); nothing is lost: run the same command again", message
        )
        workplace.hub.faults.clear()
        assert workplace.push(repo_id)[0] == 0, repo_id
        workplace.assert_complete(repo_id)


def test_a_page_of_a_gateway(workplace: Workplace) -> None:
    page = Answer(b"<html>one moment</html>", 200, {"Content-Type": "text/html"})
    workplace.hub.faults.append(Fault("POST", "/api/validate-yaml", 1, answer=page))
    assert "the Hub answered with something that is none of its answers" in workplace.failure("org/gateway")
    assert workplace.push("org/gateway")[0] == 0
    workplace.assert_complete("org/gateway")


def test_a_lost_answer(workplace: Workplace) -> None:
    """The commit arrived, its answer did not: the next run finds it there, and sets the tag."""
    workplace.hub.lose_answer("POST", "*/commit/*")
    assert "the connection to the Hub broke" in workplace.failure("org/lost")
    assert workplace.push("org/lost")[0] == 0
    workplace.assert_complete("org/lost")
    assert len(workplace.hub.repos["org/lost"].commits) == 2


def test_somebody_else_commits(workplace: Workplace) -> None:
    """Between reading and writing: their commit is not overwritten unseen."""
    workplace.push("org/shared")
    (workplace.folder / "out" / "org--shared" / "images" / "new.txt").write_text("a change")
    workplace.hub.move_on("org/shared", {"theirs.txt": b"theirs"})
    message = workplace.failure("org/shared")
    assert "org/shared was changed by somebody else during the upload (412); nothing is lost" in message
    repo = workplace.hub.repos["org/shared"]
    assert workplace.push("org/shared")[0] == 0
    assert repo.files()["images/new.txt"] == b"a change" and repo.files()["theirs.txt"] == b"theirs"


@pytest.mark.processes
def test_no_hub(workplace: Workplace, tmp_path: Path) -> None:
    """Nobody listens there."""
    environment = workplace.hub.environment(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": TOKEN}
    command = [sys.executable, SCRIPTS / "convert.py", workplace.folder / "pvt_v2.pth", tmp_path / "converted"]
    result = subprocess.run(
        [*map(str, command), "--push-to-hub", "org/nowhere"], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: the connection to the Hub broke (ConnectError)")


# Reading back, in a fresh process

READ_BACK = """
import contextlib, io, json, re, sys
import torch
import hf_pvt
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

tag = sys.argv[1]
base = AutoModel.from_pretrained("org/read")
classifier = AutoModelForImageClassification.from_pretrained("org/read", revision=tag).eval()
processor = AutoImageProcessor.from_pretrained("org/read")
answers = pipeline("image-classification", model="org/read")(hf_hub_download("org/read", "images/cat.jpg"), top_k=5)
segmenter = pipeline("image-segmentation", model="org/read-p2t")
masks = segmenter(hf_hub_download("org/read-p2t", "images/china.jpg"))
printed = []
for repo_id in ("org/read", "org/read-p2t"):
    card = open(hf_hub_download(repo_id, "README.md")).read()
    for code in re.findall(r"^```python\\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        printed.append(output.getvalue())
torch.save(
    {
        "classes": [type(model).__module__ + "." + type(model).__name__ for model in (base, classifier)],
        "weights": classifier.state_dict(),
        "crop": processor.crop_size["height"],
        "answers": answers,
        "masks": [{"label": mask["label"], "size": mask["mask"].size} for mask in masks],
        "segmenter": segmenter.model.state_dict(),
        "snapshot": snapshot_download("org/read", revision=tag),
        "printed": printed,
    },
    sys.argv[2],
)
"""


@pytest.mark.processes
def test_read_back(workplace: Workplace, tmp_path: Path) -> None:
    """Auto classes, processor, pipelines, the tag, a snapshot, and the code of the cards themselves."""
    assert workplace.push("org/read")[0] == 0
    assert workplace.push("org/read-p2t", "--accept-noncommercial-license", source="p2t_fpn.pth")[0] == 0
    environment = workplace.hub.environment(tmp_path) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READ_BACK, TAG, str(tmp_path / "found.pt")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert found["classes"] == [
        "hf_pvt.pyramid.modeling_pvt_v2.PvtV2Model",
        "hf_pvt.pyramid.modeling_pvt_v2.PvtV2ForImageClassification",
    ]
    torch.testing.assert_close(found["weights"], dict(tiny(PVT_V2).state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(found["segmenter"], dict(tiny(P2T, "segmenter").state_dict()), rtol=0, atol=0)
    assert found["crop"] == 224
    card = workplace.written("org/read")["README.md"].decode()
    for answer in found["answers"]:
        assert f"- label: {answer['label']}\n    score: {round(answer['score'], 4)}" in card
    assert {mask["size"] for mask in found["masks"]} == {(640, 427)}
    snapshot = Path(found["snapshot"])
    files = {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert files == workplace.hub.repos["org/read"].files(TAG)
    assert [output.startswith("[{") for output in found["printed"]] == [True, False] * 2


def test_sources_on_the_hub(workplace: Workplace, tmp_path: Path) -> None:
    """A repository is exported and converted by its name, without a folder in between."""
    workplace.push("org/source", source="pvt_v2_fpn.pth")
    status, _ = workplace.run("org/source", tmp_path / "again.pth", script="export_original")
    assert status == 0, status
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    expected = torch.load(workplace.folder / "pvt_v2_fpn.pth", weights_only=True)
    torch.testing.assert_close(again["state_dict"], expected["state_dict"], rtol=0, atol=0)
    status, _ = workplace.run("org/missing", tmp_path / "missing.pth", script="export_original")
    assert "org/missing cannot be found" in status
    status, _ = workplace.run("org/source", tmp_path / "converted")
    assert status == 0, status
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "converted")
    torch.testing.assert_close(loaded.state_dict(), tiny(PVT_V2, "segmenter").state_dict(), rtol=0, atol=0)


PINNED = """
import sys
sys.modules["hf_pvt"] = None
import torch
from transformers import AutoModelForSemanticSegmentation

pin = {"revision": sys.argv[1], "code_revision": sys.argv[1]}
model = AutoModelForSemanticSegmentation.from_pretrained("org/pinned-code", trust_remote_code=True, **pin)
torch.save(model.state_dict(), sys.argv[2])
try:
    AutoModelForSemanticSegmentation.from_pretrained("org/pinned-code", trust_remote_code=True)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.processes
def test_pinned_code(workplace: Workplace, tmp_path: Path) -> None:
    """Where hf_pvt is missing, the tag's code runs, whatever the branch holds by then."""
    assert workplace.push("org/pinned-code", "--accept-noncommercial-license", source="p2t_fpn.pth")[0] == 0
    repo = workplace.hub.repos["org/pinned-code"]
    repo.commit("refs/heads/main", repo.files() | {"layers.py": b"raise RuntimeError('newer code')\n"}, "newer code")
    pin = f'revision="{TAG}", code_revision="{TAG}"'
    assert pin in repo.files(TAG)["README.md"].decode()
    assert pin in (SCRIPTS.parent / "README.md").read_text()
    result = subprocess.run(
        [sys.executable, "-c", PINNED, TAG, str(tmp_path / "weights.pt")],
        env=workplace.hub.environment(tmp_path) | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("newer code")
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.testing.assert_close(found, dict(tiny(P2T, "segmenter").state_dict()), rtol=0, atol=0)
