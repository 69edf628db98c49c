"""Proof files: one record's place in the log, provable offline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import (
    LedgerError,
    NoteMalformedError,
    NoteUnverifiedError,
    ProofInvalidError,
    ProofMalformedError,
    QuorumMissingError,
    TreeSizeInvalidError,
)
from domain.log.notes import Checkpoint, Cosigner, Signer, add_signature_lines
from domain.log.policies import parse_policy
from domain.log.proof_files import ProofFile, make_proof_file, parse_proof_file, verify_proof_file
from domain.log.tree import Tree, inclusion_proof, leaf_hashes

LOG = Signer("log.example/one", bytes(range(32)))
WITNESS = Cosigner("w.example", bytes(range(5, 37)))
RECORDS = [b"record %d" % i for i in range(400)]
TREE, _FULL = Tree().extend(leaf_hashes(RECORDS))
TILES = {(0, 0): _FULL[0].hashes} | {
    (tile.level, tile.index): hashes for tile, hashes in TREE.partial_tiles()
}
HEAD = Checkpoint(LOG.name, TREE.size, TREE.root())
COSIGNED = add_signature_lines(HEAD.sign(LOG), [WITNESS.cosignature_line(HEAD.text, 1_700_000_000)])
POLICY = parse_policy(f"log {LOG.key.text}\nwitness w {WITNESS.key.text}\nquorum w\n".encode())


def a_proof(position=273, note=COSIGNED):
    siblings = inclusion_proof(
        position, TREE.size, lambda level, index, width: TILES[level, index][: width * 32]
    )
    return make_proof_file(position, siblings, note)


class TestFormat:
    def test_the_file_has_the_lines_of_the_standard(self):
        proof = a_proof()
        lines = proof.to_bytes().decode().split("\n")
        assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 273"]
        assert lines[2 + len(proof.siblings)] == ""
        assert proof.to_bytes().endswith(b"\n\n" + COSIGNED)

    @given(st.none() | st.binary(max_size=50), st.integers(0, 2**63 - 1), st.integers(0, 63))
    def test_a_file_reads_back(self, extra, position, sibling_count):
        proof = ProofFile(position, tuple(bytes([n] * 32) for n in range(sibling_count)), COSIGNED, extra)
        assert parse_proof_file(proof.to_bytes()) == proof

    def test_a_tree_of_one_needs_no_hashes(self):
        tree = Tree().extend(leaf_hashes(RECORDS[:1])).tree
        note = Checkpoint(LOG.name, 1, tree.root()).sign(LOG)
        policy = parse_policy(f"log {LOG.key.text}\nquorum none".encode())
        data = make_proof_file(0, [], note).to_bytes()
        assert data.startswith(b"c2sp.org/tlog-proof@v1\nindex 0\n\nlog.example/one\n")
        assert verify_proof_file(data, RECORDS[0], policy).is_satisfied

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"proof@v1", b"proof@v2"), (b"index 273", b"index 0273"), (b"index 273", b"index -1"),
            (b"index 273", b"index"), (b"index 273\n", b""), (b"index 273", b"index  273"),
            (b"index 273", b"index 9223372036854775808"), (b"index 273", b"index 273\nextra AAAA"),
            (b"index 273", b"extra !\nindex 273"), (b"index 273", b"extra AAAA\nextra AAAA\nindex 273"),
            (b"index 273", b"index 273\nAAAA"), (b"index 273", b"index 273\n" + b"A" * 43 + b"="),
            (b"index 273", b"index 273\n\n"), (b"index 273", "index ٢".encode()), (b"c2sp", b"\nc2sp"),
            (b"\n\nlog.example", b"\nlog.example"), (b"\n", b"\r\n"), (b"\n400\n", b"\n0400\n"),
        ],
    )  # fmt: skip
    def test_any_other_form_is_refused_or_fails(self, old, new):
        data = a_proof().to_bytes()
        assert old in data
        with pytest.raises(LedgerError) as refusal:
            verify_proof_file(data.replace(old, new), RECORDS[273], POLICY)
        allowed = (ProofMalformedError, ProofInvalidError)
        assert isinstance(refusal.value, allowed)

    def test_hashes_of_another_length_are_refused(self):
        for sibling in (bytes(31), bytes(33), b""):
            with pytest.raises(ProofMalformedError):
                parse_proof_file(ProofFile(0, (bytes(32), sibling), COSIGNED).to_bytes())

    def test_too_many_hashes_are_refused(self):
        with pytest.raises(ProofMalformedError):
            parse_proof_file(ProofFile(0, (bytes(32),) * 64, COSIGNED).to_bytes())

    @given(
        st.binary(max_size=100) | st.text(max_size=60).map(lambda t: b"c2sp.org/tlog-proof@v1\n" + t.encode())
    )
    def test_reading_raises_nothing_else(self, data):
        with pytest.raises(ProofMalformedError):
            parse_proof_file(data)

    @given(st.data())
    def test_a_wounded_file_is_read_or_refused_and_nothing_else(self, data):
        wounded = bytearray(a_proof().to_bytes())
        wounded[data.draw(st.integers(0, len(wounded) - 1))] = data.draw(st.integers(0, 255))
        try:
            proof = parse_proof_file(bytes(wounded))
        except ProofMalformedError:
            return
        assert proof.to_bytes() == bytes(wounded)

    def test_a_receipt_needs_a_checkpoint(self):
        with pytest.raises(NoteMalformedError):
            make_proof_file(0, [], b"hello")


class TestVerification:
    def test_every_record_is_proven(self):
        for position in [0, 1, 255, 256, 273, 399]:
            verdict = verify_proof_file(a_proof(position).to_bytes(), RECORDS[position], POLICY)
            assert verdict.checkpoint == HEAD
            assert verdict.cosigned == ("w",)

    def test_extra_data_proves_and_spoils_nothing(self):
        proof = a_proof()
        extended = ProofFile(proof.position, proof.siblings, proof.checkpoint_note, b"anything")
        assert verify_proof_file(extended, RECORDS[273], POLICY).is_satisfied

    def test_another_record_is_not_proven(self):
        with pytest.raises(ProofInvalidError):
            verify_proof_file(a_proof(), RECORDS[274], POLICY)

    def test_a_position_beyond_the_head_is_refused(self):
        proof = a_proof()
        with pytest.raises(TreeSizeInvalidError):
            verify_proof_file(ProofFile(400, proof.siblings, COSIGNED), RECORDS[273], POLICY)

    def test_a_missing_witness_is_named(self):
        with pytest.raises(QuorumMissingError) as refusal:
            verify_proof_file(a_proof(note=HEAD.sign(LOG)), RECORDS[273], POLICY)
        assert refusal.value.facts == {"cosigned": [], "missing": ["w"]}

    def test_every_flipped_bit_outside_the_extra_data_is_found(self):
        data = a_proof().to_bytes()
        for at in range(len(data)):
            spoiled = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
            with pytest.raises(
                (ProofMalformedError, NoteUnverifiedError, QuorumMissingError, ProofInvalidError)
            ):
                verify_proof_file(spoiled, RECORDS[273], POLICY)
