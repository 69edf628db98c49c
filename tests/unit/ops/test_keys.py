"""A key file is made once, for its owner's eyes only, and is either usable or refused."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from domain.errors import KeyFileError
from domain.log.notes import Signer
from ops.keys import log_signer, read_or_make


class TestFile:
    def test_it_is_made_once_and_stays(self, tmp_path: Path):
        path = tmp_path / "deep" / "keys" / "log.key"
        assert read_or_make(path, b"first") == b"first"
        assert read_or_make(path, b"second") == b"first"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert [one.name for one in path.parent.iterdir()] == ["log.key"]

    def test_of_many_makers_one_wins_and_all_read_the_same(self, tmp_path: Path):
        for attempt in range(20):
            path = tmp_path / str(attempt) / "log.key"
            together, read = threading.Barrier(8), []

            def make(
                number: int, path: Path = path, together: threading.Barrier = together, read: list = read
            ) -> None:
                together.wait()
                read.append(read_or_make(path, b"%d" % number * 10_000))

            threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(read) == 8
            assert set(read) == {path.read_bytes()}
            assert len(read[0]) == 10_000
            assert [one.name for one in path.parent.iterdir()] == ["log.key"]

    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601, 0o777])
    def test_one_that_others_can_read_is_refused(self, tmp_path: Path, mode: int):
        path = tmp_path / "log.key"
        read_or_make(path, b"secret")
        path.chmod(mode)
        with pytest.raises(KeyFileError) as refused:
            read_or_make(path, b"other")
        assert "secret" not in str(refused.value.problem())

    def test_a_place_that_cannot_hold_a_file_is_refused(self, tmp_path: Path):
        (tmp_path / "file").write_bytes(b"")
        for path in (tmp_path / "file" / "log.key", tmp_path):
            with pytest.raises(KeyFileError):
                read_or_make(path, b"secret")


class TestLogSigner:
    def test_the_key_of_a_log_stays_the_same(self, tmp_path: Path):
        path = tmp_path / "log.key"
        first, again = log_signer(path, "example.org/log"), log_signer(path, "example.org/log")
        assert first.key.text == again.key.text
        assert log_signer(tmp_path / "other.key", "example.org/log").key.text != first.key.text

    def test_the_key_of_another_log_is_refused(self, tmp_path: Path):
        log_signer(tmp_path / "log.key", "example.org/log")
        with pytest.raises(KeyFileError):
            log_signer(tmp_path / "log.key", "example.org/other")

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"hush", b"PRIVATE+KEY+hush+y+z"])
    def test_what_is_no_key_is_refused_without_being_shown(self, tmp_path: Path, content: bytes):
        path = tmp_path / "log.key"
        read_or_make(path, content)
        with pytest.raises(KeyFileError) as refused:
            log_signer(path, "example.org/log")
        assert "hush" not in str(refused.value.problem())

    def test_a_secret_survives_its_text(self):
        signer = Signer("example.org/log", b"\7" * 32)
        assert Signer.parse(signer.secret_text()).key.text == signer.key.text
