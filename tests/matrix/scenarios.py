"""Scenarios: what a model says, in nobody's words."""

from typing import Literal, NamedTuple, TypeAlias


class Words(NamedTuple):
    text: str


class Thought(NamedTuple):
    text: str


class Call(NamedTuple):
    """``arguments`` are JSON, in the pieces in which a provider sends them that sends pieces."""

    call_id: str
    name: str
    arguments: tuple[str, ...]


class Declined(NamedTuple):
    """The model will not answer: OpenAI's APIs have words for it, the others end the answer."""

    words: str


Piece: TypeAlias = Words | Thought | Call | Declined
# ``limited`` and ``too-long`` come before a word of the answer, as a status; ``failed`` and ``cut`` behind one.
End: TypeAlias = Literal[
    "stop", "length", "tool_calls", "content_filter", "limited", "too-long", "failed", "cut"
]


class Scenario(NamedTuple):
    said: tuple[Piece, ...]
    end: End


LOOK = Call("call_1", "look", ('{"q"', ":1}"))
AGAIN = Call("call_2", "look", ('{"q":2}',))
NOW = Call("call_3", "now", ())

SCENARIOS: dict[str, Scenario] = {
    "text": Scenario((Words("Hel"), Words("lo — Grüße\u2028😀")), "stop"),
    "reasoning": Scenario((Thought("h"), Thought("m"), Words("Yes.")), "stop"),
    "one-call": Scenario((Words("So"), LOOK), "tool_calls"),
    "two-calls": Scenario((Words("So"), LOOK, AGAIN), "tool_calls"),
    "thought-and-calls": Scenario((Thought("hm"), NOW, LOOK), "tool_calls"),
    "refusal": Scenario((Declined("I can"), Declined("not.")), "stop"),
    "filtered": Scenario((Words("Once"),), "content_filter"),
    "length": Scenario((Words("Once"), Words(" upon")), "length"),
    "limited": Scenario((), "limited"),
    "too-long": Scenario((), "too-long"),
    "failed": Scenario((Words("Hel"),), "failed"),
    "cut": Scenario((Words("Hel"),), "cut"),
}

RETRY_AFTER_SECONDS = 3


class Counts(NamedTuple):
    """Tokens. ``cached`` and ``written`` are of the prompt, ``reasoning`` of the completion."""

    prompt: int = 15
    completion: int = 7
    cached: int = 2
    reasoning: int = 3
    written: int = 0
