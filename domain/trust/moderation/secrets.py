"""Credentials in a text, found by their shape or by what they are called.

A library of known formats is asked as well (ops/secret_scanner.py); this is what it does not know. A finding needs more
than a pattern: a value that looks drawn by chance, and either a prefix that issuers give their keys or a name beside
it. Placeholders, words, paths, versions and numbers are no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import log2

from domain.trust.moderation.findings import SecretMatch
from domain.trust.moderation.secret_tables import ISSUERS, PAIRS, PREFIXES, WORDS

# --------------------------------------------------------------------------- prefixes that issuers give

_SIGN = r"[A-Za-z0-9_\-.+/=~%$:]"
_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_])(?P<prefix>"
    + "|".join(re.escape(prefix) for prefix in sorted(PREFIXES, key=len, reverse=True))
    + rf")(?P<rest>{_SIGN}{{10,600}})"
)

# --------------------------------------------------------------------------- shapes that need no name

_SHAPES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("private_key", re.compile(
        r"-----BEGIN[ A-Z0-9_-]{0,60}PRIVATE KEY(?: BLOCK)?-----(?=[\s\S]{0,20}?(?P<value>[A-Za-z0-9+/=]{16,}))")),
    ("private_key", re.compile(
        r"PuTTY-User-Key-File-[23]:[\s\S]{0,3000}?Private-Lines: \d+\s+(?P<value>[A-Za-z0-9+/=]{16,})")),
    ("aws_access_key", re.compile(
        r"(?<![A-Za-z0-9])(?P<value>(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z2-7]{16})(?![A-Za-z0-9])")),
    ("one_password_key", re.compile(
        r"(?<![A-Za-z0-9])(?P<value>A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3})\b")),
    ("jwt", re.compile(
        r"(?<![A-Za-z0-9_])(?P<value>ey[A-Za-z0-9_/-]{16,}\.ey[A-Za-z0-9_/\\-]{16,}"
        r"\.(?:[A-Za-z0-9_/+=-]{8,})?)")),
    ("jwt_base64", re.compile(r"(?<![A-Za-z0-9])(?P<value>ZXlK[A-Za-z0-9+/_-]{30,}={0,2})")),
    ("api_key_of_calls", re.compile(r"(?<![A-Za-z0-9])(?P<value>SK[0-9a-fA-F]{32})(?![A-Za-z0-9])")),
    ("grafana_key", re.compile(r"(?<![A-Za-z0-9])(?P<value>eyJrIjoi[A-Za-z0-9+/]{60,}={0,3})")),
    ("bot_token", re.compile(r"(?<![A-Za-z0-9])(?P<value>[0-9]{8,10}:A[A-Za-z0-9_-]{34})(?![A-Za-z0-9_-])")),
    ("personal_token", re.compile(
        r"(?<![A-Za-z0-9])(?P<value>pat[A-Za-z0-9]{14}\.[a-f0-9]{64}|"
        r"[ps]at\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20})")),
    ("vault_token", re.compile(r"(?<![\w.])(?P<value>s\.(?=[A-Za-z]*[0-9])[A-Za-z0-9]{24})(?!\w)")),
    ("deployment_key", re.compile(r"(?<![A-Za-z0-9-])(?P<value>API-[A-Z0-9]{26})(?![A-Za-z0-9-])")),
    ("map_token", re.compile(r"(?<![A-Za-z0-9])(?P<value>[ps]k\.[a-z0-9]{60}\.[a-z0-9]{22})(?![A-Za-z0-9])")),
    ("service_account_key", re.compile(
        r"(?<![A-Za-z0-9])(?P<value>(?:sc|ext|scauth|authress)_[A-Za-z0-9]{5,30}\.[A-Za-z0-9]{4,6}\."
        r"acc[_-][A-Za-z0-9-]{10,32}\.[A-Za-z0-9+/_=-]{30,120})")),
    ("key_of_mail_lists", re.compile(r"(?<![A-Za-z0-9])(?P<value>[0-9a-f]{32}-us[0-9]{1,2})(?![A-Za-z0-9])")),
    ("license_key", re.compile(r"(?<![A-Za-z0-9])(?P<value>[A-Za-z0-9]{6}_[A-Za-z0-9]{29}_mmk)(?![A-Za-z0-9])")),
    ("account_key", re.compile(r"(?i)account_?key\s{0,2}[=:]\s{0,2}[\"']?(?P<value>[A-Za-z0-9+/]{80,90}={0,2})")),
    ("directory_secret", re.compile(
        r"(?<![A-Za-z0-9_~.])(?P<value>[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34})(?![A-Za-z0-9_~.])")),
    ("url_with_password", re.compile(
        r"(?<![A-Za-z0-9])[a-z][a-z0-9+.-]{1,20}://[^\s:/?#@\"'`<>\[\]{}$|]{0,64}:"
        r"(?P<value>[^\s/?#@\"'`<>{}$|:]{3,256})@[A-Za-z0-9\[]")),
    ("webhook_url", re.compile(
        r"hooks\.slack(?:-gov)?\.com/(?P<value>(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{30,80})"
        r"|(?:discord(?:app)?\.com/api/webhooks/[0-9]{15,21}/)(?P<value2>[A-Za-z0-9_-]{50,90})"
        r"|webhook\.office\.com/webhookb2/(?P<value3>[0-9a-z@-]{36,80}/IncomingWebhook/[0-9a-z]{32}/[0-9a-z-]{36})"
        r"|open\.feishu\.cn/open-apis/bot/v2/hook/(?P<value4>[0-9a-f-]{36})")),
    ("authorization_header", re.compile(
        r"(?i)authorization[\"']?\s{0,2}[:=,]\s{0,2}[\"']?(?:basic|bearer|token|bot|apikey|digest)\s{1,3}"
        r"(?P<value>[A-Za-z0-9_\-.+/=~]{12,2000})")),
    ("password_of_a_command", re.compile(
        r"(?i)\b(?:curl|wget|http)\b[^\n]{0,200}?\s(?:-u|--user|--user=|--proxy-user|--password=?)[ =]?[\"']?"
        r"[^\s:\"'$<]{1,64}:(?P<value>[^\s\"'$<>{}]{4,128})")),
    ("kubernetes_secret", re.compile(
        r"(?i)kind:[ \t]*[\"']?secret\b[\s\S]{0,300}?\b(?:data|stringdata):\s{1,20}[\w.-]+:[ \t]*[|>-]{0,2}\s{0,20}"
        r"[\"']?(?P<value>[A-Za-z0-9+/]{10,}={0,3})|"
        r"\b(?:data|stringdata):\s{1,20}[\w.-]+:[ \t]*[|>-]{0,2}\s{0,20}[\"']?"
        r"(?P<value2>[A-Za-z0-9+/]{10,}={0,3})[\s\S]{0,300}?kind:[ \t]*[\"']?secret\b")),
)  # fmt: skip

# --------------------------------------------------------------------------- names beside a value

_NAMED = re.compile(
    rf"(?i)(?:(?P<word>{WORDS})|(?P<issuer>{ISSUERS}))(?P<more>[\w.\-]{{0,30}})"
    r"(?P<between>[ \t\"'`\])]{0,4}(?:[|:=?<>,]{1,4}| is | was |\"? value=)[\s\"'`:=>({\[,]{0,6})"
    r"(?:bearer\s|basic\s|token\s)?(?P<value>[A-Za-z0-9_\-.+/=~%!#^&*$][A-Za-z0-9_\-.+/=~%!@#^&*$:]{5,400})"
)
# How the names begin; looking these up is far cheaper than trying every name at every place.
_STEMS = tuple(
    sorted(
        {
            stem[0]
            for name in f"{WORDS}|{ISSUERS}".replace("\\b", "").split("|")
            if (stem := re.search(r"[a-z]{2,}", name))
        }
    )
)
# Behind such a name stands no secret: the name of one, what counts them, or how they are handled.
_NO_SECRET = re.compile(
    r"(?i)[_.\-]?(?:count|max|min|len|length|size|limit|ttl|url|uri|endpoint|path|file|dir|name|type|version|policy|"
    r"expir\w*|at|pattern|regex|field|column|index|list|class|header|store|manager|provider|prefix|suffix|format|id_?list|"
    r"s|izer|ized|ization|ed|used|usage|budget|hash|digest|checksum|sum|sha\d*|public|pub)\Z"
)

# --------------------------------------------------------------------------- what looks drawn by chance

_PLACEHOLDER = re.compile(
    r"(?i)example|sample|change_?-?me|your[_-]|placeholder|dummy|redact|insert[_-]|replace|xxxx|\*\*\*|todo|"
    r"fixme|12345678|abcdef(?:g|12)|qwerty|lorem|foobar|not[_-]?real|<|\{\{|\$\{|\.\.\.|deadbeef|0{8}"
)
_HEX = re.compile(r"[0-9a-f]+\Z|[0-9A-F]+\Z")
_LABEL_MAX = 12
_DIGEST_LABEL = re.compile(r"(?i)(?:sha-?[123]?-?[0-9]{0,3}|md5|blake[23][bs]?)[:-]\Z")
_DIGEST = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})(?![0-9A-Za-z])")
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_ORDINARY = re.compile(
    r"[\d.,:/_-]+\Z|v?\d+(?:\.\d+)+\S{0,12}\Z|(?:https?|file|ftp|s3)://|"
    r"(?:\.{0,2}/)?(?:[\w.-]+/)+[\w.-]*\Z(?<=\.\w{2})|"
    r"[\w./-]+\.(?:py|js|ts|go|rs|md|txt|json|ya?ml|toml|html?|css|png|jpe?g|svg|sh|java|rb|php|cfg|ini|com|org|net|io|"
    r"dev|local|internal|parquet|csv|pem|key|crt)\Z|\d{4}-\d\d-\d\d[T ]?\S*\Z|sha\d[\w-]*[:~-].*|"
    r".*(?:[A-Z][a-z]{2,}){2,}\Z|[A-Za-z_]\w{2,30}={1,2}[\w.]{0,8}\Z|\w+\*\*?\w+\Z|(?:[\w.-]{0,12}/)+[\w.-]{0,12}\Z|"
    r"(?:self|this|os|env|process|config|settings|request|args|var|data|input|module|local|context)\.[\w.]+\Z"
)
_EXACT_MIN = 30
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_RUNS = re.compile(r"[A-Za-z]{3,}")


def is_placeholder(value: str) -> bool:
    """Tell whether a value stands for one that was left out."""
    return _PLACEHOLDER.search(value) is not None or len(set(value)) < 4


def entropy_bits(text: str) -> float:
    """Give the entropy of the characters of a text, in bits a character."""
    size = len(text)
    counts = [text.count(character) for character in set(text)]
    return -sum(count / size * log2(count / size) for count in counts)


def is_wordy(value: str) -> bool:
    """Tell whether a value is made of words, by the pairs of letters in it."""
    length_min = 4 if any(c.isdigit() for c in value) else 3
    runs = [run for run in _RUNS.findall(_HUMP.sub(" ", value)) if len(run) >= length_min]
    letters = sum(len(run) for run in runs)
    if letters < 0.5 * len(value):
        return False
    pairs = [run[at : at + 2].lower() for run in runs for at in range(len(run) - 1)]
    return sum(pair in PAIRS for pair in pairs) > 0.72 * len(pairs)


def is_drawn(value: str, length_min: int = 10) -> bool:
    """Tell whether a value looks drawn by chance: long, of many characters, and made of no words."""
    core = value.strip("=.-_:,/")
    if len(core) < length_min or _PLACEHOLDER.search(core) or _ORDINARY.match(core):
        return False
    if entropy_bits(core) < min(3.6, 0.66 * log2(len(core))):
        return False
    if _UUID.match(core):
        return True
    if _HEX.match(core):
        return len(core) >= max(16, length_min) and any(c.isdigit() for c in core) and not core.isdigit()
    return not is_wordy(core) and (any(c.isdigit() for c in core) or _is_mixed(core))


def _is_mixed(value: str) -> bool:
    """Tell whether a value without a digit is still no word: long, or of both cases throughout."""
    turns = len(re.findall(r"[a-z][A-Z]|[A-Z][a-z]", value))
    return (len(value) >= 20 and value.isalpha()) or turns >= 5


def find_secrets(text: str) -> list[SecretMatch]:
    """Find credentials in a text; where several rules see one place, the first of them is told.

    Cost: a few passes of one pattern each; about a microsecond for 20 characters.
    """
    found: list[SecretMatch] = []
    for match in (*_shaped(text), *_prefixed(text), *_named(text)):
        if not any(match.start < other.end and other.start < match.end for other in found):
            found.append(match)
    return sorted((match for match in found if not _is_digest(text, match)), key=lambda match: match.start)


def _is_digest(text: str, match: SecretMatch) -> bool:
    """Tell whether a match is a hash that is called one, such as `sha3-256:4b1d...`; some begin like a key."""
    label = _DIGEST_LABEL.search(text, max(0, match.start - _LABEL_MAX), match.start)
    return label is not None and _DIGEST.match(text, match.start) is not None


def _shaped(text: str) -> Iterator[SecretMatch]:
    for rule, pattern in _SHAPES:
        for found in pattern.finditer(text):
            name = next(name for name, value in found.groupdict().items() if value is not None)
            value = found[name]
            if is_placeholder(value):
                continue
            if rule in ("url_with_password", "password_of_a_command") and _is_said_of_passwords(value):
                continue
            if rule not in _LOW and entropy_bits(value) < 2.5:
                continue
            yield SecretMatch(rule, found.start(name), found.end(name))


_LOW = ("url_with_password", "password_of_a_command", "kubernetes_secret")


def _is_said_of_passwords(value: str) -> bool:
    return value.lower() in {
        "password",
        "passwd",
        "pass",
        "secret",
        "token",
        "pwd",
        "key",
        "user",
        "p%40ss",
        "port",
    }


def _prefixed(text: str) -> Iterator[SecretMatch]:
    for found in _PREFIXED.finditer(text):
        prefix, rest = found["prefix"], found["rest"].rstrip(".:=/-_%$~")
        if len(rest) < PREFIXES[prefix] or _PLACEHOLDER.search(rest):
            continue
        if entropy_bits(rest) < min(3.2, 0.62 * log2(len(rest))):
            continue
        if _is_exact(rest, PREFIXES[prefix]) or not is_wordy(rest):
            yield SecretMatch("token_of_an_issuer", found.start("prefix"), found.start("rest") + len(rest))


def _is_exact(rest: str, length: int) -> bool:
    """Tell whether what follows a prefix is of the very form its issuer gives; then chance may have spelt words."""
    return len(rest) == length >= _EXACT_MIN and rest.isalnum() and any(c.isdigit() for c in rest)


def _named(text: str) -> Iterator[SecretMatch]:
    for found in _names(text):
        value = found["value"].rstrip(".,!&*")
        if found["word"] and _NO_SECRET.search(found["more"]):
            continue
        is_password = bool(found["word"]) and found["word"].lower().startswith(("pass", "pwd"))
        if is_drawn(value) or (is_password and _is_password(value, found["between"])):
            rule = "password" if is_password else "named_secret" if found["word"] else "secret_of_an_issuer"
            start = found.start("value")
            yield SecretMatch(rule, start, start + len(value))


def _names(text: str) -> Iterator[re.Match[str]]:
    """Find names with a value beside them: every place where a name may begin is tried, from left to right."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(sign.lower() if sign.isascii() else sign for sign in text)
    past = 0
    for place in sorted({at for stem in _STEMS for at in _places(stem, lower)}):
        if place >= past and (found := _NAMED.match(text, place)):
            past = found.end()
            yield found


def _places(stem: str, text: str) -> Iterator[int]:
    at = text.find(stem)
    while at >= 0:
        yield at
        at = text.find(stem, at + 1)


def _is_password(value: str, between: str) -> bool:
    """Tell whether a value is a password somebody chose: of several kinds of characters, and written as a value."""
    kinds = sum(any(test(c) for c in value) for test in (str.islower, str.isupper, str.isdigit, _is_sign))
    is_written = any(sign in between for sign in "=:") or between.strip() in ("is", "was")
    return (
        is_written
        and kinds >= 3
        and len(value) >= 8
        and not _PLACEHOLDER.search(value)
        and not _ORDINARY.match(value)
        and "(" not in value
    )


def _is_sign(character: str) -> bool:
    return character in "!@#^&*%+~"


def definition() -> list[str]:
    """List what the rules of this module are made of, for their address."""
    shapes = [f"{rule} {pattern.pattern}" for rule, pattern in _SHAPES]
    others = [
        p.pattern
        for p in (
            _PREFIXED,
            _NAMED,
            _NO_SECRET,
            _PLACEHOLDER,
            _ORDINARY,
            _HEX,
            _DIGEST_LABEL,
            _DIGEST,
            _UUID,
            _RUNS,
            _HUMP,
        )
    ]
    limits = [f"{prefix} {size}" for prefix, size in sorted(PREFIXES.items())]
    return [*shapes, *others, *limits, " ".join(sorted(PAIRS))]
