"""A process that wants reservations, as many at once as it is told; run by tests, it prints what it heard."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from domain.billing.budgeting import Reserve, reserve
from domain.errors import LedgerError
from domain.ledger import Caller
from ops.runtime import Runtime, open_runtime
from projections.quotas import counted_first
from tests.real.log.world import settings_for

GATEWAY = Caller("gateway", "acme", frozenset({"service"}))


async def wish(runtime: Runtime, **members: Any) -> str:
    """Reserve something; give "ok", or the code of the refusal. Whoever lost against others asks again."""
    command = Reserve.model_validate(
        {"tenant": "acme", "provider": "p", "model": "m", "tokens_in": 1_000} | members
    )
    while True:
        try:
            await runtime.ledger.act(reserve, command, GATEWAY, gather=counted_first(runtime, "acme"))
        except LedgerError as refusal:
            if refusal.code != "conflict":
                return refusal.code
        else:
            return "ok"


async def main(asked: dict[str, Any]) -> None:
    """Reserve as often as asked, all at once."""
    async with open_runtime(settings_for(asked["url"], Path(asked["data_dir"]))) as runtime:
        heard = await asyncio.gather(*(wish(runtime) for _ in range(asked["wishes"])))
    print(json.dumps(Counter(heard)))


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
