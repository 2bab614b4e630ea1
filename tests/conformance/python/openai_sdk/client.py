"""openai-python."""

from driver import PICTURE, QUESTION, TOOL, URL, look, serve
from openai import OpenAI


def client(request):
    return OpenAI(base_url=f"{URL}/v1", api_key=request.key, max_retries=0)


def question(request):
    if not request.image:
        return {"role": "user", "content": QUESTION}
    image = {"type": "image_url", "image_url": {"url": PICTURE}}
    return {"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}


def ask(request, said):
    create = client(request).chat.completions.create
    more = {"tools": [TOOL]} if request.tools else {}
    options = {"include_usage": True}
    calls = {}
    with create(
        model=request.model, messages=[question(request)], stream=True, stream_options=options, **more
    ) as stream:
        for chunk in stream:
            if chunk.usage is not None:
                said.usage = [chunk.usage.prompt_tokens, chunk.usage.completion_tokens]
            for choice in chunk.choices:
                said.piece(choice.delta.content)
                said.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                for piece in choice.delta.tool_calls or ():
                    call = calls.setdefault(piece.index, {"name": "", "arguments": ""})
                    call["name"] += piece.function.name or ""
                    call["arguments"] += piece.function.arguments or ""
                said.finish = choice.finish_reason or said.finish
            if said.enough(request):
                return
    for _, call in sorted(calls.items()):
        said.call(call["name"], call["arguments"])


def turns(request, said):
    create = client(request).chat.completions.create
    messages = [question(request)]
    while True:
        with client(request).chat.completions.stream(
            model=request.model, messages=messages, tools=[TOOL]
        ) as stream:
            message = stream.get_final_completion().choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            said.call(call.function.name, call.function.arguments)
            result = look(**said.calls[-1]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not message.tool_calls:
            break
    # The same without a stream, with all that was said.
    whole = create(model=request.model, messages=messages[:-1], tools=[TOOL])
    assert whole.choices[0].message.content == message.content
    assert whole.usage.total_tokens == 21
    said.piece(message.content)


serve(ask=ask, turns=turns)
