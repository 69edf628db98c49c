"""Personas: their capsules, how these are packed, reviewed, published, passed on and taken back."""
