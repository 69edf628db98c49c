"""The kinds of text and number a manifest is made of, and what each is in words.

Everything here has one written form: decimals lose their trailing zeros, moments become UTC with six decimals. A
manifest is hashed, so two ways to write one value would be two addresses for one persona.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

PERSONA_ID = r"^[a-z0-9][a-z0-9-]{1,62}[a-z0-9]$"
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_PRE = rf"(?:{_NUMBER}|[0-9]{{0,30}}[A-Za-z-][0-9A-Za-z-]{{0,30}})"
VERSION = rf"^{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE}){{0,7}})?$"
PART_NAME = r"^[a-z0-9]+(?:[._-][a-z0-9]+)*$"
ADDRESS = r"^sha3-512:[0-9a-f]{128}$"
SHA256 = r"^[0-9a-f]{64}$"
MEDIA_TYPE = r"^[a-z0-9][a-z0-9.+-]{0,62}/[a-z0-9][a-z0-9.+-]{0,62}$"
SCOPE = r"^(?:read|write|admin|policy:[a-z0-9][a-z0-9._-]{0,99})$"
WORD = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"
LINK = r"^https://[!-~]+$"
SHARE = r"^(?:0(?:\.[0-9]{1,6})?|1(?:\.0{1,6})?)$"
WARMTH = r"^(?:[01](?:\.[0-9]{1,6})?|2(?:\.0{1,6})?)$"

# What is not seen, and what turns the order of what is seen: nobody approves a text that reads otherwise than it is.
_HIDDEN = r"\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069\ufeff"
PROSE = rf"^[^{_HIDDEN}]*$"
LINE = rf"^[^{_HIDDEN}\t\n ](?:[^{_HIDDEN}\t\n]*[^{_HIDDEN}\t\n ])?$"

# What a fault says in place of the pattern that was not met.
WORDS: dict[str, str] = {
    PERSONA_ID: "3 to 64 lower-case letters, digits and hyphens, such as tax-advisor",
    VERSION: 'a semantic version without build metadata, such as "1.4.0" or "2.0.0-rc.1"',
    PART_NAME: "a file name of lower-case letters and digits, joined by single dots, hyphens or underscores",
    ADDRESS: "sha3-512: and 128 lower-case hexadecimal digits",
    SHA256: "64 lower-case hexadecimal digits",
    MEDIA_TYPE: "a media type without parameters, such as application/json",
    SCOPE: "read, write, admin, or policy: with the id of a policy",
    WORD: "letters, digits and . _ : / @ + -, the first a letter or digit",
    LINK: "a URL that begins with https://",
    SHARE: 'a decimal text from "0" to "1" with at most six decimals',
    WARMTH: 'a decimal text from "0" to "2" with at most six decimals',
    PROSE: "text without control characters and without marks that turn the direction of writing",
    LINE: "one line of text that neither begins nor ends with a space, without control characters",
}


def _shortest(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


PersonaId = Annotated[
    str,
    StringConstraints(pattern=PERSONA_ID),
    Field(description="Names the persona over all of its versions.", examples=["tax-advisor"]),
]
Version = Annotated[str, StringConstraints(max_length=64, pattern=VERSION), Field(examples=["1.4.0"])]
PartName = Annotated[
    str, StringConstraints(max_length=94, pattern=PART_NAME), Field(examples=["prompts.json"])
]
Address = Annotated[str, StringConstraints(pattern=ADDRESS)]
Sha256 = Annotated[str, StringConstraints(pattern=SHA256)]
MediaType = Annotated[str, StringConstraints(max_length=127, pattern=MEDIA_TYPE)]
Scope = Annotated[str, StringConstraints(pattern=SCOPE), Field(examples=["read", "policy:mail-outbound"])]
Word = Annotated[str, StringConstraints(max_length=200, pattern=WORD)]
Link = Annotated[str, StringConstraints(max_length=500, pattern=LINK)]
Prose = Annotated[str, StringConstraints(max_length=2_000, pattern=PROSE)]
Line = Annotated[str, StringConstraints(max_length=200, pattern=LINE)]
Share = Annotated[str, StringConstraints(pattern=SHARE), AfterValidator(_shortest), Field(examples=["0.85"])]
Temperature = Annotated[
    str, StringConstraints(pattern=WARMTH), AfterValidator(_shortest), Field(examples=["0.2"])
]


def version_key(version: str) -> tuple[object, ...]:
    """Give what versions are ordered by: a pre-release comes before its release, numbers before words.

    Source: Semantic Versioning 2.0.0, clause 11.
    """
    release, _, pre = version.partition("-")
    numbers = tuple(int(part) for part in release.split("."))
    # A number sorts before a word, and a shorter list before a longer one that begins alike.
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".") if p)
    return (*numbers, not pre, parts)
