"""Unsafe parts: pickles, programs, archives and pretenders are known without being opened."""

from __future__ import annotations

import base64
import gzip
import io
import json
import lzma
import marshal
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.trust.moderation.artifacts import (
    MEDIA_TYPES,
    NUMPY,
    NUMPY_ARCHIVE,
    PARQUET,
    SAFETENSORS,
    check_artifact,
    is_pickle,
)


def rules(data: bytes, media_type: str = "text/plain", name: str = "part") -> list[str]:
    return [found.rule for found in check_artifact(name, media_type, data)]


class Evil:
    """What a pickle may do when it is loaded; nobody loads it here."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (eval, ("1",))


PICKLED: list[Any] = [
    Evil(),
    [Evil()],
    {"a": Evil()},
    {"a": [1, 2.5, None]},
    [1] * 40,
    "text" * 9,
    (1, 2, 3),
    OrderedDict(a=1),
]


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return out.getvalue()


def zipped(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "."), data)
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


class TestPickles:
    @pytest.mark.parametrize("value", PICKLED, ids=range(len(PICKLED)))
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("media_type", ["text/plain", "application/octet-stream", PARQUET, NUMPY])
    def test_a_pickle_is_known_whatever_it_is_called(
        self, value: Any, protocol: int, media_type: str
    ) -> None:
        assert is_pickle(pickle.dumps(value, protocol))
        assert "pickle" in rules(pickle.dumps(value, protocol), media_type)

    def test_a_pickle_in_base64_inside_a_text_is_found(self) -> None:
        for protocol in (2, 3, 4, 5):
            hidden = base64.b64encode(pickle.dumps([Evil()] * 3, protocol))
            assert rules(b"memory: " + hidden) == ["encoded_pickle"]

    def test_an_array_of_objects_is_a_pickle_in_all_but_name(self) -> None:
        assert rules(npy(np.array([Evil()], dtype=object)), NUMPY) == ["array_of_objects"]
        assert rules(npy(np.zeros(2, dtype=[("a", "<f4"), ("b", "O")])), NUMPY) == ["array_of_objects"]
        assert rules(npy(np.zeros((3, 4), dtype=np.float32)), NUMPY) == []

    def test_an_archive_of_arrays_is_looked_into(self) -> None:
        good = npy(np.arange(10))
        assert rules(zipped(a__npy=good, b__npy=good), NUMPY_ARCHIVE) == []
        assert rules(zipped(a__npy=good, b__npy=npy(np.array([None]))), NUMPY_ARCHIVE) == ["array_of_objects"]
        assert rules(zipped(a__npy=good, b__pkl=pickle.dumps([1])), NUMPY_ARCHIVE) == ["archive"]
        assert rules(zipped(**{"../a__npy": good}), NUMPY_ARCHIVE) == ["archive"]
        assert rules(zipped(a__npy=npy(np.zeros(5_000_000))), NUMPY_ARCHIVE) == ["archive"]
        assert rules(good, NUMPY_ARCHIVE) == ["media_type_mismatch"]

    @given(st.text(max_size=400))
    def test_a_text_is_no_pickle(self, text: str) -> None:
        assert "pickle" not in rules(("The memory says: " + text).encode())


class TestPrograms:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x7fELF\x02\x01\x01" + b"\0" * 60, b"MZ\x90\x00\x03" + b"\0" * 60, b"\xcf\xfa\xed\xfe" + b"\0" * 60,
            b"\xca\xfe\xba\xbe\0\0\0\x34", b"\0asm\x01\0\0\0", b"dex\n035\0", b"#!/bin/sh\nrm -r x\n",
            b"#!/usr/bin/env python3\nprint()\n",
            b"\xa7\x0d\r\n\0\0\0\0" + b"\0" * 8 + marshal.dumps(compile("a = 1", "a", "exec")),
        ],
        ids=range(9),
    )  # fmt: skip
    @pytest.mark.parametrize("media_type", ["text/plain", PARQUET, "image/png", "application/octet-stream"])
    def test_a_program_is_known_whatever_it_is_called(self, data: bytes, media_type: str) -> None:
        assert rules(data, media_type)[0] in ("executable", "script")

    def test_a_program_in_base64_inside_a_text_is_found(self) -> None:
        elf = base64.b64encode(b"\x7fELF\x02\x01\x01" + bytes(range(60)))
        dos = base64.b64encode(b"MZ\x90\x00\x03\0\0\0\x04" + bytes(range(60)))
        assert rules(b"x " + elf) == ["encoded_program"] == rules(b"y " + dos)

    @pytest.mark.parametrize(
        "name", ["a.exe", "run.SH", "m.pkl", "w.pt", "lib.so.6", "x.tar", "y.ipynb.py", "z.docm"]
    )
    def test_a_name_that_would_be_run_is_refused(self, name: str) -> None:
        assert rules(b"text", name=name) == ["unsafe_name"]

    def test_a_sentence_that_starts_like_a_program_is_a_sentence(self) -> None:
        assert rules(b"MZ is how some programs start.") == []


class TestArchives:
    @pytest.mark.parametrize(
        "data", [tar(), zipped(a=b"x"), gzip.compress(b"x" * 99), lzma.compress(b"x" * 99), b"Rar!\x1a\x07\x01\0"],
        ids=range(5),
    )  # fmt: skip
    @pytest.mark.parametrize("media_type", ["text/plain", "application/zip", PARQUET])
    def test_an_archive_in_the_archive_is_known(self, data: bytes, media_type: str) -> None:
        assert rules(data, media_type)[0] == "archive"

    def test_an_archive_behind_something_else_is_found(self) -> None:
        assert rules(b"\x89PNG\r\n\x1a\n" + b"\0" * 50 + zipped(a=b"x"), "image/png") == ["archive_inside"]
        assert "archive_inside" in rules(b"PAR1" + b"\0" * 50 + zipped(a=b"x"), PARQUET)


class TestForms:
    def test_what_is_not_on_the_list_is_refused(self) -> None:
        assert rules(b"x", "application/octet-stream") == ["media_type_not_allowed"]
        assert rules(b"<html>", "text/html") == ["media_type_not_allowed"]
        assert "application/octet-stream" not in MEDIA_TYPES

    def test_what_is_called_a_text_is_one(self) -> None:
        assert rules(b"\xff\xfe\x00") == ["not_text"]
        assert rules(b"a\0b") == ["not_text"]
        assert rules("Grüße ✓".encode()) == []
        assert rules(b"{", "application/json") == ["not_json"]
        assert rules(b"{}", "application/json; charset=utf-8") == []

    def test_what_is_called_parquet_or_tensors_has_their_marks(self) -> None:
        assert rules(b"PAR1" + b"\0" * 20 + b"PAR1", PARQUET) == []
        assert rules(b"PAR1" + b"\0" * 20, PARQUET) == ["media_type_mismatch"]
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        assert rules(len(header).to_bytes(8, "little") + header + b"\0" * 4, SAFETENSORS) == []
        assert rules(b"\xff" * 8 + header, SAFETENSORS) == ["media_type_mismatch"]

    def test_yaml_that_makes_objects_is_refused(self) -> None:
        assert rules(b"a: !!python/object/apply:os.system [ls]", "application/yaml") == ["unsafe_yaml_tag"]

    @given(st.binary(max_size=300), st.sampled_from(sorted(MEDIA_TYPES)))
    def test_any_bytes_are_judged_and_nothing_is_raised(self, data: bytes, media_type: str) -> None:
        assert all(rule.islower() for rule in rules(data, media_type))
