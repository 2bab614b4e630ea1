"""llm, the library of the command line tool."""

import base64

import llm
from driver import PIXEL, QUESTION, URL, look, serve
from llm.default_plugins.openai_models import Chat


def model(request):
    return Chat(
        model_id=request.model,
        model_name=request.model,
        key=request.key,
        api_base=f"{URL}/v1",
        vision=True,
        supports_tools=True,
    )


def ask(request, said):
    more = {}
    if request.image:
        more["attachments"] = [llm.Attachment(type="image/png", content=base64.b64decode(PIXEL))]
    if request.tools:
        more["tools"] = [llm.Tool.function(look)]
    response = model(request).prompt(QUESTION, **more)
    pieces = iter(response)
    for piece in pieces:
        said.piece(piece)
        if said.enough(request):
            return  # to let go of a response is the only way to stop it
    usage = response.usage()
    said.usage = [usage.input, usage.output]
    for call in response.tool_calls():
        said.call(call.name, call.arguments)


def turns(request, said):
    def observed(q: int) -> str:
        """Looks."""
        said.call("look", {"q": q})
        return look(q)

    for piece in model(request).chain(QUESTION, tools=[llm.Tool.function(observed, name="look")]):
        said.piece(piece)


serve(ask=ask, turns=turns)
