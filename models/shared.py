"""What layers hand on to later layers, or loops, of one forward pass (see `Mixer.shares`)."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any


class Shared(MutableMapping[str, Any]):
    """A mapping that every module of a pass writes into and reads from: one object for all.

    It is no dict. Whoever looks for tensors in a module's arguments goes through dicts, and hands
    copies of them on: FSDP2 does, and what a block then writes is lost.

    Args:
        entries: what it begins with.
    """

    def __init__(self, entries: Mapping[str, Any] | None = None) -> None:
        self._entries: dict[str, Any] = {} if entries is None else {**entries}

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
