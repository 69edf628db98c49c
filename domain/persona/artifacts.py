"""Artifacts: bytes a tenant holds, named by what they hash to. Prompts, tools, memory bundles, reports, whole archives.

The bytes lie in the vault, once, whoever holds them; the log says who holds what. Tenants that hold the same bytes
hold two artifacts, so neither learns of the other.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from domain.errors import ArtifactNotFoundError
from domain.fields import Command
from domain.ledger import Case, allow
from domain.log.records import ADDRESS_PREFIX, Aggregate, Event, Record, parse_address
from domain.values import Tenant

HEX_OF_ID = 64

Address = Annotated[str, StringConstraints(pattern=r"^sha3-512:[0-9a-f]{128}$")]
Origin = Literal["import", "evaluation"]


class Artifact(Aggregate):
    """Bytes that a tenant holds. It never changes, for its name is what it hashes to."""

    KIND = "artifact"
    LASTING = False

    address: str = ""
    size_bytes: int = 0
    origin: str = "upload"

    class Uploaded(Event, frozen=True):
        """A tenant sent bytes, and they hash to this address."""

        TOPIC = "artifact.uploaded"

        address: str
        size_bytes: int

        def apply(self, artifact: Artifact, record: Record) -> None:
            artifact.address = self.address
            artifact.size_bytes = self.size_bytes

    class Received(Event, frozen=True):
        """A tenant came to hold bytes by an import or an evaluation."""

        TOPIC = "artifact.received"

        address: str
        size_bytes: int
        origin: str

        def apply(self, artifact: Artifact, record: Record) -> None:
            artifact.address = self.address
            artifact.size_bytes = self.size_bytes
            artifact.origin = self.origin

    def status_key(self) -> str:
        return "kept"

    def owner_key(self) -> str:
        return self.address.removeprefix(ADDRESS_PREFIX)


class RegisterArtifact(Command):
    """Say that a tenant sent bytes."""

    address: Address
    size_bytes: int = Field(ge=0)


class ReceiveArtifact(Command):
    """Say that the service made, or found, bytes for a tenant."""

    tenant: Tenant
    address: Address
    size_bytes: int = Field(ge=0)
    origin: Origin


def artifact_id(tenant: str, address: str) -> str:
    """Name a tenant's artifact of an address.

    Errors: invalid_address.
    """
    return f"{tenant}.{parse_address(address).hex()[:HEX_OF_ID]}"


@allow("owner", "provider", "operator")
def register_artifact(case: Case, command: RegisterArtifact) -> Artifact:
    """Write down that the caller's tenant holds these bytes; they are in the vault already. Twice is as once."""
    name = artifact_id(case.caller.tenant, command.address)
    found = case.find(Artifact, name)
    if found is not None:
        return found
    uploaded = Artifact.Uploaded(address=command.address, size_bytes=command.size_bytes)
    return case.create(Artifact, name, uploaded)


@allow("service")
def receive_artifact(case: Case, command: ReceiveArtifact) -> Artifact:
    """Write down that a tenant holds bytes the service put into the vault for it."""
    return own_artifact(case, command.tenant, command.address, command.size_bytes, command.origin)


def own_artifact(case: Case, tenant: str, address: str, size_bytes: int, origin: Origin) -> Artifact:
    """Have a tenant hold bytes that are in the vault already; twice is as once.

    Errors: invalid_address.
    """
    name = artifact_id(tenant, address)
    found = case.find(Artifact, name)
    if found is not None:
        return found
    received = Artifact.Received(address=address, size_bytes=size_bytes, origin=origin)
    return case.create(Artifact, name, received, tenant=tenant)


def get_artifact(case: Case, tenant: str, address: str) -> Artifact:
    """Read an artifact a tenant must hold.

    Errors: artifact_not_found, invalid_address.
    """
    found = case.find(Artifact, artifact_id(tenant, address))
    if found is None:
        raise ArtifactNotFoundError("the tenant holds no such artifact; upload it first", address=address)
    return found
