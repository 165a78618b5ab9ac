"""Which proxy is on the way to a server: as the environment says, and never to this machine."""

from __future__ import annotations

import ipaddress
import urllib.request
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import httpcore

from tidegate.client.address import Address
from tidegate.errors import ConfigurationError


def proxy_to(address: Address) -> httpcore.Proxy | None:
    """Return the proxy of ``http_proxy``, ``https_proxy`` or ``all_proxy``, or ``None``.

    ``no_proxy`` lists hosts, domains and networks (``10.0.0.0/8``) without one.

    Raises:
        ConfigurationError: the variable holds no proxy that can be used.
    """
    if address.loopback:
        return None
    found = urllib.request.getproxies()
    url = found.get(address.scheme) or found.get("all")
    if not url or urllib.request.proxy_bypass(address.target):
        return None
    if _within(address.host, found.get("no", "")):
        return None
    return _proxy(url if "://" in url else f"http://{url}")


def _within(host: str, networks: str) -> bool:
    try:
        own = ipaddress.ip_address(host)
    except ValueError:
        return False
    for text in networks.split(","):
        try:
            if own in ipaddress.ip_network(text.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxy(url: str) -> httpcore.Proxy:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    # The URL is not shown: there may be a password in it.
    if not host or parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise ConfigurationError(
            "the proxy variables of the environment hold no URL of a proxy, as "
            "http://proxy.example:3128; correct them, or put the server's host into no_proxy"
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ConfigurationError(
            "the proxy of the environment speaks SOCKS, which takes a package more: "
            "pip install socksio; or put the server's host into no_proxy"
        )
    auth = None
    if parts.username is not None:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    shown = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme, 1080)
    return httpcore.Proxy(f"{parts.scheme}://{shown}:{port or default}", auth=auth)
