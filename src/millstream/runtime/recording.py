"""Recording: a prompt -> what a provider of the settings produces for it, in a file that can be played."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from millstream.events import TextDelta
from millstream.prompt import Message, Prompt, Text
from millstream.providers import Produced
from millstream.providers.replay import Recorder
from millstream.runtime.providers import llm_service
from millstream.settings import Settings


async def record(
    settings: Settings,
    name: str,
    model: str | None,
    text: str,
    *,
    with_prompt: bool = False,
    replace: bool = False,
    shown: Callable[[str], object] = lambda text: None,
) -> Path:
    """The file. What the model says is ``shown`` while it comes. Of several deployments one is asked, once:
    an error of the provider is recorded and raised.

    Raises ``ConfigurationError``, ``ModelNotFound`` and ``ProviderError``.
    """
    service = llm_service(settings, {})
    try:
        await service.discover()
        found = await service.resolve(model)
        target = found.order()[0]
        prompt = Prompt((Message("user", (Text(text),)),), found.name)
        given = text if with_prompt else None
        recorder = Recorder(settings.resolved_recordings_dir, name, found.name, prompt=given, replace=replace)
        with recorder:
            async with aclosing(target.provider.stream(prompt, target.upstream_name)) as batches:
                async for batch in batches:
                    recorder.add(batch)
                    shown(_text(batch))
    finally:
        await service.close()
    return recorder.path


def _text(batch: Sequence[Produced]) -> str:
    return "".join(item.text for item in batch if isinstance(item, TextDelta))
