"""The directories of an engine, and the configuration it starts with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

READER_ROLE = "soma_reader"

# Accounts cannot be made in an embedded engine: every session belongs to `default`, which has rights only through
# roles, and a session can be told to give up all of them but one. `SQL SECURITY DEFINER` views show a reader their
# rows without a right to the tables behind them.
_USERS = f"""<clickhouse>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <roles>
    <soma_service><grants><query>GRANT ALL ON *.*</query></grants></soma_service>
    <{READER_ROLE}><grants>
      <query>GRANT SELECT ON bi.*</query>
      <query>GRANT SHOW ON bi.*</query>
      <query>GRANT SELECT ON system.one</query>
      <query>GRANT SELECT ON system.numbers</query>
    </grants></{READER_ROLE}>
  </roles>
  <users><default>
    <password></password><profile>default</profile><quota>default</quota>
    <grants><query>GRANT soma_service</query><query>GRANT {READER_ROLE}</query></grants>
  </default></users>
</clickhouse>
"""
_CONFIGURATION = """<clickhouse>
  <users_config>{users}</users_config>
  <timezone>UTC</timezone>
  <max_server_memory_usage>{memory_bytes_max}</max_server_memory_usage>
  <mark_cache_size>268435456</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
</clickhouse>
"""


@dataclass(frozen=True)
class Places:
    """The directories of one engine."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def configuration(self) -> Path:
        return self.root / "configuration"

    def prepare(self, memory_bytes_max: int) -> None:
        """Make the directories and write the configuration; nothing of it is writable afterwards but data and tmp."""
        for place in (self.data, self.temporary, self.configuration):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        users = self.configuration / "users.xml"
        users.write_text(_USERS)
        text = _CONFIGURATION.format(users=_escaped(str(users)), memory_bytes_max=memory_bytes_max)
        (self.configuration / "config.xml").write_text(text)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
