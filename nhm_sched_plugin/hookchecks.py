"""What a hook may look like, and what it may answer: everything is checked, nothing is believed."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import pluggy

from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.errors import HookError
from nhm_sched_plugin.hookspecs import PROJECT, ExtensionSpecs, SchedulerSpecs
from nhm_sched_plugin.types import Forecast, Health, Recommendation, Veto

__all__ = [
    "CUSTOM",
    "OURS_ALONE",
    "SPECIFIED",
    "accepted",
    "accepted_from_part",
    "check_implementation",
    "implementations",
]

CUSTOM: Final = "custom:"
"""Prefix of `Recommendation.source` when a third-party hook made it."""

SPECIFIED: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(inspect.getfullargspec(function).args[1:])
    for specs in (SchedulerSpecs, ExtensionSpecs)
    for name, function in vars(specs).items()
    if name.startswith(PROJECT)
}
"""Every hook with the arguments it may take."""

OURS_ALONE: Final = "nhm_sched_decide"
"""The one hook that nobody else may answer: whoever decides would bypass the gate and the rollout."""

_TOO_LARGE: Final = 1 << 63
_ANSWERS: Final[Mapping[str, type]] = {
    "nhm_sched_health": list,
    "nhm_sched_make_sinks": list,
    "nhm_sched_collect_state": Mapping,
    "nhm_sched_recommend": Recommendation,
    "nhm_sched_guard": Veto,
    "nhm_sched_fallback": Recommendation,
    "nhm_sched_reward": numbers.Real,
    "nhm_sched_actuate": bool,
}
_PART_ANSWERS: Final[Mapping[str, type]] = {
    "forecast": Forecast,
    "recommend": Recommendation,
    "explore": Recommendation,
    "health": Health,
}


def accepted(hook_name: str, plugin_name: str, answer: Any) -> Any:
    """The answer, if it is of the hook's kind; its origin stamped on it. Raises TypeError or ValueError for garbage."""
    expected = _ANSWERS.get(hook_name)
    if answer is None or expected is None:
        return answer
    if not isinstance(answer, expected):
        raise TypeError(f"answered with a {type(answer).__name__}; expected {expected.__name__} or None")
    if isinstance(answer, Mapping):
        return _features(answer)
    if expected is numbers.Real and known(answer) is None:
        raise ValueError(f"answered {answer!r}; expected a finite number or None")
    if isinstance(answer, list) and hook_name == "nhm_sched_health":
        wrong = [item for item in answer if not isinstance(item, Health)]
        if wrong:
            raise TypeError(f"answered with a list that holds a {type(wrong[0]).__name__}; expected Health")
    if isinstance(answer, msgspec.Struct):
        answer = _checked(answer, expected)
    if isinstance(answer, Recommendation):
        return msgspec.structs.replace(answer, source=f"{CUSTOM}{plugin_name}")
    return answer


def accepted_from_part(method: str, answer: Any) -> Any:
    """As `accepted`, for what a third party's forecaster or policy answers."""
    expected = _PART_ANSWERS.get(method)
    if answer is None or expected is None:
        return answer
    if not isinstance(answer, expected):
        raise TypeError(f"{method} answered with a {type(answer).__name__}; expected {expected.__name__} or None")
    answer = _checked(answer, expected)
    if isinstance(answer, Forecast) and known(answer.predicted_volume) is None:
        raise ValueError(f"{method} predicted a volume of {answer.predicted_volume}; expected a finite number")
    return answer


def _features(answer: Mapping[Any, Any]) -> dict[str, float]:
    features: dict[str, float] = {}
    for key, value in answer.items():
        number = known(value)
        if number is None or not isinstance(key, str):
            raise ValueError(f"feature {key!r} is {value!r}; expected a finite number")
        features[key] = number
    return features


def _checked(answer: Any, expected: type) -> Any:
    """The same struct with every field of its type: msgspec itself checks nothing when one is constructed.

    Of a subclass the fields alone are taken: one that computes them could tell guards and host different things.
    """
    answer = msgspec.convert(msgspec.to_builtins(answer, enc_hook=_number), expected)
    if isinstance(answer, Recommendation):
        if not 0.0 <= answer.confidence <= 1.0:
            raise ValueError(f"confidence {answer.confidence} is not within [0, 1]")
        large = [name for name, value in answer.parameters.items() if type(value) is int and abs(value) >= _TOO_LARGE]
        if large:
            raise ValueError(f"parameter {large[0]!r} has more than 63 bits, which cannot be written down")
    return answer


def _number(value: Any) -> float:
    """Numbers of other libraries (NumPy scalars, fractions) are numbers too."""
    number = known(value)
    if number is None:
        raise TypeError(f"{value!r} is of type {type(value).__name__}; expected a number or text")
    return number


def implementations(
    manager: pluggy.PluginManager, plugin: Any
) -> dict[str, tuple[str, Callable[..., Any], dict[str, Any]]]:
    """The plugin's hooks: attribute -> hook name, function, marker options. Raises HookError for an unusable one."""
    found: dict[str, tuple[str, Callable[..., Any], dict[str, Any]]] = {}
    for attribute in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, attribute)
        if options is not None:
            hook_name, implementation = options.get("specname") or attribute, getattr(plugin, attribute)
            check_implementation(hook_name, implementation, dict(options))
            found[attribute] = hook_name, implementation, dict(options)
        elif attribute in SPECIFIED:
            raise HookError(f"{attribute} has no @hookimpl: decorate it, or rename it if it is no hook")
    return found


def check_implementation(hook_name: str, implementation: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what pluggy would accept and the house cannot: unknown hooks, wrappers, defaults, coroutines.

    Raises HookError that says what to change. An unknown hook marked `optionalhook` is fine: it is not called.
    """
    arguments = SPECIFIED.get(hook_name)
    if arguments is None:
        if options.get("optionalhook"):
            return
        close = difflib.get_close_matches(hook_name, SPECIFIED, n=1)
        raise HookError(f"unknown hook {hook_name}" + (f"; did you mean {close[0]}?" if close else ""))
    if options.get("wrapper") or options.get("hookwrapper"):
        raise HookError(f"{hook_name}: wrappers are not allowed (they could bypass the gate and the rollout)")
    if inspect.iscoroutinefunction(implementation) or inspect.isasyncgenfunction(implementation):
        raise HookError(f"{hook_name}: hooks are synchronous; make it a plain function")
    if inspect.isgeneratorfunction(implementation):
        raise HookError(f"{hook_name}: a generator does nothing when it is called; make it a plain function")
    _check_parameters(hook_name, list(inspect.signature(implementation).parameters.values()), arguments)


def _check_parameters(hook_name: str, parameters: list[inspect.Parameter], arguments: tuple[str, ...]) -> None:
    for parameter in parameters:
        name = parameter.name
        if name == "self" and name not in arguments:
            raise HookError(f"{hook_name}: the plugin is a class; register an instance of it")
        if name not in arguments:
            raise HookError(f"{hook_name}: unknown argument {name!r}; it may take {', '.join(arguments)}")
        if parameter.default is not inspect.Parameter.empty:
            raise HookError(f"{hook_name}: argument {name!r} has a default; pluggy versions differ on those: drop it")
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            raise HookError(f"{hook_name}: argument {name!r} is keyword-only; hooks are called by position")
