"""How torch's distributed checkpoints are stored: plain files and a manifest (`eval.stored`).

torch plans who writes and who reads which chunks; here are the two ends of it. A folder appears
under its name only when it is complete: it is written beside, every file is on the disk, and then
it is renamed.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from data.atomic import TEMPORARY_SUFFIX, publish, write_atomically
from eval.stored import MANIFEST, Chunk, Stored, StoredFile, StoredTensor, opened

FILE_BYTES = 1 << 29
"""What a file holds at most, but for one tensor that is larger: so much is held twice as it is
written."""


class TensorWriter(StorageWriter):
    """Writes a checkpoint's folder; each process its own files, the first one the manifest.

    Args:
        folder: where the checkpoint is to stand; it appears there when it is complete.
        facts: what is noted beside the tensors, as plain data.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.beside = folder.with_name(folder.name + TEMPORARY_SUFFIX)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from an earlier time."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing is to be done before the plan."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder, before any process writes; tell each its number."""
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return [
            SavePlan(plan.items, storage_data=number, planner_data=plan.planner_data)
            for number, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's chunks."""
        results: list[WriteResult] = []
        for number, items in enumerate(_in_files(plan.items)):
            kind = items[0].index.fqn.split("/")[0]
            path = self.beside / f"{kind}-{plan.storage_data:05d}-{number:03d}.safetensors"
            chunks = {item.index.fqn: _resolved(item, planner) for item in items}
            content = save(chunks)
            write_atomically(path, content)
            file = StoredFile.of([content])
            for item in items:
                shape = tuple(chunks[item.index.fqn].shape)
                chunk = Chunk(path.name, tuple(item.index.offset or ()), shape)
                results.append(WriteResult(item.index, 0, (chunk, file)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the manifest, and let the folder appear."""
        chunks: dict[str, list[Chunk]] = {}
        files: dict[str, StoredFile] = {}
        for result in (each for own in results for each in own):
            chunk, files[result.storage_data[0].file] = result.storage_data
            chunks.setdefault(result.index.fqn, []).append(chunk)
        tensors = {
            name: StoredTensor(entry.properties.dtype, tuple(entry.size), chunks[name])
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        stored = Stored(self.beside, self.facts, tensors, files)
        write_atomically(self.beside / MANIFEST, stored.manifest())
        publish(self.beside, self.folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No identifier is taken: a writer has its folder."""
        return False


def _in_files(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    """Cut what a process writes into files: each of one kind, and not too large."""
    own: list[WriteItem] = []
    held = 0
    for item in sorted(items, key=lambda item: item.index.fqn.split("/")[0]):
        size = item.tensor_storage_size() or 0
        other = own and own[0].index.fqn.split("/")[0] != item.index.fqn.split("/")[0]
        if own and (other or held + size > FILE_BYTES):
            yield own
            own, held = [], 0
        own.append(item)
        held += size
    if own:
        yield own


def _resolved(item: WriteItem, planner: SavePlanner) -> Tensor:
    found = planner.resolve_data(item)
    assert isinstance(found, Tensor)
    return found.detach().cpu().contiguous()


class TensorReader(StorageReader):
    """Reads the chunks that a process needs of a checkpoint's folder.

    Args:
        stored: the checkpoint, verified.
    """

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self._files: dict[tuple[str, tuple[int, ...]], str] = {
            (name, chunk.offset): chunk.file
            for name, tensor in stored.tensors.items()
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept from an earlier time."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what the manifest says, in torch's words."""
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=tensor.dtype),
                    torch.Size(tensor.shape),
                    [
                        ChunkStorageMetadata(torch.Size(chunk.offset), torch.Size(chunk.shape))
                        for chunk in tensor.chunks
                    ],
                )
                for name, tensor in self.stored.tensors.items()
            }
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing is to be done before the plan."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read file by file, of each chunk only what is asked for."""
        wanted: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            wanted.setdefault(self._file_of(item.storage_index), []).append(item)
        for name, items in wanted.items():
            with opened(self.stored.folder / name) as file:
                for item in items:
                    _read(file, item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _file_of(self, index: MetadataIndex) -> str:
        return self._files[index.fqn, tuple(index.offset or ())]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No identifier is taken: a reader has its checkpoint."""
        return False


def _read(file: Any, item: ReadItem, planner: LoadPlanner) -> None:
    name = item.storage_index.fqn
    ends = map(sum, zip(item.storage_offsets, item.lengths, strict=True))
    where = tuple(map(slice, item.storage_offsets, ends))
    found = file.get_slice(name)[where] if where else file.get_tensor(name)
    target = planner.resolve_tensor(item).detach()
    target.copy_(found)
    planner.commit_tensor(item, target)
