"""Starting Prefect's server."""

import http.server
import json
import threading
import urllib.request
from pathlib import Path

import pytest

from infra.services import free_port, prefect_server
from tasks.errors import InputError


class AnswersEverything(http.server.BaseHTTPRequestHandler):
    """A server that is not ours."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_taken_port_is_not_chosen() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), AnswersEverything) as other:
        taken = other.server_address[1]
        assert free_port(taken) != taken
    assert free_port(taken) == taken


@pytest.mark.slow
def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with http.server.HTTPServer(("127.0.0.1", 0), AnswersEverything) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with (
            prefect_server(tmp_path, port=other.server_address[1]) as server,
            pytest.raises(InputError, match=r"did not come up on port \d+\. Its log: .*prefect-server\.log"),
        ):
            server.wait_until_ready()
        other.shutdown()


@pytest.mark.slow
def test_the_ui_asks_the_server_that_serves_it_whatever_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    with prefect_server(tmp_path, port=free_port(4299)) as server:
        server.wait_until_ready()
        with urllib.request.urlopen(f"{server.ui_url}/ui-settings", timeout=10) as answer:
            assert json.load(answer)["api_url"] == server.api_url
