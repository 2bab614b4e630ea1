"""Java's own HttpClient, which offers HTTP/2 with each request that it sends over plain HTTP."""

import asyncio
from pathlib import Path

import pytest

from live.conftest import Serve
from live.test_workers import Provider
from oracle import oracle

WORDS = [f"wörd{i} \u2028 " for i in range(50)]

PROGRAM = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String path : new String[] {"/v1/chat/stream", "/v1/chat"}) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + path))
                .header("Authorization", "Bearer " + arguments[1])
                .POST(HttpRequest.BodyPublishers.ofString(arguments[2]))
                .build();
            HttpResponse<java.util.stream.Stream<String>> response =
                client.send(request, HttpResponse.BodyHandlers.ofLines());
            System.out.println(response.statusCode());
            response.body().forEach(System.out::println);
        }
    }
}
"""


@pytest.mark.faults
async def test_java_is_answered(serve: Serve, tmp_path: Path) -> None:
    """spec/faults.md: C30."""
    source = tmp_path / "Ask.java"
    source.write_text(PROGRAM, encoding="utf-8")
    async with oracle(Provider(WORDS, pace=0.005)) as upstream:
        context = serve(openai=upstream.base_url)
        server = await asyncio.to_thread(context.__enter__)
        try:
            body = '{"messages":[{"role":"user","content":"Hëllo"}]}'
            command = ["java", "-Dfile.encoding=UTF-8", str(source), server.url, server.key, body]
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
            )
            output, _ = await asyncio.wait_for(process.communicate(), 60)
        finally:
            await asyncio.to_thread(context.__exit__, None, None, None)
    lines = output.decode().splitlines()  # which cuts at all that any reader of lines cuts at
    assert process.returncode == 0
    assert [line for line in lines if line.isdecimal()] == ["200", "200"]
    assert lines[-1].startswith('{"stream_id"')
    assert "data: [DONE]" in lines
    assert len(upstream.requests) >= 2
