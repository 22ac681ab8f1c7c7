"""The hook layer: a pluggy manager that third-party code cannot hurt.

Raw pluggy isolates nothing: one raising implementation aborts the whole call, one sleeping holds it. Here every
third-party implementation runs in a bounded pool under the caller's deadline, answers its hook's default when it fails,
is reported by hook and plugin name, and its plugin is removed after `hooks.max_strikes` errors of a hook in a row.
Built-ins run directly.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import TimeoutError as FutureTimeoutError
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import pluggy

from nhm_sched_plugin.background import Pool, PoolFullError
from nhm_sched_plugin.discovery import Found, discover, is_disabled
from nhm_sched_plugin.errors import HookError
from nhm_sched_plugin.hookchecks import (
    CUSTOM,
    OURS_ALONE,
    accepted,
    accepted_from_part,
    implementations,
)
from nhm_sched_plugin.hookspecs import PROJECT, ExtensionSpecs, SchedulerSpecs, hookimpl
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.settings import HooksSettings, Settings
from nhm_sched_plugin.types import Veto

__all__ = [
    "CUSTOM",
    "Found",
    "HookFailedError",
    "HookManager",
    "Inspected",
    "deadline",
    "discover",
    "inspect_hooks",
    "is_disabled",
    "is_third_party",
    "time_left",
]

logger = logging.getLogger(__name__)

UNBUDGETED_TIMEOUT_S: Final = 5.0
"""For calls that nobody waits for: startup, shutdown, factories."""

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


class HookFailedError(HookError):
    """A third-party hook whose failure the caller has to know about raised, overslept or was busy."""

    def __init__(self, hook_name: str, plugin_name: str, error: BaseException) -> None:
        self.hook_name, self.plugin_name, self.error = hook_name, plugin_name, error
        super().__init__(f"{hook_name} of plugin {plugin_name!r} failed: {type(error).__name__}: {error}")


class _StillBusyError(TimeoutError):
    """The plugin has not come back from an earlier call yet."""


class _BudgetSpentError(TimeoutError):
    """Others used the caller's time up before this hook could start: no fault of its plugin."""


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


def time_left() -> float | None:
    """Seconds left to this thread inside `deadline`; None outside of any."""
    until = _budget.until
    return None if until is None else until - time.monotonic()


class _Isolated:
    """A stand-in for a third-party plugin: holds its hooks, each wrapped."""


class _IsolatedPart:
    """A stand-in for a third party's forecaster or policy: every method under the caller's deadline, like a hook."""

    def __init__(self, part: Any, call: Callable[..., Any]) -> None:
        self._part, self._call = part, call

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        return functools.partial(self._call, name, value) if callable(value) else value


def is_third_party(part: Any) -> bool:
    """Whether a forecaster or policy that a factory hook made is somebody else's."""
    return isinstance(part, _IsolatedPart)


class HookManager(pluggy.PluginManager):
    """A plugin manager for one of the two spec classes, with every third-party implementation isolated.

    `parts` names the Protocol of what a factory hook makes: answers are checked against it, and every method of a
    third party's part is isolated like a hook.
    """

    def __init__(
        self, specs: type, settings: HooksSettings, faults: Faults, parts: Mapping[str, type] | None = None
    ) -> None:
        super().__init__(PROJECT)
        self.add_hookspecs(specs)
        self._own = {name for name in vars(specs) if name.startswith(PROJECT)}
        self._settings, self._faults, self._parts = settings, faults, dict(parts or {})
        self._pool = Pool(settings.pool_size, "nhm-sched-hooks")
        self._lock = threading.Lock()
        self._strikes: dict[tuple[str, str], int] = {}
        self._last_strike: dict[tuple[str, str], float] = {}
        self._overslept: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        """Plugin name -> why it was not loaded, or was removed."""
        self.on_error: Callable[[str, str, BaseException], None] | None = None
        self.call: Any = SimpleNamespace()
        """As `hook`, for the hot path: where a built-in alone answers, its function, without a manager's overhead."""
        self._builtins: set[str] = set()
        self._renew_calls()
        if settings.trace:
            self._trace_calls()

    def add_builtin(self, plugin: object, name: str) -> None:
        """Register one of our own plugins: called directly, its errors are ours to handle."""
        self._builtins.add(name)
        self.register(plugin, name)

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        registered = super().register(plugin, name)
        self._renew_calls()
        return registered

    def unregister(self, plugin: Any = None, name: str | None = None) -> Any:
        removed = super().unregister(plugin, name)
        self._renew_calls()
        return removed

    def _renew_calls(self) -> None:
        for hook_name in self._own:
            setattr(self.call, hook_name, self._quickest(hook_name))

    def _quickest(self, hook_name: str) -> Callable[..., Any]:
        hook = getattr(self.hook, hook_name)
        answering = hook.get_hookimpls()
        if self._settings.trace or hook.is_historic() or len(answering) != 1:
            return hook  # type: ignore[no-any-return]
        only = answering[0]
        if only.plugin_name not in self._builtins or only.argnames != hook.spec.argnames:
            return hook  # type: ignore[no-any-return]
        return only.function if hook.spec.opts.get("firstresult") else functools.partial(_answers_of_one, only.function)

    def add(self, found: Found) -> bool:
        """Register a third-party plugin; False, with the reason in `problems`, when it is not usable."""
        registered = False
        try:
            if found.problem is not None:
                raise HookError(found.problem)
            self.register(self._isolated(found.plugin, found.name), found.name)
            registered = True
            self.check_pending()
        except Exception as error:  # noqa: BLE001 - a plugin's attributes may raise anything
            if registered:
                self.unregister(name=found.name)
            self.problems[found.name] = f"{found.origin}: {error}"
            self._faults.hook("load", found.name, error)
            return False
        return True

    def _isolated(self, plugin: Any, name: str) -> _Isolated:
        """A stand-in for the plugin that holds only the hooks of this manager, each wrapped."""
        if self.has_plugin(name):
            raise HookError(f"a plugin named {name!r} is loaded already; rename one of them")
        wrapped, hooks = _Isolated(), implementations(self, plugin)
        if not hooks:
            raise HookError("holds no @hookimpl function; a helper file's name starts with an underscore")
        for attribute, (hook_name, implementation, options) in hooks.items():
            if hook_name not in self._own:
                continue
            if hook_name == OURS_ALONE:
                self._refuse(hook_name, name)
                continue
            setattr(wrapped, attribute, hookimpl(**_kept(options))(self._wrap(hook_name, name, implementation)))
        return wrapped

    def _refuse(self, hook_name: str, plugin_name: str) -> None:
        """Leave one hook of a plugin out; its others are good."""
        why = f"{hook_name} is not called: it would bypass the gate and the rollout; use nhm_sched_recommend instead"
        self.problems[plugin_name] = why
        self._faults.hook(hook_name, plugin_name, HookError(why))

    def _wrap(self, hook_name: str, plugin_name: str, implementation: Callable[..., Any]) -> Callable[..., Any]:
        part = self._parts.get(hook_name)

        @functools.wraps(implementation)
        def isolated(*args: Any, **kwargs: Any) -> Any:
            try:
                result = accepted(hook_name, plugin_name, self._call(plugin_name, implementation, args, kwargs))
                if part is not None and result is not None:
                    result = self._isolated_part(hook_name, plugin_name, part, result)
            except Exception as error:  # noqa: BLE001 - whatever it is, it stops here
                return self._failed(hook_name, plugin_name, error)
            if self._strikes.get((plugin_name, hook_name)):
                self._strikes[plugin_name, hook_name] = 0
            return result

        return isolated

    def _isolated_part(self, hook_name: str, plugin_name: str, protocol: type, part: Any) -> _IsolatedPart:
        if not isinstance(part, protocol):
            lacks = [name for name in vars(protocol) if not name.startswith("_") and not hasattr(part, name)]
            raise TypeError(f"made a {type(part).__name__}, no {protocol.__name__}: it lacks {', '.join(lacks)}")

        def call(method_name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            try:
                return accepted_from_part(method_name, self._call(plugin_name, method, args, kwargs))
            except Exception as error:
                # No strike: without its hooks the part would stay all the same.
                self.fail(hook_name, plugin_name, error, strike=False)
                raise HookFailedError(f"{method_name} of {hook_name}", plugin_name, error) from error

        return _IsolatedPart(part, call)

    def _call(
        self, plugin_name: str, implementation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._overslept.get(plugin_name):
            raise _StillBusyError("still busy with an earlier call")
        until = _budget.until
        timeout = UNBUDGETED_TIMEOUT_S if until is None else until - time.monotonic()
        if timeout <= 0:
            raise _BudgetSpentError("the budget was spent before this hook could start")
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
        since_strike = time.monotonic() - self._last_strike.get((plugin_name, hook_name), 0.0)
        innocent = isinstance(error, PoolFullError | _BudgetSpentError)
        strike = not innocent and not (isinstance(error, _StillBusyError) and since_strike < 1)
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
            self._strike(hook_name, plugin_name, error)
        if self.on_error is not None and hook_name != "nhm_sched_on_error":
            self.on_error(hook_name, plugin_name, error)

    def _strike(self, hook_name: str, plugin_name: str, error: Exception) -> None:
        key = (plugin_name, hook_name)
        with self._lock:  # of two threads only one may remove the plugin
            self._last_strike[key] = time.monotonic()
            strikes = self._strikes[key] = self._strikes.get(key, 0) + 1
            if strikes < self._settings.max_strikes or self.get_plugin(plugin_name) is None:
                return
            self.unregister(name=plugin_name)
            self.problems[plugin_name] = f"removed after {strikes} errors of {hook_name} in a row; the last: {error}"
        logger.error("plugin %s %s", plugin_name, self.problems[plugin_name])

    def _trace_calls(self) -> None:
        running = threading.local()

        def before(hook_name: str, _: Any, kwargs: Any) -> None:
            running.__dict__.setdefault("since", []).append(time.perf_counter())  # a hook may call another

        def after(outcome: Any, hook_name: str, implementations: Any, kwargs: Any) -> None:
            started = running.since.pop()
            took = (time.perf_counter() - started) * 1e6
            answer = outcome.exception or outcome.get_result()
            names = [implementation.plugin_name for implementation in reversed(implementations)]
            given = ", ".join(f"{name}: {type(value).__name__}" for name, value in kwargs.items())
            extra = {"started": started}  # a record's own time is when the call was over, or later on a busy machine
            logger.info("%s(%s) by %s -> %r in %.0f us", hook_name, given, names, answer, took, extra=extra)

        self.add_hookcall_monitoring(before, after)

    def close(self) -> None:
        self._pool.close()


def _answers_of_one(function: Callable[..., Any], **kwargs: Any) -> list[Any]:
    answer = function(**kwargs)
    return [] if answer is None else [answer]


def _under_deadline(
    until: float | None, implementation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _budget.until = until
    try:
        return implementation(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        # SystemExit and its like must not travel to the thread that waits for the answer.
        raise HookError(f"raised {type(error).__name__}: {error}") from error


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("tryfirst", "trylast", "optionalhook", "specname") if options.get(key)}


class Inspected(NamedTuple):
    """A plugin as `nhm-sched hooks list` shows it; `problem` is empty for a usable one."""

    name: str
    origin: str
    hooks: tuple[str, ...]
    problem: str


def inspect_hooks(settings: Settings) -> list[Inspected]:
    """Every third-party plugin that a host with these settings would come upon. Loads them; calls none."""
    rows = []
    managers = [HookManager(specs, settings.hooks, _Silent(Metrics())) for specs in (ExtensionSpecs, SchedulerSpecs)]
    try:
        for found in discover(settings.hooks, settings.hooks_dir):
            usable = all(manager.add(found) for manager in managers)
            problem = next((manager.problems[found.name] for manager in managers if found.name in manager.problems), "")
            hooks = implementations(managers[0], found.plugin) if usable else {}
            names = sorted({hook_name for hook_name, _, _ in hooks.values()})
            rows.append(Inspected(found.name, found.origin, tuple(names), problem))
    finally:
        for manager in managers:
            manager.close()
    return rows


class _Silent(Faults):
    """For a look at the plugins: what is wrong with them is in the answer."""

    def log(self, what: str, error: BaseException | str) -> None:
        """Nothing: see above."""
