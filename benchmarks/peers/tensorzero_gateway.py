"""TensorZero's gateway, as its Python package starts it. Writes the port that it chose to a file."""

import sys
import time
from pathlib import Path

from openai import OpenAI
from tensorzero import patch_openai_client  # type: ignore[import-not-found]  # in its environment

client = patch_openai_client(OpenAI(api_key="x"), config_file=sys.argv[1], async_setup=False)
Path(sys.argv[2]).write_text(str(client.base_url.port))
while True:
    time.sleep(3600)
