"""Personal data in a text: exact places, each held by what makes such a thing valid.

A card number has the check digit of Luhn, an IBAN the remainder 1, an address of the Internet is one; a telephone
number has its form or is called one. Names and postal addresses have no such check, and are not looked for: a list of
names would find half of them, and words besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address

from domain.trust.moderation.findings import Span

# --------------------------------------------------------------------------- cards

_CARD = re.compile(r"(?<![\w.+-])[1-6](?:[ -]?\d){11,18}(?![\w]|[.-]\d)")
_CARD_NEAR = re.compile(r"(?i)\b(?:card|credit|debit|visa|master|amex|maestro|charged?|payment|cc)\b")
_NEAR_CHARACTERS = 60


def luhn_holds(digits: str) -> bool:
    """Tell whether the last digit is the check digit of the others.

    Source: ISO/IEC 7812-1, annex B.
    """
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _is_issued(digits: str) -> bool:
    """Tell whether a card network gives out numbers of this beginning and length."""
    size, two, four = len(digits), int(digits[:2]), int(digits[:4])
    return (
        (digits[0] == "4" and size in (13, 16, 19))
        or (size == 16 and (51 <= two <= 55 or 2221 <= four <= 2720))
        or (size == 15 and two in (34, 37))
        or (size in (16, 19) and (four == 6011 or two == 65 or 6440 <= four <= 6499 or two == 62))
        or (size == 16 and two == 35)
        or (size == 15 and four in (2131, 1800))
        or (size == 14 and (3000 <= four <= 3059 or two in (36, 38, 39)))
    )


def _cards(text: str) -> Iterator[Span]:
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        called = _CARD_NEAR.search(text, max(0, found.start() - _NEAR_CHARACTERS), found.start())
        is_card = _is_issued(digits) or (called and digits[0] in "3456")
        if is_card and len(set(digits)) > 2 and luhn_holds(digits):
            yield Span("credit_card", found.start(), found.end())


# --------------------------------------------------------------------------- accounts

# Lengths of IBANs by country (SWIFT IBAN registry).
_IBAN_LENGTHS: dict[str, int] = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
}  # fmt: skip
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}")


def iban_holds(iban: str) -> bool:
    """Tell whether a string without spaces is an IBAN: the length of its country, and the remainder 1.

    Source: ISO 13616-1; ISO/IEC 7064, MOD 97-10.
    """
    iban = iban.upper()
    if _IBAN_LENGTHS.get(iban[:2]) != len(iban) or not iban.isalnum() or not iban.isascii():
        return False
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97 == 1


def _accounts(text: str) -> Iterator[Span]:
    for found in _IBAN.finditer(text):
        # What follows after a space may be the next word: the country says where the number ends.
        wanted = _IBAN_LENGTHS.get(found[0][:2].upper(), 0)
        seen = 0
        for at, character in enumerate(found[0]):
            seen += character.isalnum()
            if seen == wanted:
                end = found.start() + at + 1
                is_ended = end >= len(text) or not text[end].isalnum()
                if is_ended and iban_holds(re.sub(r"[ -]", "", found[0][: at + 1])):
                    yield Span("iban", found.start(), end)
                break


# --------------------------------------------------------------------------- addresses

_MAIL = re.compile(
    r"(?<![\w.+%@/:-])(?P<local>[A-Za-z0-9](?:[\w.+%'-]{0,62}[\w+-])?)@(?P<domain>(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}"
    r"[A-Za-z0-9])?\.){1,6}(?P<top>[A-Za-z]{2,24}))(?![\w@-]|\.\w)"
)
_MAILTO = re.compile(r"(?i)(?<=mailto:)[\w.+%'-]{1,64}@[\w.-]{1,190}\.[a-z]{2,24}")
# RFC 6761 gives these to nobody; the others are endings of files.
_NOBODYS = re.compile(r"(?i)\.(?:test|invalid|localhost|local|png|jpe?g|gif|svg|py|js|json|md)\Z")

_IP4 = re.compile(r"(?<![\w.:/-])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d|-\d|/\d{1,2}\b)")
_IP4_IN_URL = re.compile(
    r"(?<=://)(?:\d{1,3}\.){3}\d{1,3}(?![\w.])|(?<=[|@])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"
)
_IP6 = re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:)[0-9A-Fa-f:]{6,39}(?![\w:]|\.\d)")
_VERSION_NEAR = re.compile(
    r"(?i)(?:version|release|build|section|chapter|clause|\bver\.?|\bv\.?)[ :=]{0,3}\Z"
)
_OF_NOBODY = tuple(
    IPv4Network(network) for network in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
)


def _mails(text: str) -> Iterator[Span]:
    for found in _MAIL.finditer(text):
        is_remote = found["local"] == "git" and text[found.end() : found.end() + 1] in (":", "/")
        if not _NOBODYS.search(found["domain"]) and not is_remote:
            yield Span("email", found.start(), found.end())
    for found in _MAILTO.finditer(text):
        if not _NOBODYS.search(found[0].partition("@")[2]):
            yield Span("email", found.start(), found.end())


def _addresses(text: str) -> Iterator[Span]:
    for pattern in (_IP4, _IP4_IN_URL):
        for found in pattern.finditer(text):
            before = text[max(0, found.start() - 12) : found.start()]
            if _is_ip4(found[0]) and not _VERSION_NEAR.search(before):
                yield Span("ip_address", found.start(), found.end())
    for found in _IP6.finditer(text):
        if _is_ip6(found[0]):
            yield Span("ip_address", found.start(), found.end())


def _is_ip4(text: str) -> bool:
    try:
        address = IPv4Address(text)
    except AddressValueError:
        return False
    # Four small numbers are a version or a clause more often than somebody's address.
    is_small = all(int(part) < 30 for part in text.split(".")[:3])
    return not is_small and not any(address in network for network in _OF_NOBODY)


def _is_ip6(text: str) -> bool:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return False
    is_own = address.is_loopback or address.is_unspecified or address.is_link_local or address.is_multicast
    return not is_own and len(set(text)) > 4


# --------------------------------------------------------------------------- numbers of persons

_SSN = re.compile(
    r"(?<![\w.-])(?P<area>\d{3})(?P<sign>[- ])(?P<group>\d{2})(?P=sign)(?P<serial>\d{4})(?![\w-]|\.\d)"
)
_SSN_CALLED = re.compile(
    r"(?i)(?:\bssn|social security)(?:[^\d\n]{0,30}?)(?P<area>\d{3})[ .-]?(?P<group>\d{2})[ .-]?(?P<serial>\d{4})(?!\w)"
)
_IDENTITY = re.compile(
    r"(?i)\b(?:driv(?:er|ing)(?:[’']?s|s[’']?)? licen[cs]e|passport|national id(?:entity)?|identity card|"
    r"tax(?:payer)? id|medical record|insurance|nhs|nino)\b"
    r"(?: (?:card|number|no|num|id|code))?\.?(?: (?:is|was)|[:#=])?[ :#]{0,3}"
    r"(?P<value>(?=[A-Z0-9-]*\d[A-Z0-9-]*\d[A-Z0-9-]*\d[A-Z0-9-]*\d)[A-Z0-9][A-Z0-9-]{4,18}[A-Z0-9])(?!\w)"
)
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_BIRTH = re.compile(
    r"(?i)\b(?:born(?: on)?|birth ?da(?:y|te)|date of birth|d\.?o\.?b\.?)(?: is| was)?[ :,=-]{1,4}"
    r"(?P<value>\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?(?:{_MONTHS})[a-z]* ?,? ?\d{{4}}"
    rf"|(?:{_MONTHS})[a-z]*\.? \d{{1,2}}(?:st|nd|rd|th)?,? ?\d{{4}})"
)


def _persons(text: str) -> Iterator[Span]:
    for pattern in (_SSN, _SSN_CALLED):
        for found in pattern.finditer(text):
            area, group, serial = found["area"], found["group"], found["serial"]
            if area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000":
                yield Span("us_ssn", found.start("area"), found.end())
    for kind, pattern in (("identity_number", _IDENTITY), ("birth_date", _BIRTH)):
        for found in pattern.finditer(text):
            yield Span(kind, found.start("value"), found.end("value"))


# --------------------------------------------------------------------------- telephones

_PHONE = re.compile(
    r"(?<![\w.,$€£%/#=+:-])(?<!\d )(?P<plus>\+|00)?(?:\(\+?\d{1,5}\)|\d{1,15})"
    r"(?:[ ./-]{0,2}\(\d{1,5}\))?(?:(?<=\))\d{1,12})?(?:[ .\-/]{1,2}\d{1,12}){0,8}"
    r"(?P<more>(?: ?(?:x|ext\.?) ?\d{1,6}))?(?![\w%]|[,.:/-]\d)"
)
_PHONE_NEAR = re.compile(
    r"(?i)\b(?:call(?:ed|ing)?|phones?|telephones?|tel|mobile|cell(?:phone)?|fax|contact|dial|whats ?app|sms|"
    r"text me|text us|reach(?:ed)?|ring|desk|office|hotline|number is|phone_number)\b"
)
_NOT_PHONE_NEAR = re.compile(
    r"(?i)\b(?:isbn|issn|doi|contract|grant|ser|rfc|iso|page|pages|pp|vol|volume|version|order|invoice|zip|serial|id|license|licence|account|"
    r"figs?|figures?|equations?|tables?|sections?|commit|issue|ticket|reference|ref|card|ssn|ip|rows?|years?)\b\W{0,3}(?:\w+\W{1,2}){0,2}\Z"
)
_DATE = re.compile(
    r"(?:1[5-9]|20|21)\d\d[-/. ](?:0?[1-9]|1[0-2])[-/. ](?:0?[1-9]|[12]\d|3[01])(?!\d)"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/. ](?:0?[1-9]|[12]\d|3[01])[-/. ](?:1[5-9]|20|21)\d\d(?!\d)"
    r"|(?:1[5-9]|20|21)\d\d ?[-/] ?(?:1[5-9]|20|21)\d\d(?!\d)"
)


def _phones(text: str) -> Iterator[Span]:
    for found in _PHONE.finditer(text):
        written = text[found.start() : found.start("more")] if found["more"] else found[0]
        digits = re.sub(r"\D", "", written)
        if 7 <= len(digits) <= 15 and _is_phone(text, found, written, digits):
            yield Span("phone_number", found.start(), found.end())


def _is_phone(text: str, found: re.Match[str], written: str, digits: str) -> bool:
    start, end = found.span()
    before = text[max(0, start - 45) : start]
    groups = re.findall(r"\d+", written)
    is_decimal = len(groups) == 2 and "." in written
    if is_decimal or _DATE.match(written) or len(set(digits)) < 3 or _NOT_PHONE_NEAR.search(before):
        return False
    called = bool(_PHONE_NEAR.search(before) or _PHONE_NEAR.search(text, end, end + 20))
    if found["plus"] == "+" or written.startswith("(+"):
        return len(digits) >= 8 and (called or len(groups) > 1 or len(digits) >= 10)
    if len(groups) == 1:
        return called and (len(digits) >= 8 or bool(found["more"]))
    if called:
        return True
    return _is_formed(written, groups, bool(found["more"]))


def _is_formed(written: str, groups: list[str], has_extension: bool) -> bool:
    """Tell whether groups of digits are a telephone number by their form alone, with nothing that calls them one."""
    sizes = [len(group) for group in groups]
    signs = set(re.findall(r"[-./]", written))
    size = sum(sizes)
    if written.startswith("("):
        return 2 <= sizes[0] <= 5 and size >= 7 and sizes[-1] >= 2
    if sizes[-3:] == [3, 3, 4] and len(sizes) <= 4 and (signs or has_extension or written[0] in "23456789"):
        return True
    if written.startswith("0") and sizes in ([4, 6], [3, 7], [5, 6], [4, 7], [5, 5]) and signs <= {"-", "/"}:
        return True
    is_dialled = written.startswith("0") and 9 <= size <= 14 and max(sizes) <= 8 and min(sizes[1:]) >= 2
    if is_dialled and (len(groups) > 2 or "-" in signs or "/" in signs):
        return len(signs) <= 1
    return has_extension and size >= 7


# --------------------------------------------------------------------------- all of it


def find_personal_data(text: str) -> list[Span]:
    """Find personal data in a text; where two rules see one place, the stricter one is told.

    Cost: one pass of each pattern; about a microsecond for 10 characters.
    """
    found: list[Span] = []
    for look in (_accounts, _cards, _persons, _mails, _addresses, _phones):
        for span in look(text):
            if not any(span.start < other.end and other.start < span.end for other in found):
                found.append(span)
    return sorted(found, key=lambda span: span.start)


def definition() -> list[str]:
    """List what the rules of this module are made of, for their address."""
    patterns = (
        _CARD, _CARD_NEAR, _IBAN, _MAIL, _MAILTO, _NOBODYS, _IP4, _IP4_IN_URL, _IP6, _VERSION_NEAR, _SSN, _SSN_CALLED,
        _IDENTITY, _BIRTH, _PHONE, _PHONE_NEAR, _NOT_PHONE_NEAR, _DATE,
    )  # fmt: skip
    lengths = [f"{country} {size}" for country, size in sorted(_IBAN_LENGTHS.items())]
    return [*(pattern.pattern for pattern in patterns), *lengths, *map(str, _OF_NOBODY)]
