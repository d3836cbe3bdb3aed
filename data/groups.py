"""The groups of settings that configs/ offers, as the verbs' --help lists them."""

import re
from importlib.resources import files
from itertools import takewhile
from textwrap import shorten


def describe_groups(*names: str) -> str:
    """Return a line for each option of these groups (of all, where none is named)."""
    folders = [folder for folder in files("configs").iterdir() if folder.is_dir()]
    chosen = [folder for folder in folders if not names or folder.name in names]
    options = [
        (f"{folder.name}={file.name.removesuffix('.yaml')}", _first_comment(file.read_text()))
        for folder in sorted(chosen, key=lambda folder: folder.name)
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".yaml")
    ]
    return "\n".join(f"  {option:35} {comment}".rstrip() for option, comment in options)


def _first_comment(text: str) -> str:
    """What the file's first comment says up to its first full stop or colon, on one line."""
    lines = [line for line in text.splitlines() if not line.startswith("# @")]
    comment = takewhile(lambda line: line.startswith("#"), lines)
    said = " ".join(line.removeprefix("#").strip() for line in comment)
    return shorten(re.split(r"[.:](?:\s|$)", said)[0], width=62, placeholder=" ...")
