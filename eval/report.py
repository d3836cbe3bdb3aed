"""`python -m eval.report`: redraw the report of some runs, or combine runs into one."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.atomic import write_atomically
from eval.currencies import ETA_CURRENCIES
from eval.faithfulness_table import faithfulness_tables
from eval.figures import write_figures
from eval.findings import Findings, gather
from eval.group_costs import cost_of_groups
from eval.loops_and_layers import gap_table
from eval.mechanism_files import write_mechanisms
from eval.mechanism_tables import mechanism_table
from eval.metrics import spent_currencies
from eval.page import render_page
from eval.sources import source_table
from eval.stopping import stopping_tables
from eval.stopping_files import write_stopping
from eval.tables import point_tables, verdict_table
from eval.terminal import console, print_table
from eval.verb import run_verb

REPORT_FILE = "report.html"
HELP = """\
Draw what a correct answer costs: one HTML page that opens offline, and PNGs beside it.

  python -m eval.report runs=runs/quickstart
  python -m eval.report runs=runs/first,runs/second/transformer-1a2b3c output=report.html

Nothing is trained or evaluated: the ledgers that `python -m eval` left are read, no GPU is needed.
Runs that differ only in seed and learning rate are taken together: which seeds solve which task is
drawn as mechanisms.png and written as mechanisms.md, and costs.png sets their accuracy against what
an answer costs. Where rules to stop looping were tried, stopping.png and stopping.md set them
beside fixed loop counts and an oracle.

  runs=FOLDER[,FOLDER ...]  run folders, or experiment folders with runs in them (required)
  output=FILE.html          where to write; default: report.html in the folder, or, for several
                            folders, combined/report.html in the folder that they share
  threshold=0.9             the accuracy that the first table asks for, between 0 and 1
  samples=3                 right and wrong answers to show of each backbone; 0 shows none
"""
_ALLOWED = {
    "runs": "a folder, or several with commas between them",
    "output": "the name of an .html file",
    "threshold": "a number above 0 and at most 1",
    "samples": "a whole number, 0 or more",
}


@dataclass
class ReportConfig:
    """What to report.

    Attributes:
        runs: run or experiment folders.
        output: the HTML file to write; empty for the default place.
        threshold: the accuracy that the verdicts ask for, a share.
        samples: right and wrong answers to show of each backbone.
    """

    runs: list[str] = field(default_factory=list)
    output: str = ""
    threshold: float = 0.9
    samples: int = 3

    def validate(self) -> None:
        """Raise ValueError, in one line that names the key and what is allowed."""
        if not self.runs:
            raise ValueError("runs is empty: name a folder, for example runs=runs/quickstart")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}: must be {_ALLOWED['threshold']}")
        if self.samples < 0:
            raise ValueError(f"samples={self.samples}: must be {_ALLOWED['samples']}")
        if self.output and not self.output.endswith(".html"):
            raise ValueError(f"output={self.output}: must be {_ALLOWED['output']}")


def write_report(
    folders: Sequence[Path],
    output: Path,
    threshold: float = 0.9,
    samples: int = 3,
    command: str = "",
) -> Findings:
    """Draw the report of some runs: the page at `output`, its PNGs beside it.

    Args:
        folders: run folders, or experiment folders with runs in them.
        output: the HTML file.
        threshold: the accuracy that the verdicts ask for, a share.
        samples: right and wrong answers to show of each backbone.
        command: how the report was asked for, for its provenance.

    Returns:
        What was found, for instance to print it.

    Raises:
        eval.runs.RunError: no run, no ledger or no parameter count in a folder.
        eval.ledger.LedgerError: a ledger that cannot be trusted.
        data.atomic.WriteError: the disk is full or refuses.
    """
    findings = gather(folders, threshold)
    pictures: list[Path] = []
    if not findings.shows_groups_only:
        pictures = write_figures(
            findings.points, findings.cells, findings.styles, findings.sizes(), output.parent
        )
    grouped = write_mechanisms(findings, output.parent)
    stops = write_stopping(findings, output.parent)
    headline = next((p.read_bytes() for p in pictures if p.name == "frontier.png"), b"")
    page = render_page(findings, _made(command), samples, headline, [*grouped, *stops])
    write_atomically(output, page.encode("utf-8"))
    return findings


def print_findings(findings: Findings) -> None:
    """Print the groups of runs; or the verdicts and, per task, every point of the frontier."""
    to = console()
    if findings.mechanisms is not None:
        print_table(mechanism_table(findings.mechanisms), to)
    if findings.grouped is not None:
        for table in cost_of_groups(findings.grouped):
            print_table(table, to)
    gaps = gap_table(findings.mechanisms, findings.runs, findings.cells)
    if gaps is not None:
        print_table(gaps, to)
        to.print(gaps.note, style="dim")
    for table in [*stopping_tables(findings.ways), *faithfulness_tables(findings.checks)]:
        print_table(table, to)
    spent = [c for c in ETA_CURRENCIES if c in spent_currencies(findings.points)]
    shown = spent if to.width >= 120 else spent[:3]
    alone = [*point_tables(findings, shown), verdict_table(findings)]
    for table in [] if findings.shows_groups_only else alone:
        print_table(table, to)
    if (by_source := source_table(findings)) is not None:
        print_table(by_source, to)
    for note in findings.notes():
        to.print(note, markup=False, style="dim")


def default_output(folders: Sequence[Path]) -> Path:
    """Return where a report goes: into the one folder, or beside several, in `combined`."""
    if len(folders) == 1:
        return folders[0] / REPORT_FILE
    shared = Path(os.path.commonpath([folder.resolve() for folder in folders]))
    if shared.is_relative_to(Path.cwd()):
        shared = shared.relative_to(Path.cwd())
    return shared / "combined" / REPORT_FILE


def parse(arguments: Sequence[str]) -> ReportConfig:
    """Read `key=value` arguments.

    Raises:
        ValueError: an unknown key or an impossible value; one line that names what is allowed.
    """
    settings = OmegaConf.structured(ReportConfig)
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in _ALLOWED:
            raise ValueError(f"{argument}: not a setting; allowed are {', '.join(_ALLOWED)}")
        try:
            given = OmegaConf.from_dotlist([argument])
            if isinstance(given.get("runs"), str):
                given.runs = [part for part in given.runs.split(",") if part]
            settings = OmegaConf.merge(settings, given)
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{argument}: {key} must be {_ALLOWED[key]}") from error
    config = OmegaConf.to_object(settings)
    assert isinstance(config, ReportConfig)
    config.validate()
    return config


def main(arguments: Sequence[str]) -> int:
    """Run the verb; return its exit status: 2 for a wrong setting, 1 if no report was made."""
    return run_verb("eval.report", HELP, arguments, parse, _report)


def _report(config: ReportConfig, command: str) -> str:
    folders = [Path(run) for run in config.runs]
    output = Path(config.output) if config.output else default_output(folders)
    print_findings(write_report(folders, output, config.threshold, config.samples, command))
    return f"report: {output}"


def _made(command: str) -> dict[str, str]:
    packages = ("polars", "plotly", "matplotlib")
    return {
        "command": command or "(called from another program)",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
