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

from data.atomic import WriteError
from eval.findings import gather
from eval.ledger import write_ledger
from eval.page import render_page
from eval.palette import styles
from eval.report import default_output, main, parse, write_report

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


@pytest.fixture(scope="module")
def written(tmp_path_factory, answers, make_run):
    folder = tmp_path_factory.mktemp("written")
    run = make_run(folder / "run", answers("transformer", items=20))
    write_report([run], folder / "out" / "page.html", samples=1)
    return folder / "out"


def test_report_writes_page_and_pictures(written):
    names = {file.name for file in written.iterdir()}
    expected = {"page.html", "frontier.png", "frontier_visible_tokens.png", "levels_swaps.png"}
    assert expected <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert (written / "frontier.png").read_bytes().startswith(PNG)
    links = [
        a["href"] for tag, a in Outline((written / "page.html").read_text()).tags if tag == "a"
    ]
    assert links and set(links) <= names


def test_headline_picture_is_1400_pixels_wide(written):
    header = (written / "frontier.png").read_bytes()[16:24]
    assert int.from_bytes(header[:4], "big") == 1400


def test_a_failed_write_leaves_the_old_report_alone(written, monkeypatch):
    before = (written / "page.html").read_bytes()
    monkeypatch.setattr("eval.report.write_figures", lambda *_: [])

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(WriteError, match="disk is full"):
        write_report([written.parent / "run"], written / "page.html")
    assert (written / "page.html").read_bytes() == before
    assert not list(written.glob("*.tmp"))


def test_a_report_without_points_still_shows_the_levels(tmp_path, answers, make_run):
    # The task's name is no formula for matplotlib, and no path.
    memorised = answers("transformer", items=5).filter(pl.col("train_only"))
    memorised = memorised.with_columns(task=pl.lit("$odd_{/$"))
    make_run(tmp_path / "run", memorised)
    findings = write_report([tmp_path / "run"], tmp_path / "report.html")
    assert findings.points.is_empty()
    text = (tmp_path / "report.html").read_text()
    assert "no held-out level was answered" in text
    assert (tmp_path / "levels__odd____.png").is_file()
    assert 'data-figure="levels"' in text and 'data-figure="frontier"' not in text


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
        (["runs=a", "threshold=high"], "threshold=high: threshold must be a number above 0"),
        (["runs=a", "threshold=1.5"], "threshold=1.5: must be a number above 0 and at most 1"),
        (["runs=a", "samples=-1"], "samples=-1: must be a whole number, 0 or more"),
        (["runs=a", "samples=2.5"], "samples=2.5: samples must be a whole number"),
        (["runs=a", "output=page.pdf"], "output=page.pdf: must be the name of an .html file"),
        (["runs=[a"], "runs=[a: runs must be a folder, or several"),
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
