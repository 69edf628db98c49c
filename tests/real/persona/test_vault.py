"""The vault on a directory: what goes in comes out, encrypted where it lies, and nothing else is ever given."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha3_512
from pathlib import Path

import pytest

from domain.errors import (
    ArtifactMismatchError,
    EncryptionKeyError,
    KeyFileError,
    LedgerError,
    LogDamagedError,
    ObjectNotFoundError,
)
from ops.settings import Settings
from ops.vault import FRAME_BYTES, Vault

SIZES = (0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 4 * FRAME_BYTES, 9 * FRAME_BYTES + 7)
ALL = timedelta(0)
SECRET = b"the password of the treasurer is correct horse battery staple"


def opened(place: Path, *, encrypting: bool = True) -> Vault:
    """Open a vault in a directory."""
    return Vault.open(Settings(data_dir=place, vault_encryption=encrypting, object_store_url=None))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return opened(tmp_path)


def address_of(data: bytes) -> str:
    return "sha3-512:" + sha3_512(data).hexdigest()


def files(place: Path, room: str) -> list[Path]:
    """List what lies in a room of the vault."""
    return sorted(path for path in (place / "objects" / "capsules" / room).rglob("*") if path.is_file())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """Cut bytes into portions."""
    yield from (data[start : start + size] for start in range(0, len(data), size))


class TestWhatGoesInComesOut:
    @pytest.mark.parametrize("encrypting", [True, False], ids=["encrypted", "plain"])
    @pytest.mark.parametrize("size", SIZES)
    def test_whatever_its_size_and_from_whatever_byte(
        self, tmp_path: Path, size: int, encrypting: bool
    ) -> None:
        vault = opened(tmp_path, encrypting=encrypting)
        data = os.urandom(size)
        kept = vault.put(pieces(data, 70_001))
        assert kept == (address_of(data), size)
        assert b"".join(vault.read(kept.address)) == data
        for start in {1, FRAME_BYTES, size // 2, max(0, size - 1), size}:
            if start <= size:
                assert b"".join(vault.read(kept.address, start)) == data[start:]

    def test_the_same_bytes_twice_are_one_object(self, vault: Vault, tmp_path: Path) -> None:
        assert vault.put([SECRET]) == vault.put([SECRET])
        assert (len(files(tmp_path, "objects")), len(files(tmp_path, "bodies"))) == (1, 1)

    def test_writers_of_the_same_bytes_at_once_keep_one_readable_object(
        self, vault: Vault, tmp_path: Path
    ) -> None:
        data = os.urandom(3 * FRAME_BYTES)
        start = threading.Barrier(8)

        def write() -> None:
            start.wait()
            vault.put(pieces(data, 100_000))

        writers = [threading.Thread(target=write) for _ in range(8)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert (len(files(tmp_path, "objects")), len(files(tmp_path, "bodies"))) == (1, 1)
        assert b"".join(vault.read(address_of(data))) == data

    def test_bytes_of_another_address_are_refused_and_leave_nothing(
        self, vault: Vault, tmp_path: Path
    ) -> None:
        with pytest.raises(ArtifactMismatchError):
            vault.put(pieces(os.urandom(20 * FRAME_BYTES), FRAME_BYTES), address_of(b"others"))
        assert not files(tmp_path, "objects")
        assert not files(tmp_path, "bodies")

    def test_a_writer_that_fails_midway_leaves_nothing(self, vault: Vault, tmp_path: Path) -> None:
        def broken() -> Iterator[bytes]:
            yield os.urandom(20 * FRAME_BYTES)
            raise RuntimeError("the line broke")

        with pytest.raises(RuntimeError):
            vault.put(broken())
        assert not files(tmp_path, "objects")
        assert not files(tmp_path, "bodies")

    def test_what_is_not_there_is_said_before_anything_is_read(self, vault: Vault) -> None:
        assert not vault.has(address_of(b"nothing"))
        with pytest.raises(ObjectNotFoundError):
            vault.read(address_of(b"nothing"))


class TestWhereItLies:
    def test_no_file_of_the_store_holds_the_text_unless_encryption_is_off(self, tmp_path: Path) -> None:
        for encrypting in (True, False):
            place = tmp_path / str(encrypting)
            opened(place, encrypting=encrypting).put([SECRET])
            held = [
                path
                for path in (place / "objects").rglob("*")
                if path.is_file() and SECRET in path.read_bytes()
            ]
            assert bool(held) is not encrypting

    def test_equal_bytes_in_two_vaults_look_different(self, tmp_path: Path) -> None:
        bodies = []
        for name in ("a", "b"):
            opened(tmp_path / name).put([SECRET])
            bodies.append(files(tmp_path / name, "bodies")[0].read_bytes())
        assert bodies[0] != bodies[1]

    def test_switched_on_and_off_everything_stays_readable(self, tmp_path: Path) -> None:
        sealed = opened(tmp_path).put([b"sealed"]).address
        plain = opened(tmp_path, encrypting=False).put([b"plain"]).address
        for encrypting in (True, False):
            vault = opened(tmp_path, encrypting=encrypting)
            assert (b"".join(vault.read(sealed)), b"".join(vault.read(plain))) == (b"sealed", b"plain")

    def test_the_key_file_is_its_owner_s_alone(self, vault: Vault, tmp_path: Path) -> None:
        path = tmp_path / "keys" / "vault.json"
        assert path.stat().st_mode & 0o077 == 0
        path.chmod(0o644)
        with pytest.raises(KeyFileError):
            opened(tmp_path)

    def test_a_vault_without_its_keys_gives_nothing(self, vault: Vault, tmp_path: Path) -> None:
        address = vault.put([SECRET]).address
        (tmp_path / "keys" / "vault.json").unlink()
        with pytest.raises(LedgerError) as refused:
            b"".join(opened(tmp_path).read(address))
        assert refused.value.code in ("log_damaged", "encryption_key_missing")
        (tmp_path / "keys" / "vault.json").unlink()
        with pytest.raises(EncryptionKeyError):
            opened(tmp_path, encrypting=False).read(address)


class TestDamage:
    """Whatever is changed where the bytes lie, nothing but the bytes is ever given in full."""

    DATA = os.urandom(3 * FRAME_BYTES + 99)

    @pytest.fixture
    def body(self, vault: Vault, tmp_path: Path) -> Path:
        vault.put([self.DATA])
        return files(tmp_path, "bodies")[0]

    def given(self, vault: Vault) -> bytes:
        """Read it all, as far as it goes."""
        found = bytearray()
        with pytest.raises(LogDamagedError):  # noqa: PT012 - what was given before it counts
            for frame in vault.read(address_of(self.DATA)):
                found += frame
        return bytes(found)

    @pytest.mark.parametrize("at", [0, 1_000, FRAME_BYTES + 16, 2 * FRAME_BYTES, -1])
    def test_a_flipped_bit(self, vault: Vault, body: Path, at: int) -> None:
        data = bytearray(body.read_bytes())
        data[at] ^= 1
        body.write_bytes(data)
        assert len(self.given(vault)) < len(self.DATA)

    @pytest.mark.parametrize("cut", [1, 99 + 16, FRAME_BYTES, 3 * FRAME_BYTES])
    def test_a_cut_end(self, vault: Vault, body: Path, cut: int) -> None:
        body.write_bytes(body.read_bytes()[:-cut])
        assert len(self.given(vault)) < len(self.DATA)

    def test_frames_that_changed_places(self, vault: Vault, body: Path) -> None:
        data, frame = body.read_bytes(), FRAME_BYTES + 16
        body.write_bytes(data[frame : 2 * frame] + data[:frame] + data[2 * frame :])
        assert self.given(vault) == b""

    def test_a_missing_body(self, vault: Vault, body: Path) -> None:
        body.unlink()
        assert self.given(vault) == b""

    @pytest.mark.parametrize("member", ["size_bytes", "frame_bytes", "body", "cipher", "key", "wrapped"])
    def test_an_envelope_that_says_something_else(
        self, vault: Vault, body: Path, tmp_path: Path, member: str
    ) -> None:
        other = vault.put([b"other"]).address
        mine = self._envelope(tmp_path, address_of(self.DATA))
        foreign = self._envelope(tmp_path, other)
        said = json.loads(mine.read_bytes())
        said[member] = {
            "size_bytes": said["size_bytes"] - 1,
            "frame_bytes": said["frame_bytes"] // 2,
            "cipher": "none",
            "key": 7,
        }.get(member, json.loads(foreign.read_bytes())[member])
        mine.write_text(json.dumps(said))
        with pytest.raises(LedgerError) as refused:
            b"".join(vault.read(address_of(self.DATA)))
        assert refused.value.code == ("encryption_key_missing" if member == "key" else "log_damaged")

    def test_the_envelope_of_another_object(self, vault: Vault, body: Path, tmp_path: Path) -> None:
        other = vault.put([b"other"]).address
        content = self._envelope(tmp_path, other).read_bytes()
        self._envelope(tmp_path, address_of(self.DATA)).write_bytes(content)
        assert self.given(vault) == b""

    @pytest.mark.parametrize("start", [1, FRAME_BYTES, 2 * FRAME_BYTES + 3])
    def test_a_plain_envelope_put_in_the_place_of_an_encrypted_one(
        self, vault: Vault, tmp_path: Path, body: Path, start: int
    ) -> None:
        address = address_of(self.DATA)
        envelope = self._envelope(tmp_path, address)
        said = json.loads(envelope.read_bytes()) | {"cipher": "none", "key": None, "wrapped": None}
        envelope.write_text(json.dumps(said))
        body.write_bytes(bytes(len(self.DATA)))
        with pytest.raises(LogDamagedError):
            b"".join(vault.read(address, start))

    @pytest.mark.parametrize(
        "change", [{"frame_bytes": 0}, {"size_bytes": -5}, {"body": "../../keys/vault.json"}]
    )
    def test_an_envelope_that_makes_no_sense(
        self, vault: Vault, tmp_path: Path, body: Path, change: dict[str, object]
    ) -> None:
        envelope = self._envelope(tmp_path, address_of(self.DATA))
        envelope.write_text(json.dumps(json.loads(envelope.read_bytes()) | change))
        with pytest.raises(LogDamagedError):
            vault.read(address_of(self.DATA))

    @pytest.mark.parametrize("damage", ["envelope", "cut", "gone"])
    def test_what_cannot_be_read_is_mended_by_whoever_brings_the_bytes_again(
        self, vault: Vault, tmp_path: Path, body: Path, damage: str
    ) -> None:
        if damage == "envelope":
            self._envelope(tmp_path, address_of(self.DATA)).write_text("{")
        elif damage == "cut":
            body.write_bytes(body.read_bytes()[:-1])
        else:
            body.unlink()
        vault.put([self.DATA])
        assert b"".join(vault.read(address_of(self.DATA))) == self.DATA

    def test_plain_bytes_are_held_against_their_address(self, tmp_path: Path) -> None:
        vault = opened(tmp_path, encrypting=False)
        vault.put([self.DATA])
        body = files(tmp_path, "bodies")[0]
        body.write_bytes(body.read_bytes()[:-1] + b"x")
        assert len(self.given(vault)) < len(self.DATA)

    @staticmethod
    def _envelope(place: Path, address: str) -> Path:
        return next(path for path in files(place, "objects") if path.name == address[9:])


class TestKeys:
    def test_a_rotation_wraps_envelopes_anew_and_touches_no_body(self, vault: Vault, tmp_path: Path) -> None:
        addresses = [vault.put([os.urandom(1_000)]).address for _ in range(5)]
        vault.put_piece("acme", addresses[0], 0, b"a piece")
        before = {path: path.read_bytes() for path in files(tmp_path, "bodies")}
        content = {address: b"".join(vault.read(address)) for address in addresses}
        assert vault.keys is not None
        assert vault.keys.rotate() == 2
        assert vault.keys_in_use() == {1}
        assert vault.rewrap() == (6, 6)
        assert vault.keys_in_use() == {2}
        vault.keys.retire([1, 2])
        assert vault.keys.versions == [2], "the key that wraps now stays, whoever asks"
        assert {path: path.read_bytes() for path in files(tmp_path, "bodies")} == before
        assert {address: b"".join(vault.read(address)) for address in addresses} == content
        assert b"".join(vault.read_pieces("acme", addresses[0])) == b"a piece"

    def test_a_process_that_is_running_notices_a_rotation(self, vault: Vault, tmp_path: Path) -> None:
        old = vault.put([b"old"]).address
        other = opened(tmp_path)
        assert other.keys is not None
        other.keys.rotate()
        other.rewrap()
        other.keys.retire([1])
        assert b"".join(vault.read(old)) == b"old"
        vault.put([b"new"])
        assert vault.keys_in_use() == {2}

    def test_a_rotation_that_stopped_halfway_is_finished_by_the_next(self, vault: Vault) -> None:
        addresses = [vault.put([bytes([n])]).address for n in range(4)]
        assert vault.keys is not None
        vault.keys.rotate()
        vault.keys.rotate()
        assert vault.rewrap() == (4, 4)
        assert vault.rewrap() == (4, 0)
        assert [b"".join(vault.read(address)) for address in addresses] == [bytes([n]) for n in range(4)]

    def test_what_wraps_under_a_retired_key_says_which_is_missing(self, vault: Vault, tmp_path: Path) -> None:
        address = vault.put([SECRET]).address
        assert vault.keys is not None
        vault.keys.rotate()
        vault.keys.retire([1])
        with pytest.raises(EncryptionKeyError) as refused:
            vault.read(address)
        assert refused.value.facts["version"] == 1

    @pytest.mark.parametrize(
        "content", ["", "{}", '{"schema":"soma/vault-keys/1","current":2,"keys":{"1":"AAAA"}}']
    )
    def test_a_broken_key_file_is_refused(self, vault: Vault, tmp_path: Path, content: str) -> None:
        (tmp_path / "keys" / "vault.json").write_text(content)
        with pytest.raises(KeyFileError):
            opened(tmp_path)


class TestUploadsAndLeftovers:
    ADDRESS = address_of(b"0123456789")

    def test_pieces_count_as_far_as_they_follow_each_other(self, vault: Vault) -> None:
        assert vault.pieces("acme", self.ADDRESS) == []
        assert vault.put_piece("acme", self.ADDRESS, 0, b"0123")
        assert vault.put_piece("acme", self.ADDRESS, 6, b"6789")
        assert vault.pieces("acme", self.ADDRESS) == [(0, 4)]
        assert vault.put_piece("acme", self.ADDRESS, 4, b"45")
        assert not vault.put_piece("acme", self.ADDRESS, 4, b"45"), "what is kept stays"
        assert vault.pieces("acme", self.ADDRESS) == [(0, 4), (4, 2), (6, 4)]
        assert b"".join(vault.read_pieces("acme", self.ADDRESS)) == b"0123456789"
        assert vault.pieces("other", self.ADDRESS) == []

    def test_dropped_pieces_leave_nothing(self, vault: Vault, tmp_path: Path) -> None:
        vault.put_piece("acme", self.ADDRESS, 0, b"0123")
        vault.drop_pieces("acme", self.ADDRESS)
        assert not files(tmp_path, "uploads")
        assert not files(tmp_path, "bodies")

    def test_sweeping_removes_what_nothing_names_and_nothing_else(self, vault: Vault, tmp_path: Path) -> None:
        kept = vault.put([SECRET]).address
        vault.put_piece("acme", self.ADDRESS, 0, b"0123")
        lost = vault.put([b"a body whose envelope a crash took"]).address
        next(path for path in files(tmp_path, "objects") if path.name == lost[9:]).unlink()
        assert vault.sweep(timedelta(days=1)).changed == 0, "what is young may be under way"
        assert vault.sweep(ALL) == (1, 2)
        assert b"".join(vault.read(kept)) == SECRET
        assert (len(files(tmp_path, "bodies")), files(tmp_path, "uploads")) == (1, [])
