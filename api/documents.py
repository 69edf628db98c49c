"""Documents as pages to print: one self-contained HTML file, without a script or anything from elsewhere.

Every value goes through autoescaping, and every text somebody else wrote is also isolated: characters that would turn
the text around it, or that nobody can see, are printed by their code point.
"""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from domain.billing.periods import zone_of
from domain.values import moment_of

TEMPLATES = Path(__file__).resolve().parent / "templates"
HTML_TYPE = "text/html; charset=utf-8"
# What joins letters or says which way they run is needed by the scripts that have it, and stays inside its own text.
_NEEDED = frozenset("\u200c\u200d\u200e\u200f\u061c")
_MARKS_MAX = 4
_GROUP = "\u202f"


def visible(text: object) -> str:
    """Print a text somebody wrote so that nothing in it acts: white space is a space, what cannot be seen has its code.

    More marks on one letter than any script has are counted instead of drawn.
    """
    shown, marks = [], 0
    for character in str(text):
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > _MARKS_MAX:
            continue
        if character in "\t\n\r":
            shown.append(" ")
        elif category in ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp") and character not in _NEEDED:
            shown.append(f"\u27e8U+{ord(character):04X}\u27e9")
        else:
            shown.append(character)
    return "".join(shown)


def grouped(number: object) -> str:
    """Print an exact number with its whole part in groups of three; a fraction is printed as one."""
    text = str(number)
    sign, text = ("-", text[1:]) if text.startswith("-") else ("", text)
    top, slash, bottom = text.partition("/")
    whole, point, part = top.partition(".")
    return sign + _in_threes(whole) + point + part + slash + _in_threes(bottom)


def about(number: object) -> str:
    """Print an exact number, and a fraction also as a decimal near it."""
    text = str(number)
    if "/" not in text:
        return grouped(text)
    return f"{grouped(text)} (about {float(Fraction(text)):.6f})"


def _in_threes(digits: str) -> str:
    return f"{int(digits):,}".replace(",", _GROUP) if digits.isdigit() and digits.isascii() else digits


def is_zero(amount: str) -> bool:
    """Say whether an amount is nothing."""
    return not amount.strip("-0.")


def local(moment: str, zone: str) -> str:
    """Print a moment as clocks in a zone show it, with what they are ahead of UTC."""
    text = moment_of(moment).astimezone(zone_of(zone)).isoformat(" ", timespec="seconds")
    return f"{text[:19]} {text[19:]}"


def hours(start: str, end: str) -> str:
    """Print how many hours passed between two moments: a day on which clocks change has 23 or 25."""
    passed = (moment_of(end) - moment_of(start)).total_seconds() / 3600
    return grouped(int(passed)) if passed == int(passed) else f"{passed:.2f}"


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "visible": visible,
        "grouped": grouped,
        "local": local,
        "is_zero": is_zero,
        "about": about,
    }
    made.globals["hours"] = hours
    return made


@cache
def _style() -> tuple[str, str]:
    """Give the style sheet and the only source the page's policy lets styles come from: its digest."""
    css = (TEMPLATES / "print.css").read_text(encoding="utf-8")
    digest = base64.b64encode(sha256(css.encode()).digest()).decode()
    return css, f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def print_page(template: str, document: Mapping[str, Any], **beside: Any) -> str:
    """Print a document as a page of its own.

    Cost: some 30 microseconds a row.
    """
    css, policy = _style()
    found = _environment().get_template(template)
    return found.render(document=document, style=Markup(css), policy=policy, **beside)  # noqa: S704 - our own file


def page_response(page: str, name: str) -> Response:
    """Send a page that can run nothing, load nothing and be framed by nobody."""
    _, policy = _style()
    headers = {
        "Content-Security-Policy": f"{policy}; frame-ancestors 'none'; sandbox",
        "Content-Disposition": f'inline; filename="{name}.html"',
        **PRIVATE,
    }
    return Response(page, headers=headers, media_type=HTML_TYPE)


PRIVATE = {
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
