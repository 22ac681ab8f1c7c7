"""Small sums over time that the report needs, in plain Python: no plot library, no data frames."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from nhm_sched_plugin.observe.report_data import DecisionCount, HourLoad, RewardSample

__all__ = ["Bucket", "buckets", "coverage", "rolling_mean", "shares", "total_error"]


class Bucket(NamedTuple):
    """A stretch of a timeline."""

    epoch: float
    arrivals_per_hour: float
    workers: float
    """Mean."""
    queue: float
    """Largest."""


def buckets(timeline: Sequence[tuple[float, float, float, float]], most: int) -> list[Bucket]:
    """A timeline of (epoch, arrivals, workers, queue) in at most `most` buckets of equal length.

    Long ones are of whole hours. A bucket without a point is left out.
    """
    if not timeline:
        return []
    start, end = timeline[0][0], timeline[-1][0]
    step = (end - start) / (len(timeline) - 1) if len(timeline) > 1 else 3600.0
    width = max((end - start) / most, step, 1.0)
    width = math.ceil(width / 3600) * 3600 if width > 1800 else width
    groups: defaultdict[int, list[tuple[float, float, float, float]]] = defaultdict(list)
    for point in timeline:
        groups[int((point[0] - start) // width)].append(point)
    return [
        Bucket(
            epoch=start + index * width,
            arrivals_per_hour=sum(point[1] for point in group) * 3600 / width,
            workers=math.fsum(point[2] for point in group) / len(group),
            queue=max(point[3] for point in group),
        )
        for index, group in sorted(groups.items())
    ]


def rolling_mean(samples: Sequence[RewardSample], window_s: float, most: int) -> list[tuple[float, float]]:
    """(epoch, weighted mean of the `window_s` seconds up to it) at up to `most` of the samples' own moments.

    The line starts a third of a window after its first sample, because the mean of a handful is noise. Where nothing
    came for longer than the window a NaN breaks it, so that no trend is drawn over a gap.
    """
    ordered = sorted(samples, key=lambda sample: sample.epoch)
    every = max(1, len(ordered) // most)
    result: list[tuple[float, float]] = []
    first, total, weight = 0, 0.0, 0.0
    since = before = ordered[0].epoch if ordered else 0.0
    for index, sample in enumerate(ordered):
        total += sample.reward * sample.weight
        weight += sample.weight
        while ordered[first].epoch <= sample.epoch - window_s:
            total -= ordered[first].reward * ordered[first].weight
            weight -= ordered[first].weight
            first += 1
        if sample.epoch - before > window_s:
            result.append((before + 1, math.nan))
            since = sample.epoch
        before = sample.epoch
        due = index % every == 0 and sample.epoch - since >= window_s / 3
        if (due or index == len(ordered) - 1) and weight > 0:
            result.append((sample.epoch, total / weight))
    return result


def shares(counts: Sequence[DecisionCount], field: str) -> tuple[list[str], dict[str, list[float]]]:
    """Phases in order, and by value of `field` its percentage in each phase; the most frequent value first."""
    phases = list(dict.fromkeys(count.phase for count in counts))
    totals = {phase: sum(count.count for count in counts if count.phase == phase) for phase in phases}
    sums: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for count in counts:
        sums[str(getattr(count, field))][count.phase] += count.count
    ordered = sorted(sums, key=lambda value: -sum(sums[value].values()))
    names = [phase or "all" for phase in phases]
    return names, {
        value: [100 * sums[value][phase] / totals[phase] if totals[phase] else 0.0 for phase in phases]
        for value in ordered
    }


def coverage(hours: Sequence[HourLoad]) -> tuple[int, int]:
    """(hours inside the expected range, hours that have a range and a count)."""
    judged = [
        hour.low <= hour.actual <= hour.high
        for hour in hours
        if hour.actual is not None and hour.low is not None and hour.high is not None
    ]
    return sum(judged), len(judged)


def total_error(hours: Sequence[HourLoad]) -> float | None:
    """WAPE in percent: sum of |actual - forecast| over the sum of actual; None without tickets."""
    pairs = [(hour.actual, hour.forecast) for hour in hours if hour.actual is not None and hour.forecast is not None]
    came = math.fsum(actual for actual, _ in pairs)
    return 100 * math.fsum(abs(actual - forecast) for actual, forecast in pairs) / came if came > 0 else None
