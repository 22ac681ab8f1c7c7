"""What an ingest would do, without writing anything: the report that `ingest --check` gives."""

from __future__ import annotations

import datetime as dt
import itertools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.store.ingest.chunks import Broken, Position
from nhm_sched_plugin.store.ingest.duplicates import Duplicates
from nhm_sched_plugin.store.ingest.profiles import Profile
from nhm_sched_plugin.store.ingest.run import Source, planned, settled
from nhm_sched_plugin.store.ingest.seen import Seen
from nhm_sched_plugin.store.ingest.shaping import TARGETS, Plan

if TYPE_CHECKING:
    from nhm_sched_plugin.store.statements import Statements

__all__ = ["Gap", "Preview", "Reason", "preview"]

_GAPS: Final = 10
_TYPES: Final = 1000
_VALUE: Final = re.compile(r"^(\w+) = .*? (cannot be read|is )", re.DOTALL)


class Reason(msgspec.Struct, frozen=True):
    """Why rows would be rejected, how many, and the first of them."""

    reason: str
    rows: int
    example: str


class Gap(msgspec.Struct, frozen=True):
    """Whole hours without a ticket: an idle night, or an outage."""

    start: dt.datetime
    hours: int


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What would be written, and what would not. `problem`: nothing can be."""

    source: str
    problem: str | None = None
    rows: int = 0
    rejected: int = 0
    reasons: tuple[Reason, ...] = ()
    first: dt.datetime | None = None
    last: dt.datetime | None = None
    mapped: Mapping[str, str] = {}
    """Target -> column."""
    constants: Mapping[str, str] = {}
    unmapped: tuple[str, ...] = ()
    """Columns that feed nothing."""
    absent: tuple[str, ...] = ()
    """Targets that nothing feeds, so that they get their defaults."""
    types: Mapping[str, str] = {}
    """Column -> type, as the source has it or as it was recognised."""
    task_types: Mapping[str, int] = {}
    gaps: tuple[Gap, ...] = ()
    """The longest of them, longest first."""
    gap_hours: int = 0
    """Hours without a ticket between the first and the last."""
    duplicates: Duplicates = Duplicates()
    expired: int = 0
    """Rows older than the retention."""


def preview(
    source: Source,
    name: str,
    profile: Profile,
    *,
    store: Statements | None = None,
    retention_days: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    rows: Callable[[int, int], None] | None = None,
) -> Preview:
    """Read a source as an ingest would.

    Args:
        source: of `ingest.file_source` or `Table.chunks`.
        name: of the source, for messages.
        profile: how it is to be read.
        store: where it would go, to find what is there already; None: that is not looked for.
        retention_days: age from which rows count as `expired`; None: none do.
        progress, rows: as for `ingest`.

    A mapping that cannot work is the report's `problem`. Raises `IngestError` for a source that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="nhm-sched-check-") as folder:
        look = _Look(name, profile, Path(folder), retention_days)
        kinds = planned(profile, name, "row", look.plan_known)

        def watched(columns: Sequence[str], sample: Mapping[str, str]) -> Any:
            look.columns = list(columns)
            look.types = dict(kinds(columns, sample))
            return look.types

        try:
            for chunk, part in settled(source(watched, Position()), look.how):
                look.take(part.good, part.rejected)
                if progress is not None:
                    progress(chunk.done, chunk.total)
                if rows is not None:
                    rows(look.rows, look.rejected)
        except IngestError as error:
            if look.plan is not None:
                raise
            return Preview(source=name, problem=str(error))
        return look.report(store)


class _Look:
    """What has been seen so far."""

    def __init__(self, name: str, profile: Profile, folder: Path, retention_days: int | None) -> None:
        self.name, self.profile = name, profile
        self.plan: Plan | None = None
        self.columns: list[str] = []
        self.types: dict[str, Any] = {}
        self.rows = self.rejected = self.expired = 0
        self.reasons: dict[str, tuple[int, str]] = {}
        self.hours: Counter[int] = Counter()
        self.task_types: Counter[str] = Counter()
        self.first: int | None = None
        self.last: int | None = None
        self.seen = Seen(folder)
        now = dt.datetime.now(dt.UTC).timestamp()
        self.cutoff = 0.0 if retention_days is None else now - retention_days * 86_400

    def plan_known(self, plan: Plan) -> None:
        self.plan = plan

    def how(self) -> Plan:
        assert self.plan is not None  # noqa: S101 - settled before the first chunk
        return self.plan

    def take(self, good: Any, rejected: Sequence[Broken]) -> None:
        import numpy as np

        self.rejected += len(rejected)
        for row in rejected:
            kind = _VALUE.sub(r"\1 \2", row.reason).strip()
            count, example = self.reasons.get(kind, (0, f"row {row.number}: {row.reason}"))
            self.reasons[kind] = (count + 1, example)
        if not good.num_rows:
            return
        stamps = good.column("timestamp").to_numpy()
        self.rows += good.num_rows
        self.expired += int(np.count_nonzero(stamps < self.cutoff))
        low, high = int(stamps.min()), int(stamps.max())
        self.first = low if self.first is None else min(self.first, low)
        self.last = high if self.last is None else max(self.last, high)
        hours, counts = np.unique(stamps // 3600, return_counts=True)
        self.hours.update(dict(zip(hours.tolist(), counts.tolist(), strict=True)))
        for entry in good.column("task_type").value_counts().to_pylist():
            if entry["values"] in self.task_types or len(self.task_types) < _TYPES:
                self.task_types[entry["values"]] += entry["counts"]
        if "ticket_id" in self.how().sources:
            self.seen.add(good.column("ticket_id"), stamps, good.column("task_type"))

    def report(self, store: Statements | None) -> Preview:
        plan = self.how()
        used = set(plan.sources.values())
        gaps = self._gaps()
        problem = None
        if not self.rows:
            first = next((example for _, example in self.reasons.values()), "no rows at all")
            problem = f"{self.name} holds no usable row ({first})"
        return Preview(
            source=self.name,
            problem=problem,
            rows=self.rows,
            rejected=self.rejected,
            reasons=tuple(
                Reason(reason, count, example)
                for reason, (count, example) in sorted(self.reasons.items(), key=lambda item: -item[1][0])
            ),
            first=_moment(self.first),
            last=_moment(self.last),
            mapped=dict(plan.sources),
            constants=dict(plan.constants),
            unmapped=tuple(column for column in self.columns if column not in used),
            absent=tuple(target for target in TARGETS if target not in plan.sources and target not in plan.constants),
            types={column: _named(kind) for column, kind in self.types.items()},
            task_types=dict(self.task_types.most_common()),
            gaps=tuple(sorted(gaps, key=lambda gap: (-gap.hours, gap.start))[:_GAPS]),
            gap_hours=sum(gap.hours for gap in gaps),
            duplicates=self.seen.found(store),
            expired=self.expired,
        )

    def _gaps(self) -> list[Gap]:
        hours = sorted(self.hours)
        return [
            Gap(dt.datetime.fromtimestamp((before + 1) * 3600, dt.UTC), after - before - 1)
            for before, after in itertools.pairwise(hours)
            if after - before > 1
        ]


def _moment(stamp: int | None) -> dt.datetime | None:
    return None if stamp is None else dt.datetime.fromtimestamp(stamp, dt.UTC)


def _named(kind: Any) -> str:
    text = str(kind)
    return "text" if text.startswith("dictionary") or text == "string" else {"double": "number"}.get(text, text)
