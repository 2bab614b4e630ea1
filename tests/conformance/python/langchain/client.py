"""langchain-openai, over Chat Completions or Responses."""

from driver import DIALECT, PICTURE, QUESTION, TOOL, URL, look, serve
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI


def model(request):
    chat = ChatOpenAI(
        base_url=f"{URL}/v1",
        api_key=request.key,
        model=request.model,
        max_retries=0,
        stream_usage=True,
        use_responses_api=DIALECT == "responses",
    )
    return chat.bind_tools([TOOL]) if request.tools else chat


def ask(request, said):
    content = QUESTION
    if request.image:
        image = {"type": "image_url", "image_url": {"url": PICTURE}}
        content = [{"type": "text", "text": QUESTION}, image]
    whole = None
    stream = model(request).stream([HumanMessage(content)])
    for chunk in stream:
        said.piece(chunk.text)
        whole = chunk if whole is None else whole + chunk
        if said.enough(request):
            stream.close()
            return
    said.finish = whole.response_metadata.get("finish_reason")
    said.usage = [whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]]
    for call in whole.tool_calls:
        said.call(call["name"], call["args"])


def turns(request, said):
    messages = [HumanMessage(QUESTION)]
    while True:
        answer = model(request).invoke(messages)
        messages.append(answer)
        for call in answer.tool_calls:
            said.call(call["name"], call["args"])
            messages.append(ToolMessage(look(**call["args"]), tool_call_id=call["id"]))
        if not answer.tool_calls:
            said.piece(answer.text)
            return


serve(ask=ask, turns=turns)
