"""The entry point: the command line, which Ctrl-C ends without a word, also while it is being loaded."""


def main() -> None:
    """Runs the command line."""
    try:
        from millstream.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # what shells know for Ctrl-C


if __name__ == "__main__":
    main()
