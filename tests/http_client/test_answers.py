"""Every legal framing of RFC 9112 is read, whatever the pieces it comes in; what is none ends in an error."""

import asyncio
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from millstream.http import Broken, Connection, NotHTTP

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Wire:
    """A transport that only remembers."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_cut = False
        self.is_paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def writelines(self, data: list[bytes]) -> None:
        self.sent += b"".join(data)

    def abort(self) -> None:
        self.is_cut = True

    def is_closing(self) -> bool:
        return self.is_cut

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Heard(Struct):
    """What whoever asked got, and whether the connection is asked again."""

    status: int = 200
    body: bytes = b""
    kept: bool = True
    fault: type[Broken] | None = None


def heard(pieces: list[bytes], *, ended: bool = False) -> Heard:
    async def run() -> Heard:
        kept: list[Connection] = []
        connection = Connection(kept.append)
        wire = Wire()
        connection.connection_made(cast("asyncio.Transport", wire))
        asked = asyncio.ensure_future(connection.ask(b"POST / HTTP/1.1\r\n\r\n"))
        await asyncio.sleep(0)
        for piece in pieces:
            connection.data_received(piece)
        if ended:
            connection.connection_lost(None)
        got = Heard()
        try:
            await asyncio.wait_for(asked, 1)
            got.status = connection.status
            while data := await asyncio.wait_for(connection.read(), 1):
                got.body += data
        except Broken as fault:
            got.fault = type(fault)
        got.status = connection.status
        connection.release()
        got.kept = bool(kept)
        assert wire.is_cut != got.kept
        return got

    return asyncio.run(run())


LEGAL = {
    "chunked": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", Heard(body=b"hello")),
    "chunks": (CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", Heard(body=b"hello")),
    "chunk lengths in both cases": (CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", Heard(body=b"0123456789" * 2)),
    "chunk length with zeros": (CHUNKED + b"0000005\r\nhello\r\n000\r\n\r\n", Heard(body=b"hello")),
    "chunk extensions": (CHUNKED + b'5;a=1;b="x y"\r\nhello\r\n0;last\r\n\r\n', Heard(body=b"hello")),
    "spaces after a chunk length": (CHUNKED + b"5  \r\nhello\r\n0\r\n\r\n", Heard(body=b"hello")),
    "trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Two: 2\r\n\r\n", Heard(body=b"hello")),
    "empty chunked": (CHUNKED + b"0\r\n\r\n", Heard()),
    "coding in capitals": (OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Heard(body=b"hello")),
    "coding named twice": (OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Heard(body=b"hello")),
    "length": (OK + b"Content-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "length in spaces": (OK + b"Content-Length:   5  \r\n\r\nhello", Heard(body=b"hello")),
    "no length at all": (OK + b"Content-Length: 0\r\n\r\n", Heard()),
    "both lengths": (OK + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Heard(body=b"hello", kept=False)),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "lines that end in LF": (b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", Heard(body=b"hello")),
    "empty lines in front": (b"\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "a space before the colon": (OK + b"Content-Length : 5\r\n\r\nhello", Heard(body=b"hello")),
    "odd header values": (OK + b"X: \xff\xfe\x01\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "close": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello", kept=False)),
    "close, chunked": (OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", Heard(body=b"hello", kept=False)),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello", kept=False)),
    "HTTP/1.0 that stays": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "answers before the answer": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", Heard(204)),
    "204 with a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", Heard(204)),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Heard(304)),
    "an upgrade that is only offered": (OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 5\r\n\r\nhello", Heard(body=b"hello")),
    "an answer too many": (OK + b"Content-Length: 5\r\n\r\nhello" + OK + b"Content-Length: 2\r\n\r\nno", Heard(body=b"hello", kept=False)),
    "noise behind": (OK + b"Content-Length: 5\r\n\r\nhello\x00\x01noise", Heard(body=b"hello", kept=False)),
    "noise behind the last": (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhellonoise", Heard(body=b"hello", kept=False)),
}  # fmt: skip

UNTIL_CLOSE = {
    "until the end": (OK + b"\r\nhello", Heard(body=b"hello", kept=False)),
    "HTTP/1.0 until the end": (b"HTTP/1.0 200 OK\r\n\r\nhello", Heard(body=b"hello", kept=False)),
    "identity": (OK + b"Transfer-Encoding: identity\r\n\r\nhello", Heard(body=b"hello", kept=False)),
    "identity, with a length": (
        OK + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
        Heard(body=b"hello", kept=False),
    ),
    "nothing until the end": (OK + b"\r\n", Heard(kept=False)),
}

ILLEGAL = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "a status of two figures": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four figures": b"HTTP/1.1 2000 OK\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a name with a space": OK + b"Content Length: 5\r\n\r\nhello",
    "no name": OK + b": 5\r\n\r\nhello",
    "a line without a colon": OK + b"nothing\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nhello",
    "a length with a sign": OK + b"Content-Length: +5\r\n\r\nhello",
    "a length in hex": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "a length of nothing": OK + b"Content-Length:\r\n\r\nhello",
    "a length beyond all": OK + b"Content-Length: 99999999999999999999\r\n\r\nhello",
    "packed": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "chunked not last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "a coding nobody knows": OK + b"Transfer-Encoding: xchunked\r\n\r\nhello",
    "a negative chunk": CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "a chunk with a sign": CHUNKED + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk length with 0x": CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk length of nothing": CHUNKED + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk length beyond all": CHUNKED + b"FFFFFFFFFFFFFFFFF\r\nhello",
    "a chunk longer than it says": CHUNKED + b"3\r\nhello\r\n0\r\n\r\n",
    "a head without end": OK + b"X: y\r\n" * 12000,
    "a header without end": OK + b"X: " + b"y" * (80 << 10),
    "heads without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 3000,
    "an extension without end": CHUNKED + b"5;" + b"x" * (80 << 10),
    "trailers without end": CHUNKED + b"0\r\n" + b"X: y\r\n" * 12000,
}


@pytest.mark.parametrize(("wire", "expected"), LEGAL.values(), ids=LEGAL)
def test_a_legal_answer_is_read_in_any_pieces(wire: bytes, expected: Heard) -> None:
    assert heard([wire]) == expected
    assert heard([wire[i : i + 1] for i in range(len(wire))]) == expected
    for cut in range(1, len(wire)):
        assert heard([wire[:cut], wire[cut:]]) == expected


@pytest.mark.parametrize(("wire", "expected"), UNTIL_CLOSE.values(), ids=UNTIL_CLOSE)
def test_one_that_ends_with_its_connection_is_whole(wire: bytes, expected: Heard) -> None:
    for cut in range(1, len(wire)):
        assert heard([wire[:cut], wire[cut:]], ended=True) == expected


@pytest.mark.parametrize("wire", ILLEGAL.values(), ids=ILLEGAL)
def test_what_is_no_answer_is_an_error(wire: bytes) -> None:
    for pieces in ([wire], [wire[i : i + 1] for i in range(len(wire))] if len(wire) < 500 else [wire]):
        got = heard(pieces)
        assert (got.fault, got.kept) == (NotHTTP, False)


MEASURED = [wire for name, (wire, expected) in LEGAL.items() if expected.body and "behind" not in name]


@pytest.mark.parametrize("wire", [MEASURED[0], MEASURED[2], OK + b"Content-Length: 5\r\n\r\nhello"])
def test_one_that_is_cut_is_an_error_behind_what_came(wire: bytes) -> None:
    whole = heard([wire]).body
    for cut in range(len(wire)):
        got = heard([wire[:cut]], ended=True)
        assert (got.fault, got.kept) == (Broken, False)
        assert whole.startswith(got.body)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_chunks_in_any_pieces(data: Any) -> None:
    chunks = data.draw(st.lists(st.binary(min_size=1, max_size=40), max_size=8))
    ends = data.draw(st.lists(st.sampled_from([b"", b";x", b";x=1", b" "]), min_size=9, max_size=9))
    wire = CHUNKED
    for chunk, end in zip(chunks, ends, strict=False):
        wire += b"%x%b\r\n%b\r\n" % (len(chunk), end, chunk)
    wire += b"0\r\n\r\n"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=12)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert heard([piece for piece in pieces if piece]) == Heard(body=b"".join(chunks))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_noise_never_hangs_and_never_throws(noise: bytes, ended: bool) -> None:
    got = heard([OK, noise], ended=True)
    assert got.fault is None or issubclass(got.fault, Broken)


async def test_what_nobody_reads_slows_the_server_down() -> None:
    connection, wire = Connection(lambda _: None), Wire()
    connection.connection_made(cast("asyncio.Transport", wire))
    asked = asyncio.ensure_future(connection.ask(b""))
    await asyncio.sleep(0)
    connection.data_received(OK + b"Content-Length: 1000000\r\n\r\n")
    connection.data_received(b"x" * 300_000)
    await asked
    assert wire.is_paused
    assert len(await connection.read()) == 300_000
    assert not wire.is_paused


async def test_giving_up_wakes_whoever_waits() -> None:
    connection, wire = Connection(lambda _: None), Wire()
    connection.connection_made(cast("asyncio.Transport", wire))
    asked = asyncio.ensure_future(connection.ask(b""))
    await asyncio.sleep(0)
    connection.abort()
    assert wire.is_cut
    with pytest.raises(Broken):
        await asked
