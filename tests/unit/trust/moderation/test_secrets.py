"""Secrets: found by prefix, shape and name; and what is no secret is left in peace."""

from __future__ import annotations

import string
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.trust.moderation.secret_tables import PREFIXES
from domain.trust.moderation.secrets import _NAMED, _names, find_secrets, is_drawn, is_wordy
from ops.secret_scanner import SecretScanner

LETTERS = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits
HEX = "0123456789abcdef"


def drawn(seed: int, size: int, alphabet: str = LETTERS) -> str:
    """Draw a key of the alphabet that has a digit and a letter in it."""
    chance = Random(seed)
    return (
        "".join(chance.choice(alphabet) for _ in range(size - 2)) + "7k"
        if alphabet != HEX
        else "".join(chance.choice(alphabet) for _ in range(size - 2)) + "7e"
    )


# What issuers give out, told by prefix, size and alphabet; the keys themselves are drawn here.
ISSUED = [
    ("ghp_", 36, LETTERS), ("glpat-", 20, LETTERS), ("xoxb-", 40, LETTERS), ("sk_live_", 24, LETTERS),
    ("shpat_", 32, HEX), ("npm_", 36, LETTERS), ("hf_", 34, LETTERS), ("dop_v1_", 64, HEX), ("PMAK-", 59, HEX),
    ("lin_api_", 40, LETTERS), ("glsa_", 41, LETTERS), ("AIza", 35, LETTERS), ("sk-ant-api03-", 93, LETTERS),
    ("hvs.", 95, LETTERS), ("rubygems_", 48, HEX), ("dckr_pat_", 27, LETTERS), ("tskey-", 30, LETTERS),
]  # fmt: skip
NAMES = ["api_key", "API-KEY", "client_secret", "auth_token", "password", "SECRET_KEY", "adafruit_io", "datadogKey",
         "twitch", "privateKey", "encryption_key"]  # fmt: skip
WRITTEN = ['{name} = "{key}"', "{name}={key}", '"{name}": "{key}"', "{name}: {key}", "export {name}='{key}'",
           "{name} => \"{key}\"", "{name} := `{key}`"]  # fmt: skip


def places(text: str) -> list[str]:
    return [text[match.start : match.end] for match in find_secrets(text)]


class TestFound:
    @pytest.mark.parametrize(("prefix", "size", "alphabet"), ISSUED)
    def test_a_key_is_known_by_its_issuers_prefix(self, prefix: str, size: int, alphabet: str) -> None:
        for seed in range(5):
            key = prefix + drawn(seed, size, alphabet)
            assert places(f"Use {key} for the calls.") == [key]

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("form", WRITTEN)
    def test_a_key_is_known_by_the_name_beside_it(self, name: str, form: str) -> None:
        for seed in range(3):
            key = drawn(seed, 32, LOWER)
            assert places(form.format(name=name, key=key)) == [key]

    def test_keys_that_look_like_identifiers_count_beside_a_name(self) -> None:
        hexes = drawn(1, 32, HEX)
        uuid = f"{hexes[:8]}-{hexes[8:12]}-{hexes[12:16]}-{hexes[16:20]}-{hexes[20:]}aaaa"[:36]
        assert places(f'heroku_api_key = "{uuid}"') == [uuid]
        assert places(f"build {uuid}") == []

    def test_a_private_key_needs_its_body(self) -> None:
        body = drawn(3, 64)
        head = "-----BEGIN RSA PRIVATE" + " KEY-----"
        assert places(f"{head}\n{body}\n") == [body]
        assert places(f"The file starts with {head} and so on.") == []

    def test_a_password_in_a_url_and_in_a_command_is_found(self) -> None:
        word = drawn(4, 12)
        assert places(f"postgresql://ann:{word}@db.example.com/x") == [word]
        assert places(f"curl -u ann:{word} https://example.com") == [word]

    def test_a_password_somebody_chose_is_found_where_it_is_written_as_one(self) -> None:
        assert places("password = 'Tr0ub4dor&3'") == ["Tr0ub4dor&3"]
        assert places("my password is Tr0ub4dor&3") == ["Tr0ub4dor&3"]

    # These happen to be made of pairs of letters as words are; their form alone gives them away.
    @example("", 28, "").via("a key that reads like words")
    @example("", 474, "").via("a key that reads like words")
    @given(st.text(max_size=200), st.integers(0, 10_000), st.text(max_size=200))
    def test_what_stands_around_a_key_hides_it_from_nobody(self, before: str, seed: int, after: str) -> None:
        key = "ghp_" + drawn(seed, 36)
        text = f"{before} {key} {after}"
        assert key in places(text) or any(key in place for place in places(text))


class TestDigests:
    def test_a_hash_that_is_called_one_is_no_key_whatever_it_begins_with(self) -> None:
        for prefix in (prefix for prefix in PREFIXES if set(prefix) <= set("0123456789abcdef")):
            digest = (prefix + "90479313ed1aeb843f3bbee4aea8a29e591fba01d69bbcdee6abdc0ca87f1d2c3")[:64]
            for label in ("sha3-256:", "sha256:", "SHA-256:"):
                assert not find_secrets(f'{{"output":"{label}{digest}","n":1}}'), label + digest
            assert find_secrets(f'{{"output":"{digest}"}}')

    def test_calling_a_key_a_hash_hides_none(self) -> None:
        assert find_secrets("sha256:ghp_x7Kq2mZ9vT4bR8wL1nC6yH3dF5gJ0sA2pQ4e")


class TestLeftInPeace:
    @pytest.mark.parametrize(
        "text",
        [
            "password = os.environ['DB_PASSWORD']",
            'token: "${{ secrets.DEPLOY_TOKEN }}"',
            'api_key = "your-api-key-here"',
            'secret_key = "xxxxxxxxxxxxxxxxxxxxxxxx"',
            "token_count = 1234567890123456",
            "tokens: 18446744073709551616",
            'client_id = "my-application-name"',
            "password_policy: https://example.com/passwords/v2/rules.html",
            "The secret of a good persona is a good memory.",
            "access_token_url = https://auth.example.com/oauth2/token",
            "secret = get_secret(name)",
            "ghp_" + "x" * 36,
            "sk_test_" + "0" * 24,
            "AKIAIOSFODNN7EXAMPLE",
            "postgresql://user:password@localhost/db",
            "postgresql://user:${PASSWORD}@localhost/db",
            "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "private_key: ed25519.Ed25519PrivateKey",
            "api_key: tests/data/keys/public/v2.json",
            "max_tokens=4096, temperature=0.2",
            "keyboard: qwertyuiop1234",
            "version token: 2026-11-21T10:00:00Z",
        ],
    )
    def test_what_only_looks_like_a_secret_is_none(self, text: str) -> None:
        assert places(text) == []
        assert list(SecretScanner()(text)) == []

    @pytest.mark.parametrize(
        "word", ["authentication_backend_2", "getUserByEmail2", "connection-string-for-tests1"]
    )
    def test_words_are_told_from_chance(self, word: str) -> None:
        assert is_wordy(word)
        assert not is_drawn(word)

    def test_chance_is_told_from_words(self) -> None:
        assert sum(is_drawn(drawn(seed, 40)) for seed in range(2_000)) > 1_980


class TestNames:
    @given(
        st.lists(
            st.sampled_from([*NAMES, " ", "=", ": ", '"', "İ", "token", "keys", drawn(9, 20), "\n"]),
            max_size=30,
        )
    )
    def test_looking_up_beginnings_finds_what_trying_every_place_finds(self, pieces: list[str]) -> None:
        text = "".join(pieces)
        slow = [found.span() for found in _NAMED.finditer(text)]
        assert [found.span() for found in _names(text)] == slow


class TestLibrary:
    def test_the_library_says_where(self) -> None:
        key = "AKIA" + drawn(5, 16, string.ascii_uppercase + "234567")[:14].upper() + "7K"
        text = f"first line\nthe id is {key}\n"
        assert [(m.rule, text[m.start : m.end]) for m in SecretScanner()(text)] == [("aws_key", key)]

    def test_the_library_names_itself_with_its_version(self) -> None:
        assert SecretScanner().identity.startswith("detect-secrets 1.")
