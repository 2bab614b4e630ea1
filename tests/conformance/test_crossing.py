"""One answer, started in one format and watched in others."""

import json
import threading
import urllib.request
from typing import Any

import pytest
from openai import OpenAI

from conformance.browser import BrowserClient
from conformance.conftest import Gateway
from conformance.upstream import FIRST_WORDS, WORDS
from live.conftest import Server
from millstream.sse import Decoder

WHOLE = "".join(f"{number} " for number in range(WORDS))


def get(server: Server, path: str) -> bytes:
    request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {server.key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
        return body


def frames(body: bytes) -> list[dict[str, Any]]:
    messages = Decoder().feed(body)
    return [json.loads(message.data) for message in messages if message.data != b"[DONE]"]


@pytest.mark.conformance
def test_what_openai_s_client_left_is_read_natively_and_watched_by_use_chat(gateway: Gateway) -> None:
    server, upstream = gateway.server, gateway.upstream
    before = len(upstream.asked("held"))
    with BrowserClient(server.url, upstream) as page:
        client = OpenAI(base_url=f"{server.url}/v1", api_key=server.key)
        stream = client.chat.completions.create(
            model="held",
            messages=[{"role": "user", "content": "Count"}],
            stream=True,
            extra_body={"on_disconnect": "continue"},
        )
        stream_id = stream.response.headers["x-stream-id"]
        heard = ""
        for chunk in stream:
            heard += chunk.choices[0].delta.content or ""
            if heard.count(" ") == FIRST_WORDS:  # two fifths of the answer
                break
        stream.close()
        client.close()
        assert WHOLE.startswith(heard)
        assert heard != WHOLE

        page.watch(stream_id, server.key)
        page.shows(f"{FIRST_WORDS - 1}")
        followed: list[bytes] = []
        follower = threading.Thread(
            target=lambda: followed.append(get(server, f"/v1/streams/{stream_id}/events"))
        )
        follower.start()
        upstream.go_on()
        follower.join(30)
        native = "".join(frame.get("delta", "") for frame in frames(followed[0]))
        assert native == WHOLE
        assert page.shown() == WHOLE.strip()  # as a page shows it

    told = frames(get(server, f"/v1/streams/{stream_id}/events?dialect=ag-ui"))
    assert "".join(event.get("delta", "") for event in told) == WHOLE
    assert told[-1]["outcome"] == {"type": "success"}

    assert len(upstream.asked("held")) == before + 1
    receipt = json.loads(get(server, f"/v1/streams/{stream_id}"))
    assert receipt["status"] == "completed"
    rows = json.loads(get(server, "/v1/usage?by=model"))["data"]
    assert [row["streams"] for row in rows if row["group"]["model"] == "held"] == [before + 1]
