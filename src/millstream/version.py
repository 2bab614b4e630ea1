"""The version, and where the project is on the web, on their own so that anything may import them."""

__version__ = "0.1.0"

REPOSITORY = "https://github.com/millstream/millstream"
DOCS = f"{REPOSITORY}/blob/main/docs"
