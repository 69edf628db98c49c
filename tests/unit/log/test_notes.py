"""Signed notes, checkpoints and cosignatures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import (
    CosignatureInvalidError,
    KeyMalformedError,
    NoteMalformedError,
    NoteUnverifiedError,
)
from domain.log.notes import (
    ED25519,
    ED25519_COSIGNATURE,
    ML_DSA_44_COSIGNATURE,
    Checkpoint,
    Cosigner,
    Signer,
    VerifierKey,
    add_signature_lines,
    check_cosignature,
    cosigned_message,
    is_key_name,
    key_id_of,
    open_checkpoint,
    open_note,
    parse_base64,
    parse_note,
    parse_signature_line,
    print_base64,
    print_signature_line,
    sign_note,
)
from domain.log.tree import EMPTY_ROOT

# The example of c2sp.org/signed-note, Verifier keys.
KNOWN_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
KNOWN_TEXT = "This is an example message.\n"
KNOWN_LINE = (
    "— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
KNOWN_NOTE = f"{KNOWN_TEXT}\n{KNOWN_LINE}".encode()

SIGNER = Signer("log.example/one", bytes(range(32)))
OTHER = Signer("log.example/two", bytes(range(1, 33)))
WITNESS = Cosigner("witness.example/w1", bytes(range(2, 34)))
SECOND_WITNESS = Cosigner("witness.example/w2", bytes(range(3, 35)))
HEAD = Checkpoint("log.example/one", 20_852_163, bytes(range(32)))

lines = st.text(st.characters(exclude_categories=["Cs"], min_codepoint=0x20), max_size=20)
note_texts = st.lists(lines, min_size=1, max_size=4).map(lambda parts: "\n".join(parts) + "\n")


def an_ml_dsa_key(name="pq.example/w"):
    return VerifierKey(name, ML_DSA_44_COSIGNATURE, bytes(1_312))


class TestKeys:
    def test_the_key_of_the_standard_is_read_and_written(self):
        key = VerifierKey.parse(KNOWN_KEY)
        assert (key.name, key.kind, key.key_id.hex()) == ("example.com/foo", ED25519, "530d903a")
        assert key.text == KNOWN_KEY

    def test_a_witness_key_in_use_has_the_id_its_type_gives(self):
        # github.com/transparency-dev/formats, note/note_cosigv1_test.go.
        key = VerifierKey.parse("remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2")
        assert (key.kind, key.can_verify) == (ED25519_COSIGNATURE, True)

    def test_a_post_quantum_key_is_read_but_cannot_verify(self):
        key = VerifierKey.parse(an_ml_dsa_key().text)
        assert key == an_ml_dsa_key()
        assert not key.can_verify
        assert not key.verifies("text\n", bytes(2_428))

    @pytest.mark.parametrize(
        "text",
        [
            "", "+", "++", "name", KNOWN_KEY[:-1], KNOWN_KEY + "=", KNOWN_KEY.replace("530d903a", "530d903b"),
            KNOWN_KEY.replace("530d903a", "530D903A"), KNOWN_KEY.replace("530d903a", "30d903a"),
            KNOWN_KEY.replace("example", "exam ple"), KNOWN_KEY.replace("foo", "f\u2003o"), " " + KNOWN_KEY,
            KNOWN_KEY + "\n", KNOWN_KEY.replace("Aeky", "Beky"), "n+00000000+", "\ud800" + KNOWN_KEY,
            "n+" + key_id_of("n", ED25519, bytes(31)).hex() + "+" + print_base64(bytes([1]) + bytes(31)),
            "n+" + key_id_of("n", 0x02, bytes(32)).hex() + "+" + print_base64(bytes([2]) + bytes(32)),
        ],
    )  # fmt: skip
    def test_a_damaged_key_is_refused(self, text):
        with pytest.raises(KeyMalformedError):
            VerifierKey.parse(text)

    @given(
        st.text(max_size=60) | st.from_regex(r"[a-z.]{1,5}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{8}", fullmatch=True)
    )
    def test_reading_a_key_raises_nothing_else(self, text):
        for read in (VerifierKey.parse, Signer.parse):
            with pytest.raises(KeyMalformedError):
                read(text)

    def test_a_name_holds_no_space_of_any_alphabet_and_no_plus(self):
        assert is_key_name("example.com/log42")
        assert is_key_name("прімер.example/лог")
        for name in ("", "a b", "a+b", "a\u00a0b", "a\u3000", "a\nb", "a\u2028b", "a\x00b", "\ud800"):
            assert not is_key_name(name)
            with pytest.raises(KeyMalformedError):
                Signer(name, bytes(32))

    def test_a_private_key_is_written_and_read_in_the_form_of_go(self):
        text = SIGNER.secret_text()
        assert text.startswith("PRIVATE+KEY+log.example/one+")
        assert Signer.parse(text).key == SIGNER.key
        assert Cosigner.parse(WITNESS.secret_text()).key == WITNESS.key

    def test_a_damaged_private_key_is_refused(self):
        text = SIGNER.secret_text()
        other_seed = OTHER.secret_text().rpartition("+")[2]
        for wrong in (
            text[1:],
            text[:-4],
            text.rpartition("+")[0] + "+" + other_seed,
            KNOWN_KEY,
            "PRIVATE+KEY+",
        ):
            with pytest.raises(KeyMalformedError):
                Signer.parse(wrong)
        with pytest.raises(KeyMalformedError):
            Signer("name", bytes(31))

    def test_a_signer_never_shows_its_seed(self):
        secret = SIGNER.secret_text().rpartition("+")[2]
        for shown in (repr(SIGNER), str(SIGNER), SIGNER.key.text):
            assert secret not in shown
            assert bytes(range(32)).hex() not in shown

    def test_one_seed_gives_two_ids_for_two_types(self):
        seed = bytes(32)
        assert Signer("n", seed).key.public == Cosigner("n", seed).key.public
        assert Signer("n", seed).key.key_id != Cosigner("n", seed).key.key_id


class TestNotes:
    def test_the_note_of_the_standard_is_opened(self):
        key = VerifierKey.parse(KNOWN_KEY)
        note = open_note(KNOWN_NOTE, [key])
        assert note.text == KNOWN_TEXT
        assert [verified.key for verified in note.verified] == [key]
        assert note.verified[0].time_s is None
        assert note.unknown == ()
        assert parse_note(KNOWN_NOTE).to_bytes() == KNOWN_NOTE

    @given(note_texts)
    def test_what_was_signed_opens_and_signing_again_gives_the_same_bytes(self, text):
        note = sign_note(text, SIGNER, OTHER)
        assert note == sign_note(text, Signer.parse(SIGNER.secret_text()), OTHER)
        opened = open_note(note, [OTHER.key, SIGNER.key])
        assert opened.text == text
        assert [verified.key for verified in opened.verified] == [SIGNER.key, OTHER.key]
        assert parse_note(note).to_bytes() == note

    def test_the_last_empty_line_parts_the_text_from_the_signatures(self):
        text = "first\n\nsecond\n\n\nthird\n\n"
        assert open_note(sign_note(text, SIGNER), [SIGNER.key]).text == text

    def test_unknown_keys_are_passed_over(self):
        note = sign_note("text\n", OTHER, SIGNER)
        opened = open_note(note, [SIGNER.key])
        assert [verified.key for verified in opened.verified] == [SIGNER.key]
        assert [signature.name for signature in opened.unknown] == [OTHER.name]

    def test_a_line_that_shares_only_name_or_only_id_with_a_known_key_is_unknown(self):
        other_id = print_signature_line(SIGNER.name, b"\x00\x01\x02\x03", bytes(64))
        other_name = print_signature_line("elsewhere", SIGNER.key.key_id, bytes(64))
        note = add_signature_lines(sign_note("text\n", SIGNER), [other_id, other_name])
        assert len(open_note(note, [SIGNER.key]).unknown) == 2

    def test_a_wrong_signature_of_a_known_key_spoils_the_note(self):
        note = add_signature_lines(sign_note("text\n", SIGNER), [OTHER.signature_line("other\n")])
        open_note(note, [SIGNER.key])
        with pytest.raises(NoteUnverifiedError):
            open_note(note, [SIGNER.key, OTHER.key])

    def test_a_note_no_known_key_signed_is_refused(self):
        for known in ([], [OTHER.key], [an_ml_dsa_key()]):
            with pytest.raises(NoteUnverifiedError):
                open_note(sign_note("text\n", SIGNER), known)

    def test_a_post_quantum_line_counts_as_unknown_even_for_a_known_key(self):
        key = an_ml_dsa_key()
        line = print_signature_line(key.name, key.key_id, bytes(2_428))
        opened = open_note(add_signature_lines(sign_note("text\n", SIGNER), [line]), [SIGNER.key, key])
        assert [signature.name for signature in opened.unknown] == [key.name]

    def test_every_flipped_bit_of_a_note_is_found(self):
        note = sign_note("text of a note\n", SIGNER)
        for at in range(len(note)):
            for bit in range(8):
                spoiled = note[:at] + bytes([note[at] ^ 1 << bit]) + note[at + 1 :]
                with pytest.raises((NoteMalformedError, NoteUnverifiedError)):
                    open_note(spoiled, [SIGNER.key])

    def test_sixteen_signatures_and_a_hundred_are_read_but_no_more(self):
        line = print_signature_line("w", b"\x00\x00\x00\x01", b"x")
        for count in (1, 16, 99):
            opened = open_note(sign_note("text\n", SIGNER) + (line * count).encode(), [SIGNER.key])
            assert len(opened.unknown) == count
        with pytest.raises(NoteMalformedError):
            parse_note(("text\n\n" + line * 101).encode())

    def test_a_note_longer_than_a_million_bytes_is_refused(self):
        room = 1_000_000 - len(sign_note("\n", SIGNER))
        parse_note(sign_note("x" * room + "\n", SIGNER))
        with pytest.raises(NoteMalformedError):
            parse_note(sign_note("x" * (room + 1) + "\n", SIGNER))

    @pytest.mark.parametrize(
        "note",
        [
            b"", b"\n", b"\n\n", b"text\n",
            b"text\n\n", KNOWN_TEXT.encode(), KNOWN_NOTE[:-1], KNOWN_NOTE + b"\n",
            KNOWN_NOTE + b"x", KNOWN_NOTE.replace(b"\n", b"\r\n"), KNOWN_NOTE.replace(b"example message",
            b"ex\tmple"),
            KNOWN_NOTE.replace(b"message", b"\xff"), KNOWN_NOTE.replace(b"message", b"\xed\xa0\x80"),
            KNOWN_NOTE.replace(b"\x00", b""). replace(b"This", b"\x00"), b"text\n\n- name AAAAAAAA\n",
            "text\n\n—name AAAAAAAA\n".encode(), "text\n\n— name\n".encode(), "text\n\n— name \n".encode(),
            "text\n\n— name AAAAAA==\n".encode(), "text\n\n— name AAAAAAB=\n".encode(),
            "text\n\n— na+me AAAAAAA=\n".encode(),
            "text\n\n— name AAAAAAA= \n".encode(), "text\n\n—  AAAAAAA=\n".encode(),
            "text\n\n— na\u00a0me AAAAAAA=\n".encode(),
            "text\n\n— name AAAAAAA\n".encode(), "text\n\n— name AA-_AAA=\n".encode(),
            "\n— name AAAAAAA=\n".encode(),
        ],
    )  # fmt: skip
    def test_what_is_no_note_is_refused(self, note):
        with pytest.raises(NoteMalformedError):
            parse_note(note)

    @given(
        st.binary(max_size=80) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
    )
    def test_reading_raises_nothing_else(self, note):
        try:
            parsed = parse_note(note)
        except NoteMalformedError:
            return
        assert parsed.to_bytes() == note

    @given(st.data())
    def test_a_note_with_a_wound_is_read_or_refused_and_nothing_else(self, data):
        note = bytearray(sign_note("a\n\nb\n", SIGNER, OTHER))
        for _ in range(data.draw(st.integers(1, 3))):
            note[data.draw(st.integers(0, len(note) - 1))] = data.draw(st.integers(0, 255))
        try:
            parsed = parse_note(bytes(note))
        except NoteMalformedError:
            return
        assert parsed.to_bytes() == bytes(note)

    @pytest.mark.parametrize("text", ["", "text", "te\txt\n", "te\rxt\n", "te\x00xt\n", "\ud800\n"])
    def test_a_text_that_is_none_is_not_signed(self, text):
        with pytest.raises(NoteMalformedError):
            sign_note(text, SIGNER)

    @given(st.binary(max_size=40))
    def test_base64_has_one_spelling(self, data):
        assert parse_base64(print_base64(data)) == data
        assert parse_base64(print_base64(data) + "\n") is None

    def test_a_signature_line_reads_back(self):
        signature = parse_signature_line(KNOWN_LINE.removesuffix("\n"))
        assert signature.line == KNOWN_LINE
        with pytest.raises(NoteMalformedError):
            parse_signature_line(KNOWN_LINE)


class TestCheckpoints:
    def test_the_text_is_origin_size_and_root(self):
        assert HEAD.text == "log.example/one\n20852163\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
        empty = Checkpoint("log.example/one", 0, EMPTY_ROOT)
        assert empty.text == "log.example/one\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"

    @given(st.integers(0, 2**63 - 1), st.binary(min_size=32, max_size=32))
    def test_a_checkpoint_reads_back(self, size, root):
        head = Checkpoint("log.example/one", size, root)
        assert Checkpoint.parse(head.text) == head

    @pytest.mark.parametrize(
        "text",
        [
            "", "\n\n\n", HEAD.text[:-1], HEAD.text + "\n", HEAD.text + "extension\n", "\n" + HEAD.text,
            HEAD.text.replace("\n2", "\n02"), HEAD.text.replace("\n2", "\n-2"), HEAD.text.replace("\n2",
            "\n+2"),
            HEAD.text.replace("\n2", "\n 2"), HEAD.text.replace("20852163", "9223372036854775808"),
            HEAD.text.replace("20852163", ""), HEAD.text.replace("20852163",
            "٣"), HEAD.text.replace("20852163", "1_000"),
            HEAD.text.replace("=", ""), HEAD.text.replace("h8=", "h9="), HEAD.text.replace("AAEC", ""),
            HEAD.text.replace("log", "l og"), HEAD.text.replace("log",
            "l+og"), HEAD.text.replace("log.example/one", ""),
        ],
    )  # fmt: skip
    def test_any_other_text_is_refused(self, text):
        with pytest.raises(NoteMalformedError):
            Checkpoint.parse(text)

    def test_the_log_signs_under_its_origin_only(self):
        opened, note = open_checkpoint(HEAD.sign(SIGNER), [SIGNER.key])
        assert opened == HEAD
        assert note.text == HEAD.text
        with pytest.raises(NoteMalformedError):
            HEAD.sign(OTHER)

    def test_signing_the_same_head_again_gives_the_same_bytes(self):
        assert HEAD.sign(SIGNER) == HEAD.sign(Signer(SIGNER.name, bytes(range(32))))

    def test_a_witness_alone_does_not_make_a_checkpoint(self):
        note = (HEAD.text + "\n" + WITNESS.cosignature_line(HEAD.text, 1)).encode()
        with pytest.raises(NoteUnverifiedError):
            open_checkpoint(note, [SIGNER.key, WITNESS.key])

    def test_a_witness_named_like_the_log_is_not_the_log(self):
        namesake = Cosigner(HEAD.origin, bytes(range(9, 41)))
        note = (HEAD.text + "\n" + namesake.cosignature_line(HEAD.text, 1)).encode()
        with pytest.raises(NoteUnverifiedError):
            open_checkpoint(note, [SIGNER.key, namesake.key])

    def test_another_log_cannot_sign_for_the_origin(self):
        with pytest.raises(NoteUnverifiedError):
            open_checkpoint(sign_note(HEAD.text, OTHER), [SIGNER.key, OTHER.key])


class TestCosignatures:
    def test_the_message_is_that_of_the_standard(self):
        # c2sp.org/tlog-cosignature, Ed25519 signed message.
        text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        assert cosigned_message(text, 1_679_315_147) == (
            b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
            b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        )

    @given(st.integers(0, 2**63 - 1))
    def test_a_cosignature_states_its_time(self, time_s):
        line = WITNESS.cosignature_line(HEAD.text, time_s)
        assert check_cosignature(HEAD.text, line, [SECOND_WITNESS.key, WITNESS.key]).time_s == time_s

    def test_cosigned_checkpoints_open_with_and_without_the_witnesses(self):
        cosigners = [WITNESS, SECOND_WITNESS]
        note = add_signature_lines(HEAD.sign(SIGNER), [w.cosignature_line(HEAD.text, 7) for w in cosigners])
        assert len(open_note(note, [SIGNER.key]).unknown) == 2
        _, opened = open_checkpoint(note, [SIGNER.key, WITNESS.key, SECOND_WITNESS.key])
        assert [verified.time_s for verified in opened.verified] == [None, 7, 7]

    def test_a_cosignature_over_anything_else_is_refused(self):
        good = WITNESS.cosignature_line(HEAD.text, 7)
        signature = parse_signature_line(good[:-1])
        later = signature._replace(payload=(8).to_bytes(8, "big") + signature.payload[8:])
        shorter = signature._replace(payload=signature.payload[:-1])
        beyond = signature._replace(payload=b"\xff" + signature.payload[1:])
        other = WITNESS.cosignature_line(HEAD._replace(size=5).text, 7)
        for line in (later.line, shorter.line, beyond.line, other):
            with pytest.raises(CosignatureInvalidError):
                check_cosignature(HEAD.text, line, [WITNESS.key])

    def test_a_cosignature_of_a_stranger_is_refused(self):
        line = SECOND_WITNESS.cosignature_line(HEAD.text, 7)
        for known in ([], [WITNESS.key], [Signer(SECOND_WITNESS.name, bytes(range(3, 35))).key]):
            with pytest.raises(CosignatureInvalidError):
                check_cosignature(HEAD.text, line, known)

    def test_a_plain_signature_is_no_cosignature(self):
        with pytest.raises(CosignatureInvalidError):
            check_cosignature(HEAD.text, SIGNER.signature_line(HEAD.text), [SIGNER.key])

    def test_a_time_beyond_the_bound_does_not_verify(self):
        time_s = 2**63
        signature = WITNESS.sign(cosigned_message(HEAD.text, time_s))
        line = print_signature_line(WITNESS.name, WITNESS.key.key_id, time_s.to_bytes(8, "big") + signature)
        with pytest.raises(CosignatureInvalidError):
            check_cosignature(HEAD.text, line, [WITNESS.key])

    @pytest.mark.parametrize("line", ["", "text", "— name", "— name !!!!", "two\nlines"])
    def test_what_is_no_line_is_refused(self, line):
        with pytest.raises(NoteMalformedError):
            check_cosignature(HEAD.text, line, [WITNESS.key])
