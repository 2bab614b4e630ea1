"""Pictures, sound and documents, where several APIs take them in the same way."""

from collections.abc import Iterator, Sequence

import msgspec

from millstream.prompt import File, Image, Message, Part, Text, ToolCall

# What OpenAI's formats call sound that has several media types.
_SOUNDS = {
    "mpeg": "mp3",
    "mpeg-3": "mp3",
    "mpeg3": "mp3",
    "mpga": "mp3",
    "pn-wav": "wav",
    "vnd.wave": "wav",
    "wave": "wav",
}

BELOW = "See the files below."
ABOVE = "Files of what is above:"


def shown_by_users(messages: Sequence[Message]) -> Iterator[Message]:
    """The conversation for an API whose assistants give no files: those of an assistant follow in a message
    of a user, behind all results of its calls.
    """
    files: list[Part] = []
    for message in messages:
        if files and message.role != "tool":
            yield Message("user", (Text(ABOVE), *files))
            files = []
        own = [part for part in message.parts if isinstance(part, (Image, File))]
        if own and message.role == "assistant":
            files += own
            yield _without_files(message)
        else:
            yield message
    if files:
        yield Message("user", (Text(ABOVE), *files))


def _without_files(message: Message) -> Message:
    """One that had nothing else to say says where they are."""
    parts = [part for part in message.parts if not isinstance(part, (Image, File))]
    if not message.text.strip() and not any(isinstance(part, ToolCall) for part in parts):
        parts = [part for part in parts if not isinstance(part, Text)]
        parts.append(Text(BELOW))
    return msgspec.structs.replace(message, parts=tuple(parts))


def sound_format(media_type: str) -> str:
    """``audio/x-wav;codecs=1`` -> ``wav``. OpenAI knows wav and mp3, other servers more."""
    kind = media_type.partition(";")[0].partition("/")[2].strip().lower().removeprefix("x-")
    return _SOUNDS.get(kind, kind)
