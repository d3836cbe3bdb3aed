"""The depth suite times loops beside their twins, and sees whether loop counts compile anew."""

import csv
import json
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eval import speed_depth
from eval.speed import main, parse
from eval.speed_backbones import training_step
from eval.speed_depth import CASES, DepthSpeedConfig, build, measure_graphs, settings_of
from eval.speed_depth_figure import draw_depth
from eval.speed_depth_rows import DepthRow, Pair, depth_tables, judge_depth
from eval.speed_graphs import GraphCount, count_graphs
from models.block import Block
from models.depth.draws import Draws
from models.ops.twin import step_by_step
from models.twins import TOLERANCE, training_flops

TINY = ["dim=32", "head_dim=16", "vocab_size=64", "context=16", "batch=2", "rounds=2"]
SUITE = ["suite=depth", *TINY]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let blocks be captured as ever, but run as they are: no C++ compiler, and seconds."""
    monkeypatch.setattr(Block, "compile", partialmethod(nn.Module.compile, backend="eager"))


def test_it_times_every_case_and_its_twin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "depth.json"
    assert main([*SUITE, "compile=false", f"output={output}"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"speed: {output}")
    content = json.loads(output.read_text())
    rows = content["rows"]
    assert [(row["case"], row["who"]) for row in rows] == [
        (case, who) for case in CASES for who in ("looped", "twin")
    ]
    for looped, twin in zip(rows[::2], rows[1::2], strict=True):
        assert looped["block_calls"] == twin["block_calls"]
        assert twin["flops"] == pytest.approx(looped["flops"], rel=TOLERANCE)
        assert len(twin["seconds"]) == 2 and twin["flops_per_second"] > 0
    assert len(content["targets"]) == len(CASES) and content["graphs"] == {}
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "looped over twin" in output.with_suffix(".md").read_text()
    with output.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(rows)


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_take_turns_with_plain_ones(tmp_path: Path) -> None:
    output = tmp_path / "depth.json"
    few = ["cases=[attn_1x4]", "loop_counts=3"]
    assert main([*SUITE, *few, f"output={output}"]) == 0
    content = json.loads(output.read_text())
    assert [row["mode"] for row in content["rows"]] == ["plain"] * 2 + ["compiled"] * 2
    graphs = content["graphs"]["attn_1x4"]
    assert graphs["counts"] == [1, 2, 3] and graphs["added"] == 0
    assert output.with_suffix(".md").read_text().count("| case |") == 3


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["attn_2x4", "gdn_hybrid_4x4", "window"])
def test_graphs_do_not_grow_with_loop_counts(case: str) -> None:
    """One graph for each kind of block, and one more where loops run forward only."""
    config = parse([*SUITE, f"cases=[{case}]", "loop_counts=8"])
    assert isinstance(config, DepthSpeedConfig)
    found = measure_graphs(case, config)
    kinds = 2 if case == "gdn_hybrid_4x4" else 1
    expected = [kinds] * 2 + [kinds + (case == "window")] * 6
    assert found.graphs == expected and found.added == 0 and not found.breaks


def test_a_storm_is_seen() -> None:
    """A number that the compiled code takes for a constant makes a graph for each count."""

    class Counting(nn.Module):
        loop = 0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.loop

    counting = Counting()
    counting.compile(backend="eager")

    def step(loops: int) -> None:
        for counting.loop in range(loops):
            counting(torch.ones(2))

    found = count_graphs(step, range(1, 12), settled=2)
    assert found.graphs == list(range(1, 12)) and found.added == 9


@pytest.mark.parametrize("case", CASES)
def test_flops_are_those_of_the_step(case: str) -> None:
    """Products counted while a step runs, a loop without a gradient only forward."""
    config = DepthSpeedConfig(dim=64, head_dim=32, vocab_size=64, context=1, batch=4)
    backbone = build(settings_of(case, config), config, "plain")
    step = training_step(backbone, config, Draws(0, 0, 0, rows=config.batch))
    with step_by_step(), FlopCounterMode(display=False) as counter:
        step()
    analytic = config.batch * training_flops(backbone, config.context)
    assert analytic == pytest.approx(counter.get_total_flops(), rel=0.01)


def a_row(who: str, seconds: list[float], mode: str = "plain", flops: float = 6e9) -> DepthRow:
    return DepthRow("attn_1x4", mode, who, 4, 4, 1000, flops, seconds)


def test_ratios_are_of_flops_a_second() -> None:
    pair = Pair(a_row("looped", [2.0, 1.0, 3.0]), a_row("twin", [1.0, 2.0, 1.0], flops=4e9))
    assert pair.looped.rate == 3e9 and pair.ratio == pytest.approx(0.75)
    assert pair.rounds == pytest.approx([0.75, 3.0, 0.5])


def test_misses_are_told_and_drawn() -> None:
    rows = [a_row("looped", [2.0, 2.2]), a_row("twin", [1.0, 1.1])]
    graphs = {"attn_1x4": GraphCount([1, 2, 3, 4], [1, 1, 2, 3], 2, {"some reason": 4})}
    assert [verdict["reached"] for verdict in judge_depth(rows, graphs)] == [False, False]
    note = depth_tables(rows, graphs)[-1].note
    assert note.endswith("Graphs broken, attn_1x4 4 times: some reason.")
    ratios, compiled = draw_depth(rows, graphs, "a machine").axes
    assert [label.get_text() for label in ratios.get_yticklabels()] == ["attn_1x4"]
    assert "0.50" in [text.get_text() for text in ratios.texts]
    assert compiled.get_ylabel() == "Graphs compiled so far"


def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = speed_depth.measure_case

    def failing(name: str, *given: DepthSpeedConfig) -> list[DepthRow]:
        if name == "window":
            raise MemoryError("too large")
        return measure(name, *given)

    monkeypatch.setattr(speed_depth, "measure_case", failing)
    output = tmp_path / "depth.json"
    few = ["cases=[window,attn_1x4]", "compile=false"]
    assert main([*SUITE, *few, f"output={output}"]) == 1
    content = json.loads(output.read_text())
    assert content["failures"] == ["window: MemoryError: too large"]
    assert {row["case"] for row in content["rows"]} == {"attn_1x4"}


@pytest.mark.parametrize(
    "wrong",
    [
        "dim=0",
        "cases=[huge]",
        "cases=[]",
        "loop_counts=2",
        "compile=maybe",
        "peers=true",
        "clock=x",
    ],
)
def test_wrong_settings_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]) as error:
        parse(["suite=depth", wrong])
    assert "\n" not in str(error.value)
