"""Texts that show people something else than they tell a model.

Invisible characters, writing that is turned around, addresses behind other addresses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from unicodedata import name as name_of

from domain.trust.moderation.findings import Finding, Severity, finding

PROMPT_CHARACTERS_MAX = 200_000

# Characters that nobody sees. Overrides and isolates turn the writing around (the trick called Trojan Source), tags and
# supplementary selectors carry whole texts unseen; joiners and marks of direction have honest uses in some scripts.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_TURNING = re.compile(r"[\u202a-\u202e\u2066-\u2069]+")
_TAGS = re.compile(
    r"(?<!\U0001f3f4)(?<![\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+|[\U000e0100-\U000e01ef]{2,}"
)
_INVISIBLE = re.compile(
    r"[\u200b\u2060-\u2064\u180e\u00ad\u034f\u115f\u1160\u3164\uffa0]+|(?<!\A)\ufeff+|[\u200e\u200f\u061c]+"
)
_JOINER_IN_LATIN = re.compile(r"(?<=[\x00-\x7f])[\u200c\u200d]+(?=[\x00-\x7f])|[\u200c\u200d]{2,}")
_PRIVATE = re.compile(r"[\ue000-\uf8ff\U000f0000-\U0010fffd]+")
_WORD = re.compile(r"[^\W\d_]{3,}")

_SHOWN_LINK = re.compile(
    r"\[(?P<shown>[^\]\n]{1,300})\]\(\s*<?(?P<target>[a-z][a-z0-9+.-]*:[^)\s>]{1,2000})|"
    r"<a\b[^>]*?href\s*=\s*[\"']?(?P<target2>[^\"'\s>]{1,2000})[^>]*>(?P<shown2>[^<]{1,300})</a",
    re.IGNORECASE,
)
_HOST = re.compile(
    r"(?i)(?:[a-z][a-z0-9+.-]*://)?(?:[^/\s@]*@)?(?P<host>[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,24})(?![\w@])"
)
_ACTIVE_URL = re.compile(
    r"(?i)(?<![a-z])(?:javascript|vbscript)\s*:\s*\S|(?<![a-z])data:[a-z0-9.+-]+/[a-z0-9.+-]+[;,]\S"
)
_URL_OF_A_USER = re.compile(r"(?i)\bhttps?://[^\s/?#@\"'<>]{1,200}@[a-z0-9\[]")
_PUNYCODE = re.compile(r"(?i)\bhttps?://(?:[^\s/]*[.@])?xn--[a-z0-9-]+")
_COMMENT = re.compile(
    r"<!--(?P<inside>[\s\S]{0,20000}?)-->|^\[//\]:\s*#\s*\((?P<inside2>[^)\n]*)\)", re.MULTILINE
)
_LEAK = re.compile(r"!\[[^\]\n]{0,300}\]\(\s*<?https?://[^)\s]*(?:\{|%7b|\$\(|<)[^)\s]*", re.IGNORECASE)
_MARKUP = re.compile(
    r"(?i)<\s*(?:script|iframe|object|embed|form|meta|link|svg|base)\b[^>]{0,500}|\son(?:error|load|click|mouseover)\s*=|"
    r"style\s*=\s*[\"'][^\"']*(?:display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0|opacity\s*:\s*0(?![.\d]*[1-9]))"
)
_OVERRIDE = re.compile(
    r"(?i)\b(?:ignore|disregard|forget|override|bypass)\s+(?:\w+\s+){0,3}(?:previous|prior|above|earlier|preceding|system|your)\s+"
    r"(?:\w+\s+){0,2}(?:instructions?|prompts?|rules?|guidelines?|directions?|constraints?|messages?)"
    r"|\b(?:reveal|print|repeat|show|output)\s+(?:\w+\s+){0,3}(?:system\s+prompt|hidden\s+instructions?)"
    r"|<\|(?:im_start|im_end|system|endoftext|start_header_id)\|>|\[/?INST\]|<</?SYS>>"
)

# Each rule, its pattern, and how grave it is in a prompt; elsewhere nothing of this is more than a warning.
_RULES: tuple[tuple[str, re.Pattern[str], Severity], ...] = (
    ("control_character", _CONTROL, "block"),
    ("bidirectional_control", _TURNING, "block"),
    ("hidden_text", _TAGS, "block"),
    ("invisible_character", _INVISIBLE, "warn"),
    ("invisible_character", _JOINER_IN_LATIN, "warn"),
    ("private_use_character", _PRIVATE, "warn"),
    ("active_url", _ACTIVE_URL, "block"),
    ("url_with_a_user", _URL_OF_A_USER, "block"),
    ("url_in_disguise", _PUNYCODE, "warn"),
    ("url_that_carries_out", _LEAK, "block"),
    ("active_markup", _MARKUP, "block"),
    ("instruction_override", _OVERRIDE, "warn"),
)  # fmt: skip


def check_prompt(part: str, text: str, *, is_prompt: bool) -> Iterator[Finding]:
    """Find what a reader would not see, or would take for something else.

    Cost: one pass of each pattern.
    """
    if is_prompt and len(text) > PROMPT_CHARACTERS_MAX:
        yield finding("prompt_too_long", part, "block")
    for rule, pattern, gravity in _RULES:
        for found in pattern.finditer(text):
            yield _found(rule, part, text, found, gravity if is_prompt else "warn")
    yield from _hidden_links(part, text, "block" if is_prompt else "warn")
    yield from _comments(part, text)
    yield from _mixed_words(part, text)


def _found(rule: str, part: str, text: str, found: re.Match[str], severity: Severity) -> Finding:
    return finding(rule, part, severity, text=text, start=found.start(), end=found.end())


def _hidden_links(part: str, text: str, severity: Severity) -> Iterator[Finding]:
    """Find links that show the address of another host than they lead to."""
    for found in _SHOWN_LINK.finditer(text):
        shown = _HOST.search(found["shown"] or found["shown2"] or "")
        target = _HOST.match(found["target"] or found["target2"] or "")
        is_url = shown and ("://" in shown[0] or shown["host"].lower().startswith("www."))
        if shown and target and is_url and _site(shown["host"]) != _site(target["host"]):
            yield _found("hidden_url", part, text, found, severity)


def _site(host: str) -> str:
    return host.lower().removeprefix("www.")


def _comments(part: str, text: str) -> Iterator[Finding]:
    """Find comments that a reader of the page does not see and a model does: those that say more than a mark."""
    for found in _COMMENT.finditer(text):
        inside = found["inside"] or found["inside2"] or ""
        if len(inside.split()) > 3 or "://" in inside:
            yield _found("hidden_comment", part, text, found, "warn")


def _mixed_words(part: str, text: str) -> Iterator[Finding]:
    """Find words of letters that look alike and come from two alphabets."""
    if text.isascii():
        return
    for found in _WORD.finditer(text):
        if not found[0].isascii() and len(_scripts(found[0])) > 1:
            yield _found("mixed_alphabets", part, text, found, "warn")


def _scripts(word: str) -> set[str]:
    found = {name_of(character, "").partition(" ")[0] for character in word}
    return found & {"LATIN", "CYRILLIC", "GREEK", "ARMENIAN", "CHEROKEE"}


def definition() -> list[str]:
    """List what the rules of this module are made of, for their address."""
    rules = [f"{rule} {pattern.pattern} {severity}" for rule, pattern, severity in _RULES]
    others = [pattern.pattern for pattern in (_SHOWN_LINK, _HOST, _COMMENT)]
    return [str(PROMPT_CHARACTERS_MAX), *rules, *others]
