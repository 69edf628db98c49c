"""The catalogue of personas: found by words and facets, in pages, with every facet counted over all that was found.

Rows and words lie in PostgreSQL, written by the commit itself (migrations/postgres/0006_catalogue.sql), and every page
is read there. What carries which facet is kept in memory besides (`catalogue_facets`), brought up to date before each
answer: counting is then a matter of bits, however many personas a search finds.
"""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from domain.errors import InvalidCursorError, UnavailableError
from ops import telemetry
from ops.catalogue_facets import Bits, FacetBits, array_of, count, keys_of
from ops.postgres import reading

log = telemetry.logger(__name__)

VALUES_MAX = 50
# Words that many personas say are kept as bits, 12.5 KB each with 100,000 personas; others are looked up again.
TEXTS_MAX = 1_024
TEXT_KEYS_MIN = 1_000
# As many of them are read when a process starts.
COMMON_MAX = 128
# What searches come to in lexemes, such as "ledgers tax" to `'ledger'` and `'tax'`.
QUERIES_MAX = 10_000
# Who lags further behind than this reads everything again.
CHANGES_MAX = 5_000

_QUERY = "%s::tsquery"
# What decides who sees a persona is kept like its facets.
_LOAD = (
    "SELECT word, string_agg(int8send(key), ''::bytea) FROM catalogue, unnest(facets"
    " || CASE WHEN public THEN ARRAY['shown:public'] END"
    " || CASE WHEN submitted THEN ARRAY['shown:submitted'] END) AS word GROUP BY word"
)
_CHANGED = (
    "SELECT g.change, c.key, c.facets || CASE WHEN c.public THEN ARRAY['shown:public'] END"
    " || CASE WHEN c.submitted THEN ARRAY['shown:submitted'] END"
    " FROM catalogue_changes g JOIN catalogue c USING (persona_id) WHERE g.change > %s ORDER BY g.change LIMIT %s"
)
_SAYING = (
    "SELECT t.query, string_agg(int8send(c.key), ''::bytea) FROM unnest(%s::text[]) AS t(query)"
    " JOIN catalogue c ON c.words @@ t.query::tsquery WHERE c.key = ANY(%s) GROUP BY t.query"
)
_LEXED = (
    "SELECT websearch_to_tsquery('public.catalogue_words', part)::text"
    " FROM unnest(%s::text[]) WITH ORDINALITY AS t(part, n) ORDER BY n"
)
# The words most personas say, by what ANALYZE last found, as queries print them.
_COMMON = (
    "SELECT '''' || replace(replace(word, '\\', '\\\\'), '''', '''''') || '''' FROM pg_class c, pg_stats s,"
    " unnest(s.most_common_elems::text::text[], s.most_common_elem_freqs::real[]) AS w(word, share)"
    " WHERE c.oid = 'public.catalogue'::regclass AND s.schemaname = 'public' AND s.tablename = 'catalogue'"
    " AND s.attname = 'words' AND word IS NOT NULL AND share * c.reltuples >= %s ORDER BY share DESC LIMIT %s"
)
_ORDERS = {"newest": ("listed_at", "DESC", "<"), "name": ("name", "ASC", ">")}


class Facet(NamedTuple):
    """What a search may be narrowed by: several values of one facet are alternatives, several facets all hold.

    counted says whether its values are counted and offered; one with a value for every tenant is only filtered by.
    """

    name: str
    title: str
    meaning: str
    values: tuple[str, ...] = ()
    counted: bool = True


FACETS = (
    Facet("domain", "Domain", "What the persona is about, in its owner's words."),
    Facet("status", "Status", "Where the persona stands; other tenants see listed and degraded ones only.",
          ("draft", "listed", "degraded", "suspended", "withdrawn", "revoked")),
    Facet("review", "Review", "The state of the review of the version submitted last.",
          ("none", "pending", "approved", "rejected", "expired")),
    Facet("badge", "Compliance", "What inspection and review came to.", ("verified", "warnings", "override")),
    Facet("trust", "Signatures", "Whether enough of the pinned keys still vouch for the capsule.",
          ("verified", "needs_signatures")),
    Facet("degraded", "Degraded", "Why a listed persona is worse than it was."),
    Facet("pricing", "Pricing", "How it can be had.", ("purchase", "subscription", "rental")),
    Facet("currency", "Currency", "ISO 4217 codes in which prices are stated."),
    Facet("provider", "Provider", "Who runs the model."),
    Facet("model", "Model", "The model box the persona was made for."),
    Facet("tool", "Tool", "Tools it may call."),
    Facet("scope", "Access", "What its tools may do.", ()),
    Facet("embedding", "Embedding", "The model its memory was embedded with."),
    Facet("tenant", "Seller", "The tenant the persona belongs to.", (), False),
)  # fmt: skip
FACET_NAMES = tuple(facet.name for facet in FACETS)


class Scope(NamedTuple):
    """Whose personas are seen besides those on show: a tenant's own, those submitted for review, or all."""

    tenant: str
    submitted: bool = False
    all: bool = False


class Wanted(NamedTuple):
    """A search. sort is newest, name or relevance; relevance puts those first that say the words in their name."""

    scope: Scope
    text: str | None = None
    facets: Mapping[str, tuple[str, ...]] = {}
    sort: str = "newest"
    cursor: str | None = None
    limit: int = 50
    counted: bool = True


class Found(NamedTuple):
    """A page: states of personas, where the next page starts, and over everything found its size and facets.

    facets is {facet: [(value, personas)]}, the most frequent first; a facet that is filtered by is counted as if it
    were not. total and facets are None where they were not asked for.
    """

    states: list[dict[str, Any]]
    next: str | None
    total: int | None
    facets: dict[str, list[tuple[str, int]]] | None


class _Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Where a page ended: the order it was in, whether names still come before the rest, and its last row."""

    sort: str
    tier: int
    value: str
    persona_id: str


_places = msgspec.json.Decoder(_Place)


class Catalogue:
    """Searches the catalogue through a pool; one for a process, whose memory of facets it holds."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._bits = FacetBits()
        self._change: int | None = None
        self._texts: OrderedDict[str, Bits] = OrderedDict()
        self._queries: OrderedDict[str, list[str]] = OrderedDict()
        self._warming: asyncio.Task[None] | None = None
        # Only one at a time brings the memory up to date; whoever counts does so without giving way in between.
        self._refreshing = asyncio.Lock()

    def start(self) -> None:
        """Read what is common in the background, so that the first searches need not wait for it."""
        self._warming = asyncio.create_task(self._warm())

    async def close(self) -> None:
        """Stop reading."""
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)

    async def _warm(self) -> None:
        try:
            async with reading(self._pool) as cursor:
                async with self._refreshing:
                    await self._refresh(cursor)
                await cursor.execute(_COMMON, (TEXT_KEYS_MIN, COMMON_MAX))
                for (query,) in await cursor.fetchall():
                    await self._say(cursor, [query])
        except UnavailableError:
            # Searches read for themselves what they need, and say so if they cannot.
            log.info("catalogue_not_warm")

    async def search(self, wanted: Wanted) -> Found:
        """Find a page of personas.

        Cost:   a few index look-ups for the page; the first search for a word that most personas say, some 60 ms.
        Errors: invalid_cursor, unavailable.
        """
        place = _place(wanted)
        async with reading(self._pool) as cursor:
            queries = None if wanted.text is None else await self._lexed(cursor, wanted.text)
            if queries is not None:
                wanted = wanted._replace(text=_both(queries))
            rows = await self._page(cursor, wanted, place)
            total, facets = await self._counted(cursor, wanted, queries) if wanted.counted else (None, None)
        states = [msgspec.json.decode(row[3]) for row in rows[: wanted.limit]]
        return Found(states, _next(wanted, rows), total, facets)

    # ------------------------------------------------------------------ pages

    async def _page(
        self, cursor: psycopg.AsyncCursor[Any], wanted: Wanted, place: _Place | None
    ) -> list[tuple[int, Any, str, str]]:
        """Read one row more than the page has: (tier, value it is sorted by, id, state)."""
        if wanted.sort != "relevance" or wanted.text is None:
            return await self._tier(cursor, wanted, place, 0, wanted.limit + 1, "", ())
        rows: list[tuple[int, Any, str, str]] = []
        words = (wanted.text,)
        for tier, condition in enumerate((f" AND title @@ {_QUERY}", f" AND NOT title @@ {_QUERY}")):
            if (place is None or place.tier <= tier) and len(rows) <= wanted.limit:
                after = place if place is not None and place.tier == tier else None
                missing = wanted.limit + 1 - len(rows)
                rows += await self._tier(cursor, wanted, after, tier, missing, condition, words)
        return rows

    async def _tier(
        self,
        cursor: psycopg.AsyncCursor[Any],
        wanted: Wanted,
        after: _Place | None,
        tier: int,
        limit: int,
        condition: str,
        words: Sequence[Any],
    ) -> list[tuple[int, Any, str, str]]:
        column, direction, beyond = _ORDERS.get(wanted.sort, _ORDERS["newest"])
        where, params = _conditions(wanted)
        params += words
        if after is not None:
            condition += f" AND ({column}, persona_id) {beyond} (%s, %s)"
            params += [_value(column, after.value), after.persona_id]
        await cursor.execute(
            f"SELECT {tier}, p.value, p.persona_id, r.state::text FROM ("
            f" SELECT persona_id, {column} AS value FROM catalogue WHERE {where}{condition}"
            f" ORDER BY {column} {direction}, persona_id {direction} LIMIT %s) p"
            " JOIN records r ON r.kind = 'persona' AND r.id = p.persona_id"
            f" ORDER BY p.value {direction}, p.persona_id {direction}",
            [*params, limit],
            # How many say a word decides how it is best looked for: a plan for any word would be wrong for most.
            prepare=False,
        )
        return await cursor.fetchall()

    # ------------------------------------------------------------------ counts

    async def _counted(
        self, cursor: psycopg.AsyncCursor[Any], wanted: Wanted, queries: Sequence[str] | None
    ) -> tuple[int, dict[str, list[tuple[str, int]]]]:
        async with self._refreshing:
            await self._refresh(cursor)
        said = None if queries is None else await self._said(cursor, queries)
        # From here to the end nothing awaits: the bits are those of one moment.
        among = self._seen(wanted.scope)
        if said is not None:
            among &= self._wide(said)
        chosen = {
            name: self._bits.any_of(f"{name}:{v}" for v in values) for name, values in wanted.facets.items()
        }
        found = _all_of(among, chosen.values())
        facets = {}
        for facet in FACETS:
            if facet.counted:
                others = found
                if facet.name in chosen:
                    others = _all_of(among, [bits for name, bits in chosen.items() if name != facet.name])
                facets[facet.name] = _ranked(self._bits.counts(facet.name, others))
        return count(found), facets

    def _seen(self, scope: Scope) -> Bits:
        if scope.all:
            return self._bits.everybody()
        words = ["shown:public", f"tenant:{scope.tenant}", *(["shown:submitted"] if scope.submitted else [])]
        return self._bits.any_of(words)

    async def _said(self, cursor: psycopg.AsyncCursor[Any], queries: Sequence[str]) -> Bits:
        """Give the set of those who say what is searched for; frequent words come from memory, others are looked up."""
        if not queries:
            return self._bits.nobody()
        # Held on to, since what is kept may make room for others while the rest is looked up.
        kept = {query: self._texts[query] for query in queries if query in self._texts}
        rare = [query for query in queries if query not in kept]
        found = await self._say(cursor, rare) if rare else self._bits.everybody()
        for query, bits in kept.items():
            if query in self._texts:
                self._texts.move_to_end(query)
            found = self._wide(found) & self._wide(bits)
        return found

    async def _lexed(self, cursor: psycopg.AsyncCursor[Any], text: str) -> list[str]:
        """Give the queries that must all hold: one a word, or a single one where words depend on each other."""
        known = self._queries.get(text)
        if known is not None:
            return known
        words = text.split()
        is_plain = '"' not in text and not any(w.startswith("-") or w.lower() == "or" for w in words)
        await cursor.execute(_LEXED, (words if is_plain else [text],))
        found = self._queries[text] = [query for (query,) in await cursor.fetchall() if query]
        while len(self._queries) > QUERIES_MAX:
            self._queries.popitem(last=False)
        return found

    async def _say(self, cursor: psycopg.AsyncCursor[Any], queries: Sequence[str]) -> Bits:
        """Look up those for whom all of some queries hold; a single one that holds for many is kept."""
        change = self._change
        await cursor.execute("SELECT catalogue_keys(%s::tsquery)", (_both(queries),), prepare=False)
        keys = keys_of((await cursor.fetchall())[0][0])
        bits = self._bits.those(keys)
        # What changed meanwhile was taken up without this set in view, so it would never be told of it.
        if len(queries) == 1 and len(keys) >= TEXT_KEYS_MIN and change == self._change:
            self._texts[queries[0]] = bits
            while len(self._texts) > TEXTS_MAX:
                self._texts.popitem(last=False)
        return bits

    def _wide(self, bits: Bits) -> Bits:
        """Give a set that was kept the width the sets have by now."""
        wide = self._bits.nobody()
        wide[: len(bits)] = bits
        return wide

    # ------------------------------------------------------------------ memory

    async def _refresh(self, cursor: psycopg.AsyncCursor[Any]) -> None:
        """Take up what changed since the last answer, or everything at first."""
        if self._change is not None:
            await cursor.execute(_CHANGED, (self._change, CHANGES_MAX + 1))
            rows = await cursor.fetchall()
            if len(rows) <= CHANGES_MAX:
                await self._take_up(cursor, rows)
                return
        # Changes after this number may be among what is read next; taking them up again changes nothing.
        await cursor.execute("SELECT coalesce(max(change), 0) FROM catalogue_changes")
        change = (await cursor.fetchall())[0][0]
        await cursor.execute(_LOAD)
        self._bits = await asyncio.to_thread(_made, await cursor.fetchall())
        self._texts.clear()
        self._change = change

    async def _take_up(self, cursor: psycopg.AsyncCursor[Any], rows: Sequence[Sequence[Any]]) -> None:
        if not rows:
            return
        keys = [row[1] for row in rows]
        asked = list(self._texts)
        said: dict[str, bytes] = {}
        if asked:
            await cursor.execute(_SAYING, (asked, keys))
            said = dict(await cursor.fetchall())
        for _, key, words in rows:
            self._bits.put(key, words)
        changed = self._bits.those(array_of(keys))
        for text in list(self._texts):
            if text in asked:
                others = self._wide(self._texts[text]) & ~changed
                self._texts[text] = others | self._bits.those(keys_of(said.get(text)))
            else:
                del self._texts[text]
        self._change = rows[-1][0]


def _made(rows: Iterable[tuple[str, bytes]]) -> FacetBits:
    """Make the bits of everybody, from the keys that carry each word."""
    found = [(word, keys_of(data)) for word, data in rows]
    bits = FacetBits()
    bits.add_all([keys for _, keys in found])
    for word, keys in found:
        bits.mark(word, keys)
    return bits


def _all_of(first: Bits, others: Iterable[Bits]) -> Bits:
    result = first.copy()
    for bits in others:
        result &= bits
    return result


def _both(queries: Iterable[str]) -> str:
    """Write the query for which several hold; of none it is the one nobody answers to."""
    return " & ".join(f"({query})" for query in queries)


def _ranked(counts: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(counts, key=lambda one: (-one[1], one[0]))[:VALUES_MAX]


# --------------------------------------------------------------------------- conditions and places


def _conditions(wanted: Wanted) -> tuple[str, list[Any]]:
    """Turn a search into SQL conditions; the values travel as parameters."""
    where: list[str] = []
    params: list[Any] = []
    scope = wanted.scope
    if not scope.all:
        where.append("(public OR tenant = %s" + (" OR submitted)" if scope.submitted else ")"))
        params.append(scope.tenant)
    if wanted.text is not None:
        where.append(f"words @@ {_QUERY}")
        params.append(wanted.text)
    for name, values in wanted.facets.items():
        where.append("facets && %s::text[]")
        params.append([f"{name}:{value}" for value in values])
    return " AND ".join(where or ["true"]), params


def _place(wanted: Wanted) -> _Place | None:
    """Read a cursor, which must be of a search in the same order.

    Errors: invalid_cursor.
    """
    if wanted.cursor is None:
        return None
    try:
        place = _places.decode(base64.b64decode(wanted.cursor, altchars=b"-_", validate=True))
        if place.sort != wanted.sort:
            raise InvalidCursorError("the cursor is of a list in another order", sort=place.sort)
        _value(_ORDERS.get(place.sort, _ORDERS["newest"])[0], place.value)
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidCursorError from error
    return place


def _value(column: str, text: str) -> Any:
    if column == "name":
        if "\x00" in text:
            raise ValueError("text holds no NUL")
        return text
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment has an offset")
    return moment


def _next(wanted: Wanted, rows: Sequence[tuple[int, Any, str, str]]) -> str | None:
    if len(rows) <= wanted.limit:
        return None
    tier, value, persona_id, _ = rows[wanted.limit - 1]
    shown = value.isoformat() if isinstance(value, datetime) else value
    place = msgspec.json.encode(_Place(wanted.sort, tier, shown, persona_id))
    return base64.urlsafe_b64encode(place).decode()
