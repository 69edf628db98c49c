"""The embedded ClickHouse: an engine process of its own, which speaks ClickHouse's HTTP dialect on loopback.

`process.py` is the side of those who want an engine: it starts, shares, restarts and stops it. Everything else here
runs inside the engine process, confined and without any secret; nobody else imports it.
"""
