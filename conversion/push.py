"""Push a converted repository to the Hub: one commit, one tag, and nothing that is there already.

Every failure ends in one sentence, and the same command completes what it left: stored files are not sent again, a
commit that changes nothing is not made, and the tag is set last.
"""

import argparse
import json
from pathlib import Path

from hub_errors import HubRefusal, one_sentence
from huggingface_hub import Discussion, HfApi, get_token, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

import hf_pvt
from hf_pvt.published.variants import WEIGHTS_LICENSES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="repository to push to; with --all the ORG")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry-run", action="store_true", help="list what would be pushed, and push nothing")
    parser.add_argument(
        "--accept-noncommercial-license",
        action="store_true",
        help="push P2T's weights, which are to be treated as CC BY-NC-SA 4.0",
    )


def check_request(arguments: argparse.Namespace) -> None:
    """What can be refused before anything is read: a malformed name, a missing login."""
    if not arguments.push_to_hub:
        return
    try:
        validate_repo_id(arguments.push_to_hub)
    except HFValidationError as error:
        raise HubRefusal(f"{arguments.push_to_hub!r} is no name of a repository, expected org/name: {error}") from error
    if not (get_token() or arguments.dry_run):
        raise HubRefusal(
            "no login for the Hub was found; run `hf auth login`, or set HF_TOKEN to a token with write access."
        )


def check_license(model_type: str, arguments: argparse.Namespace) -> None:
    """P2T's weights go to the Hub only where somebody says that they know the licence."""
    license_name = WEIGHTS_LICENSES[model_type]
    if arguments.push_to_hub and "nc" in license_name.split("-") and not arguments.accept_noncommercial_license:
        raise HubRefusal(
            f"the weights of {model_type} are {license_name}: not for commercial use; to push them under that licence, "
            "add --accept-noncommercial-license."
        )


def push(folder: Path, arguments: argparse.Namespace) -> None:
    """Upload `folder` as `arguments.push_to_hub`, and tag it with the version of this package.

    Raises:
        HubRefusal: the Hub refuses or cannot be reached, or holds another model; the sentence says what to do.
    """
    repo_id = arguments.push_to_hub
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    check_license(config.get("backbone_config", config)["model_type"], arguments)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if arguments.dry_run:
        print(f"would push to {repo_id}:")
        for path in files:
            print(f"  {path.relative_to(folder).as_posix():<40} {path.stat().st_size:>12,} bytes")
        return
    with one_sentence(repo_id):
        api = HfApi()
        head = head_of(api, repo_id)
        if head is None:
            api.create_repo(repo_id, private=arguments.private, exist_ok=True)
        else:
            check_other_model(repo_id, head, folder, arguments.overwrite)
        title = f"Converted by hf_pvt {hf_pvt.__version__}"
        opened = open_pull_request(api, repo_id, title) if arguments.pr and head else None
        commit = api.upload_folder(
            folder_path=folder,
            repo_id=repo_id,
            commit_message=title,
            create_pr=arguments.pr and opened is None,
            revision=opened.git_reference if opened else None,
            parent_commit=None if opened else head,
            delete_patterns="*" if arguments.overwrite and head else None,
        )
        if arguments.pr:
            print(f"opened before: {opened.url}" if opened else f"opened {commit.pr_url}")
            return
        tag(api, repo_id, commit.oid)
    print(f"pushed {len(files)} files to {api.endpoint}/{repo_id}, commit {commit.oid[:8]}")


def head_of(api: HfApi, repo_id: str) -> str | None:
    """The newest commit, None where there is no such repository."""
    try:
        return api.model_info(repo_id).sha
    except RepositoryNotFoundError:
        return None


def open_pull_request(api: HfApi, repo_id: str, title: str) -> Discussion | None:
    """The one that an earlier run opened."""
    pull_requests = api.get_repo_discussions(repo_id, discussion_type="pull_request", discussion_status="open")
    return next((found for found in pull_requests if found.title == title), None)


def check_other_model(repo_id: str, head: str, folder: Path, overwrite: bool) -> None:
    """Refuse to replace a model of another type or task."""
    try:
        there = json.loads(Path(hf_hub_download(repo_id, "config.json", revision=head)).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        return
    here = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in ("model_type", "architectures"):
        if there.get(key) != here.get(key) and not overwrite:
            raise HubRefusal(
                f"{repo_id} holds another model ({key} {there.get(key)!r}, here {here.get(key)!r}); choose another "
                "name, or replace it with --overwrite."
            )


def tag(api: HfApi, repo_id: str, commit: str) -> None:
    """Tag the commit with the version. A tag that exists stays where it is: people pin it."""
    name = f"v{hf_pvt.__version__}"
    existing = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id).tags}
    if name not in existing:
        api.create_tag(repo_id, tag=name, revision=commit, tag_message=f"hf_pvt {hf_pvt.__version__}")
    elif existing[name] != commit:
        print(f"the tag {name} of {repo_id} stays at {existing[name][:8]}, because people pin it; main is newer.")
