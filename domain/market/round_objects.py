"""Updates and models as bytes: what the object store holds and an event names by its SHA3-512.

An object is canonical JSON. Vectors are base64 of little-endian float64, other floats their shortest decimal
that reads back exactly, so equal objects are equal bytes and nothing is lost. `seal` is the SHA3-256 of the
object without it: a changed byte shows at once; that nobody made another object only its address can show.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from domain.canonical import encode_record
from domain.errors import NotCanonicalError, RoundObjectInvalidError
from domain.log.records import address_text, digest
from domain.market.models import Model, Schema, Update
from domain.market.reproducible import Array

OBJECT_BYTES_MAX = 4 * 1024 * 1024
_Object = TypeVar("_Object", bound=msgspec.Struct)
_FLOAT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?\Z", re.ASCII)


class _UpdateObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["fedavg.update.v1"]
    seller: str
    communication_round: int
    features: list[str]
    weights: str
    row_count: int
    norm: str
    loss_before: str
    loss_after: str
    validation_rows: int
    accuracy: str | None
    auc: str | None
    seal: str


class _ModelObject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: Literal["fedavg.model.v1"]
    columns: list[str]
    flagged: list[str]
    means: str
    scales: str
    weights: str
    seal: str


def object_address(data: bytes) -> str:
    """Address an object by the SHA3-512 of its bytes."""
    return address_text(digest(data))


def encode_update(update: Update) -> bytes:
    """Write an update as canonical bytes.

    Errors: invalid_round_object (NaN or infinity inside).
    """
    return _sealed(
        {
            "kind": "fedavg.update.v1",
            "seller": update.seller,
            "communication_round": update.communication_round,
            "features": list(update.features),
            "weights": _packed(update.weights),
            "row_count": update.row_count,
            "norm": _written(update.norm),
            "loss_before": _written(update.loss_before),
            "loss_after": _written(update.loss_after),
            "validation_rows": update.validation_rows,
            "accuracy": None if update.accuracy is None else _written(update.accuracy),
            "auc": None if update.auc is None else _written(update.auc),
        }
    )


def decode_update(data: bytes, address: str | None = None) -> Update:
    """Read an update; refuse bytes that `encode_update` would not write, or that the address does not name.

    Errors: invalid_round_object.
    """
    read = _opened(data, address, _UpdateObject)
    if read.row_count < 1 or read.validation_rows < 0 or read.communication_round < 1 or not read.seller:
        raise _damaged("a count is out of range")
    return Update(
        seller=read.seller,
        communication_round=read.communication_round,
        features=tuple(read.features),
        weights=_unpacked(read.weights, len(read.features)),
        row_count=read.row_count,
        norm=_read(read.norm),
        loss_before=_read(read.loss_before),
        loss_after=_read(read.loss_after),
        validation_rows=read.validation_rows,
        accuracy=None if read.accuracy is None else _read(read.accuracy),
        auc=None if read.auc is None else _read(read.auc),
    )


def encode_model(model: Model) -> bytes:
    """Write a model with its schema as canonical bytes.

    Errors: invalid_round_object (NaN or infinity inside).
    """
    return _sealed(
        {
            "kind": "fedavg.model.v1",
            "columns": list(model.schema.columns),
            "flagged": list(model.schema.flagged),
            "means": _packed(model.schema.means),
            "scales": _packed(model.schema.scales),
            "weights": _packed(model.weights),
        }
    )


def decode_model(data: bytes, address: str | None = None) -> Model:
    """Read a model; refuse bytes that `encode_model` would not write, or that the address does not name.

    Errors: invalid_round_object.
    """
    read = _opened(data, address, _ModelObject)
    if sorted(set(read.columns)) != read.columns or not set(read.flagged) <= set(read.columns):
        raise _damaged("the columns are not sorted, or a flag belongs to none of them")
    count = len(read.columns)
    scales = _unpacked(read.scales, count)
    if not (scales > 0.0).all():
        raise _damaged("a scale is not positive")
    schema = Schema(tuple(read.columns), tuple(read.flagged), _unpacked(read.means, count), scales)
    return Model(schema, _unpacked(read.weights, len(schema.features)))


def _damaged(why: str) -> RoundObjectInvalidError:
    return RoundObjectInvalidError(f"the object cannot be used: {why}", why=why)


def _sealed(body: dict[str, Any]) -> bytes:
    return encode_record({**body, "seal": _seal(body)})


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha3_256(encode_record(body)).hexdigest()


def _opened(data: bytes, address: str | None, kind: type[_Object]) -> _Object:
    if len(data) > OBJECT_BYTES_MAX:
        raise _damaged("it is larger than 4 MiB")
    if address is not None and object_address(data) != address:
        raise _damaged("its bytes are not the ones the address names")
    try:
        read = msgspec.json.decode(data, type=kind)
        body = msgspec.to_builtins(read)
        seal = body.pop("seal")
        if _sealed(body) != data or _seal(body) != seal:
            raise _damaged("its bytes are not canonical, or its seal is broken")
    except (msgspec.MsgspecError, NotCanonicalError, UnicodeDecodeError) as error:
        raise _damaged("it is not an object of this kind") from error
    return read


def _packed(vector: Array) -> str:
    if vector.ndim != 1 or not np.isfinite(vector).all():
        raise _damaged("a vector holds NaN or infinity, or is no vector")
    return base64.b64encode(vector.astype("<f8").tobytes()).decode()


def _unpacked(text: str, count: int) -> Array:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _damaged("a vector is not base64") from error
    if len(data) != 8 * count:
        raise _damaged("a vector has another length than its names")
    vector = np.frombuffer(data, dtype="<f8").astype(np.float64)
    if not np.isfinite(vector).all():
        raise _damaged("a vector holds NaN or infinity")
    return vector


def _written(value: float) -> str:
    if not np.isfinite(value):
        raise _damaged("a number is NaN or infinite")
    return repr(float(value))


def _read(text: str) -> float:
    if not _FLOAT.match(text) or repr(float(text)) != text or not np.isfinite(float(text)):
        raise _damaged("a number is not a finite decimal in its shortest form")
    return float(text)
