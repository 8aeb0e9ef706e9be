"""The figures of reports/ as pictures for docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from tests.bench.report import ROOT, Figure, Result

DOCS = ROOT / "docs" / "performance"
PEER_NAMES = {
    "mini-visa": "Mini-Visa\nexactly once",
    "kstreams-eos": "Kafka Streams\nexactly_once_v2",
    "kstreams-alo-cache": "Kafka Streams\nat least once, cache",
    "quix-eos": "Quix Streams\nexactly once",
    "faust-alo": "Faust, idiomatic\nat least once",
}
INK, ACCENT = "#5b6770", "#c2410c"


def draw(results: Mapping[str, Result]) -> list[Path]:
    """A picture for each benchmark that has one and has been run; their paths."""
    DOCS.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "0"}
    )
    drawn = []
    for name, title in (("w1", "W1, 300,000 records"), ("w1-long", "W1, 1,500,000 records")):
        if name in results:
            drawn.append(_peers(results[name], title))
    services = [results[name] for name in ("authorization", "authorization-hot", "risk") if name in results]
    if services:
        drawn.append(_services(services))
    if "http" in results:
        drawn.append(_http(results["http"]))
    if "growth" in results:
        drawn.append(_growth(results["growth"]))
    return drawn


def _bars(axes: Axes, figures: list[tuple[str, Figure]]) -> None:
    """A bar at each median, with a line from the least to the largest run."""
    for place, (label, figure) in enumerate(figures):
        colour = ACCENT if label.startswith("Mini-Visa") else INK
        axes.bar(place, figure.median, color=colour, width=0.6)
        axes.vlines(place, min(figure.values), max(figure.values), color="black", linewidth=1)
        axes.annotate(
            f"{figure.median:,.0f}",
            (place, max(figure.values)),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
        )
    axes.set_xticks(range(len(figures)), [label for label, _ in figures])


def _peers(result: Result, title: str) -> Path:
    figures = [
        (PEER_NAMES.get(figure.name.split(".")[1], figure.name.split(".")[1]), figure)
        for figure in result.figures
        if figure.name.endswith(".per_s")
    ]
    canvas, axes = plt.subplots(figsize=(6.4, 3.2))
    _bars(axes, figures)
    axes.set_ylabel("records/s, one core")
    axes.set_title(f"{title}: every decision checked", loc="left")
    return _save(canvas, f"{result.benchmark}.png")


def _services(results: list[Result]) -> Path:
    canvas, axes = plt.subplots(figsize=(6.4, 3.0))
    for result in results:
        for name, points in result.series.items():
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                marker="o",
                markersize=2,
                label=name.partition(",")[0],
            )
    axes.set_xlabel("seconds")
    axes.set_ylabel("records in the second")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title("The services on one core, last run of each", loc="left")
    return _save(canvas, "services.png")


def _http(result: Result) -> Path:
    canvas, axes = plt.subplots(figsize=(6.4, 3.2))
    for name, points in result.series.items():
        style = "--" if "closed loop" in name else "-"
        axes.plot([x for x, _ in points], [y for _, y in points], style, marker="o", markersize=2, label=name)
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    axes.set_title("HTTP authorize: latency by percentile, last run of each", loc="left")
    return _save(canvas, "http.png")


def _growth(result: Result) -> Path:
    canvas, axes = plt.subplots(figsize=(6.4, 3.2))
    for name, points in result.series.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("accounts")
    axes.set_ylabel("CPU us a payment")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title("Cost of a payment as accounts grow", loc="left")
    return _save(canvas, "growth.png")


def _save(canvas: Canvas, name: str) -> Path:
    path = DOCS / name
    canvas.tight_layout()
    canvas.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(canvas)
    return path
