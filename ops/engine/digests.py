"""How a secret is known without being kept."""

from __future__ import annotations

import hashlib


def digest(user: str, password: str) -> str:
    """Digest an account; its secret is random and long, so a fast hash hides it."""
    return hashlib.sha256(f"{user}\0{password}".encode()).hexdigest()
