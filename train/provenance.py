"""Where a number that is none came from: the step is run again, with every module watched.

Healthy steps pay nothing. All processes run the step again together, as sharded weights are
gathered by all; what each finds is put together.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from data.batch import Batch

from .module import PretrainModule


@dataclass(frozen=True)
class Finding:
    """The first place of a step that was not finite.

    Attributes:
        rank: the process that saw it.
        micro_batch: of the step, from 0.
        phase: weights (before anything ran), forward, loss, backward, or weight gradient.
        module: name of the module, or of the weight.
        kind: nan or inf.
        detail: for people: what was finite before it.
    """

    rank: int
    micro_batch: int
    phase: str
    module: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind} {self.detail} (rank {self.rank}, micro-batch {self.micro_batch})"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


_ORDER = ("weights", "forward", "loss", "backward", "weight gradient")


def find_non_finite(
    trainer: L.Trainer, module: PretrainModule, batches: list[Batch]
) -> list[Finding]:
    """Run a step's micro-batches again and return what each process found first, first ones first.

    Gradients are not kept. Nothing is found where the step is finite when it runs again.

    Args:
        trainer: of the run, whose update of this step is still to come.
        module: with the weights that the step had.
        batches: the step's micro-batches of this process.
    """
    found = _own(trainer, module, batches)
    every: list[list[Finding]] = [[found] if found else []]
    if trainer.world_size > 1:
        every = [[] for _ in range(trainer.world_size)]
        dist.all_gather_object(every, [found] if found else [])
    findings = [finding for of_rank in every for finding in of_rank]
    return sorted(findings, key=lambda f: (f.micro_batch, _ORDER.index(f.phase), f.rank))


def _own(trainer: L.Trainer, module: PretrainModule, batches: list[Batch]) -> Finding | None:
    first: Finding | None = None
    for index, batch in enumerate(batches):
        watch = Watch(module.net, trainer.global_rank, index)
        module.zero_grad(set_to_none=True)
        # Compiled blocks would not call the hooks of what is inside them.
        with watch.hooked(), torch.compiler.set_stance("force_eager"):
            with trainer.precision_plugin.train_step_context():
                loss = module.training_step(batch, index)
            watch.loss(loss)
            loss.backward()
        watch.gradients()
        first = first or watch.first  # every process runs every micro-batch, found or not
    module.zero_grad(set_to_none=True)
    return first


class Watch:
    """Notes the first number that is none while a module's forward and backward pass run.

    Args:
        root: the module.
        rank: of this process.
        micro_batch: of the step.
    """

    def __init__(self, root: nn.Module, rank: int, micro_batch: int) -> None:
        self.root, self.rank, self.micro_batch = root, rank, micro_batch
        self.first: Finding | None = None
        self._places: dict[tuple[Any, int], tuple[str, str, bool]] = {}

    def note(self, phase: str, module: str, kind: str, detail: str) -> None:
        """Keep it, if it is the first."""
        if self.first is None:
            self.first = Finding(self.rank, self.micro_batch, phase, module, kind, detail)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch every module while inside."""
        for name, parameter in self.root.named_parameters():
            if kind := _kind(parameter):
                self.note("weights", name, kind, f"in the weight {name}, before the step")
        handles: list[RemovableHandle] = []
        for name, module in self.root.named_modules():
            shown = name or "the objective"
            before, after = self._before(shown), self._after(shown)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, loss: Tensor) -> None:
        """Look at what the forward pass ended with."""
        if kind := _kind(loss):
            self.note("loss", "loss", kind, "in the loss, behind finite outputs of all modules")

    def gradients(self) -> None:
        """Look at what the backward pass left at the weights."""
        for name, parameter in self.root.named_parameters():
            if parameter.grad is not None and (kind := _kind(parameter.grad)):
                self.note("weight gradient", name, kind, f"in the gradient of the weight {name}")

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            for tensor in _tensors((args, kwargs)):
                if kind := _kind(tensor):
                    detail = f"in the forward pass, in the input of {name}"
                    self.note("forward", name, kind, detail)

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if kind := _kind(tensor):
                    self.note("forward", name, kind, f"in the forward pass, in {name}")
                came_back = f"in the backward pass, in the gradient that comes back to {name}"
                self._watch_gradient(tensor, name, came_back, takes=False)
            for tensor in _tensors((args, kwargs)):
                hands_on = f"in the backward pass, in the gradient that {name} hands on"
                self._watch_gradient(tensor, name, hands_on, takes=True)

        return hook

    def _watch_gradient(self, tensor: Tensor, name: str, detail: str, takes: bool) -> None:
        """Watch a gradient; of all that it may be named after, by the innermost that took it."""
        if not tensor.requires_grad or tensor.grad_fn is None:
            return
        key = (tensor.grad_fn, tensor.output_nr)
        known = key in self._places
        if not known or (takes and not self._places[key][2]):
            self._places[key] = (name, detail, takes)
        if known:
            return

        def hook(gradient: Tensor) -> None:
            if kind := _kind(gradient):
                self.note("backward", self._places[key][0], kind, self._places[key][1])

        tensor.register_hook(hook)


def _kind(tensor: Tensor) -> str | None:
    """Return what of a tensor is no number; None where all is finite. Of shards, one's own."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not local.is_floating_point() or bool(local.detach().isfinite().all()):
        return None
    return "nan" if bool(local.detach().isnan().any()) else "inf"


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every float tensor in arguments or results, however they are put together."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, Batch):
        return
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name, None))
