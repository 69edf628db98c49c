"""The fields market commands share, and what each accepts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from domain.canonical import encode_record
from domain.errors import NotCanonicalError
from domain.values import moment_text

T = TypeVar("T")

JSON_BYTES_MAX = 16_384


class Command(BaseModel):
    """A request to change something: exactly these fields, strictly typed, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, str_max_length=4_000)


def _moment(text: str) -> str:
    try:
        at = datetime.fromisoformat(text.upper())
        if at.tzinfo is None:
            raise ValueError("without offset")
        return moment_text(at)
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError(
            "moment", "a time is RFC 3339 with an offset, such as 2030-01-31T12:00:00Z"
        ) from error


def _json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(encode_record(value))
    except NotCanonicalError as error:
        raise PydanticCustomError("json", "{why}", {"why": error.message}) from error
    if size > JSON_BYTES_MAX:
        raise PydanticCustomError("json", "an object may hold 16,384 bytes at most")
    return value


class _Kept:
    """Marks a field of a change that has no null: left out, it keeps its value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_not_null, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        shown = handler(schema)
        kinds = [kind for kind in shown.pop("anyOf", []) if kind != {"type": "null"}]
        return shown | kinds[0] if kinds else shown


def _not_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null", "null is no value here; a field that is left out stays as it is")
    return value


def _distinct(items: list[str]) -> list[str]:
    if len(set(items)) != len(items):
        raise PydanticCustomError("distinct", "the names must be distinct")
    return items


Id = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$")]
Kept = Annotated[T | None, _Kept()]
_RFC_3339 = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})$"

Moment = Annotated[
    str, StringConstraints(min_length=20, max_length=40, pattern=_RFC_3339), AfterValidator(_moment)
]
JsonObject = Annotated[dict[str, Any], AfterValidator(_json)]
Label = Annotated[
    str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._:/@+-]*$")
]
Labels = Annotated[list[Label], Field(max_length=32), AfterValidator(_distinct)]
Text = Annotated[str, StringConstraints(max_length=2_000)]
Share = Annotated[
    str,
    StringConstraints(pattern=r"^(?:0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)$"),
    Field(examples=["0.85"]),
]
Reason = Annotated[str, StringConstraints(min_length=1, max_length=1_000, strip_whitespace=True)]


def share_ppm(share: str) -> int:
    """Read a share from 0 to 1 as millionths, exactly."""
    whole, _, part = share.partition(".")
    return int(whole) * 1_000_000 + int(part.ljust(6, "0") or 0)
