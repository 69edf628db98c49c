"""Tiles: their paths, their widths, and bundles of records."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import BundleMalformedError, LogDamagedError, RecordTooLargeError
from domain.log.tiles import (
    ENTRIES,
    RECORD_BYTES_MAX,
    TILE_INDEX_MAX,
    Tile,
    bundles_of,
    decode_bundle,
    encode_bundle,
    entries_path,
    level_count,
    parse_tile_path,
    partial_width,
    tile_path,
    tile_root,
    tile_width,
    tiles_of,
)
from domain.log.tree import leaf_hashes
from tests.unit.log.reference import SlowTree

tiles = st.builds(Tile, st.integers(ENTRIES, 63), st.integers(0, TILE_INDEX_MAX), st.integers(1, 256))


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "tile"),
        [
            ("tile/0/000", Tile(0, 0)),
            ("tile/0/005", Tile(0, 5)),
            ("tile/63/x001/000", Tile(63, 1_000)),
            ("tile/1/x001/x234/067", Tile(1, 1_234_067)),
            ("tile/2/x001/x234/067.p/8", Tile(2, 1_234_067, 8)),
            ("tile/entries/999.p/255", Tile(ENTRIES, 999, 255)),
            ("tile/entries/x001/000", Tile(ENTRIES, 1_000)),
        ],
    )
    def test_a_path_is_read_and_written_as_the_standard_says(self, path, tile):
        assert parse_tile_path(path) == tile
        assert tile.path == path
        write = entries_path if tile.is_entries else lambda *rest: tile_path(tile.level, *rest)
        assert write(tile.index, tile.width) == path

    @given(tiles)
    def test_every_path_reads_back(self, tile):
        assert parse_tile_path(tile.path) == tile

    @pytest.mark.parametrize(
        "path",
        [
            "", "/tile/0/000", "tile/0/000/", "tile/0/000\n", " tile/0/000", "tile/00/000", "tile/01/000",
            "tile/64/000", "tile/-1/000", "tile/+1/000", "tile/0/1", "tile/0/01", "tile/0/0001",
            "tile/0/x001/1",
            "tile/0/x000/001", "tile/0/001/000", "tile/0/x001/x000", "tile/0/x1/000", "tile/0/x001",
            "tile/0/000.p/0",
            "tile/0/000.p/256", "tile/0/000.p/08", "tile/0/000.p/", "tile/0/000.p", "tile/0/000.p/1/",
            "tile/0/000.p/1000",
            "tile/8/0/000", "tile/data/000", "tile/Entries/000", "tile/entries/-01", "tile/٠/000",
            "tile/0/٠٠٠",
            "tile/0/x000/000", "tile/0/" + "x999/" * 6 + "999", "tile/0/" + "x001/" * 20 + "000",
            "checkpoint",
            "tile/0/..%2f", "tile/0/../0/000",
        ],
    )  # fmt: skip
    def test_any_other_spelling_is_nothing(self, path):
        assert parse_tile_path(path) is None

    @given(st.text(max_size=30) | st.from_regex(r"tile/[0-9a-z]{1,7}/[x0-9/.p]{1,12}"))
    @example("tile/0/000")
    def test_whatever_is_read_is_the_one_spelling(self, path):
        tile = parse_tile_path(path)
        assert tile is None or tile.path == path


class TestWidths:
    def test_the_tree_of_seventy_thousand_has_the_tiles_of_the_standard(self):
        # c2sp.org/tlog-tiles, Partial Tiles.
        by_level = {}
        for tile in tiles_of(70_000):
            by_level.setdefault(tile.level, []).append(tile)
        assert [len([t for t in by_level[level] if t.is_full]) for level in range(3)] == [273, 1, 0]
        assert [by_level[level][-1].width for level in range(3)] == [112, 17, 1]

    def test_the_tree_of_256_has_one_full_tile_and_one_hash_above(self):
        assert list(tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1)]
        assert list(bundles_of(256)) == [Tile(ENTRIES, 0)]

    def test_an_empty_tree_has_no_tiles(self):
        assert list(tiles_of(0)) == list(bundles_of(0)) == []
        assert level_count(0) == 0

    @given(st.integers(0, 200_000))
    def test_widths_add_up_to_the_size(self, size):
        for level in range(level_count(size)):
            mine = [tile for tile in tiles_of(size) if tile.level == level]
            assert sum(tile.width for tile in mine) == size >> 8 * level
            assert [tile.index for tile in mine] == list(range(len(mine)))
            assert all(tile_width(level, tile.index, size) == tile.width for tile in mine)
            assert tile_width(level, len(mine), size) == 0
            assert partial_width(level, size) == mine[-1].width % 256
        assert partial_width(level_count(size), size) == 0
        assert sum(tile.width for tile in bundles_of(size)) == size

    @given(st.integers(0, 100_000), st.integers(0, 2_000))
    def test_the_tiles_since_a_size_are_those_it_did_not_have(self, start, count):
        before = set(tiles_of(start))
        assert list(tiles_of(start + count, start)) == [t for t in tiles_of(start + count) if t not in before]

    def test_a_tile_knows_its_first_record(self):
        assert Tile(ENTRIES, 3).first_position == Tile(0, 3).first_position == 768
        assert Tile(1, 2).first_position == 2 * 65_536


class TestTileRoot:
    def test_a_full_tile_hashes_to_the_root_of_its_records(self):
        records = [b"%d" % i for i in range(256)]
        assert tile_root(b"".join(leaf_hashes(records))) == SlowTree(records).root(0, 256)

    @pytest.mark.parametrize("count", [0, 1, 255, 257])
    def test_a_partial_tile_has_none(self, count):
        with pytest.raises(LogDamagedError):
            tile_root(bytes(32 * count))


class TestBundles:
    @given(st.lists(st.binary(max_size=300), max_size=20))
    def test_a_bundle_reads_back(self, records):
        assert decode_bundle(encode_bundle(records)) == records

    def test_the_bytes_are_those_of_the_standard(self):
        assert encode_bundle([b"ab", b"", b"c" * 256]) == b"\x00\x02ab\x00\x00\x01\x00" + b"c" * 256

    def test_the_longest_record_fits_and_one_byte_more_does_not(self):
        longest = b"x" * RECORD_BYTES_MAX
        assert decode_bundle(encode_bundle([longest])) == [longest]
        with pytest.raises(RecordTooLargeError):
            encode_bundle([longest + b"x"])

    @given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.data())
    def test_a_bundle_cut_short_is_refused_or_ends_between_records(self, records, data):
        whole = encode_bundle(records)
        cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
        try:
            read = decode_bundle(cut)
        except BundleMalformedError:
            return
        assert read == records[: len(read)]
        assert encode_bundle(read) == cut

    def test_more_records_than_a_tile_is_wide_are_refused(self):
        assert len(decode_bundle(encode_bundle([b""] * 256))) == 256
        with pytest.raises(BundleMalformedError):
            decode_bundle(encode_bundle([b""] * 257))
