"""The model registry: MLflow registered models with versions, tags and aliases, on sqlite and files by default.

A version holds one JSON artefact (`state.json`) whose sha256 stands in a tag and is checked on every load. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nhm_sched_plugin.errors import ModelError, RegistryError

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["ALIASES", "ModelVersion", "Registry", "model_name"]

ALIASES: Final = ("staging", "production")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.%-]*")
_EXPERIMENT: Final = "nhm_sched"
_ARTIFACT: Final = "state.json"
_DIGEST_TAG: Final = "sha256"
_METRICS_TAG: Final = "metrics"
"""The metrics once more, so that a listing need not ask for every run."""
_NOISY: Final = ("alembic", "mlflow", "sqlalchemy")


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a registered model."""

    name: str
    version: str
    created_at: float
    """Unix seconds."""
    aliases: list[str]
    metrics: dict[str, float]
    tags: dict[str, str]


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


class Registry:
    """Save, load and name versions. `import mlflow` takes seconds, so it happens on first use.

    `uri` is an MLflow tracking URI; unset: `mlflow.db` with artefacts beside it under `folder`.
    """

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self._folder = folder
        self._uri = uri
        self._made: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> Registry:
        """The registry that the settings name."""
        return cls(settings.registry_path, settings.ml.training.tracking_uri)

    @property
    def _client(self) -> Any:
        with self._lock:
            return self._opened()

    def _opened(self) -> Any:
        if self._made is None:
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            for name in _NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)
            from mlflow import MlflowClient

            for name in _NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)
            self._folder.mkdir(parents=True, exist_ok=True)
            uri = self._uri or f"sqlite:///{self._folder.resolve() / 'mlflow.db'}"
            try:
                self._made = MlflowClient(tracking_uri=uri, registry_uri=uri)
            except Exception as error:  # noqa: BLE001 - sqlalchemy, alembic, network: whatever MLflow runs on
                raise RegistryError(f"model registry {uri} cannot be opened ({error})") from None
        return self._made

    def open(self) -> None:
        """Import MLflow and open (on first use: create) the registry. Raises `RegistryError` if that fails."""
        self._experiment()

    def exists(self) -> bool:
        """Whether there may be models in it; costs nothing for a registry that was never used."""
        return self._uri is not None or (self._folder / "mlflow.db").exists()

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        place = None if self._uri else (self._folder.resolve() / "artifacts").as_uri()
        return str(self._client.create_experiment(_EXPERIMENT, artifact_location=place))

    def save(
        self,
        name: str,
        state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Keep `state` (JSON values) as a new version of `name`; returns the version.

        Metrics that are not finite are left out. Raises `RegistryError` for a bad name or an unusable registry.
        """
        _check_name(name)
        raw = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
        client = self._client
        run = client.create_run(self._experiment(), run_name=name)
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / _ARTIFACT
                file.write_bytes(raw)
                client.log_artifact(run.info.run_id, str(file))
            kept = {key: value for key, value in (metrics or {}).items() if math.isfinite(value)}
            for key, value in kept.items():
                client.log_metric(run.info.run_id, key, value)
            self._ensure_model(name)
            made = client.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/{_ARTIFACT}",
                run_id=run.info.run_id,
                tags={
                    **(tags or {}),
                    _DIGEST_TAG: hashlib.sha256(raw).hexdigest(),
                    _METRICS_TAG: json.dumps(kept),
                },
            )
        except BaseException:
            client.set_terminated(run.info.run_id, "FAILED")
            raise
        client.set_terminated(run.info.run_id)
        return str(made.version)

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(name)
        except MlflowException:
            self._client.create_registered_model(name)

    def load(self, name: str, which: str = "staging") -> dict[str, Any]:
        """The state of a version, by alias or number.

        Raises `RegistryError` if there is none, `ModelError` if it is damaged.
        """
        found = self._version(name, which)
        try:
            path = self._client.download_artifacts(found.run_id, _ARTIFACT)
            raw = Path(path).read_bytes()
        except Exception as error:  # noqa: BLE001 - files, network: whatever the artefacts live on
            raise ModelError(
                f"{name} version {found.version}: cannot read its state ({error}); train it anew"
            ) from None
        if hashlib.sha256(raw).hexdigest() != found.tags.get(_DIGEST_TAG):
            raise ModelError(f"{name} version {found.version}: its state does not match its digest; train it anew")
        state: dict[str, Any] = json.loads(raw)
        return state

    def find(self, name: str, which: str = "staging") -> ModelVersion | None:
        """The version that an alias or number stands for, or None."""
        rows = [row for row in self.list() if row.name == name]
        return next((row for row in rows if which == row.version or which in row.aliases), None)

    def latest(self, name: str) -> ModelVersion | None:
        """The newest version of a model, or None."""
        rows = [row for row in self.list() if row.name == name]
        return max(rows, key=lambda row: int(row.version), default=None)

    def _version(self, name: str, which: str) -> Any:
        from mlflow.exceptions import MlflowException

        _check_name(name)
        client = self._client
        try:
            if which.isdigit():
                return client.get_model_version(name, which)
            return client.get_model_version_by_alias(name, which)
        except MlflowException:
            known = self._known(name)
            raise RegistryError(f"model {name!r} has no version or alias {which!r}; {known}") from None

    def _known(self, name: str) -> str:
        rows = [row for row in self.list() if row.name == name]
        if rows:
            return "it has " + ", ".join(f"{row.version} ({'/'.join(row.aliases) or 'no alias'})" for row in rows)
        names = sorted({row.name for row in self.list()})
        return f"known models: {', '.join(names[:20]) or 'none; run nhm-sched train'}"

    def alias(self, name: str, version: str, alias: str) -> None:
        """Let `alias` (`staging` or `production`) stand for that version."""
        if alias not in ALIASES:
            raise RegistryError(f"alias {alias!r} is unknown; known: {', '.join(ALIASES)}")
        self._version(name, version)
        self._client.set_registered_model_alias(name, alias, version)

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        """Note something about a version."""
        self._version(name, version)
        self._client.set_model_version_tag(name, version, key, value)

    def list(self) -> list[ModelVersion]:
        """Every version of every model, by name and number."""
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in _pages(self._client.search_registered_models):
            for alias, version in model.aliases.items():
                aliases.setdefault((model.name, str(version)), []).append(alias)
        rows = [self._describe(found, aliases) for found in _pages(self._client.search_model_versions)]
        return sorted(rows, key=lambda row: (row.name, int(row.version)))

    @staticmethod
    def _describe(found: Any, aliases: Mapping[tuple[str, str], Sequence[str]]) -> ModelVersion:
        tags = dict(found.tags)
        version = str(found.version)
        return ModelVersion(
            name=found.name,
            version=version,
            created_at=found.creation_timestamp / 1000,
            aliases=sorted(aliases.get((found.name, version), ())),
            metrics=json.loads(tags.pop(_METRICS_TAG, "{}")),
            tags=tags,
        )


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All results of an MLflow search, which answers page by page."""
    token = None
    while True:
        page = search(page_token=token) if token else search()
        yield from page
        token = page.token
        if not token:
            return


def _check_name(name: str) -> None:
    if not _PLAIN.fullmatch(name) or len(name) > 250:
        raise RegistryError(
            f"model name {name!r} is not usable; expected something like load_predictor_60m__type__band"
        )
