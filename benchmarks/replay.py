"""Policies against every rival, on real and made loads: service, cost over a clairvoyant oracle's, and what is sure.

    python -m benchmarks.replay [--data FOLDER] [--series FOLDER] [--loads nasa/120,flash/600]
                                [--policies plugin,rules,mine:make] [--seeds 5] [--frontier-seeds 2] [--jobs 2]
                                [--target 0.95] [--json]

FOLDER holds the two public job traces (`benchmarks/_loads.py` says which and what is made of them), that of `--series`
counts in five minutes; without them only the made loads are run. A policy is a name that `nhm-sched replay` knows, a
rival with its knob (hpa=0.7), or MODULE:FACTORY: a function that takes a `twin.rivals.Scene` and makes a controller.
All are compared with the plugin, or with the first policy where the plugin is not among them.

Control every 15 s; in time is a start within 60 s (`two-types`: each type its own). The rivals are tuned to the target
on the first seed's training weeks; their frontiers are swept on the replayed weeks of the first seeds, with hindsight.
Columns:

* SLA %, cost: means over seeds; cost is worker-hours over the oracle's on the same arrivals.
* =SLA: worker-hours over those of the best point of any other rival's frontier at the same SLA, linear between points.
  Of points with the same cost the better serving one counts. `<`: on some seed the cheapest point of the frontier
  serves at least as well already, and is what was compared with; `>`: on some seed no rival serves as well, and it is
  the best serving one.
* gap: share of the reward gap between rules and oracle that is closed (needs both among the policies).
* dSLA, dcost: minus the plugin's, with 95 % confidence intervals (Student's t, paired by seed).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._loads import Case, cases, chosen
from nhm_sched_plugin.twin.replay import POLICIES, replay
from nhm_sched_plugin.twin.results import Interval, PolicyResult, ReplayReport
from nhm_sched_plugin.twin.traces import TraceError

MARKS = {"cheapest": "<", "beyond": ">"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.replay"
    )
    parser.add_argument("--data", type=Path, help="folder with the public job traces; default: made loads only")
    parser.add_argument(
        "--series", type=Path, help="folder with counts in five minutes (NAME_5min.csv): loads of their own"
    )
    parser.add_argument("--loads", help="only these, separated by commas: nasa/120, or nasa for all of its start-ups")
    parser.add_argument("--policies", default=",".join(POLICIES), help=f"default: {','.join(POLICIES)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    parser.add_argument("--target", type=float, default=0.95, help="SLA that the rivals are tuned to; default: 0.95")
    parser.add_argument(
        "--decisions", type=int, default=1_000_000, help="simulated decisions that the plugin learns from"
    )
    parser.add_argument("--frontier-seeds", type=int, help="seeds with =SLA; default: all")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        reports = [(case, played(case, options)) for case in chosen(cases(options.data, options.series), options.loads)]
    except TraceError as error:
        raise SystemExit(f"error: {error}") from None
    if options.json:
        print(json.dumps({case.name: slim(report) for case, report in reports}, indent=1))
    else:
        print(summary(reports))


def played(case: Case, options: argparse.Namespace) -> ReplayReport:
    """One case under all policies; its table is printed as soon as it is there."""
    began = time.perf_counter()

    def progress(what: str, share: float) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{case.name}: {what} {100 * share:.0f} %")
            sys.stderr.flush()

    report = replay(
        case.load,
        [name.strip() for name in options.policies.split(",") if name.strip()],
        {"limits": {"max_workers": 5000}},
        startup_s=case.startup_s,
        sla_target=options.target,
        seeds=options.seeds,
        frontier_seeds=options.seeds if options.frontier_seeds is None else options.frontier_seeds,
        jobs=options.jobs,
        learn_decisions=options.decisions,
        progress=progress,
    )
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    if not options.json:
        print(table(case, report, time.perf_counter() - began), flush=True)
    return report


def table(case: Case, report: ReplayReport, seconds: float) -> str:
    knobs = {found.policy: f"{found.knob:.3g}{'' if found.reached else '!'}" for found in report.tuned}
    width = max(12, *(len(policy.name) for policy in report.policies))
    head = (
        f"{'':{width}}{'knob':>7}{'SLA %':>8}{'cost':>7}{'=SLA':>8}{'gap':>7}{'p50':>7}{'p95':>7}{'p99':>7}"
        f"{'changes':>9}{'dSLA':>24}{'dcost':>24}"
    )
    title = (
        f"{case.name}: {report.tickets:,} tickets, {report.erlangs:.1f} Erlangs, oracle {report.oracle_hours:,.0f} h, "
        f"{len(report.seeds)} seeds, {seconds:.0f} s"
    )
    rows = [_row(policy, knobs.get(policy.name, ""), width) for policy in report.policies]
    if "!" in "".join(knobs.values()):
        rows.append("! no knob reaches the target on the training part; this one has most room")
    return "\n".join([title, head, "-" * len(head), *rows, ""])


def _row(policy: PolicyResult, knob: str, width: int) -> str:
    equal = "-" if policy.equal_sla is None else f"{policy.equal_sla.mean:.3f}"
    mark = "".join(dict.fromkeys(MARKS.get(how, "") for how in policy.equal_sla_how.split(", ")))
    gap = "-" if policy.gap_closed is None else f"{policy.gap_closed.mean:+.2f}"
    cost = "-" if policy.cost is None else f"{policy.cost:.3f}"
    waits = "".join(f"{wait:>7.0f}" for wait in (policy.wait_p50_s, policy.wait_p95_s, policy.wait_p99_s))
    sla = _bounded(policy.differences.get("sla"), 100, 2)
    return (
        f"{policy.name:{width}}{knob:>7}{100 * policy.sla:>8.2f}{cost:>7}{mark + equal:>8}{gap:>7}{waits}"
        f"{policy.scale_events:>9,}{sla:>24}{_bounded(policy.differences.get('cost'), 1, 3):>24}"
    )


def _bounded(found: Interval | None, factor: float, digits: int) -> str:
    if found is None:
        return "-"
    text = f"{factor * found.mean:+.{digits}f}"
    if found.low is None or found.high is None:
        return text
    return f"{text} [{factor * found.low:+.{digits}f}, {factor * found.high:+.{digits}f}]"


def summary(reports: Sequence[tuple[Case, ReplayReport]]) -> str:
    """Over all loads: the mean share of the gap closed and the costs at equal SLA."""
    lines = ["", f"{'over all loads':24}{'gap closed':>12}{'=SLA mean':>11}{'=SLA worst':>12}{'bursty mean':>13}"]
    names = dict.fromkeys(policy.name for _, report in reports for policy in report.policies)
    for name in names:
        found = [(case, policy) for case, report in reports for policy in report.policies if policy.name == name]
        gaps = [policy.gap_closed.mean for _, policy in found if policy.gap_closed is not None]
        ratios = [policy.equal_sla.mean for _, policy in found if policy.equal_sla is not None]
        bursty = [policy.equal_sla.mean for case, policy in found if policy.equal_sla is not None and case.bursty]
        cells = [
            f"{statistics.fmean(gaps):+.2f}" if gaps else "-",
            f"{statistics.fmean(ratios):.3f}" if ratios else "-",
            f"{max(ratios):.3f}" if ratios else "-",
            f"{statistics.fmean(bursty):.3f}" if bursty else "-",
        ]
        lines.append(f"{name:24}{cells[0]:>12}{cells[1]:>11}{cells[2]:>12}{cells[3]:>13}")
    return "\n".join(lines)


def slim(report: ReplayReport) -> dict[str, Any]:
    """Without the hours of each policy."""
    plain = report.to_dict()
    for policy in plain["policies"]:
        del policy["hours"], policy["decisions"]
    return plain


if __name__ == "__main__":
    main()
