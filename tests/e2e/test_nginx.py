"""Behind a stock nginx, whose proxy gathers answers into buffers unless it is told otherwise."""

import shutil
import socket
import subprocess

import pytest
from harness.client import body, events
from harness.launcher import eventually
from harness.optional import need

CONFIG = """
daemon off;
pid {folder}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def through_nginx(tmp_path):
    """Starts an nginx in front of a URL; gives its own."""
    running: list[subprocess.Popen[bytes]] = []

    def start(upstream: str) -> str:
        need("nginx", "" if shutil.which("nginx") else "nginx is not installed")
        port = free_port()
        (tmp_path / "nginx.conf").write_text(CONFIG.format(folder=tmp_path, port=port, upstream=upstream))
        command = ["nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", "stderr"]
        running.append(subprocess.Popen(command))
        eventually(lambda: answers(port), 10, "nginx listens")
        return f"http://127.0.0.1:{port}"

    yield start
    for process in running:
        process.terminate()
        process.wait(10)


def test_the_first_event_arrives_long_before_the_last_is_made(launch, endless_folder, through_nginx):
    """The client leaves after a few events: the server would have made all tokens if nginx had kept them to itself."""
    launcher = launch("--model-id", endless_folder)
    proxy = through_nginx(launcher.wait_until_ready())
    num_tokens = 3000
    stream = events(proxy, body("hello", num_tokens))
    assert [next(stream)["token"]["id"] is not None for _ in range(10)] == [True] * 10
    stream.close()
    generated = int(launcher.wait_for_line(r"generate_stream.* generated(?:_tokens)?=(\d+)").group(1))
    assert 10 <= generated < num_tokens
    assert launcher.stop() == 0
