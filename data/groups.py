"""The groups of settings that configs/ offers, as the verbs' --help lists them."""

import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import takewhile
from textwrap import shorten


def describe_groups(*names: str) -> str:
    """Return a line for each option of these groups (of all, where none is named)."""
    folders = [folder for folder in files("configs").iterdir() if folder.is_dir()]
    chosen = [folder for folder in folders if not names or folder.name in names]
    options = [
        (f"{folder.name}={name}", _first_comment(file.read_text()))
        for folder in sorted(chosen, key=lambda folder: folder.name)
        for name, file in _options(folder)
    ]
    return "\n".join(f"  {option:35} {comment}".rstrip() for option, comment in options)


def _options(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """The options of a group and their files; those of a folder within it as `folder/name`."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _options(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml"), entry


def _first_comment(text: str) -> str:
    """What the file's first comment says up to its first full stop or colon, on one line."""
    lines = [line for line in text.splitlines() if not line.startswith("# @")]
    comment = takewhile(lambda line: line.startswith("#"), lines)
    said = " ".join(line.removeprefix("#").strip() for line in comment)
    return shorten(re.split(r"[.:](?:\s|$)", said)[0], width=62, placeholder=" ...")
