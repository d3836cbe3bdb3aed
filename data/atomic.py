"""Files that are either complete or absent: written beside their place, then renamed into it."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY_SUFFIX = ".tmp"


class WriteError(ValueError):
    """A file could not be written; the message is one line that names it and the reason."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts, one after the other, as the file at `path`, replacing what was there.

    Raises:
        WriteError: the disk is full (with the bytes needed and free) or refuses the file. Nothing
            half-written is left, and an older file at `path` is untouched.
    """
    beside = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            _write_parts(file, parts)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise WriteError(_reason(path, sum(len(part) for part in parts), error)) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _write_parts(file: BinaryIO, parts: tuple[bytes | memoryview, ...]) -> None:
    for part in parts:
        file.write(part)
    file.flush()
    # Some file systems report a full disk only here; and a rename must never outrun its content.
    os.fsync(file.fileno())


def publish(beside: Path, folder: Path) -> None:
    """Let a folder appear under its name, replacing what was there; its files are on the disk.

    Raises:
        WriteError: the disk refuses it.
    """
    try:
        sync_folder(beside)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(beside, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise WriteError(_reason(folder, 0, error)) from error


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(path: Path, needed: int, error: OSError) -> str:
    if error.errno not in _NO_SPACE:
        return f"{path}: cannot be written ({error.strerror or error})"
    free = None
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
    space = "unknown" if free is None else f"{free:,}"
    return f"{path}: the disk is full ({needed:,} bytes needed, {space} free); make room, run again"
