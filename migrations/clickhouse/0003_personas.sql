-- Why:   what is done about personas: exports and imports, inspections, reviews, signatures, publications, claims, ends.
-- Shape: as in 0001 and 0002. An event states some of the columns; the others are empty, zero or false.
-- Read:  with FINAL, or through bi.governance.

CREATE TABLE IF NOT EXISTS soma.governance_events (
    kind            LowCardinality(String),
    subject         String,
    position        UInt64,
    address         FixedString(64),
    at              DateTime64(6, 'UTC'),
    tenant          LowCardinality(String),
    event           LowCardinality(String),
    version         UInt64,
    actor           String,
    persona_id      String,
    persona_version String,
    capsule         String,
    archive         String,
    decision        LowCardinality(String),
    verdict         LowCardinality(String),
    code            LowCardinality(String),
    reason          String,
    person          String,
    is_override     Bool,
    threshold       UInt32,
    signed          Array(String),
    missing         Array(String),
    policy          String,
    constitution    String,
    rules           String,
    judged_by       String,
    findings        UInt32,
    bytes           UInt64,
    INDEX by_persona persona_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_capsule capsule TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, kind, subject, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

CREATE OR REPLACE VIEW bi.governance
(
    tenant          LowCardinality(String) COMMENT 'Whose record it is.',
    position        UInt64 COMMENT 'The place of the record in the log.',
    at              DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    kind            LowCardinality(String) COMMENT 'persona, capsule, export, import, download, evaluation, review, signing, signer_policy, constitution or claim.',
    id              String COMMENT 'Which one; capsules, their reviews and signings are named by the digits of the address.',
    event           LowCardinality(String) COMMENT 'What happened, such as scanned, decided, signed, published, revoked: the type without its kind.',
    persona_id      String COMMENT 'The persona it is about; empty where it is about none, or none is named yet.',
    persona_version String COMMENT 'The version of the persona; empty if none is named.',
    capsule         String COMMENT 'The address of the capsule; empty if none is named.',
    actor           String COMMENT 'Who caused it.',
    person          String COMMENT 'The reviewer, who submitted, who claims, or whose key was revoked; empty otherwise.',
    decision        LowCardinality(String) COMMENT 'approve or reject; where a review or a version stands after it otherwise.',
    is_override     Bool COMMENT 'Whether an approval was an override.',
    verdict         LowCardinality(String) COMMENT 'pass, warn or block of a scan; passed or failed of an evaluation.',
    findings        UInt32 COMMENT 'How much a scan found.',
    rules           String COMMENT 'The digest of the rules it was scanned by.',
    threshold       UInt32 COMMENT 'How many keys have to sign.',
    signed          Array(String) COMMENT 'Whose keys signed.',
    missing         Array(String) COMMENT 'Whose keys are missing, where trust was lost.',
    policy          String COMMENT 'The address of the signer policy.',
    constitution    String COMMENT 'The address of the constitution.',
    judged_by       String COMMENT 'The digest of the Rego policy that was asked.',
    code            LowCardinality(String) COMMENT 'Why it was refused or failed; empty if it was not.',
    reason          String COMMENT 'The reason that was given, the resolution, the notes or the mark.',
    archive         String COMMENT 'The address of the archive that went out or came in.',
    bytes           UInt64 COMMENT 'How large that archive, or a report, is.',
    address         String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, position, at, kind, subject AS id, event, persona_id, persona_version, capsule, actor, person, decision,
    is_override, verdict, findings, rules, threshold, signed, missing, policy, constitution, judged_by, code, reason,
    archive, bytes, concat('sha3-512:', lower(hex(address))) AS address
FROM soma.governance_events FINAL
COMMENT 'What was done about personas and by whom: exports, imports, downloads, inspections, reviews, signatures, publications, suspensions, revocations, claims, and the policies and constitutions they rest on.';

CREATE OR REPLACE VIEW bi.persona_timeline
(
    tenant     LowCardinality(String) COMMENT 'Whose record it is.',
    persona_id String COMMENT 'The persona.',
    position   UInt64 COMMENT 'The place of the record in the log.',
    at         DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    event      String COMMENT 'What happened: the type without its kind.',
    type       LowCardinality(String) COMMENT 'The wire type of the event.',
    stream     String COMMENT 'The persona itself, or what belongs to it or names it: a capsule, its review and its signatures, an export, an import, an evaluation, a claim, a purchase, a subscription, a rental.',
    actor      String COMMENT 'Who caused it.',
    address    String COMMENT 'The address of the record.',
    data       String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, subject AS persona_id, position, at, substring(type, position(type, '.') + 1) AS event, type, stream, actor,
    concat('sha3-512:', lower(hex(address))) AS address, data
FROM soma.timelines FINAL
WHERE subject_kind = 'persona'
COMMENT 'What happened to a persona, in order: its own events, and those of its capsules, their reviews, signatures, exports, evaluations and claims.';
