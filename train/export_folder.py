"""Where an export goes: a folder here, complete or absent, or a repository of the hub."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .export import CONFIG_FILE, MODEL_TYPE

_HUB_PART = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


def is_hub_name(to: str) -> bool:
    """Whether a destination is `owner/name` of the hub, and not a folder.

    It is a folder where it begins with `.`, `/` or `~`, has no slash or several, or where it, or
    what stands before its slash, is here already.

    Raises:
        ValueError: it is neither: one slash, but no name that the hub could have.
    """
    parts = to.split("/")
    if len(parts) != 2 or to[0] in "./~" or Path(to).exists() or Path(parts[0]).is_dir():
        return False
    if not all(map(_HUB_PART.fullmatch, parts)) or ".." in to or "--" in to:
        raise ValueError(
            f"to={to} is no name of the hub (owner/name, of letters, digits, `.`, `_` and `-`), and"
            f" no folder that is here: write ./{to} for a new folder"
        )
    return True


def check_folder(folder: Path, force: bool) -> None:
    """Refuse to write over anything that isn't an older export, or is without `force`.

    Raises:
        ValueError: one line that names the folder and the way out.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"to={folder} is a file: name a folder")
    if not any(folder.iterdir()):
        return
    if not _is_export(folder):
        raise ValueError(
            f"to={folder} holds something that is no export, which force=true won't replace either:"
            " name another folder"
        )
    if not force:
        raise ValueError(f"to={folder} holds an export already: give force=true to replace it")


def _is_export(folder: Path) -> bool:
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.get("model_type") == MODEL_TYPE


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it takes the place of `folder` once all is written.

    Where anything fails, `folder` is what it was. What a killed process left is removed.
    """
    folder = folder.resolve()
    beside = folder.with_name(f".{folder.name}.writing")
    old = folder.with_name(f".{folder.name}.replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in (beside, old):
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            os.replace(folder, old)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
