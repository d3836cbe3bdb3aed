"""Answers that are filled in: one pass over the prompt and masks, read where the masks stand.

So a backbone that was trained by `objective.fill` answers, and a non-causal one can't otherwise. In
training as many places are masked as the document's answer and its end have. Here nobody knows how
many those are, so all questions of a cell get the places of the cell's longest answer, and what
follows the first end of text is dropped. Where a level's answers have one length (all tasks but
addition, with the symbolic tokenizer) that is what was trained; where they differ, a shorter
answer stands before more masks than in training, and pays for them.

Legend: B rows, T time, N places to fill in of all rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from data.document import encode_pieces
from data.roles import Role
from data.tasks.task import Problem
from data.tokenizer import Tokenizer
from eval.budget import Budget
from eval.config import EvalConfig
from eval.generate import PADDING, Generation, Request
from eval.spending import Spending
from models.backbone import Backbone
from models.depth.stop import Stop


@dataclass(frozen=True)
class Filling(Generation):
    """One answer filled in.

    Attributes:
        places: masks that were read for it, those behind its end included.
    """

    places: int = 0


def fill_requests(problems: Sequence[Problem], tokenizer: Tokenizer) -> list[Request]:
    """Turn the questions of a cell into prompts, each with the places of the longest answer."""
    encoded = [encode_pieces(problem, "none", tokenizer) for problem in problems]
    places = max(int((roles == Role.ANSWER).sum()) for _, roles in encoded)
    prompts = [tokens[roles == Role.QUESTION].tolist() for tokens, roles in encoded]
    return [Request(prompt, index, 0, places) for index, prompt in enumerate(prompts)]


@torch.inference_mode()
def fill(
    backbone: Backbone,
    requests: Sequence[Request],
    budget: Budget,
    tokenizer: Tokenizer,
    batch_size: int = 256,
    on_finished: Callable[[int], None] | None = None,
) -> list[Filling]:
    """Answer each request in one pass, with the likeliest token at each place.

    Args:
        backbone: in evaluation mode, on the device to use.
        requests: the questions; `max_answer` is the number of places, the end's included.
        budget: gives the loop count; it has neither trace nor samples (`check_budgets`).
        tokenizer: knows the mask (its padding) and the end.
        batch_size: rows that run side by side.
        on_finished: told how many answers each batch has finished.
    """
    assert not budget.thinks and budget.samples == 1
    answers: list[Filling] = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        answers += _fill_batch(backbone, batch, budget.loops, tokenizer)
        if on_finished is not None:
            on_finished(len(batch))
    return answers


def _fill_batch(
    backbone: Backbone, requests: Sequence[Request], loops: int | None, tokenizer: Tokenizer
) -> Iterator[Filling]:
    device = next(backbone.parameters()).device
    tokens_BT, segments_BT, masked_BT = (
        rows.to(device) for rows in _rows(requests, tokenizer.pad_id)
    )
    out = backbone(tokens_BT, segments_BT, loops=loops, stop=Stop())  # every token runs every loop
    filled_N = out.readout(out.hidden_BTD[masked_BT]).argmax(dim=-1).cpu()
    parts = filled_N.split([request.max_answer for request in requests])
    for request, part in zip(requests, parts, strict=True):
        written = _up_to(tokenizer.eos_id, part.tolist())
        yield Filling(len(request.prompt), written, places=request.max_answer)


def _rows(requests: Sequence[Request], mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts with masks behind them, padded on the right: tokens, documents, where masks stand."""
    lengths = [len(request.prompt) + request.max_answer for request in requests]
    shape = (len(requests), max(lengths))
    tokens_BT, segments_BT = torch.full(shape, mask_id), torch.full(shape, PADDING)
    masked_BT = torch.zeros(shape, dtype=torch.bool)
    for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        prompt = len(request.prompt)
        tokens_BT[row, :prompt] = torch.tensor(request.prompt)
        segments_BT[row, :length] = 0
        masked_BT[row, prompt:length] = True
    return tokens_BT, segments_BT, masked_BT


def _up_to(end: int, tokens: list[int]) -> list[int]:
    """The tokens through the first end; all of them where there is none."""
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


class FillMeter:
    """Counts what filling in cost: one pass, every place read out, and no state to keep."""

    def __init__(self, backbone: Backbone, loops: int | None) -> None:
        """Count for `backbone` running `loops` loops (None is its own count)."""
        self._calls = backbone.block_calls_per_position(loops)
        self._read = lru_cache(maxsize=None)(
            lambda length, places: backbone.prefill_cost(length, loops, readouts=places)
        )

    def spend(self, samples: Sequence[Generation]) -> Spending:
        """Count the one answer of a question."""
        (answer,) = samples
        assert isinstance(answer, Filling)
        length = answer.prompt_tokens + answer.places
        cost = self._read(length, answer.places)
        return Spending(
            prompt_tokens=answer.prompt_tokens,
            visible_tokens=len(answer.tokens),
            latent_steps=0,
            block_calls=round(length * self._calls),
            model_flops=cost.flops,
            serial_steps=round(cost.serial_steps),
            state_bytes=0,
        )


def check_budgets(config: EvalConfig, backbone: Backbone) -> None:
    """Refuse budgets that only a backbone that writes word by word can run.

    Raises:
        ValueError: one line that names the key and what to ask for.
    """
    budgets = config.budgets
    asked = [(f"eval.tasks.{name}.traces", task.traces) for name, task in config.tasks.items()]
    for key, traces in [("eval.budgets.traces", budgets.traces), *asked]:
        if traces is not None and any(trace != "none" for trace in traces):
            _refuse(backbone, key, traces, "it can't write a trace: ask for traces=[none]")
    if any(end is not None for end in budgets.forced_ends):
        why = "there is no thought to end: ask for forced_ends=[null]"
        _refuse(backbone, "eval.budgets.forced_ends", budgets.forced_ends, why)
    if any(stop not in (None, "none") for stop in budgets.stops):
        why = "all its tokens run all loops: ask for stops=[null]"
        _refuse(backbone, "eval.budgets.stops", budgets.stops, why)
    if any(samples > 1 for samples in budgets.samples):
        why = "it gives its likeliest answer only: ask for samples=[1]"
        _refuse(backbone, "eval.budgets.samples", budgets.samples, why)


def _refuse(backbone: Backbone, key: str, values: Sequence[object], why: str) -> None:
    listed = ", ".join("null" if value is None else str(value) for value in values)
    kind = "was trained by objective.fill" if backbone.causal else "is non-causal"
    name = f"the backbone {backbone.config.name} {kind}"
    raise ValueError(f"{key}=[{listed}]: {name} and fills answers in, so {why}")
