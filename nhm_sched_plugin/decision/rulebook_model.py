"""The form of a rule book: the pydantic models that check one, and the JSON schema made from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, StrictStr

from nhm_sched_plugin.types import Action

__all__ = ["BookModel", "CelParameter", "OtherwiseModel", "RuleModel", "json_schema"]

Text = Annotated[StrictStr, Field(min_length=1)]
ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CelParameter(_Form):
    """A parameter that is computed when the rule fires."""

    cel: Text
    """CEL expression that gives a number or a text. If it cannot be computed the rule does not fire."""


Constant = Annotated[StrictInt | Annotated[FiniteFloat, Field(strict=True)] | StrictStr, Field(union_mode="smart")]


class RuleModel(_Form):
    """One rule: if `when` is true, do `action`."""

    name: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)]
    """Unique in the book; decisions, metrics and errors speak of the rule by this name."""
    when: Text
    """CEL condition: true or false. A condition on something that is not known does not hold."""
    action: Action
    """What to ask the host for."""
    parameters: dict[ParameterName, Constant | CelParameter] = {}
    """Constants, or `{cel: "expression"}`. `target_workers` is rounded up to a whole number."""
    because: StrictStr = ""
    """One plain sentence for people; `{variable}` and `{variable:.1f}` show values."""


class OtherwiseModel(_Form):
    """What to do when no rule fires."""

    action: Action = Action.NO_ACTION
    """What to ask the host for."""
    parameters: dict[ParameterName, Constant] = {}
    """Constants only."""
    because: StrictStr = "No rule applies; everything stays as it is."
    """One plain sentence for people."""


class BookModel(_Form):
    """A rule book: the first rule whose condition holds decides."""

    version: Literal[1]
    """Of this format."""
    name: Text
    """Short name of the book."""
    description: StrictStr = ""
    """For whom it is and what it does."""
    rules: Annotated[list[RuleModel], Field(min_length=1)]
    """Asked from top to bottom; the first that fires wins."""
    otherwise: OtherwiseModel = OtherwiseModel()
    """When no rule fires. Left out: NO_ACTION."""


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a rule book, for editors and linters.

    It knows the form; CEL expressions and `{placeholders}` are checked when the book is loaded.
    """
    schema = BookModel.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nhm-sched rule book"} | {
        key: value for key, value in schema.items() if key != "title"
    }
