"""One span a stream, with numbers and names and nothing of what was said."""

from decimal import Decimal

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from application import Run
from asgi import post
from millstream.errors import UpstreamError, UpstreamRefused
from millstream.events import TextDelta
from millstream.providers import Finish, UsageReport
from millstream.providers.scripted import Script, ScriptedProvider
from millstream.settings import ModelSettings, PriceSettings
from millstream.usage import Usage


async def test_a_stream_is_a_span_of_its_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    end = Finish("stop", Usage(9, 2, "provider_final"))
    scripts: dict[str, Script] = {"good": [TextDelta("secret answer"), end], "bad": [UpstreamRefused("no")]}
    async with run({"scripted": ScriptedProvider(scripts)}) as app:
        for model in scripts:
            body = {"model": model, "messages": [{"role": "user", "content": "secret question"}]}
            with provider.get_tracer("test").start_as_current_span("request") as request:
                async with post(app.app, "/v1/chat/stream", body, app.key) as call:
                    await call.finished()
            await app.idle()
            span = next(s for s in exporter.get_finished_spans() if s.name == f"chat {model}")
            assert span.parent is not None
            assert span.parent.span_id == request.get_span_context().span_id
            assert "secret" not in span.to_json()
            assert span.end_time is not None
            assert span.start_time is not None
            assert span.end_time >= span.start_time
            assert span.attributes is not None
            if model == "good":
                assert span.attributes["gen_ai.usage.output_tokens"] == 2
                assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
                assert span.status.is_ok
            else:
                assert span.attributes["error.type"] == "upstream_refused"
                assert not span.status.is_ok


async def test_every_attempt_is_an_event_of_the_span(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    scripts: dict[str, Script] = {
        "down": [UpstreamError("it is down", accepted=False)],
        "slow": [UsageReport(Usage(1200, 3, "provider_partial"), {"input_tokens": 1200}), 60.0],
        "good": [TextDelta("Hello"), Finish("stop", Usage(9, 2, "provider_final"))],
    }
    fallbacks = ("p/slow", "p/good")
    models = {"mine": ModelSettings(deployments=("p/down",), fallbacks=fallbacks, hedge_seconds=0.05)}
    prices = {"mine": PriceSettings(input=Decimal(1), output=Decimal(1))}
    async with run({"p": ScriptedProvider(scripts)}, models=models, prices=prices) as app:
        body = {"model": "mine", "messages": [{"role": "user", "content": "Hello"}]}
        async with post(app.app, "/v1/chat/stream", body, app.key) as call:
            await call.finished()
        await app.idle()
    (span,) = exporter.get_finished_spans()
    names = ("gen_ai.request.model", "error.type", "gen_ai.usage.input_tokens", "millstream.cost_usd")
    assert [tuple((event.attributes or {}).get(name) for name in names) for event in span.events] == [
        ("down", "upstream_error", None, None),
        ("slow", "", 1200, 0.001203),
        ("good", "", None, None),
    ]
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.input_tokens"] == 9
    assert span.attributes["millstream.cost_usd"] == 0.000011
