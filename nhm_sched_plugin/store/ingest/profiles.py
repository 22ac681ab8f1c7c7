"""How a source is to be read, as one value: given by options, or kept under a name as a YAML file to edit and share.

# <data_dir>/ingest-profiles/incidents.yaml
mapping:
  timestamp: CompleteTimestamp
  ticket_id: CaseID
timezone: Europe/Stockholm
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from nhm_sched_plugin.errors import IngestError
from nhm_sched_plugin.files import replace_file

__all__ = ["Profile", "load_profile", "profile_path", "saved_profiles"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which column is which, and what the source does not say."""

    mapping: Mapping[str, str] = {}
    """Target -> column, for names that differ."""
    constants: Mapping[str, str] = {}
    """Target -> value, for what the source does not say."""
    timezone: str = "UTC"
    """Of stamps that carry none."""
    timestamp_format: str | None = None
    """As for `strptime`, for stamps that are neither ISO 8601 nor Unix time."""
    sla_wait_s: float | None = None
    """A ticket that waited at most this long met its SLA."""
    format: str | None = None
    """`csv`, `parquet` or `swf`; None: by ending or content."""

    def changed(self, **given: Any) -> Profile:
        """This one with what is given otherwise; mappings are merged, None changes nothing."""
        values = msgspec.structs.asdict(self)
        for name, value in given.items():
            if isinstance(value, Mapping):
                values[name] = {**values[name], **value}
            elif value is not None:
                values[name] = value
        return Profile(**values)

    def save(self, path: Path) -> None:
        """Write it; what was there is replaced as a whole. Raises `IngestError`, and what was there stays."""
        import yaml

        text = "# How `nhm-sched ingest --profile` reads a source. Edit and share it.\n"
        text += yaml.safe_dump(msgspec.to_builtins(self), sort_keys=False, allow_unicode=True)
        try:
            replace_file(path, text.encode(), mode=0o644)
        except OSError as error:
            raise IngestError(f"profile {path} cannot be written: {error.strerror or error}") from None


def profile_path(data_dir: Path, name: str) -> Path:
    """Where a profile of this name is; a name with a folder or ending (`./x.yaml`) is a file itself."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    if not _NAME.fullmatch(name):
        raise IngestError(f"profile name {name!r}: use letters, digits, '.', '_' and '-', or name a .yaml file")
    return data_dir / "ingest-profiles" / f"{name}.yaml"


def load_profile(data_dir: Path, name: str) -> Profile:
    """Raises `IngestError` that names the file, the key that is wrong and the profiles there are."""
    import yaml

    path = profile_path(data_dir, name)
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(saved_profiles(data_dir)) or "none so far; --save-profile NAME makes one"
        raise IngestError(f"there is no profile {name!r} ({path}); profiles: {known}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise IngestError(f"profile {path} cannot be read: {' '.join(str(error).split())}") from None
    try:
        return msgspec.convert({} if read is None else read, Profile)
    except msgspec.ValidationError as error:
        keys = ", ".join(Profile.__struct_fields__)
        raise IngestError(f"profile {path}: {error}; its keys are {keys}") from None


def saved_profiles(data_dir: Path) -> list[str]:
    """Names of the profiles in the data directory."""
    return sorted(path.stem for path in (data_dir / "ingest-profiles").glob("*.yaml"))
