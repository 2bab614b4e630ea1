"""openai-agents, over Chat Completions or Responses."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from driver import DIALECT, PICTURE, QUESTION, URL, look, serve
from openai import AsyncOpenAI

set_tracing_disabled(True)


def agent(request, said, **more):
    @function_tool(name_override="look")
    def observed(q: int) -> str:
        """Looks."""
        said.call("look", {"q": q})
        return look(q)

    sdk = AsyncOpenAI(base_url=f"{URL}/v1", api_key=request.key, max_retries=0)
    model = OpenAIResponsesModel if DIALECT == "responses" else OpenAIChatCompletionsModel
    return Agent(
        "tester",
        model=model(request.model, openai_client=sdk),
        model_settings=ModelSettings(include_usage=True),
        tools=[observed] if request.tools else [],
        **more,
    )


async def run(request, said, **more):
    content = [{"type": "input_text", "text": QUESTION}]
    if request.image:
        content.append({"type": "input_image", "image_url": PICTURE, "detail": "auto"})
    result = Runner.run_streamed(agent(request, said, **more), [{"role": "user", "content": content}])
    async for event in result.stream_events():
        if event.type != "raw_response_event":
            continue
        if event.data.type == "response.output_text.delta":
            said.piece(event.data.delta)
            if said.enough(request):
                result.cancel()
                return
        elif event.data.type.startswith("response.reasoning") and event.data.type.endswith(".delta"):
            said.reasoning += event.data.delta
        elif event.data.type == "response.completed":
            usage = event.data.response.usage
            said.usage = usage and [usage.input_tokens, usage.output_tokens]


async def ask(request, said):
    await run(request, said, tool_use_behavior="stop_on_first_tool")


serve(ask=ask, turns=run)
