"""The content of a text's files as hashes, remembered as long as the files don't change."""

import json
from pathlib import Path

from ..atomic import write_atomically
from ..shards import file_sha256

_REMEMBERED = "files.json"


def content_hashes(files: list[Path], folder: Path) -> list[str]:
    """SHA-256 of each file; one whose size and time are as remembered in `folder` isn't read."""
    known = _remembered(folder / _REMEMBERED)
    hashes, news = [], {}
    for path in files:
        stat = path.stat()
        mark = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        if mark not in known:
            news[mark] = known[mark] = file_sha256(path)
        hashes.append(known[mark])
    if news:
        content = json.dumps(_remembered(folder / _REMEMBERED) | news, indent=1)
        write_atomically(folder / _REMEMBERED, f"{content}\n".encode())
    return hashes


def _remembered(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
