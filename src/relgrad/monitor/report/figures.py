"""Vector figures of a comparison: curves over k with bands, quality against diversity, differences with their intervals."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import finite
from relgrad.monitor.report.comparison import letter

DIVERSITY = ("self-BLEU", "semantic diversity", "distinct-2", "different completions")
"""What is drawn against quality: the first that was measured. Self-BLEU is drawn as 1 - self-BLEU: right is more diverse."""
DYNAMICS = ("score", "pass@1", "self-BLEU", "distinct-2", "semantic diversity", "different completions")
"""What is drawn over the steps of a training, as far as it was measured. All lie in [0, 1]."""
STEP = re.compile(r"^(.*?)/checkpoints/step_(\d+)/?")
Draw = Callable[[Any, Mapping[str, Any]], None]


def write_figures(record: Mapping[str, Any], folder: Path, suffix: str = ".pdf") -> list[Path]:
    """Write every figure that the record has the numbers for; their paths. Raises RelgradError without matplotlib."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in figures_of(record):
        path = folder / f"{name}{suffix}"
        path.write_bytes(drawn(record, draw, suffix.removeprefix(".")))
        paths.append(path)
    return paths


def pictures(record: Mapping[str, Any]) -> list[str]:
    """Every figure as an <svg> element for a page; none of a record without a suite. Raises RelgradError without matplotlib."""
    if not record.get("suite"):
        return []
    texts = (drawn(record, draw, "svg").decode() for _, draw in figures_of(record))
    return [text[text.index("<svg") :] for text in texts]


def figures_of(record: Mapping[str, Any]) -> Iterator[tuple[str, Draw]]:
    """(file name, how it is drawn) of every figure."""
    curves = (record.get("suite") or {}).get("curves", {})
    for name in curves:
        yield name.replace("@", "_at_").replace(" ", "_"), _curve(name)
    if _quality_and_diversity(record):
        yield "quality_diversity", _scatter
    if (record.get("suite") or {}) and len(record["contenders"]) > 1:
        yield "differences", _differences
    if courses_of(record):
        yield "dynamics", _dynamics
    if record.get("adapters"):
        yield "adapter_norms", _norms


def courses_of(record: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """Trainings of which several checkpoints were compared: (step, number of the row) of each, in the order of steps."""
    courses: dict[str, list[tuple[int, int]]] = {}
    for number, one in enumerate(record["contenders"]):
        if match := STEP.match(one["label"]):
            courses.setdefault(match[1], []).append((int(match[2]), number))
    return {training: sorted(own) for training, own in courses.items() if len(own) > 1}


def drawn(record: Mapping[str, Any], draw: Draw, kind: str) -> bytes:
    """One figure as the bytes of a PDF or SVG file, the same for the same record. Raises RelgradError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise RelgradError("figures need matplotlib: pip install 'relgrad[suite]'") from None
    with matplotlib.rc_context({"svg.hashsalt": "relgrad", "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9}):
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        draw(figure.add_subplot(), finite(record))
        file = io.BytesIO()
        date = {"CreationDate": None} if kind == "pdf" else {"Date": None}
        figure.savefig(file, format=kind, metadata=date)
    return file.getvalue()


def _names(record: Mapping[str, Any]) -> list[str]:
    return [f"{letter(i)}  {one['label'][-40:]}" for i, one in enumerate(record["contenders"])]


def _curve(name: str) -> Draw:
    def draw(axes: Any, record: Mapping[str, Any]) -> None:
        for i, (label, curve) in enumerate(zip(_names(record), record["suite"]["curves"][name], strict=True)):
            ks = range(1, len(curve["mean"]) + 1)
            axes.plot(ks, _numbers(curve["mean"]), marker="o", markersize=3, color=f"C{i}", label=label)
            axes.fill_between(
                ks, _numbers(curve["low"]), _numbers(curve["high"]), color=f"C{i}", alpha=0.18, linewidth=0
            )
        axes.set_xlabel("k")
        axes.set_ylabel(name)
        axes.legend(frameon=False, fontsize=7)
        axes.set_title("band: 95 % over prompts", fontsize=8)

    return draw


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _quality_and_diversity(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The figures of quality (the score) and of diversity; None where there is no figure of diversity."""
    by_name = {figure["name"]: figure for figure in record["figures"]}
    diversity = next((by_name[name] for name in DIVERSITY if name in by_name), None)
    return None if diversity is None else (by_name["score"], diversity)


def _scatter(axes: Any, record: Mapping[str, Any]) -> None:
    both = _quality_and_diversity(record)
    assert both is not None
    quality, diversity = both
    turned = diversity["name"] == "self-BLEU"
    for i, label in enumerate(_names(record)):
        x, y = diversity["means"][i], quality["means"][i]
        if x["value"] is None or y["value"] is None:
            continue
        at = 1 - x["value"] if turned else x["value"]
        axes.errorbar(
            at, y["value"], xerr=_reach(x, turned), yerr=_reach(y), fmt="o", color=f"C{i}", label=label, capsize=2
        )
    axes.set_xlabel("1 - self-BLEU" if turned else diversity["name"])
    axes.set_ylabel("score")
    axes.legend(frameon=False, fontsize=7)


def _reach(estimate: Mapping[str, Any], turned: bool = False) -> list[list[float]] | None:
    """The interval as matplotlib takes it: how far down and up from the value."""
    if estimate["low"] is None or estimate["high"] is None:
        return None
    down, up = estimate["value"] - estimate["low"], estimate["high"] - estimate["value"]
    return [[max(up, 0)], [max(down, 0)]] if turned else [[max(down, 0)], [max(up, 0)]]


def _differences(axes: Any, record: Mapping[str, Any]) -> None:
    """Every figure's standardised difference d_z to the first policy: figures of other units on one axis."""
    figures = record["figures"]
    for i in range(1, len(record["contenders"])):
        values = [figure["verdicts"][i]["d_z"] for figure in figures]
        places = [row + 0.25 * (i - 1) for row in range(len(figures))]
        axes.plot(_numbers(values), places, "o", color=f"C{i}", label=_names(record)[i], markersize=4)
    axes.axvline(0, color="0.7", linewidth=0.8)
    axes.set_yticks(range(len(figures)), [figure["name"] for figure in figures], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("d_z of the difference to A")
    axes.legend(frameon=False, fontsize=7)


def _dynamics(axes: Any, record: Mapping[str, Any]) -> None:
    """Quality and diversity over the steps of each training: a colour a figure, a line style a training."""
    by_name = {figure["name"]: figure["means"] for figure in record["figures"]}
    styles = ("-", "--", ":", "-.")
    for line, (training, own) in enumerate(courses_of(record).items()):
        for colour, name in enumerate(name for name in DYNAMICS if name in by_name):
            values = _numbers([by_name[name][row]["value"] for _, row in own])
            label = f"{name}, {training[-24:]}"
            axes.plot(
                [s for s, _ in own], values, styles[line % 4], marker="o", markersize=3, color=f"C{colour}", label=label
            )
    axes.set_xlabel("training step")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=6)


def _norms(axes: Any, record: Mapping[str, Any]) -> None:
    for i, (source, norms) in enumerate(record["adapters"].items()):
        axes.plot(list(norms.values()), marker="o", markersize=3, color=f"C{i}", label=source[-40:])
    axes.set_xlabel("adapted layer")
    axes.set_ylabel("Frobenius norm of the update")
    axes.legend(frameon=False, fontsize=7)
