"""What is wrong with a history: every rule of the data contract, and where it fails. Reports; changes nothing.

| rule | fails when |
| --- | --- |
| `fields` | a row has no timestamp, or there are no rows at all |
| `types` | a timestamp is no point in time, or a volume is no number |
| `values` | a count is negative or infinite |
| `duplicates` | a timestamp stands more than once with different counts |
| `spacing` | rows are further apart than an hour, or their spacing changes on the way |
| `gaps` | no data for 24 hours or more in a row |
| `outliers` | a count is 10 times the median or more: of its hour of the week *and* of all hours |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
import pandas as pd

from nhm_sched_plugin.forecasting.series import Floats, HistoryError, hour_of_week, hours, stamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RULES", "Example", "Finding", "QualityReport", "Rule", "many", "read_rows", "runs", "validate"]

Rule = Literal["fields", "types", "values", "duplicates", "spacing", "gaps", "outliers"]
RULES: Final[tuple[Rule, ...]] = ("fields", "types", "values", "duplicates", "spacing", "gaps", "outliers")
_OF_HOURS: Final[tuple[Rule, ...]] = ("gaps", "outliers")
FAILING_GAP_HOURS: Final = 24
OUTLIER_FACTOR: Final = 10.0
_ENOUGH: Final = 3
"""Known hours that a median is taken of; with fewer, of the hour of the day, else of all hours."""
_EXAMPLES: Final = 10
_ZONED: Final = r"[T :]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place where a rule fails; what does not apply is left out."""

    at: str | None = None
    """Timestamp (ISO)."""
    row: int | None = None
    """Number of the row in what was given, from 1."""
    field: str | None = None
    value: float | str | None = None
    expected: float | None = None
    """Of an outlier: the median that it is measured against."""
    hours: int | None = None
    """Length of a gap."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """How one rule came out."""

    rule: Rule
    failed: bool
    checked: bool = True
    """False: nothing was left to check it on."""
    count: int = 0
    """Places where it fails."""
    text: str
    examples: list[Example] = []
    """The worst ones, worst first. Of a rule that holds: what comes nearest to failing, if anything does."""


class QualityReport(msgspec.Struct, frozen=True, kw_only=True):
    """One finding for each rule, in the order of `RULES`. `ok` when all of them hold."""

    ok: bool
    rows: int
    hours: int = 0
    """From the first to the last known one."""
    missing: int = 0
    """Of those, without a count."""
    first: str | None = None
    last: str | None = None
    findings: list[Finding]

    @property
    def failed(self) -> list[Rule]:
        """The rules that do not hold."""
        return [finding.rule for finding in self.findings if finding.failed]

    def finding(self, rule: Rule) -> Finding:
        return next(finding for finding in self.findings if finding.rule == rule)


def validate(
    history: pd.Series[Any],
    *,
    rows: Sequence[int] | None = None,
    found: Iterable[Finding] = (),
    count: int | None = None,
) -> QualityReport:
    """Check raw counts (hourly or finer, in any order) or clean hours against the data contract. Never raises.

    `rows`: numbers of the rows, for the examples; left out, they are counted from 1. `found`: findings about rows that
    are not in `history` any more, and `count` how many rows there were with them.
    """
    check = _Check(history, rows)
    for finding in found:
        if finding.failed:
            check.add(finding.rule, finding.count, finding.text, finding.examples)
        else:
            check.results.setdefault(finding.rule, finding)
    clean = check.rows_one_by_one()
    known = check.as_hours(clean)
    if known is not None:
        check.hours(known)
    findings = [check.results.get(rule) or Finding(rule=rule, failed=False, text="holds") for rule in RULES]
    if known is None:
        nothing = {rule: Finding(rule=rule, failed=False, checked=False, text="not checked") for rule in _OF_HOURS}
        findings = [nothing.get(finding.rule, finding) for finding in findings]
    return QualityReport(
        ok=not any(finding.failed for finding in findings),
        rows=len(history) if count is None else count,
        hours=0 if known is None else len(known),
        missing=0 if known is None else int(known.isna().sum()),
        first=None if known is None else stamps(known)[0].isoformat(),
        last=None if known is None else stamps(known)[-1].isoformat(),
        findings=findings,
    )


class _Check:
    """One validation on its way: `results` by rule."""

    def __init__(self, history: pd.Series[Any], rows: Sequence[int] | None) -> None:
        self.history = history
        self.numbers = np.arange(1, len(history) + 1) if rows is None else np.asarray(rows)
        self.results: dict[Rule, Finding] = {}

    def add(self, rule: Rule, count: int, text: str, examples: list[Example]) -> None:
        """A failure; one that is known already keeps its text and its examples in front."""
        before = self.results.get(rule)
        if before is not None and before.failed:
            count, text = before.count + count, f"{before.text}; {text}"
            examples = [*before.examples, *examples]
        self.results[rule] = Finding(rule=rule, failed=True, count=count, text=text, examples=examples[:_EXAMPLES])

    def example(self, at: int, field: str = "volume") -> Example:
        stamp, value = self.history.index[at], self.history.iloc[at]
        return Example(
            at=None if pd.isna(stamp) else _iso(stamp), row=int(self.numbers[at]), field=field, value=_plain(value)
        )

    def rows_one_by_one(self) -> pd.Series[float] | None:
        """The rows that can be used, after what is wrong with the others is noted."""
        history = self.history
        if not len(history):
            if not self.results:
                self.add("fields", 1, "there are no rows", [])
            return None
        if not isinstance(history.index, pd.DatetimeIndex):
            kind = type(history.index).__name__
            self.add("types", len(history), f"the index is a {kind}, not a DatetimeIndex", [])
            return None
        if history.dtype.kind in "mMc":
            self.add("types", len(history), f"volumes are {history.dtype}, not numbers", [])
            return None
        try:
            values = pd.to_numeric(history, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        except OverflowError as error:
            self.add("types", len(history), f"volumes are no numbers ({error})", [])
            return None
        given = history.notna().to_numpy()
        nameless = np.asarray(history.index.isna(), dtype=bool)
        words = given & np.isnan(values)
        wrong = (values < 0) | np.isinf(values)
        self._rows("fields", nameless, "without a timestamp", "timestamp")
        self._rows("types", words, "whose volume is no number")
        self._rows("values", wrong, "with a negative or infinite count")
        usable = ~(nameless | words | wrong)
        self._twice(values, usable)
        return pd.Series(values[usable], index=history.index[usable])

    def _rows(self, rule: Rule, bad: NDArray[np.bool_], text: str, field: str = "volume") -> None:
        if bad.any():
            places = np.flatnonzero(bad)
            examples = [self.example(int(at), field) for at in places[:_EXAMPLES]]
            self.add(rule, len(places), f"{many(len(places), 'row')} {text}, the first is {examples[0].row}", examples)

    def _twice(self, values: Floats, usable: NDArray[np.bool_]) -> None:
        index = self.history.index
        places = np.flatnonzero(usable & ~np.isnan(values))
        again = places[index[places].duplicated(keep=False)]
        if not len(again):
            return
        groups = pd.Series(values[again]).groupby(index[again])
        spread = (groups.max() - groups.min()).sort_values(ascending=False, kind="stable")
        differ = spread[spread > 0]
        if not len(differ):
            text = f"holds; {many(len(spread), 'timestamp')} more than once with the same count"
            self.results["duplicates"] = Finding(rule="duplicates", failed=False, count=len(spread), text=text)
            return
        last = [again[index[again] == stamp][-1] for stamp in differ.index[:_EXAMPLES]]
        naive = " (local clocks repeat an hour when they are set back: give stamps with their zone)"
        self.add(
            "duplicates",
            len(differ),
            f"{many(len(differ), 'timestamp')} more than once with different counts; the last of each would count"
            + (naive if stamps(self.history).tz is None else ""),
            [self.example(int(at)) for at in last],
        )

    def as_hours(self, clean: pd.Series[float] | None) -> pd.Series[float] | None:
        if clean is None:
            return None
        try:
            return hours(clean[~clean.index.duplicated(keep="last")])
        except HistoryError as error:
            if clean.notna().any():
                self.add("spacing", 1, str(error), [])
            elif not any(one.failed for one in self.results.values()):  # else it is known why no row is left
                self.add("fields", 1, str(error), [])
            return None

    def hours(self, known: pd.Series[float]) -> None:
        """The rules about hours: gaps and outliers."""
        found = sorted(runs(known.isna().to_numpy()), key=lambda run: -run[1])
        gaps = [Example(at=_iso(known.index[start]), hours=length) for start, length in found]
        long = [gap for gap in gaps if gap.hours is not None and gap.hours >= FAILING_GAP_HOURS]
        if long:
            size = f"{FAILING_GAP_HOURS} h or more"
            text = f"{many(len(long), 'gap')} of {size}, the longest {gaps[0].hours} h from {gaps[0].at}"
            self.add("gaps", len(long), text, long[:_EXAMPLES])
        elif gaps:
            text = f"holds; {many(len(gaps), 'gap')}, the longest {gaps[0].hours} h from {gaps[0].at}"
            self.results["gaps"] = Finding(rule="gaps", failed=False, text=text, examples=gaps[:_EXAMPLES])
        typical = reference(known)
        ratio = known / typical.where(typical > 0)
        worst = ratio[ratio >= OUTLIER_FACTOR].sort_values(ascending=False, kind="stable")
        if len(worst):
            examples = [
                Example(at=_iso(stamp), field="volume", value=float(known[stamp]), expected=float(typical[stamp]))
                for stamp in worst.index[:_EXAMPLES]
            ]
            text = (
                f"{many(len(worst), 'hour')} with {OUTLIER_FACTOR:g} times the median or more, "
                f"the highest {examples[0].value:,g} at {examples[0].at} (median {examples[0].expected:,g})"
            )
            self.add("outliers", len(worst), text, examples)


def reference(known: pd.Series[float]) -> pd.Series[float]:
    """What an hour's count is measured against: the median of its hour of the week or of all hours, the higher one.

    Hours of the week with fewer than three counts borrow the median of their hour of the day, else of all hours;
    where half of all hours are idle the median is that of the busy ones. A peak that comes back every week raises its
    own median, and a quiet night does not make a busy one an outlier. NaN where nothing but zeros is known.
    """
    week = hour_of_week(stamps(known))
    overall = float(known.median())
    overall = overall if overall > 0 else float(known[known > 0].median())
    result = pd.Series(overall, index=known.index)
    for clock in (week % 24, week):
        groups = known.groupby(clock)
        result = result.mask(groups.transform("count") >= _ENOUGH, groups.transform("median"))
    return result.clip(lower=overall)


def many(count: int, what: str, ending: str = "s") -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {what}{'' if count == 1 else ending}"


def runs(marked: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Position and length of each run of marked places."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], marked, [False])).astype(np.int8)))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def read_rows(
    frame: pd.DataFrame, rows: Sequence[int], timestamp: str = "timestamp", volume: str = "volume"
) -> tuple[pd.Series[Any], list[int], list[Finding]]:
    """A table's two columns, of texts or of values, as a raw history: what `validate` takes.

    Timestamps are ISO 8601, all with a zone (they become UTC) or all without. Returns the history, the numbers of its
    rows, and the findings about rows that are not in it.
    """
    given = frame[timestamp]
    empty = given.isna().to_numpy()
    if isinstance(given.dtype, pd.DatetimeTZDtype) or given.dtype.kind == "M":
        parsed = pd.DatetimeIndex(given)
        bad = np.zeros(len(frame), dtype=bool)
        mixed = bad
    else:
        texts = given.astype("str")
        zoned = texts.str.contains(_ZONED, regex=True).to_numpy(dtype=bool) & ~empty
        with_zone = 2 * int(zoned.sum()) >= int((~empty).sum()) and bool(zoned.any())
        parsed = pd.DatetimeIndex(pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True))
        parsed = parsed if with_zone else parsed.tz_localize(None)
        bad = parsed.isna() & ~empty
        mixed = (zoned != with_zone) & ~empty & ~bad
    flaws: tuple[tuple[Rule, NDArray[np.bool_], str], ...] = (
        ("fields", empty, "without a timestamp"),
        (
            "types",
            bad | mixed,
            "whose timestamp is not ISO 8601, or has a time zone where most have none (or none where most have one)",
        ),
    )
    findings = [
        Finding(
            rule=rule,
            failed=True,
            count=int(wrong.sum()),
            text=f"{many(int(wrong.sum()), 'row')} {text}, the first is {rows[int(np.argmax(wrong))]}",
            examples=[
                Example(row=int(rows[at]), field=timestamp, value=_plain(given.iloc[at]))
                for at in np.flatnonzero(wrong)[:_EXAMPLES]
            ],
        )
        for rule, wrong, text in flaws
        if wrong.any()
    ]
    good = ~(empty | bad | mixed)
    history = pd.Series(frame[volume].to_numpy()[good], index=parsed[good], name="volume")
    return history, [int(number) for number in np.asarray(rows)[good]], findings


def _iso(stamp: Any) -> str:
    return str(pd.Timestamp(stamp).isoformat())


def _plain(value: Any) -> float | str | None:
    if value is None or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return None
    return float(value) if isinstance(value, int | float | np.number) else str(value)[:80]
