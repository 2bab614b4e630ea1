"""The command line: serve · chat · record · keys · secret · prices · usage · exports."""

import asyncio
import errno
import io
import os
import sys
from typing import Annotated

import typer

from millstream.cli.exports import exports_app
from millstream.cli.keys import keys_app, secret_app
from millstream.cli.shared import DataDir, fail
from millstream.cli.usage import prices_app, usage_app
from millstream.errors import ConfigurationError, MillstreamError
from millstream.version import DOCS, __version__

app = typer.Typer(
    name="millstream",
    help="Stream LLM answers over Server-Sent Events: metered once, stopped at once, never buffered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(keys_app, name="keys")
app.add_typer(secret_app, name="secret")
app.add_typer(exports_app, name="exports")
app.add_typer(prices_app, name="prices")
app.add_typer(usage_app, name="usage")


_NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """What is wrong with the set-up, the arguments or the output is one line and exit code 2."""
    _spell_out()
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (ConfigurationError, MillstreamError) as error:
        fail(str(error))
    except BrokenPipeError:  # whoever reads the output has seen enough
        _drop_output()
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in _NOT_WRITTEN:
            raise
        _drop_output()
        fail(f"the output cannot be written: {error.strerror}")
    except UnicodeEncodeError:  # of what came from the command line: the output has no such errors
        fail("an argument has bytes that are no characters")
    except Exception as error:
        # Asked by name: most commands end without having loaded it.
        if type(error).__module__ != "sqlalchemy.exc":
            raise
        fail(f"the database does not work: {type(error).__name__}; is it locked, full or read-only?")


def _spell_out() -> None:
    """A character that the encoding of the output lacks, and a byte that the input's does not know, becomes
    ``\\xe9``: an answer is paid for, and is shown to its end.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Python would try again, as it ends, to write what is left of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command(epilog=f"All settings: {DOCS}/reference/settings.md")
def serve(
    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on.  \\[env: MILLSTREAM_HOST] \\[default: 127.0.0.1]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on; 0 takes a free one.  \\[env: MILLSTREAM_PORT] \\[default: 8000]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes; over 1 needs a shared journal.  \\[env: MILLSTREAM_WORKERS] \\[default: 1]",
            min=1,
        ),
    ] = None,
    data_dir: DataDir = None,
    show_key: Annotated[
        bool,
        typer.Option(
            "--show-key",
            help="Make and print the first key where there is none, though stdout is no terminal.",
        ),
    ] = False,
    temporary_key: Annotated[
        bool,
        typer.Option(
            "--temporary-key",
            help="Print a key that is revoked when the server stops, where no first key is printed.",
        ),
    ] = False,
) -> None:
    """Run the server.

    Needs no settings: without any provider's key it serves a small local model or, where that is not
    installed, a script. Set OPENAI_API_KEY for OpenAI; set OPENAI_BASE_URL for any server that speaks
    its protocol.

    SIGTERM or Ctrl-C lets running streams go on for MILLSTREAM_DRAIN_SECONDS; a second one hurries.
    SIGHUP, as of a terminal that closes, does so too; several workers it replaces one by one.
    """
    from millstream.server.process.serve import serve as run
    from millstream.settings import Settings

    given = {"host": host, "port": port, "workers": workers, "data_dir": data_dir}
    settings = Settings.load(**{name: value for name, value in given.items() if value is not None})
    run(settings, show_key=show_key or sys.stdout.isatty(), temporary_key=temporary_key)


@app.command()
def chat(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="The question; without one, a conversation.", show_default=False),
    ] = None,
    url: Annotated[
        str, typer.Option(envvar="MILLSTREAM_URL", help="Where Millstream is.")
    ] = "http://127.0.0.1:8000",
    key: Annotated[
        str, typer.Option(envvar="MILLSTREAM_KEY", help="An API key or a browser token.", show_default=False)
    ] = "",
    model: Annotated[
        str | None, typer.Option(help="The server's default otherwise.", show_default=False)
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Follow the stream of this id.", show_default=False)
    ] = None,
) -> None:
    """Talk to a model through a running Millstream.

    Answers are shown as Markdown while they arrive. Ctrl-C stops an answer at the provider; a dropped
    connection is resumed. In a pipe the text comes as it is.
    """
    from millstream.terminal import Conversation

    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"'{url}' is no address of a server; one is like http://127.0.0.1:8000")
    if not key:
        raise ConfigurationError(
            "give a key with --key or MILLSTREAM_KEY; make one, where the server runs, with: "
            "millstream keys create --name me"
        )
    asyncio.run(Conversation(url, key, model).run(" ".join(prompt or ()), resume))


@app.command()
def record(
    name: Annotated[str, typer.Argument(help="What the recording is to be called.")],
    prompt: Annotated[list[str], typer.Argument(help="The question.")],
    model: Annotated[str | None, typer.Option(help="The default otherwise.", show_default=False)] = None,
    with_prompt: Annotated[
        bool, typer.Option("--with-prompt", help="Keep the question in the recording.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the recording of that name.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Record an answer, to be played again as the model replay/NAME.

    Asks the provider of the settings directly, without a server. The recording has what the
    model said and when, and how that ended; no key, and the question only if it is asked for.
    """
    from millstream.runtime.recording import record as run
    from millstream.settings import Settings

    settings = Settings.load(**({} if data_dir is None else {"data_dir": data_dir}))

    def show(text: str) -> None:
        print(text, end="", flush=True)

    recording = run(
        settings, name, model, " ".join(prompt), with_prompt=with_prompt, replace=replace, shown=show
    )
    path = asyncio.run(recording)
    print(f"\nrecorded as replay/{name} in {path}", file=sys.stderr)
