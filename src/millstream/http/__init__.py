"""HTTP/1.1 as a client that reads streams: what asks providers, and what the client for Python is built on.

    client = Client({"Authorization": f"Bearer {key}"})
    connection = await client.connect(url)
    try:
        await connection.ask(client.head("POST", url, length=len(body)), body)
        while data := await connection.read():
            ...
    finally:
        connection.release()

It exists for the cost of an event: a read of the socket is one call of the parser and one wake-up of the
task that waits, without a timer, a queue or a layer between (docs/decisions/0014-own-http-client.md). What
it leaves out on purpose: redirects, which could carry a key to another host; cookies; unpacking, by which a
small answer becomes a large one; HTTP/2, whose frames cost more than they save where every stream is long.
"""

from millstream.http.addresses import Address, InvalidURL, Proxies
from millstream.http.client import Client, headers_of
from millstream.http.connection import Broken, Connection, NotHTTP
from millstream.http.opening import CannotConnect, ConnectTimeout
from millstream.http.words import UNREACHABLE, in_words, retry_after

__all__ = [
    "UNREACHABLE",
    "Address",
    "Broken",
    "CannotConnect",
    "Client",
    "ConnectTimeout",
    "Connection",
    "InvalidURL",
    "NotHTTP",
    "Proxies",
    "headers_of",
    "in_words",
    "retry_after",
]
