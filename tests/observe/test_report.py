from __future__ import annotations

import html
import html.parser
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from nhm_sched_plugin.observe import captions
from nhm_sched_plugin.observe.report import render_report
from nhm_sched_plugin.observe.report_data import (
    DecisionCount,
    Difference,
    Example,
    Frontier,
    HourLoad,
    PolicyResult,
    ReportData,
    RewardSample,
)
from nhm_sched_plugin.observe.series import buckets, coverage, rolling_mean, shares, total_error
from nhm_sched_plugin.observe.summary import print_summary, summary_json


class Reader(html.parser.HTMLParser):
    """Collects what matters of a page and checks that every tag is closed."""

    VOID = frozenset({"meta", "br", "img", "link", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.labels: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self._seen(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._seen(tag, attrs)

    def _seen(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "src", "xlink:href"):
                self.links.append(value or "")
            elif name == "aria-label":
                self.labels.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def page(sample: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    written = render_report(sample, path)
    assert written == path
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]  # no temporary file is left
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


def test_the_given_numbers_are_on_the_page(read: Reader) -> None:
    for figure in (
        *("97.3 %", "94.1 %", "99.2 %", "3,122", "3,388", "5,712"),  # SLA and worker-hours
        *("7.9 % fewer than rules", "45.4 % fewer than static", "3.2 points more tickets in time"),
        *("8.4 %", "14.2 %", "10.6 %", "12.2 %", "21.3 %", "13.9 %"),  # forecast errors
        *("12,345", "12,367", "2,052"),  # tickets, decisions, followed
        *("48 seconds", "2.17 minutes", "41", "96"),
    ):
        assert figure in read.text, figure


def test_every_plot_is_there_twice_with_its_words(read: Reader) -> None:
    assert read.tags["svg"] == 2 * 7
    assert read.tags["figure"] == 7
    assert len(read.labels) == 7
    assert all(len(label) > 80 for label in read.labels)
    assert read.text.count("What you see.") == read.text.count("What it means.") == 7
    assert "tickets per hour" in read.text  # axis labels are text, not outlines
    for phase in ("shadow", "20 %", "50 %", "100 %"):
        assert phase in read.text


def test_the_page_needs_nothing_from_outside(page: str, read: Reader) -> None:
    assert re.findall(r"https?:|ftp:|//[a-z]", page) == []
    assert [link for link in read.links if not link.startswith("#")] == []
    assert re.findall(r"url\((?!#)", page) == []
    assert "@import" not in page
    assert not {"script", "link", "iframe", "img", "object"} & set(read.tags)


def test_ids_are_unique_and_every_reference_has_its_target(page: str, read: Reader) -> None:
    assert [name for name, count in Counter(read.ids).items() if count > 1] == []
    referred = {link[1:] for link in read.links} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert referred <= set(read.ids)
    assert len(referred) > 20


def test_colours_follow_the_theme(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", drawings) == []
    assert {"var(--ink)", "var(--muted)", "var(--s0)", "var(--s1)"} <= set(re.findall(r"var\(--\w+\)", drawings))
    defined = set(re.findall(r"(--\w+):", page))
    assert set(re.findall(r"var\((--\w+)\)", page)) <= defined
    assert "prefers-color-scheme: dark" in page


def test_the_stories_are_told(read: Reader) -> None:
    assert "Advice that was followed" in read.text
    assert "84 tickets expected in the hour that ends 60 minutes ahead" in read.text
    assert "backlog: 12 tickets wait; workers are removed only when none does." in read.text
    assert "nhm-sched explain 0193d8c1a7f07d2a" in read.text


def test_what_a_user_gave_is_escaped_everywhere(tmp_path: Path, page: str, sample: ReportData) -> None:
    assert "UA1545&lt;script&gt;alert(1)&lt;/script&gt;" in page
    bad = '<script>alert("x")</script>$\\frac{1}{2}$'
    hostile = ReportData(
        title=bad,
        subtitle=bad,
        done=[bad],
        command=bad,
        environment={bad: bad},
        next_commands=[(bad, bad)],
        policies=[msgspec.structs.replace(sample.policies[0], name=bad, note=bad)],
        decision_counts=[DecisionCount(action=bad, source=bad, arm=bad, reason=bad, phase=bad, count=3)],
        rewards=[RewardSample(epoch=60.0 * i, arm=bad, reward=0.1) for i in range(100)],
        horizon_errors=[msgspec.structs.replace(sample.horizon_errors[0], method=bad)],
        examples=[Example(decision={"decision_id": bad, "justification": bad, "ticket_id": bad}, title=bad)],
    )
    text = render_report(hostile, tmp_path / "bad.html").read_text(encoding="utf-8")
    assert "<script" not in text
    read = Reader(text)
    assert "script" not in read.tags
    assert bad in html.unescape(text)


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    data = ReportData(load=[HourLoad(epoch=3600.0 * hour, actual=hour) for hour in range(5)])
    read = Reader(render_report(data, tmp_path / "load.html").read_text(encoding="utf-8"))
    assert read.tags["figure"] == 1
    assert {"load", "made"} <= set(read.ids)
    absent = {"errors", "outcomes", "trade", "workers", "decisions", "rewards", "confidence", "stories"}
    assert not absent & set(read.ids)
    assert "Nothing" not in read.text
    empty = Reader(render_report(ReportData(), tmp_path / "empty.html").read_text(encoding="utf-8"))
    assert empty.tags["svg"] == 0
    assert "Nothing was recorded that could be shown." in empty.text


def test_thin_data_is_drawn_all_the_same(tmp_path: Path) -> None:
    """One hour, one policy without a timeline, one reward, one piece of advice: no division by nothing."""
    data = ReportData(
        load=[HourLoad(epoch=0, actual=0)],
        policies=[PolicyResult(name="plugin", sla_pct=100.0, worker_hours=0.0), PolicyResult(name="rules")],
        rewards=[RewardSample(epoch=0, arm="shadow", reward=0.0)],
        decision_counts=[DecisionCount(action="NO_ACTION", source="default", arm="shadow", reason="shadow", count=1)],
        confidences=[1.0],
    )
    read = Reader(render_report(data, tmp_path / "thin.html").read_text(encoding="utf-8"))
    assert read.tags["figure"] == 5
    assert "nan" not in read.text.split()


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="decision_id"):
        render_report(ReportData(examples=[Example(decision={"ticket_id": "t"})]), path)
    assert path.read_text() == "old"
    with pytest.raises(OSError, match=r"report\.html"):
        render_report(ReportData(), path / "report.html")


def test_worse_results_are_called_worse() -> None:
    plugin = PolicyResult(name="plugin", sla_pct=90.0, worker_hours=120)
    rules = PolicyResult(name="rules", sla_pct=96.5, worker_hours=100)
    means = captions.outcomes([plugin, rules], 95.0).means
    assert "plugin had 6.5 points fewer tickets in time with 20.0 % more worker-hours" in means
    assert "The target of 95 % is missed by plugin." in means
    same = captions.outcomes([plugin, msgspec.structs.replace(plugin, name="twin")], None).means
    assert same == "Against twin, plugin had as many tickets in time with as many worker-hours."


def test_the_band_is_judged() -> None:
    hours = [HourLoad(epoch=3600.0 * i, actual=10, forecast=9, low=8, high=12 if i else 9) for i in range(4)]
    assert coverage(hours) == (3, 4)
    assert total_error(hours) == pytest.approx(10.0)
    assert total_error([HourLoad(epoch=0, actual=0, forecast=3)]) is None
    assert "75 % of the hours lie inside the band" in captions.load(hours, phases=False).means


@pytest.mark.parametrize(
    ("inside", "judged", "said"),
    [
        (3, 4, "(80 % would be perfect), as near to it as 4 hours can tell."),
        (266, 336, "as near to it as 336 hours can tell."),
        (
            242,
            336,
            "72 % of the hours lie inside the band (80 % would be perfect), so the band is a little too narrow.",
        ),
        (200, 336, "so the band is too narrow."),
        (295, 336, "so the band is a little wider than it needs to be."),
        (
            336,
            336,
            "100 % of the hours lie inside the band (80 % would be perfect), so the band is wider than it needs",
        ),
    ],
)
def test_the_band_is_judged_by_what_so_many_hours_can_tell(inside: int, judged: int, said: str) -> None:
    hours = [
        HourLoad(epoch=3600.0 * i, actual=10 if i < inside else 20, forecast=9, low=8, high=12) for i in range(judged)
    ]
    assert said in captions.load(hours, phases=False).means


def test_timelines_are_thinned_without_losing_tickets() -> None:
    timeline = [(300.0 * i, 2.0, 5.0 + (i % 2), float(i % 7)) for i in range(12 * 24 * 14)]
    thin = buckets(timeline, 400)
    assert len(thin) == 14 * 24
    assert thin[0] == (0.0, 24.0, 5.5, 6.0)
    assert sum(bucket.arrivals_per_hour for bucket in thin) == pytest.approx(2.0 * len(timeline))
    assert buckets([], 10) == []
    assert buckets([(5.0, 3.0, 1.0, 0.0)], 10) == [(5.0, 3.0, 1.0, 0.0)]


def test_rolling_means_forget_and_break_over_gaps() -> None:
    samples = [RewardSample(epoch=float(i), arm="a", reward=1.0 if i < 50 else 0.0) for i in range(100)]
    line = rolling_mean(samples, 10, 1000)
    assert line[0][0] >= 10 / 3
    assert dict(line)[40.0] == pytest.approx(1.0)
    assert dict(line)[99.0] == pytest.approx(0.0)
    assert dict(line)[54.0] == pytest.approx(0.5)
    gap = rolling_mean([*samples, *(RewardSample(epoch=1000.0 + i, arm="a", reward=0.5) for i in range(9))], 10, 1000)
    assert any(value != value for _, value in gap)
    assert gap[-1] == (1008.0, pytest.approx(0.5))
    assert rolling_mean([], 10, 10) == []


def test_shares_are_percentages_of_each_phase() -> None:
    counts = [
        DecisionCount(action="a", source="s", arm="x", reason="r", phase="one", count=3),
        DecisionCount(action="b", source="s", arm="x", reason="r", phase="one", count=1),
        DecisionCount(action="b", source="s", arm="x", reason="r", phase="two", count=9),
    ]
    assert shares(counts, "action") == (["one", "two"], {"b": [25.0, 100.0], "a": [75.0, 0.0]})


def printed(data: ReportData, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    print_summary(data, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_holds_what_a_person_asks_for(sample: ReportData) -> None:
    text = printed(sample)
    for row in (
        r"60 minutes +│ +8.4 % │ 14.2 % │ +13.9 % │ prophet",
        r"plugin +│ +97.3 % │ +3,122 │ +48 seconds │ +41",
        r"static \(17 workers, always\) +│ +99.2 % │ +5,712",
        r"action: PREEMPTIVE_SCALING +│ +683 │ +5.5 %",
        r"source: policy +│ +2,052 │ 16.6 %",
        r"arm: treatment +│ +7,097",
        r"treatment +│ \+0.02",
        r"Report with plots: demo-output/report.html",
        r"nhm-sched explain 0193d8c1a7f07d2a +Tell one decision's story",
        r"Took 2.85 minutes",
    ):
        assert re.search(row, text), row
    assert max(map(len, text.splitlines())) <= 100


def test_the_summary_of_nothing_and_of_markup() -> None:
    assert printed(ReportData()).strip() == ReportData().title
    assert "[red]x[/red]" in printed(ReportData(title="[red]x[/red]", report_path="[bold]"))


def test_the_summary_as_json(sample: ReportData) -> None:
    known = json.loads(json.dumps(summary_json(sample)))
    assert known["policies"][0]["sla_pct"] == 97.3
    assert "timeline" not in known["policies"][0]
    assert known["forecast"]["horizons"][0]["wape_pct"] == 8.4
    assert known["decisions_by"]["source"] == {"fallback": 10_315, "policy": 2_052}
    assert sum(known["decisions_by_phase"].values()) == known["decisions"] == 12_367
    assert sum(arm["count"] for arm in known["rewards_by_arm"].values()) == 4000
    assert json.loads(json.dumps(summary_json(ReportData())))["decisions"] is None


def test_report_data_survives_json(sample: ReportData) -> None:
    thin = msgspec.structs.replace(sample, examples=[], rewards=sample.rewards[:3])
    assert msgspec.json.decode(msgspec.json.encode(thin), type=ReportData) == thin


def test_importing_the_report_draws_in_no_plot_library() -> None:
    rooms = ", ".join(f"nhm_sched_plugin.observe.{name}" for name in ("report", "plots", "summary", "report_data"))
    code = f"import sys, {rooms}; print({{'matplotlib', 'jinja2', 'rich', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def rivals() -> ReportData:
    """A replay against rivals: costs, a frontier, intervals."""
    surely = {"sla_pct": Difference(mean=-1.5, low=-2.0, high=-1.0), "wait_p95_s": Difference(mean=12.0)}
    return ReportData(
        policies=[
            PolicyResult(name="plugin", sla_pct=98.0, worker_hours=120, cost_ratio=1.2, equal_sla_ratio=0.9,
                         gap_closed_pct=61.0, decided_by="the learned policy 70 %"),
            PolicyResult(name="keda", sla_pct=96.5, worker_hours=130, cost_ratio=1.3, differences=surely),
            PolicyResult(name="oracle", sla_pct=100.0, worker_hours=100, cost_ratio=1.0),
        ],
        frontiers=[Frontier(name="keda", points=[(1.1, 90.0), (1.3, 96.5), (2.0, 99.9)])],
        seeds=5,
    )  # fmt: skip


def test_rivals_are_drawn_and_compared(tmp_path: Path) -> None:
    page = render_report(rivals(), tmp_path / "r.html").read_text(encoding="utf-8")
    seen = Reader(page)
    assert {"trade", "differences"} <= set(seen.ids)
    said = " ".join(" ".join(seen.words).split())
    assert "plugin paid 10.0 % less than the best rival would for the same service." in said
    assert "The lines show what the rivals can reach" in said
    assert "The star knows every arrival beforehand." in said
    assert "-1.50 (-2.00 to -1.00)" in said
    assert "+12 s" in said
    assert "Figures are means of 5 seeds." in said
    assert "the learned policy 70 %" in said
    dearer = msgspec.structs.replace(rivals().policies[0], equal_sla_ratio=1.25)
    assert "25.0 % more" in captions.trade(ReportData(policies=[dearer])).means
    console = Console(file=io.StringIO(), width=100)
    print_summary(rivals(), console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "at equal SLA" in printed
    assert "61 %" in printed
    assert "-1.50 (-2.00 to -1.00)" in printed


def test_a_report_without_rivals_does_not_speak_of_them(sample: ReportData, tmp_path: Path) -> None:
    seen = Reader(render_report(sample, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not {"trade", "differences"} & set(seen.ids)
    assert "oracle" not in " ".join(seen.words)
