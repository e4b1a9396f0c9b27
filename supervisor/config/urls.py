"""Which addresses a control node may have: https everywhere, plain http only in private networks."""

from __future__ import annotations

import re
from typing import Any, Final

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})")
# Only the owner can read the traffic here: private networks, link-local ones, and Tailscale, which encrypts.
_PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10")


def url_fault(url: str) -> str | None:
    """What is allowed instead of this address; None: it is allowed."""
    from urllib.parse import urlsplit

    if not url.isascii() or not url.isprintable() or " " in url:
        return "an ASCII URL without spaces"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "a URL of the form http(s)://host:port"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return "a URL of the form http(s)://host:port"
    if "@" in url or "?" in url or "#" in url:
        return "a URL without user name, password, ? and # (the key belongs into control.token)"
    address = _address(host)
    if address is None and (not _NAME.fullmatch(host) or host.rstrip(".").rpartition(".")[2].isdigit()):
        return "a URL with a valid host name or address"
    if parts.scheme == "http" and host != "localhost" and not (is_loopback(host) or _is_private(address)):
        return "https, or http to localhost or to a loopback, private, link-local or Tailscale address"
    return None


def nats_fault(urls: str) -> str | None:
    """What is allowed instead of these NATS addresses (several between commas); None: they are allowed."""
    for url in urls.split(","):
        scheme, _, rest = url.strip().partition("://")
        kind = {"nats": "http", "tls": "https"}.get(scheme)
        if kind is None or "/" in rest:
            return "nats://host:port or tls://host:port, several between commas"
        if why := url_fault(f"{kind}://{rest}"):
            return why.replace("http(s)://", "nats://").replace("https", "tls://").replace("or http to", "or nats:// to")
    return None


def is_loopback(host: str) -> bool:
    """Whether this host is this machine."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def host_of(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""


def _address(host: str) -> Any:
    """The host as an IP address (IPv4 for a mapped one); None for a name."""
    import ipaddress

    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_private(address: Any) -> bool:
    import ipaddress

    return address is not None and any(address in ipaddress.ip_network(network) for network in _PRIVATE)
