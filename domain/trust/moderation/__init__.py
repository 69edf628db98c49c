"""Moderation: what is looked for in a capsule before anybody may publish it."""
