from __future__ import annotations

import datetime as dt
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nhm_sched_plugin.decision import rulebook_plain
from nhm_sched_plugin.decision.rulebook import LAST_RESORT, RuleBook, resolve_rule_book
from nhm_sched_plugin.types import STATE_FIELDS, Action, Forecast, Recommendation, SchedulingState, Ticket

MONDAY_5_AM = dt.datetime(2026, 11, 23, 5, 30, tzinfo=dt.UTC).timestamp()
TICKET = Ticket(ticket_id="t1", task_type="processing", risk_band="high")


def forecast(volume: float, confidence: float = 0.8) -> Forecast:
    now = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)
    return Forecast(horizon_minutes=60, predicted_volume=volume, confidence=confidence, generated_at=now)


def book(tmp_path: Path, *rules: dict[str, Any], **more: Any) -> RuleBook:
    filled = [{"name": f"r{n}", "action": "LOAD_BALANCING_RECONFIG"} | rule for n, rule in enumerate(rules, 1)]
    path = tmp_path / "book.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "name": "mine", "rules": filled} | more))
    return RuleBook.load(path)


def ask(
    the_book: RuleBook,
    state: SchedulingState | None = None,
    load: Forecast | None = None,
    ticket: Ticket | None = TICKET,
    reason: str = "below_volume_threshold",
    now: float = MONDAY_5_AM,
) -> Recommendation:
    return the_book.evaluate(ticket, state or SchedulingState(), load, reason, now)


def fires(tmp_path: Path, when: str, state: SchedulingState | None = None, **more: Any) -> bool:
    return ask(book(tmp_path, {"when": when}), state, **more).source == "r1"


def test_the_first_rule_that_fires_decides(tmp_path: Path) -> None:
    three = book(
        tmp_path,
        {"when": "queue_depth > 100.0", "action": "INCREASE_WORKER_POOL", "parameters": {"target_workers": 9}},
        {"when": "queue_depth > 10.0", "action": "ADJUST_PRIORITY_WEIGHTS", "because": "{queue_depth:.0f} wait."},
        {"when": "queue_depth > 1.0", "action": "LOAD_BALANCING_RECONFIG"},
    )
    many = ask(three, SchedulingState(queue_depth=500))
    assert (many.action, many.parameters, many.source) == (Action.INCREASE_WORKER_POOL, {"target_workers": 9}, "r1")
    some = ask(three, SchedulingState(queue_depth=50))
    assert (some.action, some.source, some.justification) == (Action.ADJUST_PRIORITY_WEIGHTS, "r2", "50 wait.")
    assert some.confidence == 1.0
    none = ask(three, SchedulingState(queue_depth=0))
    assert (none.action, none.source) == (Action.NO_ACTION, "otherwise")


def test_otherwise_can_be_chosen(tmp_path: Path) -> None:
    other = {"action": "ADJUST_PRIORITY_WEIGHTS", "parameters": {"high": 2.0}, "because": "At {hour} h."}
    answer = ask(book(tmp_path, {"when": "false"}, otherwise=other))
    assert (answer.action, answer.parameters) == (Action.ADJUST_PRIORITY_WEIGHTS, {"high": 2.0})
    assert answer.justification == "At 5 h."


@pytest.mark.parametrize("field", STATE_FIELDS)
def test_every_state_field_can_be_asked(tmp_path: Path, field: str) -> None:
    assert fires(tmp_path, f"{field} == 0.5 && known.{field}", SchedulingState(**{field: 0.5}))
    assert not fires(tmp_path, f"{field} >= 0.0", SchedulingState())
    assert not fires(tmp_path, f"{field} >= 0.0", SchedulingState(**{field: float("nan")}))
    assert fires(tmp_path, f"!known.{field}", SchedulingState(**{field: float("inf")}))


@pytest.mark.parametrize(
    "when",
    [
        "predicted_volume == 1440.0",
        "forecast_confidence == 0.8",
        "capacity == 7200.0",
        "offered_load == 2.0",
        "backlog_ratio == 0.5",
        "task_type == 'processing' && risk_band in ['high', 'critical']",
        "reason == 'below_volume_threshold'",
        "hour == 5 && weekday == 0",
        "features.quota > 1.0 && has(features.quota) && !has(features.other)",
        "math.ceil(features.quota) == 2.0",
        "known.predicted_volume && known.task_type && known.hour && known.capacity",
        "queue_depth > 1.0 // a comment at the end",
    ],
)
def test_every_other_variable_can_be_asked(tmp_path: Path, when: str) -> None:
    state = SchedulingState(
        active_workers=10, avg_task_duration_ms=5000, queue_depth=5, features={"quota": 1.5, "bad": float("nan")}
    )
    assert fires(tmp_path, when, state, load=forecast(1440.0))


@pytest.mark.parametrize(
    "when",
    ["predicted_volume > 0.0", "offered_load > 0.0", "capacity >= 0.0", "backlog_ratio >= 0.0", "features.x > 0.0"],
)
def test_what_cannot_be_computed_is_not_known(tmp_path: Path, when: str) -> None:
    assert not fires(tmp_path, when, SchedulingState(avg_task_duration_ms=0, active_workers=3))


def test_edges_of_the_derived_variables(tmp_path: Path) -> None:
    empty_pool = SchedulingState(queue_depth=7, active_workers=0, avg_task_duration_ms=1000)
    assert fires(tmp_path, "backlog_ratio == 7.0 && capacity == 0.0", empty_pool)
    assert fires(tmp_path, "predicted_volume == 9.0", SchedulingState(predicted_load_1h=9))
    assert fires(tmp_path, "predicted_volume == 8.0", SchedulingState(predicted_load_1h=9), load=forecast(8.0))
    assert not fires(tmp_path, "task_type == 'processing'", ticket=None)
    sunday_last_hour = dt.datetime(2026, 11, 22, 23, 59, tzinfo=dt.UTC).timestamp()
    assert fires(tmp_path, "weekday == 6 && hour == 23", now=sunday_last_hour)


def test_a_rule_on_something_unknown_is_passed_over_and_the_next_can_fire(tmp_path: Path) -> None:
    two = book(tmp_path, {"when": "resource_cpu_avg > 0.5"}, {"when": "queue_depth > 3.0"})
    assert ask(two, SchedulingState(queue_depth=5)).source == "r2"
    assert ask(two, SchedulingState(queue_depth=1)).source == "otherwise"
    assert two.failures == {}
    either = book(tmp_path, {"when": "resource_cpu_avg > 0.5 || queue_depth > 3.0"})
    assert ask(either, SchedulingState(queue_depth=5)).source == "r1"


def test_parameters_are_constants_or_computed(tmp_path: Path) -> None:
    parameters = {
        "target_workers": {"cel": "queue_depth / 4.0"},
        "half": {"cel": "queue_depth / 2.0"},
        "night": {"cel": "hour < 6 ? 'yes' : 'no'"},
        "count": {"cel": "weekday + 1"},
        "pool": "blue",
    }
    because = "{target_workers} for {queue_depth} at {half:.2f}, {pool} {night}; {resource_cpu_avg:.0%} busy {{ok}}"
    answer = ask(
        book(tmp_path, {"when": "true", "parameters": parameters, "because": because}), SchedulingState(queue_depth=9)
    )
    assert answer.parameters == {"target_workers": 3, "half": 4.5, "night": "yes", "count": 1, "pool": "blue"}
    assert type(answer.parameters["target_workers"]) is int
    assert answer.justification == "3 for 9 at 4.50, blue yes; unknown busy {ok}"


def test_target_workers_is_rounded_up_but_not_for_the_noise_of_floats(tmp_path: Path) -> None:
    for cel, workers in (("4.1 * 3.0 - 0.3", 12), ("12.01", 13), ("0.1 + 0.2", 1), ("hour", 5), ("0.0", 0)):
        answer = ask(book(tmp_path, {"when": "true", "parameters": {"target_workers": {"cel": cel}}}))
        assert answer.parameters == {"target_workers": workers}


@pytest.mark.parametrize(
    "cel",
    ["queue_depth / 0.0", "0.0 / 0.0", "queue_depth * 1e300", "0.0 - queue_depth", "resource_cpu_avg", "features.x"],
)
def test_a_parameter_that_cannot_be_used_keeps_its_rule_from_firing_and_is_counted(tmp_path: Path, cel: str) -> None:
    two = book(tmp_path, {"when": "true", "parameters": {"target_workers": {"cel": cel}}}, {"when": "true"})
    assert ask(two, SchedulingState(queue_depth=1e10)).source == "r2"
    assert two.failures == {"r1": 1}


def test_a_condition_that_breaks_is_counted_and_the_next_rule_is_asked(tmp_path: Path) -> None:
    two = book(tmp_path, {"when": "1 / (hour - 5) > 0"}, {"when": "true"})
    assert ask(two).source == "r2"
    assert two.failures == {"r1": 1}


@pytest.mark.parametrize("rules", [1, 31, 32, 33, 200])
def test_long_books_work_although_cel_limits_the_depth(tmp_path: Path, rules: int) -> None:
    because = "Rule for {queue_depth:.0f}."
    long = book(tmp_path, *({"when": f"queue_depth == {n}.0", "because": because} for n in range(rules)))
    for n in {0, rules // 2, rules - 1}:
        assert ask(long, SchedulingState(queue_depth=n)).source == f"r{n + 1}"
    assert ask(long, SchedulingState(queue_depth=rules)).source == "otherwise"


def test_a_condition_near_the_limit_of_depth_works(tmp_path: Path) -> None:
    deep = "(" * 28 + "queue_depth > 3.0" + ")" * 28
    two = book(
        tmp_path, {"when": deep, "parameters": {"target_workers": {"cel": deep.replace(">", "+")}}}, {"when": "true"}
    )
    answer = ask(two, SchedulingState(queue_depth=5))
    assert (answer.source, answer.parameters) == ("r1", {"target_workers": 8})
    assert ask(two, SchedulingState(queue_depth=1)).source == "r2"


def test_the_same_question_is_answered_from_memory_and_another_is_not(tmp_path: Path) -> None:
    state, load = SchedulingState(queue_depth=5), forecast(10.0)
    plain = book(tmp_path, {"when": "queue_depth > 3.0", "because": "{queue_depth}"})
    first = ask(plain, state, load)
    assert ask(plain, state, load, reason="another", now=0.0) is first  # neither matters to this book
    assert ask(plain, SchedulingState(queue_depth=1), load).source == "otherwise"
    assert ask(plain, state, load) == first
    by_reason = book(tmp_path, {"when": "reason == 'vetoed'"})
    assert ask(by_reason, state, load, reason="vetoed").source == "r1"
    assert ask(by_reason, state, load, reason="shadow").source == "otherwise"
    by_hour = book(tmp_path, {"when": "hour == 5"})
    assert ask(by_hour, state, load, now=5 * 3600.0).source == "r1"
    assert ask(by_hour, state, load, now=6 * 3600.0).source == "otherwise"
    said = book(tmp_path, {"when": "true", "because": "{reason} at {hour}"})
    assert ask(said, state, load, reason="a", now=0.0).justification == "a at 0"
    assert ask(said, state, load, reason="b", now=3600.0).justification == "b at 1"
    by_ticket = book(tmp_path, {"when": "risk_band == 'high'"})
    assert ask(by_ticket, state, load).source == "r1"
    assert ask(by_ticket, state, load, ticket=None).source == "otherwise"


def test_threads_get_their_own_answers(tmp_path: Path) -> None:
    shared = book(tmp_path, {"when": "queue_depth >= 0.0", "parameters": {"target_workers": {"cel": "queue_depth"}}})
    wrong: list[Any] = []

    def work(start: int) -> None:
        for n in range(start, start + 1500):
            answer = ask(shared, SchedulingState(queue_depth=n))
            if answer.parameters != {"target_workers": n}:
                wrong.append((n, answer))

    threads = [threading.Thread(target=work, args=(k * 10_000,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


ANYTHING = st.none() | st.floats() | st.integers() | st.text(max_size=3) | st.booleans() | st.just(10**400)
FEATURES = st.dictionaries(st.text(max_size=3) | st.just("x") | st.integers(), ANYTHING, max_size=4) | ANYTHING
TEXTS = st.none() | st.text(alphabet=st.characters(), max_size=4) | st.integers() | st.just("\ud800")
EVERY_VARIABLE = (
    "queue_depth > 1.0 && active_workers > 1.0 && avg_task_duration_ms > 1.0 && capacity > 1.0 && offered_load > 1.0"
    " && backlog_ratio > 0.1 && predicted_volume > 1.0 && forecast_confidence > 0.1"
)
BOOKS = [RuleBook.load(resolve_rule_book(name)) for name in ("default", "conservative")]


@pytest.fixture(scope="module")
def nosy_book(tmp_path_factory: pytest.TempPathFactory) -> RuleBook:
    computed = {"target_workers": {"cel": "offered_load * 1e9 + features.x"}, "text": {"cel": "task_type + risk_band"}}
    return book(
        tmp_path_factory.mktemp("nosy"),
        {
            "when": EVERY_VARIABLE,
            "parameters": computed,
            "because": "{queue_depth:.0f} {task_type:.1f} {hour:d} {reason}",
        },
        {"when": "features.x > 1.0 || task_type == 'x' || hour > 3 || reason.startsWith('b')"},
        {"when": "hour == 99 && reason == 'x'", "because": "{hour} {weekday}"},
        {"when": "features.exists(k, features[k] > 1.0) || sla_compliance_rate < 0.9 || weekday / (hour - 1) > 2"},
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    state=st.builds(SchedulingState, **dict.fromkeys(STATE_FIELDS, ANYTHING), features=FEATURES),
    load=st.none() | st.builds(forecast, ANYTHING, ANYTHING),
    ticket=st.none() | st.builds(Ticket, ticket_id=TEXTS, task_type=TEXTS, risk_band=TEXTS),
    reason=TEXTS,
    now=st.floats() | st.none() | st.integers(),
)
def test_evaluate_never_raises_whatever_the_state_holds(
    nosy_book: RuleBook, state: SchedulingState, load: Any, ticket: Any, reason: Any, now: Any
) -> None:
    for one in (*BOOKS, nosy_book):
        answer = one.evaluate(ticket, state, load, reason, now)
        again = one.evaluate(ticket, state, load, reason, now)  # from memory, where the arguments allow it
        assert again == answer
        assert isinstance(answer.action, Action)
        assert isinstance(answer.justification, str)
        target = answer.parameters.get("target_workers")
        assert target is None or (type(target) is int and target >= 0)
        assert answer is not LAST_RESORT, one.failures


def test_what_is_no_state_at_all_gets_the_last_resort() -> None:
    default = RuleBook.load(resolve_rule_book("default"))
    assert default.evaluate(None, None, None, "x", 0.0) is LAST_RESORT  # type: ignore[arg-type]
    assert default.failures == {"(book)": 1}
    assert LAST_RESORT.action is Action.NO_ACTION


def in_cel(the_book: RuleBook) -> RuleBook:
    assert the_book._plain is not None
    the_book._plain = None
    return the_book


@pytest.fixture(scope="module", params=["default", "conservative"])
def twice(request: pytest.FixtureRequest) -> tuple[RuleBook, RuleBook]:
    """A book, and itself asked in CEL alone."""
    quick, slow = (RuleBook.load(resolve_rule_book(request.param)) for _ in range(2))
    return quick, in_cel(slow)


AMOUNTS = st.none() | st.floats(0, 200)


@given(
    st.builds(
        SchedulingState,
        queue_depth=AMOUNTS,
        active_workers=AMOUNTS,
        avg_task_duration_ms=st.none() | st.floats(1e3, 1e6),
        sla_compliance_rate=st.none() | st.floats(0, 1),
        predicted_load_1h=st.none() | st.floats(0, 5000),
        resource_cpu_avg=st.none() | st.floats(0, 1),
    )
)
def test_what_python_says_is_what_cel_says(twice: tuple[RuleBook, RuleBook], state: SchedulingState) -> None:
    quick, slow = twice
    assert ask(quick, state) == ask(slow, state)


NAMES = st.sampled_from(["queue_depth", "active_workers", "resource_cpu_avg", "offered_load", "backlog_ratio"])
NUMBERS = st.recursive(
    NAMES | st.sampled_from(["0.0", "1.0", "2.5", "1.0e3", "1.0e300"]),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("{} {} {}".format, inner, st.sampled_from("+-*/"), inner)
        | st.builds("-{}".format, inner)
        | st.builds("math.{}({}, {})".format, st.sampled_from(["greatest", "least"]), inner, inner)
        | st.builds("math.sqrt({})".format, inner)
        | st.builds("(known.{} ? {} : {})".format, NAMES, inner, inner)
    ),
    max_leaves=6,
)
CONDITIONS = st.recursive(
    st.builds("{} {} {}".format, NUMBERS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), NUMBERS)
    | st.builds("known.{}".format, NAMES)
    | st.sampled_from(["task_type == 'x'", 'task_type != "x"', "true", "false"]),
    lambda inner: (
        st.builds("{} && {}".format, inner, inner)
        | st.builds("{} || {}".format, inner, inner)
        | st.builds("!({})".format, inner)
        | st.builds("({} ? {} : {})".format, inner, inner, inner)
        | st.builds("({}) == ({})".format, inner, inner)
    ),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conditions=st.tuples(CONDITIONS, CONDITIONS),
    number=NUMBERS,
    states=st.lists(
        st.builds(
            SchedulingState,
            queue_depth=st.none() | st.sampled_from([0.0, 5.0, 1e300]) | st.floats(0, 200),
            active_workers=AMOUNTS,
            avg_task_duration_ms=st.none() | st.floats(1e3, 1e6),
            predicted_load_1h=AMOUNTS,
            resource_cpu_avg=st.none() | st.floats(0, 1),
        ),
        min_size=3,
        max_size=6,
    ),
    task_type=st.sampled_from([None, "x", "y"]),
)
def test_any_plain_rule_means_in_python_what_it_means_in_cel(
    tmp_path: Path, conditions: tuple[str, str], number: str, states: list[SchedulingState], task_type: str | None
) -> None:
    first = {"when": conditions[0], "parameters": {"much": {"cel": number}}}
    rules = [first, {"when": conditions[1], "because": "{queue_depth:.3f}"}]
    quick, slow = book(tmp_path, *rules), in_cel(book(tmp_path, *rules))
    ticket = Ticket(ticket_id="t1", task_type=task_type)
    for state in states:
        assert ask(quick, state, ticket=ticket) == ask(slow, state, ticket=ticket)
    assert quick.failures == slow.failures


@pytest.mark.parametrize("numbers", ["{}, 1.0", "1.0, {}", "1.0, {}, 2.0", "{}, 1.0, 2.0"])
@pytest.mark.parametrize("which", ["greatest", "least"])
def test_what_is_no_number_is_in_the_same_order_in_python(tmp_path: Path, which: str, numbers: str) -> None:
    nan = "(1.0e300 * 1.0e300 - 1.0e300 * 1.0e300)"
    rule = {"when": f"math.{which}({numbers.format(nan)}) == 1.0"}
    assert ask(book(tmp_path, rule)) == ask(in_cel(book(tmp_path, rule)))


@pytest.mark.parametrize(
    ("when", "plain"),
    [
        ("queue_depth > 1.0", True),
        ("queue_depth >\n  1.0e-1", True),
        ("risk_band == 'high' || risk_band == \"\"", True),
        ("queue_depth > 1.0 // a comment", False),
        ("hour > 3", False),
        ("hour * 9223372036854775807 > 3", False),
        ("features.x > 1.0", False),
        ("task_type.startsWith('x')", False),
        ("task_type in ['x']", False),
        (r"task_type == 'a\'b'", False),
        (r"task_type == r'a\b'", False),
        ("task_type == '''x'''", False),
        ("task_type == b'x' || true", False),
    ],
)
def test_what_is_more_than_plain_is_left_to_cel(when: str, plain: bool) -> None:
    assert (rulebook_plain.plain([[when]]) is not None) is plain


def test_rules_before_one_that_is_not_plain_are_asked_in_python(tmp_path: Path) -> None:
    rules = book(tmp_path, {"when": "queue_depth > 9.0"}, {"when": "hour == 5"}, {"when": "queue_depth > 1.0"})
    rules._chunks = ()  # nobody to ask in CEL
    assert ask(rules, SchedulingState(queue_depth=10.0)).source == "r1"
    assert ask(rules, SchedulingState(queue_depth=5.0)).source == "otherwise", "not r3: the second comes before it"


def test_a_text_that_looks_like_a_question_is_left_alone(tmp_path: Path) -> None:
    ticket = Ticket(ticket_id="t1", task_type="known.queue_depth")
    state = SchedulingState(queue_depth=1.0)
    assert fires(tmp_path, "known.queue_depth && task_type == 'known.queue_depth'", state, ticket=ticket)
    assert not fires(tmp_path, "known.queue_depth && task_type == 'true'", state, ticket=ticket)


def test_a_rule_asked_one_by_one_knows_what_is_known(tmp_path: Path) -> None:
    rules = book(
        tmp_path,
        {"when": "known.queue_depth && predicted_load_6h > 1.0"},  # not known, so all are asked one by one
        {"when": "known.queue_depth && queue_depth > 0.0"},
    )
    assert ask(rules, SchedulingState(queue_depth=1.0)).source == "r2"
    assert not rules.failures
