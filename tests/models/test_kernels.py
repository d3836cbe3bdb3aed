"""Optional kernels: the bookkeeping that feeds them, and the checks that guard them."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from models import kernels
from models.kernel_adapters import named_alike
from models.kernel_checks import largest_difference
from models.kernel_documents import documents_of, first_states, last_states
from models.kernels import (
    KERNELS,
    TOLERANCE,
    Kernel,
    describe,
    document_bounds,
    find,
    flash_documents,
    flash_varlen,
    self_check,
    use_kernels,
)
from models.ops.convolution import short_convolution
from models.ops.decay import decayed_attention
from models.ops.delta import delta_rule, dplr, erase_write
from tests.models.cases import PACKINGS
from tests.models.stand_ins import STAND_INS, varlen_by_loop

CPU = torch.device("cpu")
HALF = torch.bfloat16
KEYS, VALUES = 16, 24


def sizes(name: str) -> tuple[int, int]:
    """Sizes that the kernel takes: of a convolution the width and the channels."""
    return (4, 16) if name == "short_convolution" else (KEYS, VALUES)


def adapted(name: str) -> Callable[..., Any]:
    """The adapter of a kernel over its stand-in, ready to be checked."""
    kernel = KERNELS[name]
    return kernel.checked(partial(kernel.adapter, STAND_INS[kernel.name]))


def plain(name: str) -> Callable[..., Any]:
    """What a kernel must equal."""
    return KERNELS[name].checked(KERNELS[name].plain)


def convolution(x: Tensor, weight: Tensor, segments: Any = None, state: Any = None) -> Any:
    return short_convolution(x, weight, segments_BT=segments, tail_BWD=state)[0], None


def scan(q: Tensor, k: Tensor, x: Tensor, step: Tensor, rate: Tensor, **options: Any) -> Any:
    return decayed_attention(q, k, step[..., None] * x, step * rate, scale=1.0, **options)


OPERATORS: dict[str, Callable[..., Any]] = {
    "decayed_attention": decayed_attention,
    "delta_rule": delta_rule,
    "erase_write": erase_write,
    "dplr": dplr,
    "scan": scan,
    "short_convolution": convolution,
}


RECURRENT = [name for name in KERNELS if name.split()[0] in OPERATORS]
"""Those that stand in for a function of `models.ops`; the others read blocks of the past."""


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Forget verdicts between tests."""
    yield
    for kept in (kernels._running, kernels._reasons, kernels._flash):
        kept.clear()
    use_kernels(True)


def test_bounds_follow_documents_and_rows() -> None:
    segments = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0], [-1, -1, 0, 0]])
    bounds, longest = document_bounds(segments, (3, 4))
    assert bounds.tolist() == [0, 2, 3, 4, 8, 10, 12]
    assert bounds.dtype == torch.int32 and longest == 4
    assert document_bounds(None, (3, 4))[0].tolist() == [0, 4, 8, 12]


def test_states_go_to_the_first_document_and_come_from_the_last() -> None:
    segments = torch.tensor([[0, 0, 1, -1], [0, 0, 0, 0], [-1, -1, 0, 0]])
    documents = documents_of(segments)
    given = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    states = first_states(given, documents)
    assert states is not None and states.flatten().tolist() == [1, 0, 0, 2, 3, 0]
    every = torch.arange(6.0).view(6, 1, 1, 1)
    assert last_states(every, documents).flatten().tolist() == [2, 3, 5]
    assert documents.places_BT.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 1, 1]]
    assert first_states(None, documents) is None


def test_documents_are_counted_once_for_the_same_ids() -> None:
    segments = torch.tensor([[0, 0, 1, 1]])
    first = documents_of(segments)
    assert documents_of(segments) is first
    segments[0, 1] = 1  # changed in place: counted anew
    assert documents_of(segments).bounds.tolist() == [0, 1, 4]
    with torch.inference_mode():
        assert documents_of(torch.tensor([[0, 1]])).bounds.tolist() == [0, 1, 2]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", RECURRENT)
def test_adapters_have_the_operators_results_and_gradients(name: str, packing: str) -> None:
    """Through stand-ins with the packages' signatures, over every packing, from a given state."""
    trial = KERNELS[name].trial(*sizes(name), CPU)
    segments = PACKINGS[packing]
    results = []
    for operator in (adapted(name), OPERATORS[name.split()[0]]):
        timed = {n: x[:, :21] if x.dim() > 2 else x for n, x in trial.inputs.items()}
        leaves = [x.clone().requires_grad_() for x in timed.values()]
        assert trial.state is not None
        state = trial.state.clone().requires_grad_()
        out, last = operator(*leaves, segments=segments, state=state)
        weight = torch.linspace(-1, 1, out.numel()).view_as(out)
        loss = (out * weight).sum() + (0 if last is None else (last * trial.state).sum())
        loss.backward()
        results.append([out, *([] if last is None else [last]), *(x.grad for x in leaves)])
        results[-1].append(state.grad)
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", KERNELS)
def test_a_faithful_kernel_passes_in_half_precision(name: str) -> None:
    kernel = KERNELS[name]
    trial = kernel.trial(*sizes(name), CPU)
    error, where = largest_difference(adapted(name), plain(name), trial, HALF)
    assert error < TOLERANCE, where


@pytest.mark.parametrize("name", RECURRENT)
def test_what_a_kernel_must_equal_is_the_operator(name: str) -> None:
    """The plain recurrence of the checks against the operator that the kernel stands in for."""
    kernel = KERNELS[name]
    trial = kernel.trial(*sizes(name), CPU)
    operator = OPERATORS[name.split()[0]]
    error, where = largest_difference(operator, kernel.plain, trial, torch.float32)
    assert error < 2e-5, where


def wrong_kernels() -> list[tuple[str, str]]:
    """Every input of every kernel: each may lack its gradient."""
    return [
        (name, wrong)
        for name, kernel in KERNELS.items()
        for wrong in kernel.trial(*sizes(name), CPU).inputs
    ]


@pytest.mark.parametrize(("name", "wrong"), wrong_kernels())
def test_a_wrong_gradient_of_any_input_fails(name: str, wrong: str) -> None:
    """As on Hopper with Triton 3.4: the output is right, a gradient is a tenth off."""
    kernel = KERNELS[name]
    trial = kernel.trial(*sizes(name), CPU)
    place = list(trial.inputs).index(wrong)

    def broken(*inputs: Tensor, **options: Any) -> Any:
        changed = list(inputs)
        changed[place] = 0.9 * inputs[place] + 0.1 * inputs[place].detach()
        return adapted(name)(*changed, **options)

    error, where = largest_difference(broken, plain(name), trial, HALF)
    assert error > TOLERANCE and where == f"gradient of {wrong}"


def test_missing_numbers_leaks_and_lost_states_fail() -> None:
    kernel, run = KERNELS["delta_rule"], adapted("delta_rule")
    trial = kernel.trial(KEYS, VALUES, CPU)

    def nan(*inputs: Tensor, **options: Any) -> Any:
        out, last = run(*inputs, **options)
        return out * float("nan"), last

    def leaking(*inputs: Tensor, segments: Any = None, state: Any = None) -> Any:
        return run(*inputs, state=state)

    def forgetting(*inputs: Tensor, segments: Any = None, state: Any = None) -> Any:
        return run(*inputs, segments=segments, state=None if state is None else 0 * state)

    for broken in (nan, leaking, forgetting):
        assert largest_difference(broken, kernel.plain, trial, HALF)[0] > TOLERANCE


def install(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, function: Any) -> None:
    """Put a package with one function where the kernel is looked for."""
    parts = kernel.module.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    setattr(sys.modules[kernel.module], kernel.name, function)


def resolved(name: str) -> Callable[..., Any] | None:
    key = (name, *sizes(name), HALF, CPU)
    kernels.resolve(key)
    return kernels._running[key]


@pytest.mark.parametrize("name", KERNELS)
def test_a_sound_kernel_is_found_and_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, KERNELS[name], STAND_INS[KERNELS[name].name])
    run = resolved(name)
    assert run is not None and describe()[name].startswith("runs on cpu")
    trial = KERNELS[name].trial(*sizes(name), CPU)
    assert largest_difference(KERNELS[name].checked(run), plain(name), trial, HALF)[0] < TOLERANCE


def test_a_wrong_kernel_is_left_aside_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(**inputs: Any) -> Any:
        return STAND_INS["chunk_kda"](**inputs | {"beta": inputs["beta"].detach() * 1})

    install(monkeypatch, KERNELS["delta_rule by channel"], wrong)
    with pytest.warns(UserWarning, match="torch runs instead"):
        assert resolved("delta_rule by channel") is None
    assert "not used" in describe()["delta_rule by channel"]


def test_a_kernel_that_fails_is_left_aside_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**inputs: Any) -> Any:
        raise RuntimeError("0 active drivers")

    install(monkeypatch, KERNELS["delta_rule"], failing)
    with pytest.warns(UserWarning, match="0 active drivers"):
        assert resolved("delta_rule") is None
    install(monkeypatch, KERNELS["scan"], failing)
    monkeypatch.delattr(sys.modules[KERNELS["scan"].module], KERNELS["scan"].name)
    with pytest.warns(UserWarning, match="AttributeError"):
        assert resolved("scan") is None


def test_a_missing_package_is_no_news() -> None:
    for name in KERNELS:
        assert resolved(name) is None
        assert "ModuleNotFoundError" in describe()[name]


def test_sizes_that_a_kernel_does_not_take_are_told() -> None:
    kernels.resolve(("short_convolution", 4, 10, HALF, CPU))
    assert "does not take sizes 4 and 10" in describe()["short_convolution"]


def test_other_argument_names_are_understood() -> None:
    def old(r: int, w: int, k: int, head_first: bool = True) -> tuple[int, int, int, bool]:
        return r, w, k, head_first

    def new(q: int, gk: int, k: int) -> tuple[int, int, int]:
        return q, gk, k

    assert named_alike(old)(q=1, g=2, k=3) == (1, 2, 3, False)
    assert named_alike(new)(q=1, g=2, k=3) == (1, 2, 3)


def test_on_cpu_the_torch_path_runs_and_says_why() -> None:
    x = torch.zeros(1, 1, 1, 8, dtype=HALF)
    assert flash_varlen(x) is None and find("delta_rule", x, x, x) is None
    assert all("needs a GPU" in reason for reason in describe().values())


def test_kernels_can_be_turned_off() -> None:
    use_kernels(False)
    assert all("turned off" in reason for reason in describe().values())
    assert not kernels._allowed()
    use_kernels(True)
    assert kernels._allowed()


def test_without_a_kernel_the_graph_is_whole_once_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that has kernels, without packages: the first trace breaks, later ones don't."""
    monkeypatch.setattr(kernels, "_DEVICE", "cpu")
    x = torch.zeros(1, 1, 1, 8, dtype=HALF)

    def asks(x: Tensor) -> Tensor:
        return x + 1 if find("delta_rule", x, x) is None else x + 2

    assert torch.equal(torch.compile(asks, backend="eager")(x), x + 1)
    assert "ModuleNotFoundError" in describe()["delta_rule"]
    torch.compiler.reset()
    assert torch.equal(torch.compile(asks, backend="eager", fullgraph=True)(x), x + 1)


def test_a_kernel_runs_from_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_DEVICE", "cpu")
    install(monkeypatch, KERNELS["delta_rule"], STAND_INS["chunk_gated_delta_rule"])
    trial = KERNELS["delta_rule"].trial(KEYS, VALUES, CPU)
    halves = [x.to(HALF) if n in trial.half else x for n, x in trial.inputs.items()]

    def asks(*inputs: Tensor) -> Tensor:
        kernel = find("delta_rule", inputs[2], inputs[0], inputs[3])
        return inputs[2] if kernel is None else kernel(*inputs)[0]

    expected = adapted("delta_rule")(*halves)[0]
    torch.compiler.reset()
    assert torch.equal(torch.compile(asks, backend="eager")(*halves), expected)


def test_where_torch_runs_no_graph_breaks() -> None:
    def asks(x: Tensor) -> Tensor:
        kernel = find("delta_rule", x, x)
        return x + 1 if kernel is None else kernel(x)

    x = torch.zeros(1, 1, 1, 8, dtype=HALF)
    compiled = torch.compile(asks, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x + 1)


def test_a_faithful_flash_attention_passes_the_self_check() -> None:
    assert self_check(flash_documents, varlen_by_loop, CPU) < TOLERANCE


def test_flash_attention_with_wrong_gradients_fails_the_self_check() -> None:
    def wrong(q: Tensor, k: Tensor, v: Tensor, *rest, **options) -> Tensor:
        return varlen_by_loop(q, k.detach() + 0 * k, v, *rest, **options)

    assert self_check(flash_documents, wrong, CPU) > TOLERANCE


def test_flash_attention_that_leaks_or_gives_no_number_fails_the_self_check() -> None:
    def leaking(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *rest, **options) -> Tensor:
        whole = torch.tensor([0, 64, 128], dtype=torch.int32)
        return varlen_by_loop(q, k, v, whole, rest[0], 64, 64, **options)

    def nan(*inputs: Any, **options: Any) -> Tensor:
        return varlen_by_loop(*inputs, **options) * float("nan")

    assert self_check(flash_documents, leaking, CPU) > TOLERANCE
    assert self_check(flash_documents, nan, CPU) > TOLERANCE


@pytest.mark.gpu
def test_flash_attention_equals_torch_on_this_gpu() -> None:
    x = torch.zeros(1, dtype=torch.bfloat16, device="cuda")
    function = flash_varlen(x)
    if function is None:
        pytest.skip(describe()["flash_attn"])
    assert self_check(flash_documents, function, x.device) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_torch_on_this_gpu(name: str) -> None:
    keys, values = (4, 256) if name == "short_convolution" else (64, 128)
    key = (name, keys, values, HALF, torch.device("cuda", 0))
    kernels.resolve(key)
    run = kernels._running[key]
    if run is None:
        pytest.skip(describe()[name])
    trial = KERNELS[name].trial(keys, values, key[-1])
    assert largest_difference(KERNELS[name].checked(run), plain(name), trial, HALF)[0] < TOLERANCE


@pytest.mark.gpu
def test_where_a_gpu_lacks_a_kernel_no_graph_breaks() -> None:
    """The first trace asks for a verdict; once it is known, the graph is whole."""

    def asks(x: Tensor) -> Tensor:
        return x + 1 if find("delta_rule", x, x) is None else x + 2

    x = torch.zeros(1, 1, 1, 8, dtype=HALF, device="cuda")
    expected = asks(x)
    assert torch.equal(torch.compile(asks, backend="eager", fullgraph=True)(x), expected)
