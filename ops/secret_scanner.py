"""The library of known secrets: detect-secrets, asked line by line for the formats it knows.

Its guesses by entropy and by keyword are left out: moderation has its own, which look at more than one line's quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.plugins.base import RegexBasedDetector

from domain.trust.moderation.findings import SecretMatch
from domain.trust.moderation.secrets import is_placeholder

# An address of a network is no secret, and a line that only announces a key is none; our own rules want the key itself,
# and look at the passwords in URLs and at names beside values.
_LEFT_OUT = frozenset({"IPPublicDetector", "BasicAuthDetector", "KeywordDetector", "PrivateKeyDetector"})

_VALUE_CHARS_MIN = 8


class SecretScanner:
    """Finds secrets of known formats in a text; callable, as a scan wants it."""

    def __init__(self) -> None:
        classes: Iterable[type] = get_mapping_from_secret_type_to_class().values()
        found = {kind.__name__: kind for kind in classes if issubclass(kind, RegexBasedDetector)}
        self._detectors = [
            (_rule(name), kind()) for name, kind in sorted(found.items()) if name not in _LEFT_OUT
        ]

    @property
    def identity(self) -> str:
        """Say which library, and how many of its rules."""
        return f"detect-secrets {version('detect-secrets')} ({len(self._detectors)} rules)"

    def __call__(self, text: str) -> Iterator[SecretMatch]:
        """Find secrets.

        Cost: about half a second for a megabyte.
        """
        for rule, detector in self._detectors:
            for pattern in detector.denylist:
                for found in pattern.finditer(text):
                    # Some detectors check further what their patterns match.
                    values = [value for value in detector.analyze_string(found[0]) if value]
                    if values and not is_placeholder(_value(values, found[0])):
                        yield SecretMatch(rule, found.start(), found.end())


def _value(values: list[str], whole: str) -> str:
    """Choose what to look at: some patterns group only a prefix such as `ghp`, which is no value."""
    longest = max(values, key=len)
    return longest if len(longest) >= _VALUE_CHARS_MIN else whole


def _rule(name: str) -> str:
    """Name a rule as ours are named: `AWSKeyDetector` becomes `aws_key`."""
    words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+", name.removesuffix("Detector"))
    return "_".join(word.lower() for word in words)
