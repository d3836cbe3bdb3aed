"""The report: what it says, that it is safe to open, and what it refuses."""

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from eval.comparisons import comparisons
from eval.findings import gather
from eval.ledger import write_ledger
from eval.page import render_page
from eval.palette import styles
from eval.report import default_output, main, parse, write_report
from eval.run_tables import sample_table
from eval.runs import RunError, find_runs, read_runs
from eval.tables import best_eta_table, level_tables, verdict_table

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def findings(experiment):
    return gather([experiment], 0.9)


@pytest.fixture(scope="module")
def page(findings):
    return render_page(findings, {"command": "<made> & up"}, samples=2, picture=PNG)


@pytest.fixture
def one_run(tmp_path, answers, make_run):
    return make_run(tmp_path / "exp" / "only", answers("transformer", items=20))


class Outline(HTMLParser):
    """Collects what a browser would see: tags, texts and the embedded data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.scripts, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self.open[-1] if self.open else ""
        (self.scripts if inside == "script" else self.texts).append(data)


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


def texts(table):
    return [[entry.text for entry in row] for row in table.rows]


# What it says


def test_the_first_table_names_who_is_cheapest(findings):
    table = verdict_table(findings)
    assert table.columns == ["Currency", "parity", "swaps"]
    tokens, _, flops, state, _ = table.rows
    assert tokens[2].text == "gated_deltanet and deltanet_hybrid"
    assert "2\u202ftokens" in tokens[2].detail[0]
    assert tokens[2].detail[-1].startswith("next: transformer, full trace: 15\u202ftokens (7.5×)")
    assert flops[2].text == "deltanet_hybrid"
    assert state[2].text == "gated_deltanet"


def test_none_is_said_where_nothing_reaches_the_threshold(experiment):
    for row in verdict_table(gather([experiment], 0.999)).rows:
        assert [entry.text for entry in row[1:]] == ["none", "none"]
        assert row[1].detail[0].startswith("most accurate: ")


def test_an_unsure_winner_is_said_to_be_unsure(findings):
    exact = findings.points.filter(label="gated_deltanet", task="swaps", budget="direct")
    threshold = exact["accuracy"].item()
    assert exact["low"].item() < threshold
    table = verdict_table(gather([run.folder for run in findings.runs], threshold))
    assert "interval reaches below" in " ".join(table.rows[0][2].detail)


def test_level_table_tells_fitting_from_generalising(findings):
    swaps = level_tables(findings)[1]
    assert swaps.columns[2:] == [
        "Level 2 (train-only), n = 500",
        "Level 8, n = 500",
        "Level 16, n = 500",
        "Level 24 (harder), n = 500",
    ]
    assert swaps.rows[0][2].text.startswith("100.0 [99.2, ")


def test_eta_names_its_budget(findings):
    row = dict(zip([r.label for r in findings.runs], best_eta_table(findings).rows, strict=True))
    assert row["gated_deltanet"][1].detail == ("direct",)
    assert row["transformer"][1].detail == ("full trace",)


def test_comparisons_are_paired_on_the_same_questions(findings):
    found = comparisons(findings.ledger, findings.points)
    assert [best["task"] for best, _, _ in found] == ["parity"] * 4 + ["swaps"] * 4
    for best, other, gap in found:
        assert gap.items == 1000
        assert gap.difference == pytest.approx(best["accuracy"] - other["accuracy"])


def test_comparisons_use_templates_as_clusters(findings):
    named = findings.ledger.with_columns(template=(pl.col("index") // 10).cast(pl.String))
    assert {gap.clusters for _, _, gap in comparisons(named, findings.points)} == {50}


def test_other_questions_are_not_compared(findings):
    other = findings.ledger.with_columns(seed=pl.col("run").rank("dense").cast(pl.Int64))
    assert comparisons(other, findings.points) == []


def test_notes_say_what_is_unequal(tmp_path, answers, make_run):
    make_run(tmp_path / "a", answers("transformer", items=5), train_tokens=1000)
    make_run(tmp_path / "b", answers("gated_deltanet", items=5), train_tokens=2000)
    notes = " ".join(gather([tmp_path], 0.9).notes())
    assert "Parameters differ by 1.1%" in notes
    assert "Not trained on the same number of tokens (1,000 to 2,000)" in notes


def test_a_level_that_not_all_answered_is_said_to_be_left_out(tmp_path, answers, make_run):
    make_run(tmp_path / "a", answers("transformer", items=5))
    part = answers("gated_deltanet", items=5).filter(pl.col("level") != 16)
    make_run(tmp_path / "b", part)
    findings = gather([tmp_path], 0.9)
    assert "swaps: level 16 is not pooled" in " ".join(findings.notes())
    assert findings.points["levels"].to_list() == [[8]] * findings.points.height


def test_samples_show_right_and_wrong_answers(findings):
    table = sample_table(findings.runs[0], 2)
    assert table is not None
    assert [row[0] for row in texts(table)] == ["right", "right", "wrong", "wrong"]


def test_samples_make_control_characters_visible_and_long_texts_short(one_run):
    run = read_runs([one_run])[0]
    odd = "a\x00\u202eb\n" + "x" * 1000
    run.ledger.replace_column(
        run.ledger.columns.index("output_text"),
        pl.Series("output_text", [odd] * run.ledger.height),
    )
    table = sample_table(run, 1)
    assert table is not None
    written = texts(table)[0][-1]
    assert written.startswith("a\\x00\\x202eb\\x0axxx")
    assert written.endswith("(605 more)")


# The page


def test_page_opens_offline(page, outline):
    for tag, attributes in outline.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not ("src" in attributes and not attributes["src"].startswith("data:"))
        href = attributes.get("href", "")
        assert not re.match(r"[a-z]+:|//", href), href
    policy = next(a["content"] for _, a in outline.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in script for script in outline.scripts) == 1
    assert "@import" not in page and "url(http" not in page.split("plotly.js v")[0]


def test_model_output_is_text_and_nothing_else(page, outline):
    assert "</script><b>wrong</b>" in outline.texts
    assert html.escape("</script><b>wrong</b>") in page
    assert "</script><b>wrong" not in page
    assert not any(tag == "b" for tag, _ in outline.tags)
    assert "<made> & up" in outline.texts


def test_names_cannot_break_out_of_the_page(tmp_path, answers, make_run):
    evil = '"><img src=x onerror=alert(1)></script><script>alert(2)</script>'
    ledger = answers("transformer", items=3).with_columns(
        backbone=pl.lit(evil), task=pl.lit(evil), run=pl.lit(evil)
    )
    folder = tmp_path / "run"
    make_run(folder, answers("transformer", items=3), **{evil: evil})
    write_ledger(ledger, folder / "ledger.parquet")
    (folder / "config.yaml").write_text(evil)
    (folder / "environment.json").write_text(json.dumps({evil: [evil]}))
    findings = gather([folder], 0.9)
    text = render_page(findings, {}, 1, b"")
    seen = Outline(text)
    assert not any(tag == "img" for tag, _ in seen.tags)
    assert [tag for tag, _ in seen.tags].count("script") == 3
    assert "<img" not in text.split("plotly.js v")[0]


def test_embedded_figures_are_data_for_every_choice(findings, outline):
    data = json.loads(outline.scripts[0])
    options = [a["value"] for tag, a in outline.tags if tag == "option"]
    assert list(data["frontier"]) + list(data["levels"]) == options
    assert list(data["frontier"])[:2] == ["visible_tokens", "serial_steps"]
    assert list(data["levels"]) == ["direct", "full trace, cut at 8", "full trace"]
    for panels in [*data["frontier"].values(), *data["levels"].values()]:
        assert [panel["layout"]["title"]["text"] for panel in panels] == ["parity", "swaps"]
    points = [t for t in data["frontier"]["visible_tokens"][0]["data"] if t["mode"] == "markers"]
    drawn = sum(len(trace["x"]) for trace in points)
    assert drawn == findings.points.filter(task="parity").height


def test_figures_agree_with_the_tables(findings, outline):
    data = json.loads(outline.scripts[0])
    panel = data["frontier"]["model_flops"][1]["data"]
    drawn = {
        (x, round(y, 9))
        for trace in panel
        if trace["mode"] == "markers"
        for x, y in zip(trace["x"], trace["y"], strict=True)
    }
    rows = findings.points.filter(task="swaps").select("model_flops", 100 * pl.col("accuracy"))
    assert drawn == {(x, round(y, 9)) for x, y in rows.iter_rows()}


def test_train_only_levels_are_hollow_in_the_figure(outline):
    lines = json.loads(outline.scripts[0])["levels"]["direct"][0]["data"]
    colours = [t["marker"]["color"] for t in lines if t["mode"] == "lines+markers"]
    assert colours
    assert all(c[0] == "white" and "white" not in c[1:] for c in colours)


def test_every_backbone_looks_different_everywhere():
    looks = styles([f"backbone {number}" for number in range(56)])
    assert len({(look.colour, look.marker) for look in looks.values()}) == 56
    assert len({(look.colour, look.symbol) for look in looks.values()}) == 56


# Writing


def test_report_writes_page_and_pictures(tmp_path, one_run):
    output = tmp_path / "out" / "page.html"
    write_report([one_run], output, samples=1)
    names = {file.name for file in output.parent.iterdir()}
    expected = {"page.html", "frontier.png", "frontier_visible_tokens.png", "levels_swaps.png"}
    assert expected <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert (output.parent / "frontier.png").read_bytes().startswith(PNG)
    links = [a["href"] for tag, a in Outline(output.read_text()).tags if tag == "a"]
    assert links and set(links) <= names


def test_headline_picture_is_1400_pixels_wide(tmp_path, one_run):
    write_report([one_run], tmp_path / "report.html")
    header = (tmp_path / "frontier.png").read_bytes()[16:24]
    assert int.from_bytes(header[:4], "big") == 1400


def test_a_report_without_points_still_shows_the_levels(tmp_path, answers, make_run):
    memorised = answers("transformer", items=5).filter(pl.col("train_only"))
    make_run(tmp_path / "run", memorised)
    findings = write_report([tmp_path / "run"], tmp_path / "report.html")
    assert findings.points.is_empty()
    text = (tmp_path / "report.html").read_text()
    assert "no held-out level was answered" in text
    assert 'data-figure="levels"' in text and 'data-figure="frontier"' not in text


def test_no_text_in_the_ledger_is_no_obstacle(tmp_path, answers, make_run):
    ledger = answers("transformer", items=5).drop("question_text", "answer_text", "output_text")
    make_run(tmp_path / "run", ledger)
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "What they wrote" not in (tmp_path / "report.html").read_text()


# Run folders


def test_runs_are_found_under_an_experiment(experiment):
    found, unevaluated = find_runs([experiment])
    assert [folder.name for folder in found] == sorted(folder.name for folder in found)
    assert len(found) == 5
    assert unevaluated == []


def test_files_of_loggers_are_no_runs(one_run):
    inner = one_run / "wandb" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("a: 1")
    (one_run.parent / "plots").mkdir()
    (one_run.parent / "plots" / "config.yaml").write_text("a: 1")
    assert find_runs([one_run.parent]) == ([one_run], [])


def test_a_run_named_twice_is_read_once(one_run):
    assert find_runs([one_run, one_run.parent])[0] == [one_run]


def test_unevaluated_runs_are_mentioned(one_run):
    other = one_run.parent / "trained"
    other.mkdir()
    (other / "cost.json").write_text("{}")
    findings = gather([one_run.parent], 0.9)
    assert findings.unevaluated == [other]
    assert "not evaluated, so not shown: trained" in " ".join(findings.notes())


def test_no_ledger_names_the_command_that_makes_one(one_run):
    (one_run / "ledger.parquet").unlink()
    with pytest.raises(RunError, match=re.escape(f"python -m eval run={one_run}")) as refused:
        find_runs([one_run.parent])
    assert str(one_run.parent) in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "missing"), ("{", "not JSON"), ("[]", "must hold an object"), ("{}", "`parameters`")],
)
def test_cost_without_parameters_names_the_file(one_run, content, says):
    file = one_run / "cost.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(RunError, match=says) as refused:
        read_runs([one_run])
    assert str(file) in str(refused.value)


def test_runs_of_one_backbone_are_told_apart(tmp_path, answers, make_run):
    for experiment in ("first", "second"):
        make_run(tmp_path / experiment / "run", answers("transformer", items=5))
    runs = read_runs(find_runs([tmp_path])[0])
    assert len({run.label for run in runs}) == len({run.name for run in runs}) == 2
    findings = gather([tmp_path], 0.9)
    assert findings.points["label"].n_unique() == 2


def test_unknown_facts_are_shown_as_they_are(tmp_path, answers, make_run):
    make_run(tmp_path / "run", answers("transformer", items=5), chunk_size=32)
    text = render_page(gather([tmp_path], 0.9), {}, 0, b"")
    assert '<th scope="col">chunk_size</th>' in text


# The verb


def test_settings_are_read():
    config = parse(["runs=a,b", "threshold=0.8", "samples=0"])
    assert (config.runs, config.threshold, config.samples) == (["a", "b"], 0.8, 0)
    assert parse(["runs=[a,b]"]).runs == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=a"], "run=a: not a setting; allowed are runs, output, threshold, samples"),
        (["--force"], "not a setting"),
        (["threshold=0.5"], "runs is empty"),
        (["runs=a", "threshold=high"], "threshold"),
        (["runs=a", "threshold=1.5"], "threshold=1.5: must be above 0 and at most 1"),
        (["runs=a", "samples=-1"], "samples=-1: must be 0 or more"),
        (["runs=a", "output=page.pdf"], "must end in .html"),
        (["runs=[a"], "runs"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_two(arguments, says, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert says in shown.err
    assert shown.err.count("\n") == 1


def test_help_is_for_newcomers(capsys):
    assert main(["--help"]) == 0
    assert "python -m eval.report runs=" in capsys.readouterr().out


def test_a_missing_folder_is_one_line_and_status_one(tmp_path, capsys):
    assert main([f"runs={tmp_path / 'nowhere'}"]) == 1
    assert capsys.readouterr().err == (
        f"eval.report: {tmp_path / 'nowhere'}: no such folder; give a run folder, or an "
        "experiment folder with runs in it\n"
    )


def test_default_place_of_a_report(tmp_path):
    first, second = tmp_path / "a" / "x", tmp_path / "b"
    assert default_output([first]) == first / "report.html"
    assert default_output([first, second]) == tmp_path / "combined" / "report.html"


def test_the_verb_ends_with_the_report(one_run):
    run = subprocess.run(
        [sys.executable, "-m", "eval.report", f"runs={one_run.parent}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert run.stdout.splitlines()[-1] == f"report: {one_run.parent / 'report.html'}"
    assert "transformer" in run.stdout
    assert (one_run.parent / "report.html").is_file()
