-- Why:   the catalogue of personas: one lean row each, found by words and by facets, in the order they are listed in.
--        It follows `records` inside the commit, and is rebuilt and compared with them (`soma ledger rebuild`).
-- Locks: `records` for a moment, to hang the trigger on it; all tables are new.
-- Takes: milliseconds, and about ten seconds for each hundred thousand personas there are.
-- Back:  drop the trigger, the functions, the tables and the text search configuration; the log is untouched.

-- Words are stemmed, and none is left out: a persona may well be called "The Who".
CREATE TEXT SEARCH DICTIONARY catalogue_stem (TEMPLATE = snowball, Language = english);
CREATE TEXT SEARCH CONFIGURATION catalogue_words (COPY = simple);
ALTER TEXT SEARCH CONFIGURATION catalogue_words
    ALTER MAPPING FOR asciiword, asciihword, hword_asciipart, word, hword, hword_part WITH catalogue_stem;

-- key is the first eight bytes of the id's SHA-256: what a search found is handed on as numbers of one width.
-- public is what every tenant sees; submitted, what reviewers of the platform see besides.
-- facets are words like `domain:finance`. title holds the words of name, id and domains, words those of the summary too.
CREATE TABLE catalogue (
    persona_id text COLLATE "C" PRIMARY KEY,
    key        bigint NOT NULL UNIQUE,
    tenant     text COLLATE "C" NOT NULL,
    public     boolean NOT NULL,
    submitted  boolean NOT NULL,
    listed_at  timestamptz NOT NULL,
    name       text COLLATE "C" NOT NULL,
    facets     text[] COLLATE "C" NOT NULL,
    title      tsvector NOT NULL,
    words      tsvector NOT NULL
) WITH (fillfactor = 80, toast_tuple_target = 512, autovacuum_vacuum_scale_factor = 0.05);
-- Only the index ever reads `words`. Kept apart, they leave the rows small, and a search that finds many fast.
ALTER TABLE catalogue ALTER COLUMN words SET STORAGE EXTERNAL;
ALTER TABLE catalogue ALTER COLUMN facets SET STORAGE MAIN;
CREATE INDEX catalogue_newest ON catalogue (listed_at DESC, persona_id DESC);
CREATE INDEX catalogue_name ON catalogue (name, persona_id);
CREATE INDEX catalogue_tenant ON catalogue (tenant, listed_at DESC, persona_id DESC);
CREATE INDEX catalogue_facets ON catalogue USING gin (facets);
CREATE INDEX catalogue_title ON catalogue USING gin (title);
CREATE INDEX catalogue_words ON catalogue USING gin (words);

-- Which rows changed since somebody looked: counts of facets are kept in memory and brought up to date from here.
-- Numbers are drawn under the lock of the head row, so that a larger one is never visible before a smaller one.
CREATE SEQUENCE catalogue_change;
CREATE TABLE catalogue_changes (
    persona_id text COLLATE "C" PRIMARY KEY,
    change     bigint NOT NULL UNIQUE
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- What the catalogue says of a persona, as a function of its state alone. Paths that lead nowhere give nothing: a state
-- of a shape this function does not know must never keep a commit from happening.
CREATE FUNCTION catalogue_row(persona text, owner text, state jsonb) RETURNS catalogue LANGUAGE sql STABLE AS $$
    SELECT
        persona,
        ('x' || encode(substring(sha256(convert_to(persona, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint,
        owner,
        coalesce(state ->> 'status' IN ('listed', 'degraded'), false),
        coalesce(state ->> 'review' <> 'none', false),
        coalesce(state #>> '{published,published_at}', nullif(state ->> 'created_at', ''), 'epoch')::timestamptz,
        lower(coalesce(nullif(state ->> 'display_name', ''), persona)),
        ARRAY(
            SELECT DISTINCT (path.facet || ':' || (found.value #>> '{}')) COLLATE "C"
            FROM (VALUES
                ('domain', '$.domains[*]'::jsonpath),
                ('status', '$.status'),
                ('review', '$.review'),
                ('badge', '$.published.compliance.badge'),
                ('trust', '$.published.trust'),
                ('degraded', '$.published.degraded[*]'),
                ('pricing', '$.published.pricing[*].model'),
                ('currency', '$.published.pricing[*].price.currency'),
                ('provider', '$.published.model.provider'),
                ('model', '$.published.model.model_box_id'),
                ('tool', '$.published.tools[*].tool'),
                ('scope', '$.published.tools[*].access_scope'),
                ('embedding', '$.published.embedding_model'),
                ('tenant', '$.tenant')
            ) AS path(facet, path), jsonb_path_query(state, path.path) AS found(value)
            WHERE found.value #>> '{}' <> ''
            ORDER BY 1
        ),
        titled.words,
        titled.words || to_tsvector('public.catalogue_words', coalesce(state ->> 'summary', ''))
    FROM to_tsvector('public.catalogue_words', concat_ws(' ',
        persona, state ->> 'display_name',
        (SELECT string_agg(value #>> '{}', ' ') FROM jsonb_path_query(state, '$.domains[*]') AS d(value))
    )) AS titled(words)
$$;

-- The keys of everybody who says these words, one after another. Reading the whole table instead takes twice as long where
-- most say them, though the planner thinks otherwise.
CREATE FUNCTION catalogue_keys(wanted tsquery) RETURNS bytea LANGUAGE sql STABLE SET enable_seqscan = off AS $$
    SELECT string_agg(int8send(key), ''::bytea) FROM public.catalogue WHERE words @@ wanted
$$;

CREATE FUNCTION catalogue_follow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM public.catalogue WHERE persona_id = OLD.id;
        RETURN NULL;
    END IF;
    INSERT INTO public.catalogue SELECT r.* FROM public.catalogue_row(NEW.id, NEW.tenant, NEW.state) AS r
    ON CONFLICT (persona_id) DO UPDATE SET
        public = excluded.public, submitted = excluded.submitted, listed_at = excluded.listed_at,
        name = excluded.name, facets = excluded.facets, title = excluded.title, words = excluded.words;
    INSERT INTO public.catalogue_changes VALUES (NEW.id, nextval('public.catalogue_change'))
    ON CONFLICT (persona_id) DO UPDATE SET change = excluded.change;
    RETURN NULL;
END
$$;

CREATE TRIGGER catalogue_follow AFTER INSERT OR UPDATE ON records
    FOR EACH ROW WHEN (NEW.kind = 'persona') EXECUTE FUNCTION catalogue_follow();
CREATE TRIGGER catalogue_forget AFTER DELETE ON records
    FOR EACH ROW WHEN (OLD.kind = 'persona') EXECUTE FUNCTION catalogue_follow();

INSERT INTO catalogue
SELECT r.* FROM records, catalogue_row(records.id, records.tenant, records.state) AS r WHERE records.kind = 'persona';
INSERT INTO catalogue_changes SELECT persona_id, nextval('catalogue_change') FROM catalogue;

GRANT SELECT, INSERT, UPDATE, DELETE ON catalogue, catalogue_changes TO soma_service;
GRANT USAGE ON SEQUENCE catalogue_change TO soma_service;
