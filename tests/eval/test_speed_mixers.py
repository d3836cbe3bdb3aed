"""The mixer suite measures every mixer, guards its time, and judges what it measured."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eval import speed_mixers
from eval.layer_peers import LAYER_PEERS, build_layer_peer, draw, matched_config
from eval.speed import main, parse
from eval.speed_figure import draw_speed, looks_of
from eval.speed_guard import Guard
from eval.speed_kernels import DIRECT, OPERATORS, kernel_table
from eval.speed_memory import peak_memory
from eval.speed_rows import KINDS, Row, Rows
from eval.speed_show import markdown
from eval.speed_tables import mixer_tables
from eval.speed_targets import FASTER, SMALLER, judge, target_lines
from models.kernels import KERNELS
from models.mixer import Site
from models.mixers.listing import MIXERS
from tests.models.stand_ins import STAND_INS

TINY = ["suite=mixers", "dim=32", "head_dim=16", "new_tokens=2", "rounds=1"]
MEGABYTE = 1 << 20


def test_it_measures_every_mixer_and_writes_what_it_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mixers.json"
    assert main([*TINY, "lengths=[16,32]", "peers=false", f"output={output}"]) == 0
    told = capsys.readouterr()
    assert told.out.strip().endswith(f"speed: {output}")
    assert all(f"measuring {name} at 32 tokens" in told.err for name in MIXERS)
    content = json.loads(output.read_text())
    assert list(content["mixers"]) == list(MIXERS) and content["failures"] == []
    assert len(content["rows"]) == len(MIXERS) * len(KINDS) * 2
    for row in content["rows"]:
        assert row["microseconds_per_token"] > 0, row
        assert (row["kind"] == "decoding") or row["peak_bytes"] > 0
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert output.with_suffix(".md").read_text().count("| layer |") == 5
    with output.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(content["rows"])


def test_peers_take_turns_with_ours(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    names = [name for name in LAYER_PEERS if name in MIXERS]
    output = tmp_path / "mixers.json"
    chosen = [f"mixers=[{','.join(names)}]", "lengths=[16]", "peer_chunk=16"]
    assert main([*TINY, *chosen, f"output={output}"]) == 0
    content = json.loads(output.read_text())
    peers = [row for row in content["rows"] if row["who"] == "peer"]
    assert {row["mixer"] for row in peers} == set(names)
    assert all(row["seconds"] or row["note"] == "has none" for row in peers)
    text = output.with_suffix(".md").read_text()
    assert "times faster" in text and "ours over peer" in text


@pytest.mark.parametrize("name", LAYER_PEERS)
def test_peers_have_our_shape_and_numbers(name: str) -> None:
    """Nearly as many parameters; outputs and gradients are numbers; decoding goes on."""
    pytest.importorskip("transformers")
    if name not in MIXERS:
        pytest.skip(f"{name} is not registered")
    site = Site(64, 16, layer=1, num_layers=4)
    kind = LAYER_PEERS[name]
    config = matched_config(MIXERS[name](), kind)
    ours, peer = config.build(site), build_layer_peer(kind, config, site, 16)
    sizes = [sum(p.numel() for p in module.parameters()) for module in (ours, peer.module)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.02
    x = torch.randn(1, 24, 64, requires_grad=True)
    y = peer.run(x, None, 0)
    y.sum().backward()
    assert x.grad is not None and y.isfinite().all() and x.grad.isfinite().all() and y.any()
    if peer.new_cache is not None:
        cache, whole = peer.new_cache(), peer.run(x.detach(), None, 0)
        with torch.no_grad():
            peer.run(x[:, :-1], cache, 0)
            torch.testing.assert_close(
                peer.run(x[:, -1:], cache, 23), whole[:, -1:], atol=1e-5, rtol=1e-4
            )


def test_the_peak_is_exact_on_a_known_case() -> None:
    def known() -> None:
        first = torch.empty(MEGABYTE, dtype=torch.uint8)
        second = torch.empty(2 * MEGABYTE, dtype=torch.uint8)
        del first
        third = torch.empty(3 * MEGABYTE, dtype=torch.uint8)
        del second, third

    assert [peak_memory(known, "cpu") for _ in range(3)] == [5 * MEGABYTE] * 3


def test_the_peak_has_gradients_and_scratch_but_not_what_was_there() -> None:
    weight = torch.randn(256, 1024, requires_grad=True)  # a MiB, there before
    x = torch.randn(256, 256)

    def forward_backward() -> None:
        (x @ weight).exp().sum().backward()  # product, result, two gradients: four of them
        weight.grad = None

    peak = peak_memory(forward_backward, "cpu")
    assert 2 * MEGABYTE <= peak <= 4 * MEGABYTE + 64
    q = torch.randn(1, 4, 512, 64)
    attend = torch.nn.functional.scaled_dot_product_attention
    result = q.numel() * 4
    assert peak_memory(lambda: attend(q, q, q, is_causal=True), "cpu") > result


def test_kept_activations_count() -> None:
    x = torch.randn(1024, 256, requires_grad=True)  # a MiB

    def chain(length: int) -> None:
        y: Tensor = x
        for _ in range(length):
            y = y.sin()
        y.sum().backward()
        x.grad = None

    peaks = [peak_memory(lambda n=n: chain(n), "cpu") for n in (4, 8)]
    assert peaks[1] - peaks[0] == 4 * MEGABYTE


def test_the_guard_predicts_from_the_lengths_before() -> None:
    guard = Guard({"s": 10.0})
    assert guard.refuses("ours", "forward", 512) == ""
    guard.saw("ours", "forward", "s", 512, 1.0)
    assert guard.predict("ours", "forward", "s", 1024) == pytest.approx(4.0)  # quadratic, at worst
    guard.saw("ours", "forward", "s", 1024, 2.0)
    assert guard.predict("ours", "forward", "s", 2048) == pytest.approx(4.0)  # it was linear
    assert guard.refuses("ours", "forward", 4096) == ""
    assert guard.refuses("ours", "forward", 8192).startswith("skipped: about 16 s expected")
    assert guard.refuses("peer", "forward", 8192) == ""


def test_skipped_and_failed_calls_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "mixers.json"
    few = ["mixers=[attn]", "lengths=[16,32]", "peers=false", f"output={output}"]
    assert main([*TINY, *few, "most_seconds=1e-9"]) == 0
    content = json.loads(output.read_text())
    long = [row for row in content["rows"] if row["length"] == 32]
    assert all("at most 1e-09 allowed" in row["note"] and not row["seconds"] for row in long)
    assert "skipped: about" in capsys.readouterr().out
    assert "skipped" in output.with_suffix(".md").read_text()

    def failing(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(speed_mixers, "call_of", failing)
    assert main([*TINY, *few]) == 1
    assert "failed: RuntimeError: no such kernel" in capsys.readouterr().out


def rows_of(times: dict[tuple[str, str, int], tuple[float, int]]) -> Rows:
    return Rows(
        [
            Row(mixer, who, f"{who} {mixer}", "training", length, length, [seconds], peak)
            for (mixer, who, length), (seconds, peak) in times.items()
        ]
    )


def test_targets_are_judged_by_what_was_measured() -> None:
    rows = rows_of(
        {
            ("gdn", "ours", 2048): (1.0, 10),
            ("gdn", "peer", 2048): (1.4, 10),
            ("kda", "ours", 2048): (1.0, 10),
            ("kda", "peer", 2048): (6.0, 30),
            ("gdn", "ours", 16384): (8.0, 80),
            ("kda", "ours", 16384): (16.0, 80),
        }
    )
    verdicts = judge(rows, {"gdn", "kda"}, {"scan": {"ratio": 1.02}})
    assert [v["reached"] for v in verdicts] == [False, True, None, True, None, True, False, True]
    lines = target_lines(verdicts)
    assert (
        lines[0].startswith("MISSED: gdn: times faster") and "1.40, target at least 1.5" in lines[0]
    )
    assert lines[1].startswith("reached") and lines[2].startswith("not measured")
    assert len(FASTER) + len(SMALLER) == 5


def test_tables_and_figure_hold_every_layer() -> None:
    rows = rows_of({("gdn", "ours", 512): (1.0, 10**6), ("gdn", "peer", 512): (3.0, 4 * 10**6)})
    text = markdown(mixer_tables(rows, "32"), ["a line"])
    assert "*x3.00*" in text and "*x0.25*" in text and text.endswith("- a line\n")
    figure = draw_speed(rows, "a machine")
    assert len(figure.axes) == 4
    said = [text.get_text() for text in figure.axes[1].texts]
    assert said == ["gdn", "gdn, transformers"]


def test_many_mixers_look_different() -> None:
    looks = looks_of([str(place) for place in range(40)])
    assert len(set(looks.values())) == 40


COMPARED = [name for name in KERNELS if name.split()[0] in OPERATORS]


@pytest.mark.parametrize("name", COMPARED)
def test_direct_calls_take_our_operators_tensors(name: str) -> None:
    """What CUDA compares, over stand-ins: the same tensors give the same result both ways."""
    kernel = KERNELS[name]
    sizes = (4, 16) if name == "short_convolution" else (8, 8)
    inputs = list(kernel.trial(*sizes, torch.device("cpu")).inputs.values())
    operator = name.split()[0]
    direct = DIRECT[operator](STAND_INS[kernel.name])
    if operator == "short_convolution":
        results = [direct(inputs[0], inputs[1].flip(1)), OPERATORS[operator](*inputs)]
    elif operator == "scan":  # ours asks for a kernel, which there is none of here
        results = [direct(*inputs), kernel.plain(*inputs)]
    else:
        results = [direct(*inputs), OPERATORS[operator](*inputs)]
    found, expected = (x[0] if isinstance(x, tuple) else x for x in results)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_kernels_that_are_missing_are_told() -> None:
    found = {
        "scan": {"ratio": None, "why": "not used: needs a GPU"},
        "dplr": {"ratio": 1.01, "seconds": {"ours": 1e-3, "direct": 0.99e-3}},
    }
    rows = [[entry.text for entry in row] for row in kernel_table(found).rows]
    assert rows == [["scan", "", "", "not used: needs a GPU"], ["dplr", "1,000", "990", "1.01"]]


def test_zero_weights_are_drawn() -> None:
    """An output that starts at zero would leave the backward pass nothing to do."""
    mixer = MIXERS["attn"]().build(Site(32, 16))
    draw(mixer)
    assert all(weight.any() for weight in mixer.parameters())


@pytest.mark.gpu
def test_the_suite_runs_on_this_gpu(tmp_path: Path) -> None:
    output = tmp_path / "mixers.json"
    few = ["lengths=[128,256]", "device=cuda", "precision=bf16", f"output={output}"]
    assert main(["suite=mixers", "dim=128", "rounds=2", *few]) == 0
    compared = json.loads(output.read_text())["kernels"]["compared"]
    assert list(compared) == COMPARED


@pytest.mark.parametrize(
    "wrong",
    ["dim=0", "mixers=[huge]", "lengths=[4,2]", "lengths=[]", "most_seconds=0", "context=3"],
)
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        parse(["suite=mixers", wrong])


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="suite=all is not known"):
        parse(["suite=all"])
