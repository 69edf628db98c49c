"""A service under load that is going to be killed: it says on stdout what it acknowledged, and every checkpoint.

Every command follows from run, writer and step, so that whoever killed this knows what was asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from domain.billing.accounts import Deposit, TransferMoney, deposit, transfer
from domain.errors import LedgerError
from domain.fields import Command
from domain.ledger import Caller, UseCase
from ops.runtime import Runtime, open_runtime
from ops.settings import LogLevel, Settings
from tests.real.log.world import OPERATOR, Add, OpenTally, add, member, open_tally, usd

WALLETS = 8
BULK_TIMES = 300


def asked(run: str, mode: str, writer: int, step: int) -> tuple[str, UseCase, Command, Caller]:
    """Say what a writer asks at a step: its key, use case, command and caller."""
    key = f"{run}-{writer}-{step}"
    chance = random.Random(key)
    payer, payee = (f"w{n}" for n in chance.sample(range(WALLETS), 2))
    if step < 0:
        return key, deposit, Deposit(tenant=f"w{writer % WALLETS}", amount=usd("0.25"), memo=key), OPERATOR
    if mode == "pay" or step % 3 == 0:
        amount = usd(f"{chance.randrange(3)}.{chance.randrange(1, 10**9):09d}")
        return key, transfer, TransferMoney(to_tenant=payee, amount=amount, memo=key), member(payer)
    if step % 3 == 1:
        times = BULK_TIMES if mode == "bulk" and step % 12 == 1 else 1
        return key, add, Add(name="hot", times=times, note=key), member("acme")
    return key, open_tally, OpenTally(name=key), member("acme")


def say(**facts: Any) -> None:
    """Write one line at once; a line is shorter than what a pipe takes whole."""
    os.write(1, json.dumps(facts).encode() + b"\n")


async def acknowledge(rt: Runtime, run: str, mode: str, writer: int, step: int) -> None:
    """Ask, and say what was answered."""
    key, use_case, command, caller = asked(run, mode, writer, step)
    try:
        answer = await rt.ledger.act(use_case, command, caller, key=key)
    except LedgerError as refusal:
        if refusal.status >= 500:
            raise  # the database is gone: that is no answer
        say(key=key, writer=writer, step=step, refused=refusal.code)
        return
    say(key=key, writer=writer, step=step, position=answer.position, count=answer.event_count)
    if answer.position is not None and step % 4 == 0:
        say(position=answer.position, address=(await rt.reader.at(answer.position)).address.hex())
    if step % 5 == 0:
        say(checkpoint=rt.note(await rt.reader.head()).decode())


def stopper(state_wanted: int | None, nth: int) -> Any:
    """Stop the writer for good when it comes to a state for the nth time, and say so."""
    left = nth

    def observe(state: int) -> None:
        nonlocal left
        if state == state_wanted and left > 0:
            left -= 1
            if left == 0:
                say(at=state)
                time.sleep(600)

    return observe


async def live(plan: dict[str, Any]) -> None:
    """Open the ledger, put it under load, and end where the plan ends."""
    url = plan.get("url")
    settings = Settings(
        data_dir=Path(plan["data_dir"]),
        database_url=SecretStr(url) if url else None,
        log_level=LogLevel.ERROR,
    )
    run, mode = plan["run"], plan["mode"]
    armed = stopper(plan.get("state"), plan.get("nth", 1))
    gate = {"open": False}
    async with open_runtime(settings, lambda state: armed(state) if gate["open"] else None) as rt:
        if mode != "pay":
            await rt.ledger.act(open_tally, OpenTally(name="hot"), member("acme"), key="hot")
        await asyncio.gather(*(acknowledge(rt, run, mode, n, -1) for n in range(plan["writers"])))
        if mode == "locked":
            rt.recorder._committer._locked_batches = 1 << 40
        gate["open"] = True
        say(ready=True, url=rt.url)

        async def writer(n: int) -> None:
            for step in range(plan["steps"]):
                await acknowledge(rt, run, mode, n, step)

        await asyncio.gather(*(writer(n) for n in range(plan["writers"])))
        say(finished=True)


if __name__ == "__main__":
    asyncio.run(live(json.loads(sys.argv[1])))
