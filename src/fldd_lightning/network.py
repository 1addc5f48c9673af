"""Whether there is a network: found out in seconds, where a failing download takes half a minute."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

__all__ = ["answers"]


def answers(url: str, timeout: float = 3.0) -> bool:
    """Whether a connection to a host, or to the proxy that leads there, opens in time.

    ``HF_HUB_OFFLINE=1`` counts as having no network at all.

    Args:
        url: Of the host.
        timeout: In seconds; look-ups of the name, which can hang for longer, are included.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    address = urlparse(url)
    host = address.hostname or ""
    proxies = {} if proxy_bypass(host) else getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy:
        address = urlparse(proxy if "://" in proxy else f"http://{proxy}")
    try:
        target = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    except ValueError:  # a port that is no number
        return False
    answered = threading.Event()

    def knock() -> None:
        try:
            with socket.create_connection(target, timeout):
                answered.set()
        except OSError:
            pass

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()
