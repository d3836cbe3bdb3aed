"""Upload an export to the Hugging Face hub.

The token comes from the environment (HF_TOKEN) and goes nowhere but into requests. Nothing that is
there already is overwritten unless asked for, and nothing is public unless asked for. An upload
that was interrupted goes on where it was: large files that have arrived are not sent again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .redaction import redacted

TOKEN_VARIABLE = "HF_TOKEN"
MAIN = "main"
_MADE_BY_HUB = {".gitattributes"}
_LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "httpcore", "hf_xet")
"""Whose errors are the hub's or the network's; its client has changed what it stands on."""


@dataclass(frozen=True)
class HubRepository:
    """A repository to upload to.

    Attributes:
        name: owner/name.
        private: whether only its owner is to see it.
        force: replace what is in it.
        revision: the branch; one that isn't there is begun from main.
    """

    name: str
    private: bool = True
    force: bool = False
    revision: str = MAIN

    def check(self) -> None:
        """Refuse, before any work, what can't be uploaded to.

        Raises:
            ValueError: no token, no network, no permission to look, something is there already, or
                it is public where a private one was asked for; one line.
        """
        with _one_line(self.name):
            api = self._api()
            self._look(api)

    def upload(self, folder: Path, message: str) -> str:
        """Make what is in a folder the repository's content, in one commit.

        Returns:
            Its address.

        Raises:
            ValueError: as `check`, or the upload failed; the same command again goes on.
        """
        with _one_line(self.name):
            api = self._api()
            found = self._look(api)
            if found.private is None:
                api.create_repo(self.name, private=self.private)
            if self.revision != MAIN:
                api.create_branch(self.name, branch=self.revision, exist_ok=True)
            # What was looked at is what is replaced: the hub refuses if it changed meanwhile.
            head = found.head or api.repo_info(self.name, revision=self.revision).sha
            api.upload_folder(
                repo_id=self.name,
                folder_path=folder,
                commit_message=message,
                revision=self.revision,
                parent_commit=head,
                delete_patterns="*",
            )
            if found.private and not self.private:
                api.update_repo_settings(self.name, private=False)
            branch = "" if self.revision == MAIN else f"/tree/{self.revision}"
            return f"{api.endpoint}/{self.name}{branch}"

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise ValueError(
                f"to={self.name} is a repository of the hub, and {TOKEN_VARIABLE} is not set: set "
                "it to a token that may write, or give a folder (./NAME)"
            )
        return HfApi(token=token, library_name="pauca")

    def _look(self, api: Any) -> "_Found":
        """Return what is there; ValueError where it must not be touched."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            there = api.repo_info(self.name)
        except RepositoryNotFoundError:
            return _Found()
        if self.private and not there.private:
            raise ValueError(
                f"{self.name} is public: give private=false to publish there, or name another"
            )
        try:
            branch = api.repo_info(self.name, revision=self.revision)
        except RevisionNotFoundError:
            return _Found(there.private)
        files = {file.rfilename for file in branch.siblings or ()} - _MADE_BY_HUB
        if files and not self.force:
            raise ValueError(
                f"{self.name} holds {len(files)} files at revision {self.revision}: give force=true"
                " to replace them, or another name or revision"
            )
        return _Found(there.private, branch.sha)


@dataclass(frozen=True)
class _Found:
    """A repository as it was found: None is what isn't there yet.

    Attributes:
        private: whether it is.
        head: the commit that stands at the revision.
    """

    private: bool | None = None
    head: str | None = None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what the hub or the network refuses into one line without the token."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _LIBRARIES:
            raise
        reason = redacted(" ".join(str(error).split()))[:300]
        raise ValueError(
            f"to={name}: the hub can't be used ({type(error).__name__}: {reason}); the same command"
            " goes on where it was"
        ) from None
