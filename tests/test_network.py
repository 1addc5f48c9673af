from __future__ import annotations

import socket

import pytest

from fldd_lightning.network import answers


def test_a_proxy_leads_to_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert answers(f"http://{address}")
        assert not answers("https://nowhere.invalid")
        for proxy in (f"http://{address}", address):
            monkeypatch.setenv("https_proxy", proxy)
            assert answers("https://nowhere.invalid")
        monkeypatch.setenv("no_proxy", "nowhere.invalid")
        assert not answers("https://nowhere.invalid")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not answers(f"http://{address}")
