"""Scores, losses, keep rate and reliability as inline SVG that follows the page's colours, in light and dark.

matplotlib writes fixed colours; the ones used here are stand-ins that are replaced by CSS variables, so one drawing
serves both colour schemes. Text stays text.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from adamllm_ray.report.collect import graded

INK, LINE, BASE, ADAPTED, MARK = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
KINDS = ("#0a0b06", "#0a0b07", "#0a0b08", "#0a0b09")  # kinds of text, in their order
MOST_POINTS = 600  # of a curve: more cannot be seen, and a page of a long run must open
_VARIABLES = {INK: "--ink", LINE: "--line", BASE: "--base", ADAPTED: "--adapted", MARK: "--mark"}
_VARIABLES |= {colour: f"--kind-{number}" for number, colour in enumerate(KINDS, 1)}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}


def score_bars(scores: Mapping[str, Any]) -> str:
    """Scores per question type with 95 % intervals, one bar per model; baselines as marks. SVG text."""
    rows = [*scores["types"], "all questions"]
    with _figure(10.5, 0.9 + 0.5 * len(rows), scores["types"]) as (figure, axes):
        for index, name in enumerate(rows):
            _bar_pair(axes, scores, name if index < len(rows) - 1 else None, -index)
        axes.set_yticks([-index for index in range(len(rows))], [name.replace("_", " ") for name in rows])
        axes.set_xlim(0, 100)
        axes.set_xlabel("mean score, %" if graded(scores) else "accuracy, %")
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return _svg(figure)


def _bar_pair(axes: Any, scores: Mapping[str, Any], kind: str | None, y: float) -> None:
    for model, colour, offset in (("base", BASE, 0.19), ("adapted", ADAPTED, -0.19)):
        cells = scores["models"][model]
        cell = cells["types"][kind] if kind is not None else cells["overall"]
        value = 100 * cell["accuracy"]
        errors = [[value - 100 * cell["lo"]], [100 * cell["hi"] - value]]
        axes.barh(y + offset, value, height=0.34, color=colour, linewidth=0)
        axes.errorbar(value, y + offset, xerr=errors, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5, capthick=1.1)
    for name, marker in (("majority", "|"), ("colour", "D")):
        baseline = scores["baselines"].get(name)
        if baseline:
            share = baseline["types"].get(kind) if kind is not None else baseline["overall"]
            if share is not None:
                size = 16 if marker == "|" else 5
                axes.plot(100 * share, y, marker, color=MARK, markersize=size, markeredgewidth=1.6, clip_on=False)


def loss_curve(losses: Sequence[Mapping[str, Any]]) -> str:
    """Training loss per optimizer step, its running mean, and the running mean of each kind of text. SVG text."""
    steps = [entry["step"] for entry in losses]
    values = [float(entry["loss"]) for entry in losses]
    width = max(1, len(values) // 20)
    with _figure(10.5, 3.4, steps) as (figure, axes):
        axes.plot(*_thin(steps, values), color=BASE, linewidth=1)
        kinds = kinds_of(losses)
        for kind, colour in zip(kinds if len(kinds) > 1 else [], KINDS, strict=False):
            there = [entry for entry in losses if kind in entry["kinds"]]
            means = _running_mean([entry["kinds"][kind][0] for entry in there], width)
            axes.plot(*_thin([entry["step"] for entry in there], means), color=colour, linewidth=1.4)
        axes.plot(*_thin(steps, _running_mean(values, width)), color=ADAPTED, linewidth=2.2)
        _plain(axes, "loss, nats per token")
        return _svg(figure)


def side_curve(losses: Sequence[Mapping[str, Any]], key: str, label: str) -> str:
    """One figure of each step (learning rate, gradient norm) as a small plot. SVG text; empty where it is not kept."""
    there = [entry for entry in losses if entry.get(key) is not None]
    if len(there) < 2:
        return ""
    steps = [entry["step"] for entry in there]
    with _figure(5.0, 1.9, (key, steps)) as (figure, axes):
        axes.plot(*_thin(steps, [float(entry[key]) for entry in there]), color=BASE, linewidth=1.4)
        axes.set_ylim(bottom=0)
        _plain(axes, label)
        return _svg(figure)


def keep_curve(curve: Sequence[Sequence[float]], threshold: float | None) -> str:
    """Share of the judged tasks that would be kept, per threshold on P(Yes); the run's own is marked. SVG text."""
    if not curve:
        return ""
    with _figure(5.0, 2.9, curve) as (figure, axes):
        axes.plot([at for at, _ in curve], [100 * share for _, share in curve], color=ADAPTED, linewidth=2)
        if threshold is not None:
            axes.axvline(threshold, color=MARK, linewidth=1.4)
        _unit(axes, "threshold on P(Yes)", "kept, % of judged")
        return _svg(figure)


def reliability(bins: Sequence[Mapping[str, float]]) -> str:
    """Share of right tasks at about each P(Yes), with 95 % intervals; the diagonal is perfect. SVG text."""
    with _figure(5.0, 2.9, bins) as (figure, axes):
        axes.plot([0, 1], [0, 100], color=LINE, linewidth=1.4)
        at = [cell["probability"] for cell in bins]
        right = [100 * cell["right"] for cell in bins]
        errors = [
            [max(0.0, 100 * (cell["right"] - cell["right_lo"])) for cell in bins],
            [max(0.0, 100 * (cell["right_hi"] - cell["right"])) for cell in bins],
        ]
        axes.errorbar(at, right, yerr=errors, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5)
        axes.plot(at, right, "o-", color=ADAPTED, linewidth=1.4, markersize=5)
        _unit(axes, "P(Yes) of the judge", "right, %")
        return _svg(figure)


def mixture_surface(search: Mapping[str, Any]) -> str:
    """Predicted score over the mixtures of two sources (a line) or three (a triangle), with the trials. SVG text.

    Empty where nothing was fitted, and for other numbers of sources.
    """
    fitted, sources = search.get("surface"), search["sources"]
    if not fitted or not fitted["grid"]:
        return ""
    return _line_of_two(search, sources) if len(sources) == 2 else _triangle(search, sources)


def _line_of_two(search: Mapping[str, Any], sources: Sequence[str]) -> str:
    grid = sorted(search["surface"]["grid"], key=lambda point: point["weights"][sources[0]])
    at = [point["weights"][sources[0]] for point in grid]
    done = _scored(search)
    with _figure(5.4, 3.2, sources) as (figure, axes):
        low, high = ([100 * point[end] for point in grid] for end in ("lo", "hi"))
        axes.fill_between(at, low, high, color=LINE, linewidth=0)
        axes.plot(at, [100 * point["score"] for point in grid], color=ADAPTED, linewidth=2)
        tried = [trial["weights"][sources[0]] for trial in done]
        axes.plot(tried, [100 * trial["score"] for trial in done], "o", color=INK, markersize=4)
        axes.axvline(search["best"]["weights"][sources[0]], color=MARK, linewidth=1.4)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(f"share of {sources[0]} (the rest: {sources[1]})")
        axes.set_ylabel("validation score, %")
        axes.tick_params(length=0)
        return _svg(figure)


def _triangle(search: Mapping[str, Any], sources: Sequence[str]) -> str:
    """Darker is better. Each corner is a mixture of one source alone."""
    grid = search["surface"]["grid"]
    scores = [point["score"] for point in grid]
    least, span = min(scores), (max(scores) - min(scores)) or 1.0
    with _figure(5.4, 4.7, sources) as (figure, axes):
        across, up = _places([point["weights"] for point in grid], sources)
        shades = [0.08 + 0.92 * ((score - least) / span) ** 1.5 for score in scores]
        axes.scatter(across, up, c=ADAPTED, alpha=shades, marker="h", s=190, linewidths=0)
        across, up = _places([trial["weights"] for trial in _scored(search)], sources)
        axes.plot(across, up, "o", color=INK, markersize=4)
        across, up = _places([search["best"]["weights"]], sources)
        axes.plot(across, up, "*", color=MARK, markersize=15)
        for source, x, y, side in zip(
            sources, (0, 1, 0.5), (-0.09, -0.09, 0.92), ("left", "right", "center"), strict=True
        ):
            axes.text(x, y, source, ha=side)
        axes.set_aspect("equal")
        axes.set_axis_off()
        return _svg(figure)


def _places(mixtures: Sequence[Mapping[str, float]], sources: Sequence[str]) -> tuple[list[float], list[float]]:
    """Where mixtures of three sources lie in an equilateral triangle: first corner left, second right, third above."""
    across = [mixture[sources[1]] + mixture[sources[2]] / 2 for mixture in mixtures]
    return across, [mixture[sources[2]] * 3**0.5 / 2 for mixture in mixtures]


def _scored(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in search["trials"] if trial["verdict"] == "ok"]


def _unit(axes: Any, across: str, up: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-2, 102)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def kinds_of(losses: Sequence[Mapping[str, Any]]) -> list[str]:
    """Kinds of text whose loss was kept apart, the first four in order."""
    return sorted({kind for entry in losses for kind in entry.get("kinds", {})})[: len(KINDS)]


def _plain(axes: Any, label: str) -> None:
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.margins(x=0.01)


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    sums = list(itertools.accumulate(values, initial=0.0))
    starts = [max(0, index - width) for index in range(1, len(sums))]
    return [(sums[stop] - sums[start]) / (stop - start) for stop, start in enumerate(starts, 1)]


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[Sequence[int], Sequence[float]]:
    every = -(-len(steps) // MOST_POINTS)
    return steps[::every], values[::every]


@contextmanager
def _figure(width: float, height: float, salt: object) -> Iterator[tuple[Any, Any]]:
    """A figure with one axes, in the page's style; ``salt`` keeps the SVG ids of two drawings on a page apart."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**_STYLE, "svg.hashsalt": str(salt)}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def _svg(figure: Any) -> str:
    """The figure as an <svg> element without prologue, metadata and addresses, coloured by CSS variables."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font:? ?(-family)?: ?[^;\"]*'DejaVu Sans'[^;\"]*;?", _font, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


def _font(match: re.Match[str]) -> str:
    size = re.search(r"(\d+(\.\d+)?)px", match[0])
    return f"font-size: {size[1]}px;" if size else ""
