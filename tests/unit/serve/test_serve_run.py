"""Running the service: its packages, its socket, and a shutdown that loses no request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from bnb_ds.cli import main
from bnb_ds.errors import ConfigError

httpx = pytest.importorskip("httpx", reason="the extra [serve] is not installed")
pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

from bnb_ds.serve.limits import ServiceLimits  # noqa: E402
from bnb_ds.serve.server import listen, serve  # noqa: E402


def test_without_the_packages_the_way_to_them_is_named(exported, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(exported)]) == 2
    assert (
        capsys.readouterr().err
        == 'bnb-ds: error: serve needs the package uvicorn: pip install ".[serve]" in the checkout of bnb_ds\n'
    )


def test_connections_are_without_nagle() -> None:
    """Without TCP_NODELAY, the second part of an answer would wait for the client's delayed acknowledgement."""

    async def accepted() -> int:
        options = asyncio.get_running_loop().create_future()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            options.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as bound:
            async with await asyncio.start_server(connected, sock=bound):
                _, writer = await asyncio.open_connection(*bound.getsockname())
                found = await options
                writer.close()
        return found

    assert asyncio.run(accepted()) != 0


def test_idle_connections_outlive_those_of_proxies(pipeline, monkeypatch):
    configs = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: configs.append(self.config))
    with listen("127.0.0.1", 0) as bound:
        serve(pipeline, ServiceLimits(), bound, shutdown_seconds=1)
    assert configs[0].timeout_keep_alive > 60


def test_an_address_of_ipv6_stands_in_brackets(pipeline, monkeypatch, capsys):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    try:
        bound = listen("::1", 0)
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with bound:
        serve(pipeline, ServiceLimits(), bound, shutdown_seconds=1)
        assert f"http://[::1]:{bound.getsockname()[1]}, described" in capsys.readouterr().err


def test_an_address_that_is_taken_is_one_line(exported, capsys):
    with listen("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert main(["serve", str(exported), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"--host 127.0.0.1 --port {port}: Address already in use; give an address" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [("127.0.0.1", 65536, "port must be 0-65535"), ("a" * 70, 0, "encoding with 'idna' codec failed")],
)
def test_an_address_that_cannot_be_is_one_line(host, port, reason):
    with pytest.raises(
        ConfigError, match=rf"--host {host} --port {port}: .*{reason}.*; give an address of this machine"
    ):
        listen(host, port)


@pytest.mark.slow
def test_sigterm_under_load_answers_what_was_accepted(exported, small_texts, pipeline, fork_server, tmp_path):
    texts = [text[: 3 + 11 * (i % 17)] for i, text in enumerate(small_texts)]
    arguments = ["serve", str(exported), "--port", "0", "--device", "cpu"]
    server = fork_server.launch(arguments, tmp_path / "log", ranks=0, program="bnb-ds")
    server.wait_for(lambda: "http://" in server.text() and server.text().endswith("\n"))
    port = int(re.search(r"http://127.0.0.1:(\d+)", server.text())[1])
    answers, refused = [], []
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            text = texts[number % len(texts)]
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/generate", json={"texts": [text]}, timeout=60)
            except httpx.TransportError as error:
                refused.append(error)
                return
            answers.append((text, answer.status_code, answer.text))
            number += 13

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    while len(answers) < 60:
        time.sleep(0.01)
    server.kill(0, signal.SIGTERM)
    codes = server.wait()
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0], server.text()
    assert "Traceback" not in server.text()
    assert all(status == 200 for _, status, _ in answers)
    expected = {text: pipeline(text) for text in {text for text, _, _ in answers}}
    assert all(json.loads(body)["outputs"][0]["text"] == expected[text] for text, _, body in answers)
    accepted, answered = map(int, re.search(r"(\d+) requests accepted, (\d+) answered", server.text()).groups())
    assert accepted == answered == len(answers)


_WITH_FEW_FILES = """
import resource, sys
from bnb_ds.cli import main
from bnb_ds.errors import ConfigError
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_more_connections_than_open_files_do_no_harm(exported):
    """The process may have 200 open files, and 400 connections come: it never runs out, and new clients get in."""
    command = [sys.executable, "-c", _WITH_FEW_FILES, "serve", str(exported), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(server.stderr.readline, "")
        port = next(int(found[1]) for line in lines if (found := re.search(r"http://127.0.0.1:(\d+)", line)))
        with contextlib.ExitStack() as stack:
            for _ in range(400):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(3):
                assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
            found = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
            assert 30 < float(re.search(r"^bnb_connections (\S+)", found, re.MULTILINE)[1]) <= 72
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[1]
    assert server.returncode == 0
    assert "Too many open files" not in said
    assert "Traceback" not in said
