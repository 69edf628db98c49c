-- Why:   finds the corrections of a tenant's usage, which take the place of readings whenever these are summed up.
-- Locks: events against writers while it is built, some 0.4 s a million records; no correction is there before it.
-- Takes: one pass over events; the index itself stays as small as corrections are rare.
-- Back:  drop the index; nothing but speed is lost.

CREATE INDEX events_usage_corrected ON events (tenant, position) WHERE type = 'usage.corrected';
