"""What to do in a state: `recommend`."""

from __future__ import annotations

from typing import Annotated

import typer

from nhm_sched_plugin.cli.app import ConfigOption, JsonOption, app, settings_of
from nhm_sched_plugin.cli.asking import (
    Agent,
    EndpointOption,
    StateOption,
    TimeoutOption,
    TlsCaOption,
    TokenOption,
    measured,
)
from nhm_sched_plugin.cli.show import err, out, plain, record, show
from nhm_sched_plugin.policy.demand import ARRIVED
from nhm_sched_plugin.settings import Settings
from nhm_sched_plugin.types import STATE_FIELDS, Recommendation, SchedulingState

_SHOWN = (
    "action",
    "parameters",
    "confidence",
    "justification",
    "expected_improvement",
    "risk_score",
    "policy_version",
    "state_hash",
    "decision_id",
)


@app.command()
def recommend(
    state: StateOption = None,
    task_type: Annotated[str | None, typer.Option(help="Of the ticket; without, it is about the whole pool.")] = None,
    risk_band: Annotated[str | None, typer.Option(help="Of the ticket.")] = None,
    endpoint: EndpointOption = None,
    tls_ca_file: TlsCaOption = None,
    token_file: TokenOption = None,
    timeout: TimeoutOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What an optimizer agent, or without one this machine's own policy, would do in a state.

    Fields of the state: queue_depth, active_workers, avg_task_duration_ms, sla_compliance_rate, predicted_load_1h,
    predicted_load_6h, resource_cpu_avg, resource_memory_avg; and counts of arrivals such as arrivals_last_hour.
    One that is left out is unknown, not zero.
    """
    numbers = measured(state, tuple(ARRIVED))
    given = SchedulingState(
        **{name: numbers[name] for name in STATE_FIELDS if name in numbers},
        features={name: number for name, number in numbers.items() if name in ARRIVED},
    )
    settings = settings_of(config)
    agent = Agent.of(settings, endpoint, tls_ca_file, token_file, timeout)
    if agent is None:
        said, decision_id = _own(settings, given, task_type, risk_band), None
    else:
        said, decision_id = _asked(agent, given, task_type, risk_band)
    values = {**plain(said), "decision_id": decision_id}
    del values["source"]
    threshold = settings.optimizer.recommendation_confidence_threshold

    def tell() -> None:
        who = "this machine's own policy" if agent is None else f"the optimizer agent at {agent.addresses}"
        out.print(f"Recommended by {who}", style="bold", markup=False, highlight=False, soft_wrap=True)
        record({name: values[name] for name in _SHOWN if values[name] not in (None, "", {})})
        if not numbers:
            err.print(
                "warning: nothing is known of the pool; give --state FIELD=NUMBER", style="yellow", soft_wrap=True
            )
        elif said.confidence < threshold:
            text = f"A host would follow its rules instead: the confidence is below {threshold:g}."
            out.print(text, markup=False, highlight=False, soft_wrap=True)

    show(values, as_json, tell)


def _asked(
    agent: Agent, given: SchedulingState, task_type: str | None, risk_band: str | None
) -> tuple[Recommendation, str]:
    """The answer, and the decision's id to report its outcome with. Raises `NhmSchedError` when there is none."""
    from nhm_sched_plugin.hookchecks import accepted_from_part
    from nhm_sched_plugin.wire.convert import recommendation_of, state_request

    [answer] = agent.ask(
        "GetSchedulingRecommendation",
        [state_request(given, task_type, risk_band)],
        lambda answer: (accepted_from_part("recommend", recommendation_of(answer)), str(answer.decision_id)),
    )
    return answer


def _own(settings: Settings, given: SchedulingState, task_type: str | None, risk_band: str | None) -> Recommendation:
    """As an agent on this `data_dir` would answer: it has the parts of a host, and writes nothing."""
    from nhm_sched_plugin.agent.advisor import Advisor
    from nhm_sched_plugin.observe.faults import Faults
    from nhm_sched_plugin.observe.metrics import Metrics
    from nhm_sched_plugin.types import Ticket

    caching = settings.ml.caching.model_copy(update={"enabled": False})  # tables from Redis would be written to disk
    settings = settings.model_copy(update={"ml": settings.ml.model_copy(update={"caching": caching})})
    metrics = Metrics()
    advisor = Advisor(settings, metrics, Faults(metrics))
    try:
        advisor.open()
        ticket = Ticket(ticket_id="", task_type=task_type, risk_band=risk_band) if task_type or risk_band else None
        return advisor.recommend(ticket, given)
    finally:
        advisor.close(1.0)
