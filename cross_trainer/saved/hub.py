"""push_to_hub: what a model saves, uploaded to the Hugging Face Hub in one commit."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Protocol

from cross_trainer.saved.adapters import files_of_other_form
from cross_trainer.saved.card import CARD
from cross_trainer.spellings import REFUSED, spelled


class Saves(Protocol):
    """What can be uploaded."""

    def save_for(self, folder: str | Path, address: str | None, merge_adapters: bool = False) -> Any:
        """Write all of its files into a folder, with a card that says where they will be loaded from."""

    def check_changeable(self, what: str) -> None:
        """Check that there are weights to save; `what` is to be done with them."""


@spelled(REFUSED["push_to_hub"])
def push_to_hub(
    self: Saves,
    repo_id: str,
    token: str | bool | None = None,
    private: bool | None = None,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    exist_ok: bool = True,
    create_pr: bool = False,
    merge_adapters: bool = False,
) -> str:
    """Upload what `save_pretrained` writes, in one commit; the repository is made if it isn't there.

    What somebody has edited in the repository's model card stays.

    Args:
        self: The model.
        repo_id: "user/name".
        token: Default: the one you are logged in with.
        private: Whether a new repository is private. Default: the organisation's setting.
        revision: A branch to commit to, made if it isn't there. Default: the main one.
        commit_message: The commit's title. Default: "Add a cross-encoder".
        commit_description: The text below it.
        exist_ok: False refuses a repository that is there.
        create_pr: Open a pull request instead.
        merge_adapters: As in `save_pretrained`. What an earlier model of the other form left there is removed.

    Returns:
        The address of the commit, or of the pull request.
    """
    from huggingface_hub import HfApi

    self.check_changeable("push_to_hub()")  # before there is a repository
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=exist_ok or create_pr).repo_id
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fetch_card(repo, folder, token, revision)
        self.save_for(folder, repo, merge_adapters)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message or "Add a cross-encoder",
            commit_description=commit_description,
            create_pr=create_pr,
            delete_patterns=files_of_other_form(folder),
        )
    return str(commit.pr_url if create_pr else commit.commit_url)


def fetch_card(
    repository: str, folder: str | Path, token: str | bool | None = None, revision: str | None = None
) -> None:
    """Copy a repository's card into a folder that has none, so that what was edited on the Hub isn't overwritten."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    target = Path(folder, CARD)
    if target.exists():
        return
    try:
        found = hf_hub_download(repository, CARD, token=token, revision=revision)
    except EntryNotFoundError:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found, target)
