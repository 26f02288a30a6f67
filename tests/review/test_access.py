"""Nobody without the token, and no page of another site, gets anything."""

import http.client
import json
import os
import socket

import pytest
import requests

from oasis_monai.review.access import keep_token, write_token
from oasis_monai.review.server import ReviewOptions, Server, listen
from oasis_monai.utils.errors import ConfigError
from tests.review.conftest import TOKEN

PATHS = ("/", "/static/review.js", "/api/worklist", "/api/scans/sure/image", "/nothing")


def status(served, method="GET", path="/api/worklist", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_there_is_nothing(served, path):
    assert status(served, path=path) == 401
    assert status(served, path=path, Authorization=f"Bearer {TOKEN[:-1]}") == 401
    assert status(served, path=path, Authorization="Bearer \xe9") == 401
    assert status(served, path=path, Cookie=f"oasis_review_{served.port + 1}={TOKEN}") == 401
    assert status(served, path=f"{path}?token={TOKEN}x") == 401


def test_the_address_gives_a_cookie_and_loses_its_token(served):
    answer = requests.get(f"{served.address}/?token={TOKEN}", allow_redirects=False, timeout=10)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert status(served, Cookie=cookie.partition(";")[0]) == 200
    assert status(served, path=f"/api/worklist?token={TOKEN}") == 401  # the first visit alone


@pytest.mark.parametrize("host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", ""])
def test_another_name_for_this_machine_is_refused(served, host):
    """DNS rebinding: a site's own name that points here."""
    bearer = f"Bearer {TOKEN}"
    assert status(served, Host=host.replace("PORT", str(served.port)), Authorization=bearer) in (400, 403)
    assert status(served, Host=f"localhost:{served.port}", Authorization=bearer) == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:PORT"])
def test_pages_of_other_sites_are_refused(served, origin):
    bearer = f"Bearer {TOKEN}"
    assert status(served, Origin=origin.replace("PORT", str(served.port)), Authorization=bearer) == 403
    assert status(served, "POST", "/api/teach/atlases", Sec_Fetch_Site="cross-site", Authorization=bearer) == 403
    assert status(served, Origin=served.address, Authorization=bearer) == 200


def test_every_answer_forbids_frames_and_keeps_nothing(served):
    for path in PATHS:
        answer = served.get(path[1:])
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_token_of_before_is_kept_for_its_owner_alone(tmp_path):
    file = tmp_path / "review" / ".server"
    token, port = keep_token(file)
    assert port == 0
    assert len(token) >= 40
    assert keep_token(file)[0] != token
    write_token(file, token, 5000)
    assert keep_token(file) == (token, 5000)
    assert file.stat().st_mode & 0o777 == 0o600
    os.chmod(file, 0o644)  # others may have read it
    assert keep_token(file)[0] != token
    for damaged in ("", "{", "[]", json.dumps({"token": "short", "port": 5000}), json.dumps({"token": token, "port": 80})):
        write_token(file, token, 5000)
        file.write_text(damaged)
        assert keep_token(file)[1] == 0


def test_it_listens_on_this_machine_alone_and_says_when_a_port_is_taken():
    with listen(0, wanted=False) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(ConfigError, match=r"review\.port"):
            listen(port, wanted=True)
        with listen(port, wanted=False) as second:
            assert second.getsockname()[1] != port
    assert first.family == socket.AF_INET


@pytest.mark.parametrize("wrong", [{"port": 80}, {"port": True}, {"upload_mb": 0}, {"minutes": "2"}, {"open": "yes"}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=f"review.{next(iter(wrong))}"):
        ReviewOptions(**wrong)


def test_a_second_server_of_a_folder_is_refused(results, monkeypatch):
    from oasis_monai.utils.files import exclusive_folder

    with exclusive_folder(results, "output"), pytest.raises(ConfigError, match="in use by process"):
        Server(results).run()
    with pytest.raises(ConfigError, match="correct the path"):
        Server(results / "nothing").run()
