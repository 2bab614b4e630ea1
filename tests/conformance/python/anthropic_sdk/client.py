"""anthropic-sdk-python: its stream helper, and its tool runner."""

from anthropic import Anthropic, beta_tool
from driver import PIXEL, QUESTION, SCHEMA, URL, look, serve

MOST = 500


def client(request):
    return Anthropic(base_url=URL, api_key=request.key, max_retries=0)


def question(request):
    if not request.image:
        return {"role": "user", "content": QUESTION}
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    return {
        "role": "user",
        "content": [{"type": "text", "text": QUESTION}, {"type": "image", "source": source}],
    }


def ask(request, said):
    tool = {"name": "look", "description": "Looks.", "input_schema": SCHEMA}
    more = {"tools": [tool]} if request.tools else {}
    with client(request).messages.stream(
        model=request.model, max_tokens=MOST, messages=[question(request)], **more
    ) as stream:
        for event in stream:
            if event.type == "text":
                said.piece(event.text)
            elif event.type == "thinking":
                said.reasoning += event.thinking
            if said.enough(request):
                return
        message = stream.get_final_message()
    for block in message.content:
        if block.type == "tool_use":
            said.call(block.name, block.input)
    said.finish = message.stop_reason
    said.usage = [message.usage.input_tokens, message.usage.output_tokens]


def turns(request, said):
    def observed(q: int) -> str:
        said.call("look", {"q": q})
        return look(q)

    runner = client(request).beta.messages.tool_runner(
        model=request.model,
        max_tokens=MOST,
        messages=[question(request)],
        tools=[beta_tool(observed, name="look", description="Looks.")],
    )
    for block in runner.until_done().content:
        if block.type == "text":
            said.piece(block.text)


serve(ask=ask, turns=turns)
