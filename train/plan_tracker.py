"""Bytes that a training step holds, moment by moment: what is allocated, by whom, until when.

Works on real tensors and on fake ones (`torch._subclasses.FakeTensorMode`), which have shapes but
no contents: then a step of any size runs on a laptop, and says what it would hold. The scratch
space of single operators (a convolution's workspace) is not seen.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer states"
COPIES, BACKWARD, STEP = "weights in bf16", "backward", "optimizer step"
UNREDUCED = "unreduced gradients"
SHARDED = (WEIGHTS, GRADIENTS, OPTIMIZER, STEP)
"""What a sharded run cuts into pieces; everything else belongs to the rows at hand."""
_CASTS = (torch.ops.aten._to_copy.default,)

Namer = Callable[[nn.Module], str | None]
"""Which part of the memory a module's own results belong to; None is its caller's."""


@contextmanager
def around_modules(
    enter: Callable[[nn.Module, Any], None], leave: Callable[[nn.Module, Any, Any], None]
) -> Iterator[None]:
    """Call these before and after the forward pass of every module, also of one that fails."""
    hooks = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class LiveBytes(TorchDispatchMode):
    """Follows every storage that is allocated inside it.

    Args:
        name_of: tells parts by module.
        shares: by how much a part counts towards the peak (one over the shards, say); 1 if unsaid.

    Attributes:
        live: bytes held now, by part.
        peak: bytes by part at the moment when most were held, since `forget_peak`.
    """

    def __init__(self, name_of: Namer, shares: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._name_of, self._shares = name_of, dict(shares or {})
        self._owners: list[str] = ["other"]
        self._part_of: dict[int, tuple[str, int]] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._largest = 0.0

    @contextmanager
    def owner(self, part: str) -> Iterator[None]:
        """Put down to `part` what is allocated inside."""
        self._owners.append(part)
        try:
            yield
        finally:
            self._owners.pop()

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Put what modules allocate in their forward passes down to their parts."""

        def enter(module: nn.Module, inputs: Any) -> None:
            self._owners.append(self._name_of(module) or self._owners[-1])

        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self._owners.pop()

        with around_modules(enter, leave):
            yield

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """Say what tensors are; those that were not seen yet are added."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._part_of:
                before, size = self._part_of[key]
                self.live[before] -= size
                self._part_of[key] = (part, size)
                self.live[part] += size
            else:
                self._add(storage, part)

    def flash(self, part: str, size: int) -> None:
        """Hold so many bytes for a moment."""
        self.live[part] += size
        self._look()
        self.live[part] -= size

    def forget_peak(self) -> None:
        """Begin anew from what is held now."""
        self._largest, self.peak = self._held(), Counter(self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and note what it allocated."""
        out = self.run(func, args, kwargs or {})
        part = COPIES if func in _CASTS and self._is_weight(args[0]) else self._owners[-1]
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._part_of:
                    self._add(storage, part)
        self._look()
        return out

    def _look(self) -> None:
        held = self._held()
        if held > self._largest:
            self._largest, self.peak = held, Counter(self.live)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator; a subclass may stand in for some."""
        return func(*args, **kwargs)

    def _is_weight(self, tensor: Tensor) -> bool:
        found = self._part_of.get(tensor.untyped_storage()._cdata)
        return found is not None and found[0] == WEIGHTS

    def _held(self) -> float:
        return sum(size * self._shares.get(part, 1.0) for part, size in self.live.items())

    def _add(self, storage: Any, part: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._part_of[key] = (part, size)
        self.live[part] += size
        # The storage's Python object lives as long as the storage: its end is the memory's.
        self._watched[key] = weakref.ref(storage, lambda _: self._drop(key))

    def _drop(self, key: int) -> None:
        part, size = self._part_of.pop(key)
        self.live[part] -= size
        del self._watched[key]
