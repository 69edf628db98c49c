"""Trust policies: which logs are believed, and which witnesses must have seen a head before it counts.

A policy is a small text that auditors keep. Names of witnesses and groups have no meaning outside of it;
whoever is checked is checked by key. A group counts once enough of its members do, and only names from
earlier lines may be used, so that a group never contains itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from domain.errors import KeyMalformedError, NoteUnverifiedError, PolicyMalformedError
from domain.log.notes import (
    ED25519,
    ED25519_COSIGNATURE,
    ML_DSA_44_COSIGNATURE,
    Checkpoint,
    SignedNote,
    VerifierKey,
    open_note,
    parse_note,
    signed_by_log,
)

POLICY_BYTES_MAX = 1_000_000
DEFINITION_COUNT_MAX = 1_024
NO_QUORUM = "none"

_LOG_KINDS = (ED25519,)
_WITNESS_KINDS = (ED25519_COSIGNATURE, ML_DSA_44_COSIGNATURE)
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_THRESHOLD = re.compile(r"[1-9][0-9]{0,3}\Z", re.ASCII)


class Log(msgspec.Struct, frozen=True):
    """A log whose checkpoints are believed."""

    key: VerifierKey
    url: str = ""


class Witness(msgspec.Struct, frozen=True):
    """A witness, under the name this policy gives it."""

    name: str
    key: VerifierKey
    url: str = ""


class Group(msgspec.Struct, frozen=True):
    """Witnesses and smaller groups, of which at least `threshold` must have seen a head."""

    name: str
    threshold: int
    members: tuple[str, ...]


class Verdict(msgspec.Struct, frozen=True):
    """What a policy makes of a checkpoint, and who is missing."""

    checkpoint: Checkpoint
    log: VerifierKey
    cosigned: tuple[str, ...]
    missing: tuple[str, ...]
    is_satisfied: bool


class Policy(msgspec.Struct, frozen=True):
    """Logs, witnesses, groups in the order of their definition, and the name that must count."""

    logs: tuple[Log, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    groups: tuple[Group, ...] = ()
    quorum: str = NO_QUORUM

    def print(self) -> bytes:
        """Write the policy as a file; reading it again gives an equal policy."""
        return "".join(f"{' '.join(line)}\n" for line in self._lines()).encode("utf-8", "surrogateescape")

    def _lines(self) -> Iterator[Sequence[str]]:
        for log in self.logs:
            yield ["log", log.key.text, *([log.url] if log.url else [])]
        for witness in self.witnesses:
            yield ["witness", witness.name, witness.key.text, *([witness.url] if witness.url else [])]
        for group in self.groups:
            yield ["group", group.name, str(group.threshold), *group.members]
        yield ["quorum", self.quorum]

    def evaluate(self, note: bytes | SignedNote) -> Verdict:
        """Check a checkpoint by this policy; say who cosigned it and who is missing.

        Cost:   one verification per line of a known key.
        Errors: malformed_note, unverified_note.
        Source: c2sp.org/tlog-policy.
        """
        signed = parse_note(note) if isinstance(note, bytes) else note
        opened = open_note(signed, [*(log.key for log in self.logs), *(w.key for w in self.witnesses)])
        checkpoint = Checkpoint.parse(opened.text)
        good = {verified.key for verified in opened.verified}
        signing = [log.key for log in self.logs if log.key in good and signed_by_log(checkpoint, log.key)]
        if not signing:
            raise NoteUnverifiedError("no log of this policy signed the checkpoint", origin=checkpoint.origin)
        cosigned = tuple(witness.name for witness in self.witnesses if witness.key in good)
        wanted = self._wanted()
        missing = tuple(w.name for w in self.witnesses if w.name in wanted and w.key not in good)
        return Verdict(checkpoint, signing[0], cosigned, missing, self.is_quorum(cosigned))

    def is_quorum(self, cosigned: Sequence[str]) -> bool:
        """Tell whether these witnesses, by name, are enough."""
        counted = set(cosigned)
        for group in self.groups:
            if sum(member in counted for member in group.members) >= group.threshold:
                counted.add(group.name)
        return self.quorum == NO_QUORUM or self.quorum in counted

    def _wanted(self) -> set[str]:
        """Name everyone the quorum reaches. Groups contain earlier ones only, so one walk back is enough."""
        wanted = {self.quorum}
        for group in reversed(self.groups):
            if group.name in wanted:
                wanted.update(group.members)
        return wanted


ANY_WITNESS = "any-witness"


def policy_of(key: VerifierKey, known: Iterable[tuple[str, str, str | None]]) -> Policy:
    """Put the policy together that a log states of itself: any one of its witnesses (name, key, URL) is enough.

    Errors: malformed_key.
    """
    witnesses = tuple(Witness(name, VerifierKey.parse(text), url or "") for name, text, url in known)
    if not witnesses:
        return Policy((Log(key),))
    group = Group(ANY_WITNESS, 1, tuple(witness.name for witness in witnesses))
    return Policy((Log(key),), witnesses, (group,), ANY_WITNESS)


# --------------------------------------------------------------------------- reading


def parse_policy(data: bytes) -> Policy:
    """Read a policy file.

    Errors: malformed_policy.
    Source: c2sp.org/tlog-policy, Policy file syntax and structure.
    """
    if len(data) > POLICY_BYTES_MAX or _CONTROL.search(data):
        raise PolicyMalformedError("a policy has 1,000,000 bytes at most and no control characters")
    reader = _Reader()
    for number, line in enumerate(data.split(b"\n"), start=1):
        # Names are octets; those that are no UTF-8 survive reading and writing unchanged.
        words = [w.decode("utf-8", "surrogateescape") for w in re.split(rb"[ \t]+", line.strip(b" \t")) if w]
        if words and not words[0].startswith("#"):
            reader.read(number, words)
    return reader.policy()


class _Reader:
    """Collect definitions line by line, each checked against the lines before it."""

    def __init__(self) -> None:
        self.logs: list[Log] = []
        self.witnesses: list[Witness] = []
        self.groups: list[Group] = []
        self.quorum: str | None = None
        self._names: set[str] = set()
        self._members: set[str] = set()
        self._line = 0

    def read(self, number: int, words: list[str]) -> None:
        self._line = number
        keyword, *rest = words
        readers = {"log": self._log, "witness": self._witness, "group": self._group, "quorum": self._quorum}
        if keyword not in readers:
            raise self._wrong(f"unknown word {keyword[:32]!a}")
        readers[keyword](rest)
        if len(self.logs) + len(self.witnesses) + len(self.groups) > DEFINITION_COUNT_MAX:
            raise self._wrong("too many definitions")

    def policy(self) -> Policy:
        if self.quorum is None:
            raise PolicyMalformedError("a policy has exactly one quorum line")
        return Policy(tuple(self.logs), tuple(self.witnesses), tuple(self.groups), self.quorum)

    def _wrong(self, why: str) -> PolicyMalformedError:
        return PolicyMalformedError(f"line {self._line}: {why}", line=self._line)

    def _log(self, words: list[str]) -> None:
        if len(words) not in (1, 2):
            raise self._wrong("log <vkey> [<url>]")
        key = self._key(words[0], _LOG_KINDS)
        if any(log.key.public == key.public for log in self.logs):
            raise self._wrong("this log key is listed already")
        self.logs.append(Log(key, *words[1:]))

    def _witness(self, words: list[str]) -> None:
        if len(words) not in (2, 3):
            raise self._wrong("witness <name> <vkey> [<url>]")
        key = self._key(words[1], _WITNESS_KINDS)
        if any(witness.key.public == key.public for witness in self.witnesses):
            raise self._wrong("this witness key is listed already")
        self.witnesses.append(Witness(self._define(words[0]), key, *words[2:]))

    def _group(self, words: list[str]) -> None:
        if len(words) < 3:
            raise self._wrong("group <name> all|any|<k> <members>")
        name, rule, *members = words
        for member in members:
            if member not in self._names or member in self._members:
                raise self._wrong(f"member {member[:64]!a} is not defined before, or is in a group already")
            self._members.add(member)
        threshold = {"all": len(members), "any": 1}.get(rule) or self._threshold(rule, len(members))
        self.groups.append(Group(self._define(name), threshold, tuple(members)))

    def _quorum(self, words: list[str]) -> None:
        if len(words) != 1 or self.quorum is not None:
            raise self._wrong("exactly one line: quorum <name>|none")
        if words[0] != NO_QUORUM and words[0] not in self._names:
            raise self._wrong(f"quorum {words[0][:64]!a} is not defined before")
        self.quorum = words[0]

    def _threshold(self, text: str, member_count: int) -> int:
        if not _THRESHOLD.match(text) or int(text) > member_count:
            raise self._wrong("a threshold is from 1 to the number of members")
        return int(text)

    def _define(self, name: str) -> str:
        if name == NO_QUORUM or name in self._names:
            raise self._wrong(f"name {name[:64]!a} is taken")
        self._names.add(name)
        return name

    def _key(self, text: str, kinds: Sequence[int]) -> VerifierKey:
        try:
            key = VerifierKey.parse(text)
        except KeyMalformedError as error:
            raise self._wrong(error.message) from error
        if key.kind not in kinds:
            raise self._wrong(f"a key of type {key.kind} does not belong here")
        return key
