"""An application on a socket of this process, for SDKs that speak HTTP and nothing else."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn

from application import Running


@asynccontextmanager
async def listening(running: Running) -> AsyncGenerator[str]:
    """Its URL, for as long as it is served."""
    sock = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(running.app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
