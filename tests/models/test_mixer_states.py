"""Memory between calls: decoding, prefill in pieces, padding, and rows that come and go."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.mixer import Mixer, Site
from models.mixers.attention import AttentionConfig
from models.mixers.recurrent import RecurrentState
from models.ops.twin import step_by_step
from models.state import State
from tests.models.cases import (
    CAUSAL_MIXERS,
    LENGTH,
    PACKINGS,
    PIECES,
    ROUNDING,
    SITE,
    segments_of,
    shared_mixer,
)


@pytest.fixture
def mixer(causal_mixer: Mixer) -> Mixer:
    """Each mixer that keeps a state."""
    return causal_mixer


def inputs(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randn(batch, length, SITE.dim, dtype=torch.float64)


def empty(mixer: Mixer, batch: int = 2, max_len: int = 2 * LENGTH) -> Any:
    return mixer.init_state(batch, max_len, "cpu", torch.float64)


def read(
    mixer: Mixer, x: Tensor, segments: Tensor | None, sizes: list[int], state: Any
) -> tuple[Tensor, Any]:
    """Read in pieces of these sizes; without segments, everything goes on with one document."""
    outputs, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        ids = None if segments is None else segments[:, piece]
        y, state = mixer(x[:, piece], ids, state)
        outputs.append(y)
        start += size
    assert start == x.shape[1], "the pieces must cover the row"
    return torch.cat(outputs, dim=1), state


def alone(mixer: Mixer, *parts: Tensor) -> Tensor:
    """Outputs of one row read from scratch, unpadded: what any batched reading must equal."""
    return mixer(torch.cat(parts, dim=0)[None])[0][0]


@pytest.mark.parametrize("case", CAUSAL_MIXERS)
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(sizes=PIECES, packing=st.sampled_from([None, *PACKINGS]), twin=st.booleans())
def test_any_split_into_calls_equals_one_pass(
    case: str, sizes: list[int], packing: str | None, twin: bool
) -> None:
    mixer, x = shared_mixer(case), inputs()
    segments = None if packing is None else PACKINGS[packing]
    expected = mixer(x, segments)[0]
    if twin:
        with step_by_step():
            actual, _ = read(mixer, x, segments, sizes, empty(mixer))
    else:
        actual, _ = read(mixer, x, segments, sizes, empty(mixer))
    torch.testing.assert_close(actual, expected, **ROUNDING)


def test_one_token_at_a_time_equals_one_pass(mixer: Mixer, segments: Tensor) -> None:
    x = inputs()
    actual, _ = read(mixer, x, segments, [1] * LENGTH, empty(mixer))
    torch.testing.assert_close(actual, mixer(x, segments)[0], **ROUNDING)


def test_a_state_just_large_enough_suffices(mixer: Mixer) -> None:
    x = inputs()
    actual, _ = read(mixer, x, None, [8, *[1] * (LENGTH - 8)], empty(mixer, max_len=LENGTH))
    torch.testing.assert_close(actual, mixer(x)[0], **ROUNDING)


def test_rows_know_their_document_and_position(mixer: Mixer) -> None:
    segments = PACKINGS["several"]  # rows of documents of 5, 9, 7 and of 8, 8, 5 tokens
    x, state = inputs(), empty(mixer)
    pieces = {(0, 5): [5, 5], (5, 8): [3, 8], (8, 9): [4, 1], (9, LENGTH): [7, 5]}
    for (start, end), positions in pieces.items():
        _, state = mixer(x[:, start:end], segments[:, start:end], state)
        assert state.document_B.tolist() == segments[:, end - 1].tolist(), f"after {end} tokens"
        assert state.position_B.tolist() == positions, f"after {end} tokens"
    _, state = mixer(inputs(length=2), None, state)
    assert state.document_B.tolist() == segments[:, -1].tolist(), "unnamed tokens go on"
    assert state.position_B.tolist() == [9, 7], "unnamed tokens go on"


LENGTHS = [LENGTH, 13, 1]


def left_padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Batch prompts `[T, D]` of several lengths; the padding is noise, as it must not matter."""
    longest = max(len(prompt) for prompt in prompts)
    x = torch.stack(
        [torch.cat([inputs(1, longest - len(prompt))[0], prompt]) for prompt in prompts]
    )
    segments = segments_of([[len(prompt) - longest, len(prompt)] for prompt in prompts])
    return x, segments


def test_left_padding_changes_nothing(mixer: Mixer) -> None:
    prompts = [inputs(1, length)[0] for length in LENGTHS]
    x, segments = left_padded(prompts)
    y = mixer(x, segments)[0]
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(y[row, -len(prompt) :], alone(mixer, prompt), **ROUNDING)


@pytest.mark.parametrize("sizes", [[21], [9, 12], [20, 1]], ids=str)
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_left_padded_prompts_decode_as_if_alone(
    mixer: Mixer, sizes: list[int], named: bool
) -> None:
    prompts, new = [inputs(1, length)[0] for length in LENGTHS], inputs(3, 5)
    x, segments = left_padded(prompts)
    _, state = read(mixer, x, segments, sizes, empty(mixer, 3))
    ids = torch.zeros(3, 5, dtype=torch.long) if named else None
    y, _ = read(mixer, new, ids, [1, 1, 2, 1], state)
    for row, prompt in enumerate(prompts):
        expected = alone(mixer, prompt, new[row])[len(prompt) :]
        torch.testing.assert_close(y[row], expected, **ROUNDING)


def prefilled(mixer: Mixer, lengths: list[int]) -> tuple[list[Tensor], Any]:
    """Prompts of these lengths, and the state of a left-padded batch that has read them."""
    prompts = [inputs(1, length)[0] for length in lengths]
    return prompts, mixer(*left_padded(prompts), empty(mixer, len(prompts)))[1]


def test_rows_can_be_dropped_reordered_and_forked(mixer: Mixer) -> None:
    prompts, state = prefilled(mixer, LENGTHS)
    rows, new = [2, 0, 0, 1], inputs(4, 4)
    forked = state.take(torch.tensor(rows))
    y, _ = read(mixer, new, None, [1, 2, 1], forked)
    for place, row in enumerate(rows):
        expected = alone(mixer, prompts[row], new[place])[len(prompts[row]) :]
        torch.testing.assert_close(y[place], expected, **ROUNDING)


def test_rows_taken_are_copies(mixer: Mixer) -> None:
    prompts, state = prefilled(mixer, LENGTHS)
    copy, new = state.take(torch.arange(3)), inputs(3, 2)
    read(mixer, inputs(3, 2), None, [1, 1], copy)
    copy.put(torch.arange(3), empty(mixer, 3))
    y, _ = read(mixer, new, None, [1, 1], state)
    for row, prompt in enumerate(prompts):
        expected = alone(mixer, prompt, new[row])[len(prompt) :]
        torch.testing.assert_close(y[row], expected, **ROUNDING)


def test_new_rows_enter_a_larger_state(mixer: Mixer) -> None:
    old_prompts, state = prefilled(mixer, [4, 9, 2, 7])
    first, second = inputs(4, 3), inputs(4, 4)
    _, state = read(mixer, first, None, [1, 1, 1], state)
    new_prompts, entering = prefilled(mixer, [LENGTH, 3])
    state.put(torch.tensor([3, 1]), entering)
    y, _ = read(mixer, second, None, [1, 2, 1], state)
    pasts = [torch.cat([prompt, first[row]]) for row, prompt in enumerate(old_prompts)]
    pasts[3], pasts[1] = new_prompts
    for row, past in enumerate(pasts):
        expected = alone(mixer, past, second[row])[len(past) :]
        torch.testing.assert_close(y[row], expected, **ROUNDING)


def test_a_row_put_back_to_empty_starts_over(mixer: Mixer) -> None:
    prompts, state = prefilled(mixer, [6, 11])
    state.put(torch.tensor([0]), empty(mixer, 1))
    new = inputs(2, 3)
    y, _ = read(mixer, new, None, [1, 1, 1], state)
    torch.testing.assert_close(y[0], alone(mixer, new[0]), **ROUNDING)
    torch.testing.assert_close(y[1], alone(mixer, prompts[1], new[1])[11:], **ROUNDING)


def test_a_state_keeps_nothing_of_the_callers(mixer: Mixer) -> None:
    """Overwriting rows of a state leaves the inputs that it came from as they were."""
    x, segments = inputs(), PACKINGS["several"].clone()
    before = x.clone(), segments.clone()
    _, state = mixer(x, segments, empty(mixer))
    state.put(torch.arange(2), empty(mixer))
    assert torch.equal(x, before[0]), "put wrote into the inputs"
    assert torch.equal(segments, before[1]), "put wrote into the caller's segments"


def tensors(state: State) -> dict[str, Tensor]:
    return {name: x for name, x in vars(state).items() if isinstance(x, Tensor)}


def test_bytes_held_are_bytes_counted(mixer: Mixer) -> None:
    """A float32 row with room for `max_len` tokens holds what the cost says of that context."""
    for max_len in (2, LENGTH):
        state = mixer.init_state(1, max_len, "cpu", torch.float32)
        assert state.nbytes == mixer.cost(max_len).state_bytes > 0
        assert mixer.init_state(3, max_len, "cpu", torch.float32).nbytes == 3 * state.nbytes


def test_bytes_held_never_understate_the_tensors(mixer: Mixer) -> None:
    """Only integers (documents, positions) are left out of the bytes held."""
    state = empty(mixer)
    floats = [x for x in tensors(state).values() if x.is_floating_point()]
    assert state.nbytes == sum(x.numel() * x.element_size() for x in floats)


@pytest.mark.parametrize("autocast", [False, True])
def test_recurrent_memory_is_at_least_float32(mixer: Mixer, autocast: bool) -> None:
    x = inputs().bfloat16()
    mixer = mixer.float() if autocast else mixer.bfloat16()
    state = mixer.init_state(2, LENGTH, "cpu", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for length in (9, 1):
            y, state = mixer(x[:, :length].float() if autocast else x[:, :length], None, state)
            assert y.dtype == torch.bfloat16
            if isinstance(state, RecurrentState):
                assert state.memory_BHKV.dtype == torch.float32


def test_dtypes_of_a_state_do_not_drift(mixer: Mixer) -> None:
    """A state whose precision changes with the first call would break compiled decoding."""
    for dtype in (torch.float32, torch.bfloat16):
        mixer = mixer.to(dtype)
        state = mixer.init_state(2, LENGTH, "cpu", dtype)
        before = {name: x.dtype for name, x in tensors(state).items()}
        for length in (5, 1):
            _, state = mixer(inputs(length=length).to(dtype), None, state)
        assert {name: x.dtype for name, x in tensors(state).items()} == before


def test_a_document_that_outgrows_its_slots_is_refused() -> None:
    mixer = AttentionConfig(num_heads=2).build(Site(dim=16, head_dim=8))
    state = mixer.init_state(1, 6, "cpu", torch.float32)
    _, state = mixer(torch.randn(1, 6, 16), None, state)
    with pytest.raises(ValueError, match="document of 7 tokens doesn't fit a state of max_len=6"):
        mixer(torch.randn(1, 1, 16), None, state)


def test_a_second_document_of_the_same_row_has_the_whole_room() -> None:
    mixer = AttentionConfig(num_heads=2).build(Site(dim=16, head_dim=8))
    state = mixer.init_state(1, 6, "cpu", torch.float32)
    for document in range(3):
        _, state = mixer(torch.randn(1, 5, 16), torch.full((1, 5), document), state)
    assert state is not None and state.position_B.tolist() == [5]
