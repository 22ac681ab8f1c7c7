"""What `benchmarks.forecasts` reports: every series, the median over series, and whether a difference is chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nhm_sched_plugin.forecasting.scores import TARGETS, Rolled, end_of, inside, resampled, sums, table

__all__ = ["NOISE_BELOW", "judge", "text"]

SERVED = "served"
SPECIFIED = "prophet_spec"
NOISE_BELOW = 10.0
"""Tickets an hour: a series with fewer is mostly chance. It is shown, and left out of everything over series."""
DRAWS = 2000


def judge(rolled: Mapping[str, Rolled], horizons: Sequence[int]) -> dict[str, Any]:
    """Every figure, as JSON values."""
    series = {name: describe(whole) for name, whole in rolled.items()}
    judged = {name: whole for name, whole in rolled.items() if not series[name]["noise"]}
    rows = [
        {"series": name, **{field: getattr(row, field) for field in row.__struct_fields__}}
        for name, whole in rolled.items()
        for row in table(whole, horizons)
    ]
    complete = [m for m in _methods(rolled) if all(m in whole.methods for whole in judged.values())]
    kept = [row for row in rows if row["series"] in judged]
    return {
        "series": series,
        "rows": rows,
        "failures": {name: whole.failures for name, whole in rolled.items() if whole.failures},
        "incomplete": [name for name in _methods(rolled) if name not in complete],
        "over_series": [over_series(kept, method, horizon) for method in complete for horizon in horizons],
        "coverage": [coverage(judged, method, horizon) for method in complete for horizon in horizons],
        "hindsight": [hindsight(kept, horizon) for horizon in horizons] if SERVED in complete else [],
        "against_specified": against_specified(kept, horizons) if {SERVED, SPECIFIED} <= set(complete) else [],
        "differences": [
            difference(judged, method, horizon, measure)
            for method in complete
            if method != SERVED and SERVED in complete
            for horizon in horizons
            for measure in ("mape", "wape")
        ],
    }


def describe(whole: Rolled) -> dict[str, Any]:
    mean = float(whole.known.mean())
    return {
        "hours": len(whole.known),
        "mean": mean,
        "origins": len(whole.origins),
        "known_at_first_origin": int(whole.origins[0]),
        "noise": mean < NOISE_BELOW,
    }


def _methods(rolled: Mapping[str, Rolled]) -> list[str]:
    found = dict.fromkeys(name for whole in rolled.values() for name in whole.methods)
    return sorted(found, key=lambda name: name != SERVED)


def over_series(rows: list[dict[str, Any]], method: str, horizon: int) -> dict[str, Any]:
    mine = [row for row in rows if row["method"] == method and row["horizon_minutes"] == horizon]
    ours = {row["series"]: row for row in rows if row["method"] == SERVED and row["horizon_minutes"] == horizon}
    middle = {name: float(np.median([row[name] for row in mine])) for name in ("mape", "wape", "smape", "mase")}
    return {
        "method": method,
        "horizon_minutes": horizon,
        **middle,
        "mape_over_served": _ratio(mine, ours, "mape"),
        "wape_over_served": _ratio(mine, ours, "wape"),
        "within_target": sum(row["mape"] < TARGETS[horizon] for row in mine) if horizon in TARGETS else None,
        "series": len(mine),
        "fit_seconds": float(np.mean([row["fit_seconds"] for row in mine])),
        "predict_seconds": float(np.mean([row["predict_seconds"] for row in mine])),
    }


def _ratio(mine: list[dict[str, Any]], ours: dict[str, dict[str, Any]], measure: str) -> float | None:
    """Geometric mean over series of an error over that of `served`: with few series steadier than a median."""
    if not ours:
        return None
    return float(np.exp(np.mean([np.log(row[measure] / ours[row["series"]][measure]) for row in mine])))


def coverage(judged: Mapping[str, Rolled], method: str, horizon: int) -> dict[str, Any]:
    """Pooled over the hours of all series, and the lowest and highest of a series."""
    result: dict[str, Any] = {"method": method, "horizon_minutes": horizon}
    end = end_of(horizon)
    for percent in (80, 95):
        hits = []
        for whole in judged.values():
            quantiles = whole.methods[method].quantiles
            if quantiles is not None:
                found = inside(whole.actual[:, :end], quantiles[:, :end], percent)
                hits.append(found[np.isfinite(found)])
        shares = [float(part.mean() * 100) for part in hits if len(part)]
        known = bool(shares)
        result[f"covers_{percent}"] = float(np.concatenate(hits).mean() * 100) if known else None
        result[f"lowest_{percent}"], result[f"highest_{percent}"] = (
            (min(shares), max(shares)) if known else (None, None)
        )
    return result


def hindsight(rows: list[dict[str, Any]], horizon: int) -> dict[str, Any]:
    """MAPE of `served` over that of the method that turned out best on each series."""
    each: dict[str, Any] = {}
    for name in dict.fromkeys(row["series"] for row in rows):
        mine = {r["method"]: r["mape"] for r in rows if r["series"] == name and r["horizon_minutes"] == horizon}
        others = {method: error for method, error in mine.items() if method != SERVED and math.isfinite(error)}
        if others:
            best = min(others, key=lambda method: others[method])
            each[name] = {"best": best, "ratio": mine[SERVED] / others[best]}
    ratios = [entry["ratio"] for entry in each.values()]
    return {"horizon_minutes": horizon, "median": float(np.median(ratios)) if ratios else None, "each": each}


def against_specified(rows: list[dict[str, Any]], horizons: Sequence[int]) -> list[dict[str, Any]]:
    """Median MAPE of `served` over the median of Prophet as specified; and the median of the ratios of each series."""
    result = []
    for horizon in horizons:
        ours, theirs = (
            {r["series"]: r["mape"] for r in rows if r["method"] == method and r["horizon_minutes"] == horizon}
            for method in (SERVED, SPECIFIED)
        )
        result.append(
            {
                "horizon_minutes": horizon,
                "of_medians": float(np.median(list(ours.values())) / np.median(list(theirs.values()))),
                "median_of_ratios": float(np.median([ours[name] / theirs[name] for name in ours])),
            }
        )
    return result


def difference(judged: Mapping[str, Rolled], method: str, horizon: int, measure: str) -> dict[str, Any]:
    """Median error over series of a method less that of `served`, with a 95 % interval: paired block bootstrap.

    Both are judged on the same resampled origins of every series. Above 0 `served` is better.
    """
    end, ours, theirs = end_of(horizon), [], []
    for seed, whole in enumerate(judged.values()):
        # The first row is the sample itself.
        rows = np.vstack([np.arange(len(whole.origins)), resampled(whole.origins, end, DRAWS, seed)])
        for name, errors in ((SERVED, ours), (method, theirs)):
            over, under = sums(whole.actual[:, :end], whole.methods[name].mean[:, :end], measure)
            total = under[rows].sum(axis=1)
            errors.append(100 * over[rows].sum(axis=1) / np.where(total > 0, total, np.nan))
    apart = np.nanmedian(theirs, axis=0) - np.nanmedian(ours, axis=0)
    low, high = np.nanquantile(apart[1:], (0.025, 0.975))
    return {
        "method": method,
        "horizon_minutes": horizon,
        "measure": measure,
        "value": float(apart[0]),
        "low": float(low),
        "high": float(high),
    }


# -- as text


def text(report: dict[str, Any], markdown: bool = False) -> str:
    """The tables, one after another."""
    horizons = list(dict.fromkeys(row["horizon_minutes"] for row in report["rows"]))
    show = _markdown if markdown else _plain
    parts = [_each_series(report, horizons, show), _medians(report, horizons, show), _coverage(report, horizons, show)]
    if report["differences"]:
        parts += [_differences(report, horizons, show), _hindsight(report, horizons, show)]
    if report["against_specified"]:
        ratios = "/".join(f"{row['of_medians']:.2f}" for row in report["against_specified"])
        parts.append(f"Median MAPE of served over that of {SPECIFIED}, at {_ahead(horizons)}: {ratios}")
    noisy = [name for name, about in report["series"].items() if about["noise"]]
    if noisy:
        parts.append(f"noise (under {NOISE_BELOW:g} an hour, in no figure over series): {', '.join(noisy)}")
    if report["incomplete"]:
        parts.append(f"not on every series, so in no figure over series: {', '.join(report['incomplete'])}")
    for name, failures in report["failures"].items():
        parts += [f"left out on {name}: {method}: {why}" for method, why in failures.items()]
    return "\n\n".join(parts)


def _ahead(horizons: Sequence[int]) -> str:
    return "/".join(f"{horizon / 60:g}" for horizon in horizons) + " h"


def _each_series(report: dict[str, Any], horizons: Sequence[int], show: Any) -> str:
    body = []
    for name, about in report["series"].items():
        label = f"{name} (noise)" if about["noise"] else name
        found: dict[str, dict[int, Any]] = {}
        for row in report["rows"]:
            if row["series"] == name:
                found.setdefault(row["method"], {})[row["horizon_minutes"]] = row
        for method in sorted(found, key=lambda method: (method != SERVED, found[method][horizons[-1]]["mape"])):
            rows = [found[method][horizon] for horizon in horizons]
            covers = [
                f"{rows[-1][key]:.0f}" if rows[-1][key] is not None else "-" for key in ("covers_80", "covers_95")
            ]
            errors = [" / ".join(f"{row[key]:.1f}" for row in rows) for key in ("mape", "wape")]
            mase = " / ".join(f"{row['mase']:.2f}" for row in rows)
            body.append([label, about["origins"], method, *errors, mase, "/".join(covers)])
    ahead = _ahead(horizons)
    head = ["series", "origins", "method", f"MAPE {ahead}", f"WAPE {ahead}", f"MASE {ahead}", "covers 80/95"]
    return show("Each series", head, body)


def _medians(report: dict[str, Any], horizons: Sequence[int], show: Any) -> str:
    body = []
    for method, rows in _by_method(report["over_series"]).items():
        errors = [" / ".join(f"{row[key]:.1f}" for row in rows) for key in ("mape", "wape", "smape")]
        within = " / ".join(f"{row['within_target']} of {row['series']}" for row in rows)
        over = [
            " / ".join("-" if row[key] is None else f"{row[key]:.2f}" for row in rows)
            for key in ("mape_over_served", "wape_over_served")
        ]
        cost = [f"{rows[0]['fit_seconds']:.3f}", f"{rows[0]['predict_seconds'] * 1000:.1f}"]
        body.append([method, *errors, *over, within, *cost])
    ahead = _ahead(horizons)
    head = [
        "method",
        f"MAPE {ahead}",
        f"WAPE {ahead}",
        f"sMAPE {ahead}",
        "MAPE over served",
        "WAPE over served",
        "within 15/20/25 %",
        "CPU s a fit",
        "CPU ms a forecast",
    ]
    note = "Rivals learn as they forecast: their cost is in the last column. Over served: geometric mean over series."
    return show("Median over series", head, body, note)


def _coverage(report: dict[str, Any], horizons: Sequence[int], show: Any) -> str:
    body = [
        [row["method"], f"{row['horizon_minutes'] / 60:g} h", *(_share(row, percent) for percent in (80, 95))]
        for row in report["coverage"]
        if row["covers_80"] is not None
    ]
    return show("Intervals: hours inside, pooled (lowest to highest series)", ["method", "", "80 %", "95 %"], body)


def _share(row: dict[str, Any], percent: int) -> str:
    return f"{row[f'covers_{percent}']:.1f} ({row[f'lowest_{percent}']:.0f} to {row[f'highest_{percent}']:.0f})"


def _differences(report: dict[str, Any], horizons: Sequence[int], show: Any) -> str:
    body = [
        [method, measure.upper(), *(_interval(row) for row in rows if row["measure"] == measure)]
        for method, rows in _by_method(report["differences"]).items()
        for measure in ("mape", "wape")
    ]
    head = ["method", "", *(f"{horizon / 60:g} h" for horizon in horizons)]
    note = "Median error of the method less that of served, in points, with its 95 % interval."
    note += " Above 0 served is better; *: not chance."
    return show("Against served (paired bootstrap)", head, body, note)


def _interval(row: dict[str, Any]) -> str:
    sure = "" if row["low"] <= 0 <= row["high"] else " *"
    return f"{row['value']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f}){sure}"


def _hindsight(report: dict[str, Any], horizons: Sequence[int], show: Any) -> str:
    names = list(report["hindsight"][0]["each"])
    body = [
        [name, *(f"{row['each'][name]['ratio']:.2f} ({row['each'][name]['best']})" for row in report["hindsight"])]
        for name in names
    ]
    body.append(["median", *("-" if row["median"] is None else f"{row['median']:.2f}" for row in report["hindsight"])])
    head = ["series", *(f"{horizon / 60:g} h" for horizon in horizons)]
    return show("MAPE of served over the best other method of each series in hindsight", head, body)


def _by_method(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def _plain(title: str, head: list[str], body: list[list[Any]], note: str = "") -> str:
    widths = [max(len(str(row[i])) for row in [head, *body]) for i in range(len(head))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *body]
    ]
    return "\n".join([title, "=" * len(title), lines[0], "-" * len(lines[0]), *lines[1:], *([note] if note else [])])


def _markdown(title: str, head: list[str], body: list[list[Any]], note: str = "") -> str:
    rows = [head, ["---"] * len(head), *body]
    return "\n".join(
        [
            f"### {title}",
            "",
            *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
            *(["", note] if note else []),
        ]
    )
