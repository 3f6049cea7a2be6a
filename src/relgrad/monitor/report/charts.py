"""Metric records to chart descriptions: plain data that charts.js draws. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from relgrad.monitor.diagnose.history import parity_tolerance, policy_dtype

MAX_POINTS = 1_200  # per line: more than the pixels a chart is wide
SMOOTH_FROM = 30  # records: shorter runs are shown as they are
SMOOTH_SHARE = 25  # the smoothed line is a running mean over 1/25 of the run
ROUNDING = 1e-6  # of sums of advantages of size 1 in float32: less is 0
HELD_OUT_LOSS = "eval_loss"
LOG_RANGE = 50.0  # largest over smallest value from which a positive quantity is drawn on a log axis

Records = Sequence[Mapping[str, Any]]
Line = list[float | None]


@dataclass(frozen=True)
class Series:
    """One line: `x` steps, `y` values (None is a gap), the band `low` to `high` and the unsmoothed `raw` if any."""

    name: str
    x: list[float]
    y: Line
    low: Line | None = None
    high: Line | None = None
    raw: Line | None = None


@dataclass(frozen=True)
class Chart:
    """`kind` is "line", "stack" (areas on each other) or "points" (error bars); `note` says how to read it."""

    id: str
    title: str
    note: str
    series: list[Series]
    kind: str = "line"
    log: bool = False
    percent: bool = False
    x: str = "step"


def stage_charts(records: Records, recipe: Mapping[str, Any]) -> tuple[list[Chart], list[Chart], list[str]]:
    """(the charts that have data, a chart for every figure that is in none of them, what never changed as "name = value")."""
    keys = _keys(records)
    rewarded = "reward" in keys
    charts = [*(_reward_charts(records, keys) if rewarded else ()), *_plain_charts(records, keys, recipe, rewarded)]
    used = {key for spec in SPECS for key in spec.keys}
    rest = [
        key
        for key in keys
        if key not in used | SHOWN_ELSEWHERE | {"step", "time", "step_time"}
        and not key.startswith(("reward", "time/", "completions/"))
    ]
    others = [_chart(f"other-{i}", key, NOTES.get(key, ""), [_series(records, key, key)]) for i, key in enumerate(rest)]
    drawn = [[c for c in some if c.series and not _constant(c)] for some in (charts, others)]
    return drawn[0], drawn[1], [text for c in (*charts, *others) if _constant(c) for text in _as_text(c)]


def _constant(chart: Chart) -> bool:
    """Whether nothing in it ever changes; one value alone is no constant."""
    lines = [[v for v in s.raw or s.y if v is not None] for s in chart.series]
    return bool(lines) and all(len(line) > 1 and max(line) == min(line) for line in lines)


def _as_text(chart: Chart) -> list[str]:
    """One text for the chart, or one for every line where they differ: "importance ratio = 1", "temperature (high) = 2"."""
    values = {s.name: next(v for v in s.y if v is not None) for s in chart.series}
    title = chart.title[:1].lower() + chart.title[1:] if chart.title[1:2].islower() else chart.title
    if len(set(values.values())) == 1:
        return [f"{title} = {next(iter(values.values())):.4g}"]
    return [f"{title} ({name}) = {value:.4g}" for name, value in values.items()]


def evaluation_chart(evaluations: Records) -> Chart:
    """Score against the step whose weights it is of, one line per evaluation name, with 95 % intervals."""
    names = list(dict.fromkeys(str(e.get("name", "score")) for e in evaluations))
    series = []
    for name in names:
        by_step = {e.get("weights", e.get("step", 0)): e for e in evaluations if str(e.get("name", "score")) == name}
        own = [by_step[step] for step in sorted(by_step)]
        x = [float(step) for step in sorted(by_step)]
        series.append(Series(name, x, _column(own, "score"), _column(own, "low"), _column(own, "high")))
    return Chart(
        "evaluation",
        "Score",
        "Mean over prompts never trained on; bars are 95\N{NO-BREAK SPACE}% intervals over prompts, or over their families.",
        series,
        "points",
    )


def reliability_chart(audit: Mapping[str, Any]) -> Chart:
    """What a judge says against what is so: on the diagonal its probabilities mean what they say."""
    bins = [b for b in audit.get("reliability", []) if isinstance(b, Mapping)]
    predicted = [float(b["predicted"]) for b in bins]
    return Chart(
        "reliability",
        "Reliability",
        "Share that is right against the probability given, in ten bins; the straight line is perfect calibration.",
        [
            Series("right", predicted, [float(b["observed"]) for b in bins]),
            Series("perfect", [0.0, 1.0], [0.0, 1.0]),
        ],
        percent=True,
        x="probability",
    )


def trajectory_charts(films: Records) -> list[Chart]:
    """What the steps of trajectories did on average, a line for every training step that was filmed.

    `films` as read.py thins them; those of texts that were given and filled in have no such charts.
    """
    runs: dict[tuple[int, int], list[list[tuple[int, int, float | None]]]] = {}
    for film in films:
        if film["source"] != "text" and film["jumps"]:
            runs.setdefault((film["step"] or 0, len(film["jumps"])), []).append(film["jumps"])
    one_length = len({steps for _, steps in runs}) <= 1
    count, sure = [], []
    for (training_step, steps), jumps in sorted(runs.items()):
        name = f"after step {training_step}" if training_step else "before training"
        name += "" if one_length else f", {steps} steps"
        columns = list(zip(*jumps, strict=True))
        x = [float(column[0][0]) for column in columns]
        count.append(Series(name, x, [_mean([float(n) for _, n, _ in column]) for column in columns]))
        sure.append(Series(name, x, [_mean([p for _, _, p in column if p is not None]) for column in columns]))
    if not runs:
        return []
    films_note = "Mean over the films on this page."
    return [
        Chart("jumps", "Jumps per step", f"Positions that changed. {films_note}", count, x="step of the trajectory"),
        Chart("sureness", "Probability of what was drawn", f"The network's, of the tokens that were jumped to. {films_note}",
              sure, x="step of the trajectory"),
    ]  # fmt: skip


def plain(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """The charts as JSON-ready data."""
    return [asdict(chart) for chart in charts]


def decimate(y: Sequence[float | None], limit: int = MAX_POINTS) -> list[int]:
    """At most `limit` indices into `y`, ascending: the lowest and the highest value of each of limit/2 equal buckets.

    Spikes survive, which plain striding would lose. A bucket without values keeps one index, so that gaps stay.
    """
    if len(y) <= limit:
        return list(range(len(y)))
    buckets = limit // 2
    kept: list[int] = []
    for bucket in range(buckets):
        span = range(bucket * len(y) // buckets, (bucket + 1) * len(y) // buckets)
        present = [i for i in span if y[i] is not None]
        if present:
            kept += sorted({min(present, key=lambda i: y[i]), max(present, key=lambda i: y[i])})  # type: ignore[arg-type, return-value]
        else:
            kept.append(span[0])
    return kept


def smooth(y: Sequence[float | None], window: int) -> Line:
    """Centred running mean over `window` values, fewer at the ends; None values are left out of the means."""
    totals = [0.0, *accumulate(v or 0.0 for v in y)]
    counts = [0, *accumulate(int(v is not None) for v in y)]
    half = window // 2
    out: Line = []
    for i in range(len(y)):
        a, b = max(0, i - half), min(len(y), i + half + 1)
        # differences of running sums are noisy in the last digits, and a constant line must stay constant
        out.append(float(f"{(totals[b] - totals[a]) / (counts[b] - counts[a]):.9g}") if y[i] is not None else None)
    return out


@dataclass(frozen=True)
class Spec:
    """A chart of fixed metrics: `keys` maps each metric to its label."""

    id: str
    title: str
    note: str
    keys: Mapping[str, str]
    log: bool = False
    percent: bool = False


SPECS = (
    Spec("kl", "KL to the reference", "Nats per decision away from the frozen start. A decision is a token; in flow, a step.",
         {"kl": "kl"}),
    Spec("clip", "Clipped decisions", "Share of decisions whose gradient the clip removed.",
         {"clip_ratio/region_mean": "all", "clip_ratio/low_mean": "low side", "clip_ratio/high_mean": "high side",
          "cispo_clip_ratio": "capped"}, percent=True),
    Spec("ratio", "Importance ratio", "Extremes of new over old probability; 1 where the policy has not moved.",
         {"importance_ratio/max": "max", "importance_ratio/min": "min"}),
    Spec("entropy", "Entropy", "Nats per decision: how open the choices are. Near 0 the policy always says the same.",
         {"entropy": "entropy"}),
    Spec("truncated", "Truncated completions", "Share that ended at the length limit.",
         {"completions/clipped_ratio": "truncated"}, percent=True),
    Spec("spread", "Groups without spread", "Equal rewards within a group teach nothing.",
         {"frac_reward_zero_std": "no spread", "frac_groups_all_max": "all best", "frac_groups_all_min": "all worst"},
         percent=True),
    Spec("unscored", "Unscored completions", "Rewards that could not be computed; never counted as 0.",
         {"rewards/unscored": "unscored"}),
    Spec("parity", "Parity", "", {"parity/max_abs": "largest", "parity/mean_abs": "mean"}, log=True),
    Spec("loss", "Loss", "The surrogate's value; its gradient matters, its level does not.", {"loss": "loss"}),
    Spec("loss_terms", "Terms of the loss", "What the loss is the sum of.",
         {"pg_loss": "policy gradient", "kl_penalty": "divergence"}),
    Spec("nll", "Negative log-likelihood",
         "Nats per target: of what is trained on, and of validation examples. Where the second rises, the policy learns by heart.",
         {"mean_nll": "training", HELD_OUT_LOSS: "validation"}),
    Spec("sft_loss", "Supervised loss", "Nats per target token, of the step's own prompts.", {"sft_loss": "cross-entropy"}),
    Spec("grad_norm", "Gradient norm",
         "Length of the gradient before it is cut to max_grad_norm. Its level says little, sudden jumps do.",
         {"grad_norm": "norm"}, log=True),
    Spec("update", "Relative update", "How far a step moves the weights, relative to their size. Below 1e-7 float32 cannot tell.",
         {"update/relative_norm": "update / weights"}, log=True),
    Spec("learning_rate", "Learning rate", "As the schedule has it.", {"learning_rate": "learning rate"}),
    Spec("speed", "Speed", "Tokens per second, sampling and training together.", {"tokens_per_second": "tokens / s"}),
    Spec("tokens", "Tokens seen", "Drawn in training so far; in supervised stages, target tokens.", {"num_tokens": "tokens"}),
)  # fmt: skip
NOTES = {
    "mean_log_prob": "Nats per completion: the log-probabilities of its decisions, added.",
    "mean_kl": "Nats per completion: the divergence of its decisions from the frozen start, added.",
    "mean_advantage": "Mean over the batch: 0 but for completions that are unscored.",
    "mean_nll": "Cross-entropy per target token, in nats.",
    "groups_resampled": "Groups without spread that were drawn again.",
    "replay/groups": "Groups of the batch that hold experience of the past.",
    "replay/kept": "Groups or solutions that are remembered.",
    "sampling/sampling_logp_difference/mean": "Between the engine that drew and the policy, nats per decision.",
    "sampling/sampling_logp_difference/max": "The largest difference, nats.",
    "sampling/importance_sampling_ratio/min": "Weight that corrects for the engine that drew, before its cap.",
    "sampling/importance_sampling_ratio/mean": "Weight that corrects for the engine that drew, before its cap.",
    "sampling/importance_sampling_ratio/max": "Weight that corrects for the engine that drew, before its cap.",
}
"""How to read the figures that have no chart of their own."""
SUMS_TO_ZERO = {"mean_advantage", "loss", "pg_loss"}
"""Figures that are 0 up to rounding where every completion counts alike."""
SHOWN_ELSEWHERE = {"mean_reward", "std_reward"}
"""Other names of `reward` and `reward_std`."""
UNSMOOTHED = {"learning_rate", "tokens", "unscored"}


def _reward_charts(records: Records, keys: Sequence[str]) -> list[Chart]:
    charts = []
    total = _column(records, "reward")
    parts = [
        key for key in keys if key.startswith("rewards/") and key.endswith("/mean") and _column(records, key) != total
    ]
    names = {"reward": "reward"} | {key: key.removeprefix("rewards/").removesuffix("/mean") for key in parts}
    present = [(key, name) for key, name in names.items() if key in keys]
    if present:
        series = [_series(records, key, name, "reward_std" if key == "reward" else None) for key, name in present]
        note = (
            "Mean over completions; the band is one standard deviation."
            if "reward_std" in keys
            else "Mean over completions."
        )
        charts.append(_chart("reward", "Reward", note, series))
    spreads = [key for key in keys if key == "reward_std" or f"{key.removesuffix('/std')}/mean" in parts]
    if spreads:
        series = [
            _series(records, k, "reward" if k == "reward_std" else k[len("rewards/") : -len("/std")]) for k in spreads
        ]
        charts.append(
            _chart(
                "reward_std", "Spread of the reward", "Standard deviation: what group-relative credit lives on.", series
            )
        )
    if "completions/mean_length" in keys:
        line = _series(records, "completions/mean_length", "mean")
        if {"completions/min_length", "completions/max_length"} <= set(keys):
            low, high = _column(records, "completions/min_length"), _column(records, "completions/max_length")
            line = _series(records, "completions/mean_length", "mean", band=(low, high))
        charts.append(
            _chart("length", "Completion length", "Decisions per completion; the band is shortest to longest.", [line])
        )
    return charts


def _plain_charts(records: Records, keys: Sequence[str], recipe: Mapping[str, Any], rewarded: bool) -> list[Chart]:
    charts: list[Chart] = []
    whole = _column(records, "pg_loss") == _column(records, "loss")
    for spec in SPECS:
        if spec.id == "loss_terms" and whole:  # the loss has one term, and a chart of its own
            continue
        own = [(key, name) for key, name in spec.keys.items() if key in keys]
        window = 1 if spec.id in UNSMOOTHED else None
        series = [_series(_with_values(records, key), key, name, window=window) for key, name in own]
        note = spec.note
        if spec.id == "parity":
            note = (f"Nats between fresh and recorded log-probabilities; tolerance {parity_tolerance(recipe):g} "
                    f"per token for {policy_dtype(recipe)}.")  # fmt: skip
        if spec.id == "loss" and not rewarded:
            note = "Nats per target token."
        chart = _chart(spec.id, spec.title, note, series, percent=spec.percent, may_log=spec.log)
        charts.insert(0, chart) if spec.id == "loss" and not rewarded else charts.append(chart)
    times = [key for key in keys if key.startswith("time/")]
    if times:
        series = [_series(records, key, key.removeprefix("time/")) for key in times]
        charts.append(Chart("time", "Where the time goes", "Seconds per step.", [_bare(s) for s in series], "stack"))
    elif "step_time" in keys:
        charts.append(_chart("time", "Step time", "Seconds per step.", [_series(records, "step_time", "step")]))
    return charts


def _chart(
    id: str, title: str, note: str, series: list[Series], *, percent: bool = False, may_log: bool = False
) -> Chart:
    values = [v for s in series for v in s.y if v is not None]
    log = may_log and bool(values) and min(values) > 0 and max(values) / min(values) > LOG_RANGE
    return Chart(id, title, note, series, log=log, percent=percent)


def _with_values(records: Records, key: str) -> Records:
    """The records that have the held-out loss, which few steps measure; of another metric all of them, gaps included."""
    return [record for record in records if key in record] if key == HELD_OUT_LOSS else records


def _series(
    records: Records,
    key: str,
    name: str,
    std_key: str | None = None,
    *,
    band: tuple[Line, Line] | None = None,
    window: int | None = None,
) -> Series:
    """One metric, smoothed where the run is long enough, with a band of one `std_key` or the given band, decimated."""
    x = [float(r.get("step", i)) for i, r in enumerate(records)]
    y = _column(records, key)
    window = window or (max(3, len(y) // SMOOTH_SHARE) if len(y) >= SMOOTH_FROM else 1)
    line = smooth(y, window) if window > 1 else y
    low: Line | None = None
    high: Line | None = None
    if std_key:
        stds = smooth(_column(records, std_key), window)
        low = [m - s if m is not None and s is not None else None for m, s in zip(line, stds, strict=True)]
        high = [m + s if m is not None and s is not None else None for m, s in zip(line, stds, strict=True)]
    if band:
        low, high = (smooth(side, window) for side in band)
    keep = decimate(y)
    return Series(
        name,
        [x[i] for i in keep],
        [line[i] for i in keep],
        [low[i] for i in keep] if low and any(v is not None for v in low) else None,
        [high[i] for i in keep] if high and any(v is not None for v in high) else None,
        [y[i] for i in keep] if window > 1 else None,
    )


def _bare(series: Series) -> Series:
    """Without the raw line, for stacked areas."""
    return Series(series.name, series.x, series.y)


def _keys(records: Records) -> list[str]:
    """Every metric with at least one finite value, in order of first appearance."""
    return list(dict.fromkeys(k for r in records for k, v in r.items() if _number(v) is not None))


def _column(records: Records, key: str) -> Line:
    values = [_number(r.get(key)) for r in records]
    return [0.0 if v is not None and abs(v) < ROUNDING else v for v in values] if key in SUMS_TO_ZERO else values


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
