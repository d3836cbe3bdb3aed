"""A checkpoint's folder: tensors in safetensors files, and a manifest that says what is where.

    step-0000250/manifest.json              what the run was, and of each tensor its chunks
                 model-00000-000.safetensors      by process, and part of its share
                 optimizer-00000-000.safetensors

A tensor is cut into chunks as the processes held it, so it can be put together again for any other
number of them, or for one. The manifest holds the size and checksum of every file and its own hash.
Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.manifest import json_hash

MANIFEST = "manifest.json"
FORMAT = 1
MODEL, OPTIMIZER = "model", "optimizer"
"""What tensors' names begin with, up to a slash; each has files of its own."""
_BLOCK = 1 << 22
_READERS = 4


class StoredError(ValueError):
    """A checkpoint that is not as it was written; the message says what of it isn't."""


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor.

    Attributes:
        file: where it is stored, under the tensor's name.
        offset: where it stands in the tensor.
        shape: of the part.
    """

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: list[Chunk]


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint: its size in bytes, and its BLAKE2b checksum."""

    size: int
    checksum: str

    @classmethod
    def of(cls, blocks: Iterable[bytes]) -> "StoredFile":
        """Describe what these bytes, one after the other, are as a file."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        for block in blocks:
            digest.update(block)
            size += len(block)
        return cls(size, digest.hexdigest())


@dataclass(frozen=True)
class Stored:
    """A checkpoint as its manifest describes it.

    Attributes:
        folder: where it is.
        facts: what the trainer noted: the step, what the backbone is, where the loops were.
        tensors: by name.
        files: by name.
    """

    folder: Path
    facts: dict[str, Any]
    tensors: dict[str, StoredTensor]
    files: dict[str, StoredFile]

    @classmethod
    def open(cls, folder: Path) -> "Stored":
        """Read a manifest.

        Raises:
            StoredError: it is missing or damaged, or of another version.
        """
        try:
            content = json.loads((folder / MANIFEST).read_text())
            known = content.pop("hash") == json_hash(content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoredError(f"{MANIFEST}, {type(error).__name__}") from error
        if not known:
            raise StoredError(f"{MANIFEST}, its hash is another")
        if content["format"] != FORMAT:
            raise StoredError(f"format {content['format']}, this version reads {FORMAT}")
        tensors = {name: _tensor_from(entry) for name, entry in content["tensors"].items()}
        files = {name: StoredFile(**entry) for name, entry in content["files"].items()}
        return cls(folder, content["facts"], tensors, files)

    def manifest(self) -> bytes:
        """Return what `open` reads."""
        content = {
            "format": FORMAT,
            "facts": self.facts,
            "tensors": {name: _tensor_to(tensor) for name, tensor in self.tensors.items()},
            "files": {name: asdict(file) for name, file in self.files.items()},
        }
        return json.dumps({**content, "hash": json_hash(content)}, sort_keys=True).encode()

    @cached_property
    def identity(self) -> str:
        """Sixteen hex digits that change whenever the weights do."""
        own = {name: asdict(x) for name, x in self.files.items() if name.startswith(MODEL)}
        return json_hash(own)[:16]

    def verify(self, *kinds: str) -> None:
        """Check sizes and checksums of the files of some kinds; none named is all.

        Raises:
            StoredError: naming the first file that differs.
        """
        chosen = [name for name in sorted(self.files) if name.startswith(kinds or ("",))]
        with ThreadPoolExecutor(_READERS) as pool:  # hashing leaves the interpreter's lock
            for name, problem in zip(chosen, pool.map(self._problem, chosen), strict=True):
                if problem:
                    raise StoredError(f"{name}, {problem}")

    def _problem(self, name: str) -> str | None:
        path, file = self.folder / name, self.files[name]
        if not path.is_file():
            return "it is missing"
        if path.stat().st_size != file.size:
            return f"{path.stat().st_size} bytes instead of {file.size}"
        with path.open("rb") as content:
            read = StoredFile.of(iter(lambda: content.read(_BLOCK), b""))
        return None if read == file else "its checksum is another"

    def names(self, kind: str) -> list[str]:
        """Return the names of a kind of tensor, its prefix left out."""
        return [name.removeprefix(f"{kind}/") for name in self.tensors if _is_of(name, kind)]

    def read(self, kind: str) -> dict[str, Tensor]:
        """Put tensors of a kind together on the CPU, by their names without the prefix.

        Raises:
            StoredError: a file can't be read.
        """
        chosen = {name: x for name, x in self.tensors.items() if _is_of(name, kind)}
        found = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in chosen.items()}
        wanted: dict[str, list[tuple[str, Chunk]]] = {}
        for name, tensor in chosen.items():
            for chunk in tensor.chunks:
                wanted.setdefault(chunk.file, []).append((name, chunk))
        for file, chunks in wanted.items():
            with opened(self.folder / file) as part:
                for name, chunk in chunks:
                    where = tuple(map(slice, chunk.offset, map(sum, _pairs(chunk))))
                    found[name][where] = part.get_tensor(name)
        return {name.removeprefix(f"{kind}/"): tensor for name, tensor in found.items()}


def opened(path: Path) -> Any:
    """Open a safetensors file, from which parts are read as they are asked for.

    Raises:
        StoredError: it can't be read.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise StoredError(f"{path.name}, {error}") from error


def _pairs(chunk: Chunk) -> Iterable[tuple[int, int]]:
    return zip(chunk.offset, chunk.shape, strict=True)


def _is_of(name: str, kind: str) -> bool:
    return name.startswith(f"{kind}/")


def _tensor_to(tensor: StoredTensor) -> dict[str, Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    return {**asdict(tensor), "dtype": name}


def _tensor_from(entry: dict[str, Any]) -> StoredTensor:
    dtype = getattr(torch, entry["dtype"])
    assert isinstance(dtype, torch.dtype)
    chunks = [
        Chunk(chunk["file"], tuple(chunk["offset"]), tuple(chunk["shape"]))
        for chunk in entry["chunks"]
    ]
    return StoredTensor(dtype, tuple(entry["shape"]), chunks)
