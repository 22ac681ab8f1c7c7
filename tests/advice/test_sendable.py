"""What a host sends of a state is what the agent takes: the one definition of the limits, from both sides."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from nhm_sched_plugin import SchedulingState
from nhm_sched_plugin.advice.remote.policy import sendable
from nhm_sched_plugin.pb import optimizer_agent_pb2 as pb
from nhm_sched_plugin.types import STATE_FIELDS
from nhm_sched_plugin.wire.check import check_state_request
from nhm_sched_plugin.wire.convert import state_request
from nhm_sched_plugin.wire.limits import MOST_ENTRIES, MOST_NAME, MOST_NUMBER, STATE_LIMITS

EDGES = [
    0.0,
    -0.0,
    1.0,
    math.nextafter(1.0, 2.0),
    MOST_NUMBER,
    -MOST_NUMBER,
    math.nextafter(MOST_NUMBER, math.inf),
    1e16,
]
VALUES: Any = st.one_of(
    st.none(),
    st.sampled_from([*EDGES, -1e-9, math.nan, math.inf, 10**400, True, "7", Fraction(1, 3)]),
    st.floats(),
    st.integers(),
)
NAMES = st.one_of(
    st.text(st.characters(), max_size=5),  # halves of surrogate pairs among them
    st.text(max_size=MOST_NAME + 5),
    st.integers(MOST_NAME - 2, MOST_NAME + 2).map(lambda length: "é" * length),
    st.sampled_from(["\ud800", "a\udfff"]),
)
STATES = st.builds(
    SchedulingState,
    **dict.fromkeys(STATE_FIELDS, VALUES),
    features=st.one_of(
        st.dictionaries(NAMES, VALUES, max_size=8),
        st.integers(MOST_ENTRIES - 2, MOST_ENTRIES + 2).map(lambda count: {f"f{each}": 1.0 for each in range(count)}),
    ),
)


@given(STATES)
@example(SchedulingState(queue_depth=1e16, features={"large": 1e16}))
@example(SchedulingState(features={"x" * (MOST_NAME + 1): 1.0}))
@example(SchedulingState(features={"\ud800": 1.0}))
def test_the_agent_takes_whatever_is_sent(state: SchedulingState) -> None:
    message = state_request(sendable(state))
    check_state_request(pb.StateRequest.FromString(message.SerializeToString()))


@given(
    st.floats(0, 1), st.dictionaries(st.text(max_size=9), st.floats(-MOST_NUMBER, MOST_NUMBER), max_size=MOST_ENTRIES)
)
def test_what_the_agent_takes_is_sent(share: float, features: dict[str, float]) -> None:
    given = {name: share * most for name, most in STATE_LIMITS.items()}
    state = SchedulingState(**given, features=features)
    assert sendable(state) == state


def test_only_what_cannot_be_sent_is_left_out() -> None:
    many = {f"f{number}": 1.0 for number in range(MOST_ENTRIES + 5)}
    found = sendable(
        SchedulingState(queue_depth=-1, active_workers=3, features={"x" * 257: 1.0, "\ud800": 1.0, **many})
    )
    assert (found.queue_depth, found.active_workers) == (None, 3.0)
    assert list(found.features) == [f"f{number}" for number in range(MOST_ENTRIES)]
