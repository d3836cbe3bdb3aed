"""The report's interactive figures: plotly, one figure per panel, from the same tables as the PNGs.

Each is a plain dictionary, ready to be embedded as JSON. Names that come from run folders are
escaped, because plotly reads a little HTML in its texts.
"""

import html
import math
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from eval.axis import Axis, cost_axis
from eval.currencies import Currency, amount, share
from eval.frontier import frontier, steps
from eval.level_figure import level_slots
from eval.palette import GRID, INK, MUTED, SHADE, Style
from eval.panels import dash_rank

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LOOP_DASHES = ("solid", "dash", "dashdot", "dot", "longdashdot")
# The legend's switch for what belongs to no backbone.
FRONTIER_GROUP = "frontier"


def frontier_panel(
    points: pl.DataFrame, currency: Currency, styles: Mapping[str, Style]
) -> dict[str, Any]:
    """Draw one task's accuracy against one cost.

    Args:
        points: the points of one task.
        currency: of the cost axis.
        styles: the look of each label.
    """
    placed = frontier(points, currency.column)
    axis = cost_axis(placed["cost"], currency)
    figure = go.Figure(layout=_layout(points["task"][0]))
    if axis is None:
        figure.add_annotation(text="nothing spent", showarrow=False, x=0.5, y=0.5, xref="paper")
        return figure.to_plotly_json()
    _add_steps(figure, placed, axis, INK, 2, FRONTIER_GROUP)
    for (label,), own in placed.group_by("label", maintain_order=True):
        _add_steps(figure, own, axis, styles[str(label)].colour, 1, str(label))
        for faded, part in (
            (True, own.filter("dominated")),
            (False, own.filter(~pl.col("dominated"))),
        ):
            _add_points(figure, part, axis, currency, styles[str(label)], faded)
    chance = points.select(pl.col("chance").mean()).item()
    figure.add_hline(100 * chance, line={"color": MUTED, "width": 1.2, "dash": "dash"})
    figure.add_annotation(_corner_text("chance", 100 * chance))
    _lay_out_cost(figure, axis, currency)
    return figure.to_plotly_json()


def _add_points(
    figure: go.Figure,
    part: pl.DataFrame,
    axis: Axis,
    currency: Currency,
    style: Style,
    faded: bool,
) -> None:
    if part.is_empty():
        return
    figure.add_scatter(
        x=[axis.place(cost) for cost in part["cost"]],
        y=(100 * part["accuracy"]).to_list(),
        error_y=_whiskers(part),
        mode="markers",
        marker={
            "color": style.colour,
            "symbol": style.symbol,
            "size": 10,
            "line": {"color": "white", "width": 1},
        },
        opacity=0.35 if faded else 1.0,
        legendgroup=part["label"][0],
        text=[_hover(row, currency, faded) for row in part.iter_rows(named=True)],
        hovertemplate="%{text}<extra></extra>",
    )


def _hover(row: Mapping[str, Any], currency: Currency, faded: bool) -> str:
    lines = [
        f"<b>{html.escape(row['label'])}</b>",
        html.escape(row["budget"]),
        f"accuracy {share(row['accuracy'], row['low'], row['high'])}",
        f"{amount(row['cost'], currency)} per answer",
        f"{row['items']:,} questions{', dominated' if faded else ''}",
    ]
    return "<br>".join(lines)


def _add_steps(
    figure: go.Figure, placed: pl.DataFrame, axis: Axis, colour: str, width: float, group: str
) -> None:
    costs, heights = steps(placed["cost"], placed["accuracy"])
    figure.add_scatter(
        x=[*(axis.place(cost) for cost in costs), axis.high],
        y=[*(100 * heights).tolist(), 100 * float(heights[-1])],
        mode="lines",
        line={"shape": "hv", "color": colour, "width": width},
        opacity=1.0 if group == FRONTIER_GROUP else 0.55,
        legendgroup=group,
        hoverinfo="skip",
    )


def levels_panel(cells: pl.DataFrame, styles: Mapping[str, Style]) -> dict[str, Any]:
    """Draw one task's accuracy against level at one budget, a line per backbone and loop count.

    Args:
        cells: the cells of one task and one budget family.
        styles: the look of each label.
    """
    levels = level_slots(cells)
    figure = go.Figure(layout=_layout(cells["task"][0]))
    for slot in levels.filter("beyond")["slot"]:
        figure.add_vrect(slot - 0.5, slot + 0.5, fillcolor=SHADE, line_width=0, layer="below")
    _mark_kinds(figure, levels)
    figure.add_scatter(
        x=levels["slot"].to_list(),
        y=(100 * levels["chance"]).to_list(),
        mode="lines",
        line={"color": MUTED, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
    )
    figure.add_annotation(_corner_text("chance", 100 * levels["chance"][-1]))
    lines = cells.partition_by("label", "budget", maintain_order=True)
    for place, line in enumerate(lines):
        # A nudge apart, so that equal accuracies do not hide each other.
        nudge = min(0.05, 0.3 / len(lines)) * (place - (len(lines) - 1) / 2)
        line = line.join(levels.select("level", "slot"), on="level").sort("slot")
        _add_line(figure, line, nudge, styles[line["label"][0]])
    ticks = {"tickvals": levels["slot"].to_list(), "ticktext": [str(v) for v in levels["level"]]}
    figure.update_xaxes(
        range=[-0.5, len(levels) - 0.5], title=_title("Level (evenly spaced)"), **ticks
    )
    return figure.to_plotly_json()


def _add_line(figure: go.Figure, line: pl.DataFrame, nudge: float, style: Style) -> None:
    loops = line["budget_loops"][0] or 1
    train_only = line["train_only"].to_list()
    figure.add_scatter(
        x=[slot + nudge for slot in line["slot"]],
        y=(100 * line["accuracy"]).to_list(),
        error_y=_whiskers(line),
        mode="lines+markers",
        line={
            "color": style.colour,
            "width": 1.6,
            "dash": _LOOP_DASHES[dash_rank(loops)],
        },
        marker={
            "symbol": style.symbol,
            "size": 8,
            "color": ["white" if hollow else style.colour for hollow in train_only],
            "line": {"color": style.colour, "width": 1.5},
        },
        legendgroup=line["label"][0],
        text=[_level_hover(row) for row in line.iter_rows(named=True)],
        hovertemplate="%{text}<extra></extra>",
    )


def _level_hover(row: Mapping[str, Any]) -> str:
    kind = "harder than trained" if row["beyond"] else "held-out"
    kind = "train-only: may be learned by heart" if row["train_only"] else kind
    lines = [
        f"<b>{html.escape(row['label'])}</b>",
        html.escape(row["budget"]),
        f"level {row['level']} ({kind})",
        f"accuracy {share(row['accuracy'], row['low'], row['high'])}",
        f"{row['items']:,} questions",
    ]
    return "<br>".join(lines)


def _mark_kinds(figure: go.Figure, levels: pl.DataFrame) -> None:
    """Write above the levels which are not held-out levels of training difficulty."""
    for column, text in (("train_only", "train-only"), ("beyond", "harder than trained")):
        slots = levels.filter(pl.col(column))["slot"].to_list()
        if slots:
            figure.add_annotation(
                x=sum(slots) / len(slots),
                y=1.0,
                yref="paper",
                yanchor="bottom",
                text=text,
                showarrow=False,
                font={"size": 11, "color": MUTED},
            )


def _whiskers(rows: pl.DataFrame) -> dict[str, Any]:
    above = (100 * (rows["high"] - rows["accuracy"])).clip(0)
    below = (100 * (rows["accuracy"] - rows["low"])).clip(0)
    return {
        "type": "data",
        "array": above.to_list(),
        "arrayminus": below.to_list(),
        "thickness": 1.2,
        "width": 0,
    }


def _corner_text(text: str, y: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": 1,
        "xref": "paper",
        "xanchor": "right",
        "y": y,
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 11, "color": MUTED},
    }


def _lay_out_cost(figure: go.Figure, axis: Axis, currency: Currency) -> None:
    figure.update_xaxes(
        type="log",
        range=[math.log10(axis.low), math.log10(axis.high)],
        tickvals=list(axis.ticks),
        ticktext=list(axis.labels),
        title=_title(f"{currency.title} per answer (log scale)"),
    )
    if axis.zero is not None:
        line = {"color": GRID, "width": 1, "dash": "dot"}
        figure.add_vline(axis.zero * 2**0.5, line=line)


def _layout(title: str) -> dict[str, Any]:
    axis = {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": MUTED,
        "zeroline": False,
        "fixedrange": True,
        "automargin": True,
    }
    return {
        "title": {"text": html.escape(title), "font": {"size": 15}, "x": 0, "xref": "paper"},
        "font": {"family": _FONT, "size": 13, "color": INK},
        "template": "none",
        "xaxis": axis,
        "yaxis": axis
        | {"range": [0, 104], "dtick": 20, "title": {"text": "Accuracy (%)", "font": {"size": 13}}},
        "showlegend": False,
        "hovermode": "closest",
        # Dragging would keep a finger from scrolling the page.
        "dragmode": False,
        "hoverlabel": {"bgcolor": "white", "bordercolor": MUTED, "font": {"color": INK}},
        "margin": {"l": 56, "r": 12, "t": 44, "b": 56},
        "height": 400,
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
    }


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 13}}
