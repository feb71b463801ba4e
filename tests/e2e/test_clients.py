"""Published clients, unmodified. Those with conflicting pins run in an environment of their own."""

import json
import subprocess

from harness.launcher import ROOT
from harness.models import integer_answer

CLIENTS_PYTHON = ROOT / ".venv-clients" / "bin" / "python"

TEXT_GENERATION = """
import json, sys
from text_generation import Client

client = Client(sys.argv[1], timeout=60)
whole = client.generate("hello", max_new_tokens=12)
streamed = [event.token.id for event in client.generate_stream("hello", max_new_tokens=12)]
try:
    client.generate("hello", max_new_tokens=0)
    refused = ""
except Exception as error:
    refused = type(error).__name__
print(json.dumps({"ids": [t.id for t in whole.details.tokens], "streamed": streamed, "refused": refused}))
"""


def test_text_generation(launch, integer_folder):
    assert CLIENTS_PYTHON.exists(), "make .venv-clients/stamp"
    launcher = launch("--model-id", integer_folder)
    url = launcher.wait_until_ready()
    command = [CLIENTS_PYTHON, "-c", TEXT_GENERATION, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    expected = integer_answer("hello", 12)
    assert got == {"ids": expected, "streamed": expected, "refused": "ValidationError"}
    assert launcher.stop() == 0
