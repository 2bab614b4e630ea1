"""Every dialect, by its name in URLs."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from millstream.dialects import Dialect
from millstream.dialects.ag_ui import AG_UI
from millstream.dialects.ai_sdk import AI_SDK
from millstream.dialects.anthropic import ANTHROPIC
from millstream.dialects.native import NATIVE
from millstream.dialects.openai import OPENAI
from millstream.dialects.responses import RESPONSES

DialectName: TypeAlias = Literal["millstream", "openai", "anthropic", "responses", "ai-sdk", "ag-ui"]

DIALECTS: Mapping[DialectName, Dialect] = {
    "millstream": NATIVE,
    "openai": OPENAI,
    "anthropic": ANTHROPIC,
    "responses": RESPONSES,
    "ai-sdk": AI_SDK,
    "ag-ui": AG_UI,
}

# By the paths at which their clients ask.
FOREIGN: Mapping[str, Dialect] = {
    "/v1/chat/completions": OPENAI,
    "/v1/messages": ANTHROPIC,
    "/v1/responses": RESPONSES,
    "/api/chat": AI_SDK,
    "/ag-ui": AG_UI,
}
