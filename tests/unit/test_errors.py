"""One class per stable code, and each refusal survives its own rendering."""

from __future__ import annotations

import re

import msgspec
import pytest

from domain.errors import (
    PROBLEM_BASE,
    REGISTRY,
    RETIRED,
    ConflictError,
    ForbiddenError,
    InvalidError,
    LedgerError,
    NotFoundError,
    Retry,
    UnauthorizedError,
    UnavailableError,
    UnprocessableError,
)

FAMILIES = {
    400: InvalidError, 401: UnauthorizedError, 403: ForbiddenError, 404: NotFoundError, 409: ConflictError,
    422: UnprocessableError, 503: UnavailableError,
}  # fmt: skip

# Transport and preconditions have statuses of their own and no family.
ALONE = {402, 405, 412, 413, 415, 426, 429}

EVERY = pytest.mark.parametrize("cls", REGISTRY.values(), ids=REGISTRY)


class TestRegistry:
    def test_a_taken_code_is_refused(self):
        with pytest.raises(TypeError, match="taken"):

            class AgainError(LedgerError, code="not_found"):
                """It is not there, again."""

        assert REGISTRY["not_found"] is NotFoundError

    def test_a_retired_code_is_never_given_again(self, monkeypatch):
        monkeypatch.setattr("domain.errors.families.RETIRED", frozenset({"old_code"}))
        with pytest.raises(TypeError, match="taken"):

            class OldError(LedgerError, code="old_code"):
                """It had another meaning once."""

        assert "old_code" not in REGISTRY
        assert not RETIRED & REGISTRY.keys()

    def test_a_class_without_a_docstring_is_refused(self):
        with pytest.raises(TypeError, match="docstring"):

            class SilentError(LedgerError, code="silent"):
                pass

        assert "silent" not in REGISTRY

    @EVERY
    def test_a_code_is_flat_lower_case_words(self, cls):
        assert re.fullmatch(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*", cls.code)
        assert cls.__name__.endswith("Error")
        assert cls.title().endswith(".")

    @EVERY
    def test_a_status_is_that_of_the_family(self, cls):
        family = FAMILIES.get(cls.status)
        assert (cls.status in ALONE) if family is None else issubclass(cls, family)

    @EVERY
    def test_what_may_be_sent_again_unchanged_says_so(self, cls):
        if cls.retry is Retry.AS_IS:
            assert cls.status in {429, 503}
        if cls.retry is Retry.AFTER_READ:
            assert cls.status in {409, 412}


class TestProblem:
    @EVERY
    def test_a_refusal_is_rendered_with_the_members_of_rfc_9457_and_of_the_older_api(self, cls):
        error = cls("told to the caller", internal="told to nobody", place="here", count=3)
        assert error.problem() == {
            "type": PROBLEM_BASE + cls.code,
            "title": cls.title(),
            "status": cls.status,
            "detail": "told to the caller",
            "code": cls.code,
            "error": cls.code,
            "message": "told to the caller",
            "retry": cls.retry.value,
            "details": {"place": "here", "count": 3},
        }
        assert "nobody" not in str(error) + str(error.problem())

    @EVERY
    def test_a_remembered_refusal_says_the_same_again(self, cls):
        error = cls(internal="told to nobody", places=["here", None], nested={"count": 3})
        again = LedgerError.from_problem(msgspec.json.decode(msgspec.json.encode(error.problem())))
        assert type(again) is cls
        assert again.problem() == error.problem()
        assert again.internal == ""

    @EVERY
    def test_a_refusal_without_words_says_its_title(self, cls):
        assert str(cls()) == cls().message == cls.title()
