"""What the model registry speaks of: the names of models, their versions, and what stands for one."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from nhm_sched_plugin.errors import RegistryError

__all__ = ["ALIASES", "Head", "ModelVersion", "NewVersion", "check_alias", "check_name", "model_name"]

ALIASES: Final = ("staging", "production")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.%-]*")


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a registered model."""

    name: str
    version: str
    created_at: float
    """Unix seconds."""
    aliases: list[str]
    metrics: dict[str, float]
    tags: dict[str, str]
    run_id: str = ""


class NewVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version to be made."""

    name: str
    state: bytes
    """JSON; versions with the same one (the horizons of a slice) share its file."""
    metrics: dict[str, float] = {}
    """Those that are not finite are left out."""
    tags: dict[str, str] = {}
    alias: str = ""
    """What is to stand for it."""


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """A registered model: its newest version, and which ones its aliases stand for."""

    newest: ModelVersion
    aliases: dict[str, str]

    def served(self) -> str:
        """The version that serves: the staged one, else the one in production, else the newest."""
        return next((self.aliases[alias] for alias in ALIASES if alias in self.aliases), self.newest.version)


def model_name(horizon_minutes: int, task_type: str | None = None, risk_band: str | None = None) -> str:
    """`load_predictor_60m`, `load_predictor_60m__processing`, `load_predictor_60m__processing__medium`.

    Characters that a model name cannot hold are written as `%XX`; a risk band without a task type gets `any`.
    """
    parts = [task_type, risk_band] if risk_band else [task_type] if task_type else []
    return "__".join([f"load_predictor_{horizon_minutes}m", *(_quoted(part or "any") for part in parts)])


def _quoted(part: str) -> str:
    """Percent-encoded: letters, digits, `.`, `-` and single `_` stay, so that `__` always separates."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), part)
    return plain.replace("__", "_%5F")


def check_alias(alias: str) -> None:
    """Raises `RegistryError` for one that is not of `ALIASES`."""
    if alias not in ALIASES:
        raise RegistryError(f"alias {alias!r} is unknown; known: {', '.join(ALIASES)}")


def check_name(name: str) -> None:
    """Raises `RegistryError` for what cannot name a registered model."""
    if not _PLAIN.fullmatch(name) or len(name) > 250:
        raise RegistryError(
            f"model name {name!r} is not usable; expected something like load_predictor_60m__type__band"
        )
