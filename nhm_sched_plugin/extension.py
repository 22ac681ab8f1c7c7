"""The hook layer: a pluggy manager that third-party code cannot hurt.

Raw pluggy isolates nothing: one raising implementation aborts the whole call, one sleeping holds it. Here every
third-party implementation runs in a bounded pool under the caller's deadline, answers its hook's default when it fails,
is reported by hook and plugin name, and its plugin is removed after `hooks.max_strikes` errors in a row. Built-ins run
directly.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import logging
import numbers
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pluggy

from nhm_sched_plugin.background import Pool, PoolFullError
from nhm_sched_plugin.decision.known import known
from nhm_sched_plugin.errors import HookError
from nhm_sched_plugin.hookspecs import PROJECT, ExtensionSpecs, SchedulerSpecs, hookimpl
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import HooksSettings, Settings
from nhm_sched_plugin.types import Action, Decision, Recommendation, Veto

__all__ = ["CUSTOM", "Found", "HookFailedError", "HookManager", "LoadedHooks", "deadline", "discover", "inspect_hooks"]

logger = logging.getLogger(__name__)

OWN_ENTRY_POINT: Final = "nhm-sched-plugin"
UNBUDGETED_TIMEOUT_S: Final = 5.0
"""For calls that nobody waits for: startup, shutdown, factories."""

_SPECIFIED: Final = {
    name: inspect.getfullargspec(function).args[1:]
    for specs in (SchedulerSpecs, ExtensionSpecs)
    for name, function in vars(specs).items()
    if name.startswith(PROJECT)
}
_FAILURE_IS_AN_ANSWER: Final = frozenset(
    {
        "nhm_sched_make_forecaster",
        "nhm_sched_make_policy",
        "nhm_sched_recommend",
        "nhm_sched_reward",
        "nhm_sched_actuate",
    }
)
"""Here a failure must not fall through to the next plugin as if nobody had answered: the caller decides."""


_ANSWERS: Final[Mapping[str, type]] = {
    "nhm_sched_decide": Decision,
    "nhm_sched_collect_state": Mapping,
    "nhm_sched_recommend": Recommendation,
    "nhm_sched_guard": Veto,
    "nhm_sched_fallback": Recommendation,
    "nhm_sched_reward": numbers.Real,
    "nhm_sched_make_sinks": list,
}
CUSTOM: Final = "custom:"
"""Prefix of `Recommendation.source` when a third-party hook made it."""


class HookFailedError(HookError):
    """A third-party hook whose failure the caller has to know about raised, overslept or was busy."""

    def __init__(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        self.hook_name, self.plugin_name, self.error = hook_name, plugin_name, error
        super().__init__(f"{hook_name} of plugin {plugin_name!r} failed: {type(error).__name__}: {error}")


class _StillBusyError(TimeoutError):
    """The plugin has not come back from an earlier call yet."""


class _Budget(threading.local):
    until: float | None = None


_budget = _Budget()


class deadline:  # noqa: N801 - reads as a statement: `with deadline(seconds):`
    """Third-party hooks called in this block, on this thread, get `seconds` all together."""

    __slots__ = ("_before", "_until")

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def __enter__(self) -> None:
        before = self._before = _budget.until
        _budget.until = self._until if before is None else min(self._until, before)

    def __exit__(self, *_: object) -> None:
        _budget.until = self._before


class Found(NamedTuple):
    """A plugin that discovery came upon: usable (`plugin`) or not (`problem` says why)."""

    name: str
    origin: str
    plugin: Any = None
    problem: str | None = None


def discover(settings: HooksSettings, hooks_dir: Path | None) -> Iterator[Found]:
    """Third-party plugins: entry points of group `nhm_sched`, then the files of `hooks_dir` in order of their names."""
    if "all" in settings.disabled:
        return
    for point in importlib.metadata.entry_points(group=PROJECT):
        if point.name == OWN_ENTRY_POINT or point.name in settings.disabled:
            continue
        try:
            yield Found(point.name, f"entry point {point.value}", point.load())
        except Exception as error:  # noqa: BLE001 - somebody else's module may raise anything
            yield Found(point.name, f"entry point {point.value}", problem=_describe(error))
    if hooks_dir is None:
        return
    if not hooks_dir.is_dir():
        yield Found(str(hooks_dir), "hooks_dir", problem="hooks_dir is not a directory")
        return
    for path in sorted(hooks_dir.glob("*.py")):
        if path.name.startswith(("_", ".")) or path.stem in settings.disabled:
            continue
        try:
            yield Found(path.stem, str(path), _load_file(path))
        except BaseException as error:  # a drop-in may raise anything, SystemExit included
            if isinstance(error, KeyboardInterrupt):
                raise
            yield Found(path.stem, str(path), problem=_describe(error))


def _load_file(path: Path) -> types.ModuleType:
    name = f"_nhm_sched_dropin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HookError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution: dataclasses in it look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _describe(error: BaseException) -> str:
    where = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{type(error).__name__}: {getattr(error, 'msg', None) or error}{where}"


class _StandIn:
    """Holds a plugin's wrapped hooks; pluggy registers it in the plugin's place."""


class HookManager(pluggy.PluginManager):
    """A plugin manager for one of the two spec classes, with every third-party implementation isolated."""

    def __init__(self, specs: type, settings: HooksSettings, faults: Faults) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(specs)
        self._own = {name for name in vars(specs) if name.startswith(PROJECT)}
        self._settings, self._faults = settings, faults
        self._pool = Pool(settings.pool_size, "nhm-sched-hooks")
        self._strikes: dict[str, int] = {}
        self._last_strike: dict[str, float] = {}
        self._overslept: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        """Plugin name -> why it was not loaded, or was removed."""
        self.on_error: Callable[[str, str, BaseException], None] | None = None
        if settings.trace:
            self._trace_calls()

    def add_builtin(self, plugin: object, name: str) -> None:
        """Register one of our own plugins: called directly, its errors are ours to handle."""
        super().register(plugin, name)

    def add(self, found: Found) -> bool:
        """Register a third-party plugin; False, with the reason in `problems`, when it is not usable."""
        try:
            if found.problem is not None:
                raise HookError(found.problem)
            super().register(self._isolated(found.plugin, found.name), found.name)
            self.check_pending()
        except Exception as error:  # noqa: BLE001 - a plugin's attributes may raise anything
            if self.get_plugin(found.name) is not None:
                self.unregister(name=found.name)
            self.problems[found.name] = f"{found.origin}: {error}"
            self._faults.hook("load", found.name, error)
            return False
        return True

    def _isolated(self, plugin: Any, name: str) -> _StandIn:
        """A stand-in for the plugin that holds only the hooks of this manager, each wrapped."""
        if name in dict(self.list_name_plugin()):
            raise HookError(f"a plugin named {name!r} is loaded already; rename one of them")
        wrapped = _StandIn()
        for attribute in dir(plugin):
            options = self.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                if attribute in _SPECIFIED:
                    raise HookError(f"{attribute} has no @hookimpl: decorate it, or rename it if it is no hook")
                continue
            hook_name = options.get("specname") or attribute
            implementation = getattr(plugin, attribute)
            _check(hook_name, implementation, dict(options))
            if hook_name in self._own:
                function = self._wrap(hook_name, name, implementation)
                setattr(wrapped, attribute, hookimpl(**_kept(dict(options)))(function))
        return wrapped

    def _wrap(self, hook_name: str, plugin_name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(implementation)
        def isolated(*args: Any, **kwargs: Any) -> Any:
            try:
                result = _accepted(hook_name, plugin_name, self._call(plugin_name, implementation, args, kwargs))
            except Exception as error:  # noqa: BLE001 - whatever it is, it stops here
                return self._failed(hook_name, plugin_name, error)
            if self._strikes.get(plugin_name):
                self._strikes[plugin_name] = 0
            return result

        return isolated

    def _call(
        self, plugin_name: str, implementation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._overslept.get(plugin_name):
            raise _StillBusyError("still busy with an earlier call")
        until = _budget.until
        timeout = UNBUDGETED_TIMEOUT_S if until is None else until - time.monotonic()
        if timeout <= 0:
            raise PoolFullError("the budget was spent before this hook could start")
        future = self._pool.submit(_under_deadline, until, implementation, args, kwargs)
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            if future.done():
                raise  # the hook itself raised a TimeoutError
            if not future.cancel():
                self._overslept[plugin_name] = self._overslept.get(plugin_name, 0) + 1
                future.add_done_callback(lambda _: self._overslept.update({plugin_name: 0}))
            raise TimeoutError(f"gave no answer within {timeout * 1000:.0f} ms") from None

    def _failed(self, hook_name: str, plugin_name: str, error: Exception) -> Any:
        # One long sleep must not cost all strikes at once: a call refused meanwhile counts once a second at most.
        since_strike = time.monotonic() - self._last_strike.get(plugin_name, 0.0)
        strike = not isinstance(error, PoolFullError) and not (isinstance(error, _StillBusyError) and since_strike < 1)
        self.fail(hook_name, plugin_name, error, strike=strike)
        if hook_name == "nhm_sched_guard":
            return Veto(guard=plugin_name, reason=f"the guard failed ({type(error).__name__}: {error})")
        if hook_name in _FAILURE_IS_AN_ANSWER:
            raise HookFailedError(hook_name, plugin_name, error) from error
        return None

    def fail(self, hook_name: str, plugin_name: str, error: Exception, *, strike: bool = True) -> None:
        """Report a failure (also a garbage answer that the caller noticed) and count it against the plugin."""
        self._faults.hook(hook_name, plugin_name, error)
        if strike:
            self._last_strike[plugin_name] = time.monotonic()
            strikes = self._strikes[plugin_name] = self._strikes.get(plugin_name, 0) + 1
            if strikes >= self._settings.max_strikes and self.get_plugin(plugin_name) is not None:
                self.unregister(name=plugin_name)
                self.problems[plugin_name] = f"removed after {strikes} errors in a row; the last: {error}"
                logger.error("plugin %s %s", plugin_name, self.problems[plugin_name])
        if self.on_error is not None and hook_name != "nhm_sched_on_error":
            self.on_error(hook_name, plugin_name, error)

    def _trace_calls(self) -> None:
        started = threading.local()

        def before(hook_name: str, _: Any, kwargs: Any) -> None:
            started.at = time.perf_counter()

        def after(outcome: Any, hook_name: str, implementations: Any, kwargs: Any) -> None:
            took = (time.perf_counter() - started.at) * 1e6
            answer = outcome.exception or outcome.get_result()
            names = [implementation.plugin_name for implementation in implementations]
            logger.info("%s%s by %s -> %r in %.0f us", hook_name, tuple(kwargs), names, answer, took)

        self.add_hookcall_monitoring(before, after)

    def close(self) -> None:
        self._pool.close()


class LoadedHooks(NamedTuple):
    """One plugin as `nhm-sched hooks list` shows it."""

    plugin: str
    origin: str
    hooks: tuple[str, ...]
    problem: str


def inspect_hooks(settings: Settings) -> list[LoadedHooks]:
    """Every third-party plugin and drop-in with its hooks, or with what is wrong with it. Starts nothing."""
    faults = Faults(Metrics())
    managers = [HookManager(specs, settings.hooks, faults) for specs in (SchedulerSpecs, ExtensionSpecs)]
    rows = []
    for found in discover(settings.hooks, settings.hooks_dir):
        loaded = [manager for manager in managers if manager.add(found)]
        callers = [
            caller for manager in loaded for caller in manager.get_hookcallers(manager.get_plugin(found.name)) or ()
        ]
        names = tuple(sorted(caller.name for caller in callers))
        problem = next((manager.problems[found.name] for manager in managers if found.name in manager.problems), "")
        rows.append(LoadedHooks(found.name, found.origin, names, problem))
    return rows


def _under_deadline(
    until: float | None, implementation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _budget.until = until
    return implementation(*args, **kwargs)


def _accepted(hook_name: str, plugin_name: str, answer: Any) -> Any:
    """The answer, if it is of the hook's kind; its origin stamped on it. Raises TypeError or ValueError for garbage."""
    expected = _ANSWERS.get(hook_name)
    if answer is None or expected is None:
        return answer
    if not isinstance(answer, expected):
        raise TypeError(f"answered with a {type(answer).__name__}; expected {expected.__name__} or None")
    if isinstance(answer, Mapping):
        wrong = [key for key, value in answer.items() if not isinstance(key, str) or known(value) is None]
        if wrong:
            raise ValueError(f"feature {wrong[0]!r} is {answer[wrong[0]]!r}; expected a finite number")
        return {key: float(value) for key, value in answer.items()}
    if isinstance(answer, Recommendation):
        # msgspec checks nothing on construction; a hook may have put a plain string here.
        return msgspec.structs.replace(answer, action=Action(answer.action), source=f"{CUSTOM}{plugin_name}")
    return answer


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("tryfirst", "trylast", "optionalhook", "specname") if options.get(key)}


def _check(hook_name: str, implementation: Callable[..., Any], options: dict[str, Any]) -> None:
    """Refuse what pluggy would accept and the house cannot: unknown hooks, wrappers, defaults, coroutines."""
    arguments = _SPECIFIED.get(hook_name)
    if arguments is None:
        if options.get("optionalhook"):
            return
        close = difflib.get_close_matches(hook_name, _SPECIFIED, n=1)
        raise HookError(f"unknown hook {hook_name}" + (f"; did you mean {close[0]}?" if close else ""))
    if options.get("wrapper") or options.get("hookwrapper"):
        raise HookError(f"{hook_name}: wrappers are not allowed (they could bypass the gate and the rollout)")
    if inspect.iscoroutinefunction(implementation):
        raise HookError(f"{hook_name}: hooks are synchronous; make it a plain function")
    parameters = list(inspect.signature(implementation).parameters.values())
    unknown = [parameter.name for parameter in parameters if parameter.name not in arguments]
    if unknown:
        raise HookError(f"{hook_name}: unknown argument {unknown[0]!r}; it may take {', '.join(arguments)}")
    defaulted = [parameter.name for parameter in parameters if parameter.default is not inspect.Parameter.empty]
    if defaulted:
        raise HookError(
            f"{hook_name}: argument {defaulted[0]!r} has a default; pluggy versions differ on those: drop it"
        )
