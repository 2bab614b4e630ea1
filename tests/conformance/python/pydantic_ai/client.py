"""pydantic-ai."""

import base64

from driver import PIXEL, QUESTION, SCHEMA, URL, look, serve
from openai import AsyncOpenAI
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import ModelRequest, PartDeltaEvent, PartStartEvent
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition


def model(request):
    sdk = AsyncOpenAI(base_url=f"{URL}/v1", api_key=request.key, max_retries=0)
    return OpenAIChatModel(request.model, provider=OpenAIProvider(openai_client=sdk))


async def ask(request, said):
    prompt = QUESTION
    if request.image:
        prompt = [QUESTION, BinaryContent(base64.b64decode(PIXEL), media_type="image/png")]
    tools = [ToolDefinition(name="look", description="Looks.", parameters_json_schema=SCHEMA)]
    parameters = ModelRequestParameters(function_tools=tools if request.tools else [])
    messages = [ModelRequest.user_text_prompt(prompt)]
    async with model_request_stream(model(request), messages, model_request_parameters=parameters) as stream:
        async for event in stream:
            if isinstance(event, PartStartEvent) and event.part.part_kind in ("text", "thinking"):
                kind, text = event.part.part_kind, event.part.content
            elif isinstance(event, PartDeltaEvent) and event.delta.part_delta_kind in ("text", "thinking"):
                kind, text = event.delta.part_delta_kind, event.delta.content_delta
            else:
                continue
            if kind == "text":
                said.piece(text)
            else:
                said.reasoning += text or ""
            if said.enough(request):
                return
    answer = stream.get()
    said.finish = answer.finish_reason
    said.usage = [answer.usage.input_tokens, answer.usage.output_tokens]
    for part in answer.parts:
        if part.part_kind == "tool-call":
            said.call(part.tool_name, part.args)


async def turns(request, said):
    def observed(q: int) -> str:
        """Looks."""
        said.call("look", {"q": q})
        return look(q)

    observed.__name__ = "look"
    agent = Agent(model(request), tools=[observed])
    async with agent.run_stream(QUESTION) as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            said.piece(piece)


serve(ask=ask, turns=turns)
