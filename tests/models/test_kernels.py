"""Optional kernels: the bookkeeping that feeds them, and the check that guards them."""

import pytest
import torch
from torch import Tensor

from models.kernels import (
    TOLERANCE,
    describe,
    document_bounds,
    flash_documents,
    flash_varlen,
    self_check,
)

CPU = torch.device("cpu")


def varlen_by_loop(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, _: Tensor, longest: int, __: int, **options
) -> Tensor:
    """Variable-length causal attention with flash-attn's arguments, a document at a time."""
    assert options["causal"]
    repeats = q.shape[1] // k.shape[1]
    outputs = []
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        assert end - start <= longest
        heads_first = (
            q[start:end].transpose(0, 1),
            k[start:end].repeat_interleave(repeats, dim=1).transpose(0, 1),
            v[start:end].repeat_interleave(repeats, dim=1).transpose(0, 1),
        )
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


def test_bounds_follow_documents_and_rows() -> None:
    segments = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0], [-1, -1, 0, 0]])
    bounds, longest = document_bounds(segments, (3, 4))
    assert bounds.tolist() == [0, 2, 3, 4, 8, 10, 12]
    assert bounds.dtype == torch.int32 and longest == 4
    assert document_bounds(None, (3, 4))[0].tolist() == [0, 4, 8, 12]


def test_a_faithful_kernel_passes_the_self_check() -> None:
    assert self_check(flash_documents, varlen_by_loop, CPU) < TOLERANCE


def test_a_kernel_with_wrong_gradients_fails_the_self_check() -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, *rest, **options) -> Tensor:
        return varlen_by_loop(q, k.detach() + 0 * k, v, *rest, **options)

    assert self_check(flash_documents, wrong, CPU) > TOLERANCE


def test_a_kernel_that_leaks_between_documents_fails_the_self_check() -> None:
    def leaking(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest, **options) -> Tensor:
        whole = torch.tensor([0, 64, 128], dtype=torch.int32)
        return varlen_by_loop(q, k, v, whole, rest[0], 64, 64, **options)

    assert self_check(flash_documents, leaking, CPU) > TOLERANCE


def test_on_cpu_the_torch_path_runs_and_says_why() -> None:
    assert flash_varlen(torch.zeros(1, dtype=torch.bfloat16)) is None
    assert "needs a GPU" in describe()["flash_attn"]


@pytest.mark.gpu
def test_flash_attention_equals_torch_on_this_gpu() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16, device="cuda")
    function = flash_varlen(x)
    if function is None:
        pytest.skip(describe()["flash_attn"])
    assert self_check(flash_documents, function, x.device) < TOLERANCE
