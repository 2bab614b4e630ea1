"""litellm as a client, over Chat Completions or Messages."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched

import litellm
from driver import DIALECT, PICTURE, QUESTION, TOOL, URL, look, serve

litellm.suppress_debug_info = True


def complete(request, messages, **more):
    return litellm.completion(
        model=f"{DIALECT}/{request.model}",
        api_base=f"{URL}/v1" if DIALECT == "openai" else URL,
        api_key=request.key,
        messages=messages,
        max_retries=0,
        **({"tools": [TOOL]} if request.tools else {}),
        **more,
    )


def ask(request, said):
    content = QUESTION
    if request.image:
        image = {"type": "image_url", "image_url": {"url": PICTURE}}
        content = [{"type": "text", "text": QUESTION}, image]
    messages = [{"role": "user", "content": content}]
    stream = complete(request, messages, stream=True, stream_options={"include_usage": True})
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        for choice in chunk.choices:
            said.piece(choice.delta.content)
            said.reasoning += getattr(choice.delta, "reasoning_content", None) or ""
            said.finish = choice.finish_reason or said.finish
        if said.enough(request):
            stream.completion_stream.close()
            return
    whole = litellm.stream_chunk_builder(chunks)
    said.usage = [whole.usage.prompt_tokens, whole.usage.completion_tokens]
    for call in whole.choices[0].message.tool_calls or ():
        said.call(call.function.name, call.function.arguments)


def turns(request, said):
    messages = [{"role": "user", "content": QUESTION}]
    while True:
        message = complete(request, messages).choices[0].message
        messages.append(message)
        for call in message.tool_calls or ():
            said.call(call.function.name, call.function.arguments)
            result = look(**said.calls[-1]["arguments"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not message.tool_calls:
            said.piece(message.content)
            return


serve(ask=ask, turns=turns)
