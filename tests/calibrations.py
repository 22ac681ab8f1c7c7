"""A calibrated planner, for the tests that need one but not its calibration."""

from __future__ import annotations

from typing import Any

from nhm_sched_plugin.policy.demand import DemandModel


def calibration(**changed: Any) -> DemandModel:
    """For the default settings' start-up time and SLA wait."""
    values: dict[str, Any] = {
        "coefficients": (3.0, 0.1, 1.0, 2.0, 1.0, -0.2, -0.1, 0.0, 0.5, 0.2, 0.1, 0.2, 1.0, 1.0, 0.5, 0.4),
        "dispersion": 2.0,
        "startup_s": 120.0,
        "sla_wait_s": 60.0,
        "late_cost": 25.0,
        "service_s": 300.0,
        "tickets": 1000,
        "start": 0.0,
        "end": 0.0,
        "sla": 0.99,
        "cost": 1.2,
    }
    return DemandModel(**{**values, **changed})
