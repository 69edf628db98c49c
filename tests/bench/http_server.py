"""The service as it is, with one more route: the same body, checked by the same models, answered without a ledger.

    python -m tests.bench.http_server DATA_DIR

Prints its URL and a token on one line, and serves until it is terminated.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.app import create_app
from api.http import JsonRoute, Open, Sent, Who
from api.serving import listen, url_of
from domain.market.intents import OpenIntent
from ops.settings import LogLevel, Settings

HOST = "127.0.0.1"
router = APIRouter(route_class=JsonRoute)


@router.post("/bench/intents", status_code=201)
async def answer_without_ledger(
    command: OpenIntent, opened: Open, who: Who, sent: Sent, answer_bytes: Annotated[int, Query(ge=2)] = 2
) -> Response:
    """Check the caller and the body like the real route, and answer as many bytes."""
    body = b'"' + b"x" * (answer_bytes - 2) + b'"'
    return Response(body, 201, {"ETag": '"1"'}, media_type="application/json")


def main(data_dir: str) -> None:
    """Serve on a free port."""
    settings = Settings(data_dir=Path(data_dir), log_level=LogLevel.WARNING, database_url=None)
    app = create_app(settings)
    app.include_router(router)
    token = app.state.issuer.mint("bench", "acme", ["owner", "operator"])
    with listen(HOST, 0) as bound:
        print(url_of(HOST, bound), token, flush=True)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, backlog=2_048
        )
        uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main(sys.argv[1])
