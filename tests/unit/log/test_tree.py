"""The Merkle tree: growth, roots and proofs, against a slow tree that shares no code with it."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.errors import LedgerError, LogDamagedError, ProofInvalidError, TreeSizeInvalidError
from domain.log.tiles import TILE_BYTES, Tile, tiles_of
from domain.log.tree import (
    EMPTY_ROOT,
    Frontier,
    Prover,
    Tree,
    consistency_proof,
    consistency_tiles,
    inclusion_proof,
    inclusion_tiles,
    leaf_hash,
    leaf_hashes,
    node_hash,
    root_from_tiles,
    verify_consistency,
    verify_inclusion,
)
from tests.unit.log.reference import SlowTree

EXHAUSTIVE = 300
RECORDS = [b"record %d" % i for i in range(70_000)]
LEAVES = leaf_hashes(RECORDS)
SLOW = SlowTree(RECORDS)

# Leaf inputs and roots of sizes 0..8: github.com/transparency-dev/merkle, testonly/constants.go, which has
# them from the Certificate Transparency tests.
KNOWN_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
KNOWN_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]  # fmt: skip


def grow(batches):
    """Grow a tree batch by batch; give it and a reader of the tiles it handed out."""
    tree, store = Tree(), {}
    start = 0
    for count in batches:
        tree, full_tiles = tree.extend(LEAVES[start : start + count])
        store.update({(tile.level, tile.index): tile.hashes for tile in full_tiles})
        start += count
    partial = {(tile.level, tile.index): hashes for tile, hashes in tree.partial_tiles()}

    def read_tile(level, index, width):
        found = store.get((level, index)) or partial[level, index]
        assert len(found) >= width * 32
        return found[: width * 32]

    return tree, read_tile


@pytest.fixture(scope="module")
def small():
    return grow([EXHAUSTIVE])


@pytest.fixture(scope="module")
def large():
    return grow([1, 255, 256, 1_000, 65_536 - 1_512, 4_464])


class TestGrowth:
    def test_the_well_known_roots_are_reproduced(self):
        tree = Tree()
        assert tree.root() == EMPTY_ROOT == bytes.fromhex(KNOWN_ROOTS[0])
        for record, root in zip(KNOWN_LEAVES, KNOWN_ROOTS[1:], strict=True):
            tree = tree.extend([leaf_hash(bytes.fromhex(record))]).tree
            assert tree.root() == bytes.fromhex(root)

    def test_every_small_tree_has_the_root_of_the_slow_one(self, small):
        tree = Tree()
        _, read_tile = small
        for size in range(1, EXHAUSTIVE + 1):
            tree = tree.extend(LEAVES[size - 1 : size]).tree
            expected = SLOW.root(0, size)
            assert (tree.size, tree.root()) == (size, expected)
            assert Tree().extend(LEAVES[:size]).tree == tree
            assert root_from_tiles(size, read_tile) == expected

    @given(st.lists(st.integers(0, 700), max_size=6))
    def test_the_cut_into_batches_leaves_no_trace(self, batches):
        tree, _ = grow(batches)
        whole, _ = grow([sum(batches)])
        assert tree == whole
        assert tree.root() == SLOW.root(0, sum(batches))

    def test_a_tree_never_changes_in_place(self):
        tree, _ = grow([257])
        before = (tree.size, tree.root(), tree.edge, tree.frontier.to_bytes())
        first, second = tree.extend(LEAVES[257:600]), tree.extend(LEAVES[:343])
        assert (tree.size, tree.root(), tree.edge, tree.frontier.to_bytes()) == before
        assert first.tree.root() != second.tree.root()
        assert tree.extend([]) == (tree, [])

    def test_full_tiles_are_handed_out_once_and_hold_what_the_standard_says(self):
        tree, given_out = Tree(), []
        for start in range(0, 70_000, 777):
            tree, full_tiles = tree.extend(LEAVES[start : start + 777])
            given_out.extend(full_tiles)
        names = [(tile.level, tile.index) for tile in given_out]
        assert len(set(names)) == len(names)
        assert set(names) == {(tile.level, tile.index) for tile in tiles_of(70_000) if tile.is_full}
        for tile in given_out:
            assert len(tile.hashes) == TILE_BYTES
            assert tile.hashes == SLOW.tile(tile.level, tile.index, 256)

    @pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 70_000])
    def test_partial_tiles_are_those_of_the_standard(self, size):
        tree, _ = grow([size])
        partial = dict(tree.partial_tiles())
        assert list(partial) == [tile for tile in tiles_of(size) if not tile.is_full]
        for tile, hashes in partial.items():
            assert hashes == SLOW.tile(tile.level, tile.index, tile.width)

    @given(st.integers(0, 70_000))
    def test_a_tree_is_rebuilt_from_its_partial_tiles(self, size):
        tree, _ = grow([size])
        rebuilt = Tree.from_edge(size, tree.edge)
        assert rebuilt == tree
        assert rebuilt.extend(LEAVES[:300]) == tree.extend(LEAVES[:300])

    def test_partial_tiles_of_another_size_are_refused(self):
        tree, _ = grow([300])
        spoiled = [
            (301, tree.edge), (300, tree.edge[:1]), (300, (*tree.edge, b"")), (0, tree.edge), (-1, ()),
            (300, (tree.edge[0][:-32], tree.edge[1])), (300, (tree.edge[0] + b"x", tree.edge[1])),
        ]  # fmt: skip
        for size, edge in spoiled:
            with pytest.raises(LogDamagedError):
                Tree.from_edge(size, edge)

    @given(st.integers(0, 3_000))
    def test_a_frontier_survives_writing_and_reading(self, size):
        frontier = grow([size])[0].frontier
        assert Frontier.from_bytes(frontier.to_bytes()) == frontier
        assert Frontier.of(size, frontier.peaks) == frontier
        assert len(frontier.peaks) == size.bit_count()

    def test_a_spoiled_frontier_is_refused(self):
        data = grow([300])[0].frontier.to_bytes()
        for spoiled in (b"", data[:-1], data[:-32], data + bytes(32), b"\xff" + data[1:], data[:7]):
            with pytest.raises(LogDamagedError):
                Frontier.from_bytes(spoiled)

    def test_a_leaf_cannot_pass_for_a_node(self):
        left, right = LEAVES[:2]
        assert leaf_hash(left + right) != node_hash(left, right)


def spoiled_ways(proof):
    """Give each way to spoil a proof: each hash changed, removed, doubled; the ends lengthened; two swapped."""
    for at, element in enumerate(proof):
        yield [*proof[:at], bytes([element[0] ^ 1]) + element[1:], *proof[at + 1 :]]
        yield [*proof[:at], *proof[at + 1 :]]
        yield [*proof[:at], element, *proof[at:]]
        yield [*proof[:at], element[:-1], *proof[at + 1 :]]
    yield [*proof, bytes(32)]
    yield [bytes(32), *proof]
    if len(proof) > 1:
        yield [proof[1], proof[0], *proof[2:]]


class TestInclusion:
    def test_every_proof_of_every_small_tree_is_that_of_the_standard(self, small):
        _, read_tile = small
        for size in [*range(1, 70), 127, 128, 129, 255, 256, 257, 299, 300]:
            root = SLOW.root(0, size)
            for position in range(size):
                proof = inclusion_proof(position, size, read_tile)
                assert proof == SLOW.path(position, 0, size)
                verify_inclusion(LEAVES[position], position, size, proof, root)

    def test_each_hash_spoiled_once_is_found(self, small):
        _, read_tile = small
        for size in [*range(1, 34), 300]:
            root = SLOW.root(0, size)
            for position in range(0, size, 1 + size // 34):
                proof = inclusion_proof(position, size, read_tile)
                for spoiled in spoiled_ways(proof):
                    with pytest.raises(ProofInvalidError):
                        verify_inclusion(LEAVES[position], position, size, spoiled, root)
                with pytest.raises(ProofInvalidError):
                    verify_inclusion(LEAVES[position + 1], position, size, proof, root)
                with pytest.raises(ProofInvalidError):
                    verify_inclusion(LEAVES[position], position, size, proof, SLOW.root(0, size + 1))
                with pytest.raises(LedgerError):
                    verify_inclusion(LEAVES[position], position + 1, size, proof, root)

    @given(st.data())
    def test_proofs_of_large_trees_are_those_of_the_standard(self, large, data):
        size = data.draw(st.integers(1, 70_000))
        position = data.draw(st.integers(0, size - 1))
        proof = inclusion_proof(position, size, large[1])
        assert proof == SLOW.path(position, 0, size)
        verify_inclusion(LEAVES[position], position, size, proof, SLOW.root(0, size))

    @given(st.data())
    def test_the_tiles_named_before_are_the_tiles_read(self, large, data):
        size = data.draw(st.integers(1, 70_000))
        position = data.draw(st.integers(0, size - 1))
        read = []

        def read_tile(level, index, width):
            read.append(Tile(level, index, width))
            return large[1](level, index, width)

        inclusion_proof(position, size, read_tile)
        named = inclusion_tiles(position, size)
        assert sorted(read) == named
        assert len(named) <= 2 * 3

    def test_a_proof_ends_exactly_at_the_root_of_the_stated_size(self, small):
        proof = inclusion_proof(0, 4, small[1])
        for size in (1, 2, 5, 8, 256):
            with pytest.raises(ProofInvalidError):
                verify_inclusion(LEAVES[0], 0, size, proof, SLOW.root(0, 4))
        # The way from the last leaf of eight passes the place of the last leaf of four and goes on.
        with pytest.raises(ProofInvalidError):
            verify_inclusion(LEAVES[7], 3, 4, inclusion_proof(7, 8, small[1]), SLOW.root(0, 8))

    def test_hashes_of_another_length_are_refused_even_where_the_joined_bytes_agree(self):
        left, right = LEAVES[:2]
        root = node_hash(left, right)
        verify_inclusion(left, 0, 2, [right], root)
        with pytest.raises(ProofInvalidError):
            verify_inclusion(left[:-1], 0, 2, [left[-1:] + right], root)
        with pytest.raises(ProofInvalidError):
            verify_inclusion(b"", 0, 1, [], b"")

    @pytest.mark.parametrize(("position", "size"), [(0, 0), (5, 5), (6, 5), (-1, 5), (0, 2**63)])
    def test_a_position_outside_the_tree_is_refused(self, small, position, size):
        with pytest.raises(TreeSizeInvalidError):
            inclusion_proof(position, size, small[1])
        with pytest.raises(TreeSizeInvalidError):
            inclusion_tiles(position, size)
        with pytest.raises(TreeSizeInvalidError):
            verify_inclusion(LEAVES[0], position, size, [], LEAVES[0])

    def test_a_tile_of_the_wrong_width_is_damage(self, small):
        with pytest.raises(LogDamagedError):
            inclusion_proof(3, 300, lambda *name: small[1](*name)[:-32])


class TestManyProofs:
    @given(st.data())
    def test_of_one_tree_are_the_proofs_one_by_one(self, large, data):
        size = data.draw(st.integers(1, len(LEAVES)))
        prover = Prover(size, large[1])
        for position in data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)):
            assert prover.prove(position) == inclusion_proof(position, size, large[1])

    def test_go_on_when_what_they_share_is_forgotten(self, large, monkeypatch):
        monkeypatch.setattr("domain.log.tree.SHARED_HASHES_MAX", 50)
        prover = Prover(70_000, large[1])
        for position in range(0, 70_000, 1_777):
            assert prover.prove(position) == SLOW.path(position, 0, 70_000)

    def test_of_a_position_outside_the_tree_are_refused(self, large):
        with pytest.raises(TreeSizeInvalidError):
            Prover(5, large[1]).prove(5)


class TestConsistency:
    def test_every_proof_between_small_trees_is_that_of_the_standard(self, small):
        _, read_tile = small
        sizes = [*range(1, 40), 63, 64, 65, 127, 128, 129, 255, 256, 257, 299, 300]
        for at, size2 in enumerate(sizes):
            for size1 in sizes[: at + 1]:
                proof = consistency_proof(size1, size2, read_tile)
                assert proof == SLOW.consistency(size1, 0, size2)
                verify_consistency(size1, SLOW.root(0, size1), size2, SLOW.root(0, size2), proof)

    def test_every_prefix_of_three_hundred_leads_to_three_hundred(self, small):
        root = SLOW.root(0, EXHAUSTIVE)
        for size in range(1, EXHAUSTIVE + 1):
            proof = consistency_proof(size, EXHAUSTIVE, small[1])
            verify_consistency(size, SLOW.root(0, size), EXHAUSTIVE, root, proof)

    def test_each_hash_spoiled_once_is_found(self, small):
        _, read_tile = small
        for size2 in [*range(1, 18), 300]:
            for size1 in range(1, size2 + 1, 1 + size2 // 18):
                proof = consistency_proof(size1, size2, read_tile)
                root1, root2 = SLOW.root(0, size1), SLOW.root(0, size2)
                for spoiled in spoiled_ways(proof):
                    with pytest.raises(ProofInvalidError):
                        verify_consistency(size1, root1, size2, root2, spoiled)
                for wrong1, wrong2 in ((bytes(32), root2), (root1, bytes(32)), (root2, bytes(32))):
                    with pytest.raises(ProofInvalidError):
                        verify_consistency(size1, wrong1, size2, wrong2, proof)

    @given(st.data())
    def test_proofs_between_large_trees_are_those_of_the_standard(self, large, data):
        size2 = data.draw(st.integers(1, 70_000))
        size1 = data.draw(st.integers(1, size2))
        proof = consistency_proof(size1, size2, large[1])
        assert proof == SLOW.consistency(size1, 0, size2)
        verify_consistency(size1, SLOW.root(0, size1), size2, SLOW.root(0, size2), proof)

    @given(st.data())
    def test_the_tiles_named_before_are_the_tiles_read(self, large, data):
        size2 = data.draw(st.integers(1, 70_000))
        size1 = data.draw(st.integers(0, size2))
        read = []

        def read_tile(level, index, width):
            read.append(Tile(level, index, width))
            return large[1](level, index, width)

        consistency_proof(size1, size2, read_tile)
        assert sorted(read) == consistency_tiles(size1, size2)

    def test_a_proof_ends_exactly_at_the_root_of_the_stated_size(self, small):
        proof = consistency_proof(2, 8, small[1])
        for size in (3, 4, 9, 16, 256):
            with pytest.raises(ProofInvalidError):
                verify_consistency(2, SLOW.root(0, 2), size, SLOW.root(0, 8), proof)
        # The way from seven to eight passes that from three to four and goes on.
        with pytest.raises(ProofInvalidError):
            verify_consistency(3, SLOW.root(0, 7), 4, SLOW.root(0, 8), consistency_proof(7, 8, small[1]))

    def test_hashes_of_another_length_are_refused_even_where_the_joined_bytes_agree(self, small):
        root1, root2 = SLOW.root(0, 2), SLOW.root(0, 4)
        (right,) = consistency_proof(2, 4, small[1])
        verify_consistency(2, root1, 4, root2, [right])
        with pytest.raises(ProofInvalidError):
            verify_consistency(2, root1[:-1], 4, root2, [root1[-1:] + right])

    def test_everything_extends_nothing_but_nothing_verifies_nothing(self, small):
        assert consistency_proof(0, 300, small[1]) == []
        with pytest.raises(TreeSizeInvalidError):
            verify_consistency(0, EMPTY_ROOT, 300, SLOW.root(0, 300), [])

    @pytest.mark.parametrize(("size1", "size2"), [(2, 1), (-1, 1), (1, 2**63)])
    def test_sizes_the_wrong_way_round_are_refused(self, small, size1, size2):
        with pytest.raises(TreeSizeInvalidError):
            consistency_proof(size1, size2, small[1])
        with pytest.raises(TreeSizeInvalidError):
            verify_consistency(size1, LEAVES[0], size2, LEAVES[0], [])

    def test_one_size_with_two_roots_is_refused(self):
        verify_consistency(5, LEAVES[0], 5, LEAVES[0], [])
        with pytest.raises(ProofInvalidError):
            verify_consistency(5, LEAVES[0], 5, LEAVES[1], [])
        with pytest.raises(ProofInvalidError):
            verify_consistency(5, LEAVES[0], 5, LEAVES[0], [LEAVES[1]])


def decoded(value):
    return [base64.b64decode(element) for element in value or []]


def verdict(check, *args):
    try:
        check(*args)
    except (ProofInvalidError, TreeSizeInvalidError):
        return False
    return True


class TestPublishedProofs:
    def test_all_published_inclusion_proofs_are_judged_as_published(self, shared_dir):
        files = sorted((shared_dir / "data" / "merkle" / "inclusion").rglob("*.json"))
        assert len(files) == 98
        for file in files:
            case = json.loads(file.read_text())
            leaf, root = decoded([case["leafHash"], case["root"]])
            good = verdict(
                verify_inclusion, leaf, case["leafIdx"], case["treeSize"], decoded(case["proof"]), root
            )
            assert good is not case["wantErr"], file.name

    def test_all_published_consistency_proofs_are_judged_as_published(self, shared_dir):
        files = sorted((shared_dir / "data" / "merkle" / "consistency").rglob("*.json"))
        assert len(files) == 98
        from_nothing = 0
        for file in files:
            case = json.loads(file.read_text())
            root1, root2 = decoded([case["root1"], case["root2"]])
            sizes = case["size1"], case["size2"]
            good = verdict(verify_consistency, sizes[0], root1, sizes[1], root2, decoded(case["proof"]))
            assert good is not case["wantErr"], file.name
            from_nothing += sizes[0] == 0
        assert from_nothing >= 3
