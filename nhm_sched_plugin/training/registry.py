"""The model registry: MLflow registered models with versions, tags and aliases, on sqlite and files by default.

A version holds one JSON artefact (`state.json`) whose sha256 stands in a tag and is checked on every load. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nhm_sched_plugin.errors import RegistryError
from nhm_sched_plugin.observe.faults import Faults
from nhm_sched_plugin.observe.metrics import Metrics
from nhm_sched_plugin.store.cache import Cache, open_cache
from nhm_sched_plugin.training.bulk import Row, add_versions
from nhm_sched_plugin.training.states import DIGEST_TAG, read_state
from nhm_sched_plugin.training.versions import ALIASES, Head, ModelVersion, NewVersion, check_alias, check_name

if TYPE_CHECKING:
    from nhm_sched_plugin.settings import Settings

__all__ = ["Registry"]

_EXPERIMENT: Final = "nhm_sched"
_DATABASE: Final = "mlflow.db"
_ARTIFACTS: Final = "artifacts"
_MANY: Final = 10
"""Versions from which on they are written at once."""
_ARTIFACT: Final = "state.json"
_ARTIFACT_TAG: Final = "artifact"
"""The file in the run's artefacts; versions without this tag have the one above."""
_PAGE: Final = 1000
_METRICS_TAG: Final = "metrics"
"""The metrics once more, so that a listing need not ask for every run."""
_NOISY: Final = ("alembic", "mlflow", "sqlalchemy")
_log = logging.getLogger(__name__)


class Registry:
    """Save, load and name versions. `import mlflow` takes seconds, so it happens on first use.

    `uri` is an MLflow tracking URI; unset: `mlflow.db` with artefacts beside it under `folder`. `cache` keeps states
    that were read.
    """

    def __init__(self, folder: Path, uri: str | None = None, cache: Cache | None = None) -> None:
        self._folder = folder
        self._uri, self._cache = uri, cache
        self._made: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> Registry:
        """The registry that the settings name; what it reads is cached where it is not on this disk.

        Raises `ConfigError` for settings of Redis that cannot work.
        """
        uri, metrics = settings.ml.training.tracking_uri, Metrics()
        return cls(settings.registry_path, uri, open_cache(settings, metrics, Faults(metrics)) if uri else None)

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
            uri = self._uri or f"sqlite:///{self._folder.resolve() / _DATABASE}"
            try:
                if self._uri is None:
                    self._create(MlflowClient)
                self._made = MlflowClient(tracking_uri=uri, registry_uri=uri)
            except Exception as error:  # noqa: BLE001 - sqlalchemy, alembic, network: whatever MLflow runs on
                raise RegistryError(f"model registry {uri} cannot be opened ({error})") from None
        return self._made

    def _create(self, client: Any) -> None:
        """Make the database beside its place and move it there: MLflow cannot open one that it was stopped making."""
        final = self._folder / _DATABASE
        if final.exists():
            return
        part = self._folder / f".{_DATABASE}-{os.getpid()}"
        part.unlink(missing_ok=True)
        uri = f"sqlite:///{part.resolve()}"
        client(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        try:
            os.link(part, final)  # and not over one that another process has made meanwhile
        except FileExistsError:
            pass
        except OSError:  # no links there
            os.replace(part, final)
        part.unlink(missing_ok=True)

    def open(self) -> None:
        """Import MLflow and open (on first use: create) the registry. Raises `RegistryError` if that fails."""
        self._experiment()

    def exists(self) -> bool:
        """Whether there may be models in it; costs nothing for a registry that was never used."""
        return self._uri is not None or (self._folder / _DATABASE).exists()

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        place = None if self._uri else (self._folder.resolve() / _ARTIFACTS).as_uri()
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
        raw = json.dumps(state, allow_nan=False, separators=(",", ":")).encode()
        return self.save_all([NewVersion(name=name, state=raw, metrics=dict(metrics or {}), tags=dict(tags or {}))])[0]

    def save_all(self, wanted: Sequence[NewVersion], known: Collection[str] = ()) -> list[str]:
        """Keep many versions as one run; returns their numbers. All versions are there before any alias moves.

        `known`: names of models that exist, as far as the caller knows; asking for each takes longer than to make it.
        Raises `RegistryError` for a bad name or alias, or an unusable registry; then no alias has moved.
        """
        for entry in wanted:
            check_name(entry.name)
            check_alias(entry.alias or ALIASES[0])
        if not wanted:
            return []
        client = self._client
        title = wanted[0].name if len(wanted) == 1 else f"{wanted[0].name} and {len(wanted) - 1} more"
        run = client.create_run(self._experiment(), run_name=title)
        try:
            files = self._write(run, {entry.state for entry in wanted})
            rows = [self._row(run, entry, *files[entry.state]) for entry in wanted]
            versions = self._add_in_bulk(rows) or self._add_one_by_one(rows, known)
            if len(wanted) == 1:
                for key, value in _finite(wanted[0].metrics).items():
                    client.log_metric(run.info.run_id, key, value)
        except BaseException:
            client.set_terminated(run.info.run_id, "FAILED")
            raise
        client.set_terminated(run.info.run_id)
        return versions

    def _write(self, run: Any, states: Collection[bytes]) -> dict[bytes, tuple[str, str]]:
        """Store the states; returns digest and file name of each."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            for raw in states:
                digest = hashlib.sha256(raw).hexdigest()
                found[raw] = digest, _ARTIFACT if len(states) == 1 else f"{digest}.json"
                (Path(folder) / found[raw][1]).write_bytes(raw)
            self._client.log_artifacts(run.info.run_id, folder)
        return found

    @staticmethod
    def _row(run: Any, entry: NewVersion, digest: str, file: str) -> Row:
        metrics = json.dumps(_finite(entry.metrics))
        tags = {**entry.tags, DIGEST_TAG: digest, _ARTIFACT_TAG: file, _METRICS_TAG: metrics}
        source = f"{run.info.artifact_uri}/{file}"
        return Row(name=entry.name, run_id=run.info.run_id, source=source, tags=tags, alias=entry.alias)

    def _add_in_bulk(self, rows: Sequence[Row]) -> list[str] | None:
        """None where that cannot be done: few rows, another registry, another MLflow than expected."""
        if self._uri is not None or len(rows) < _MANY:
            return None
        try:
            return add_versions(self._folder.resolve() / _DATABASE, rows)
        except Exception:  # noqa: BLE001 - nothing was written; MLflow's own way is slow and sure
            _log.warning("cannot register %d models at once; registering one by one", len(rows), exc_info=True)
            return None

    def _add_one_by_one(self, rows: Sequence[Row], known: Collection[str]) -> list[str]:
        made, versions = set(known), []
        for row in rows:
            if row.name not in made:
                self._ensure_model(row.name)
                made.add(row.name)
            found = self._client.create_model_version(row.name, row.source, row.run_id, dict(row.tags))
            versions.append(str(found.version))
        for row, version in zip(rows, versions, strict=True):
            if row.alias:
                self._client.set_registered_model_alias(row.name, row.alias, version)
        return versions

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException:
            self._client.get_registered_model(name)  # it was there; raises if that was not the reason

    def load(self, name: str, which: str = "staging") -> dict[str, Any]:
        """The state of a version, by alias or number.

        Raises `RegistryError` if there is none, `ModelError` if it is damaged.
        """
        return self.read(self._describe(self._version(name, which), {}))

    def read(self, found: ModelVersion) -> dict[str, Any]:
        """The state of a version that is known already. Raises `ModelError` if it is damaged."""
        file = found.tags.get(_ARTIFACT_TAG, _ARTIFACT)
        return read_state(found, lambda: self._raw(found.run_id, file), self._cache)

    def _raw(self, run_id: str, name: str) -> bytes:
        here = self._folder / _ARTIFACTS / run_id / "artifacts" / name
        if self._uri is None and here.is_file():  # as MLflow lays them out; asking it takes ten times as long
            return here.read_bytes()
        return Path(self._client.download_artifacts(run_id, name)).read_bytes()

    def heads(self) -> dict[str, Head]:
        """Every model by name. Takes as long as there are models, however many versions they have."""
        found = {}
        for model in _pages(self._client.search_registered_models, max_results=_PAGE):
            if not model.latest_versions:
                continue
            aliases = {alias: str(version) for alias, version in model.aliases.items()}
            newest = max(model.latest_versions, key=lambda version: int(version.version))
            standing = {
                (model.name, version): [a for a, v in aliases.items() if v == version] for version in aliases.values()
            }
            found[model.name] = Head(newest=self._describe(newest, standing), aliases=aliases)
        return found

    def version(self, head: Head, number: str) -> ModelVersion:
        """One version of a model. Raises `RegistryError` if it is gone."""
        if head.newest.version == number:
            return head.newest
        names = [alias for alias, version in head.aliases.items() if version == number]
        name = head.newest.name
        return self._describe(self._version(name, number), {(name, number): names})

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

        check_name(name)
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
        check_alias(alias)
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
            run_id=str(found.run_id or ""),
        )


def _pages(search: Callable[..., Any], **options: Any) -> Iterator[Any]:
    """All results of an MLflow search, which answers page by page."""
    token = None
    while True:
        page = search(page_token=token, **options) if token else search(**options)
        yield from page
        token = page.token
        if not token:
            return


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
