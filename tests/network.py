"""
No test reaches beyond this machine: an audit hook of the interpreter sees every connection and every name looked up.

What it refuses is also noted, because many a library takes the error for a network that is down and goes on.
It sees sockets of Python; processes that tests start are kept off the network by `HF_HUB_OFFLINE`.
"""

import ipaddress
import socket
import sys
from typing import Any


ATTEMPTS: list[str] = []
HERE = {"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname().lower()}
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.getaddrinfo": 0, "socket.gethostbyname": 0}


class NetworkUse(RuntimeError):
    """A test wants to leave this machine."""


def forbid_network() -> None:
    """Refuse, from here to the end of this process, what is not loopback."""
    sys.addaudithook(_refuse)


def is_here(host: Any) -> bool:
    """Whether a host, as sockets take it, is this machine."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if host is None or str(host).lower() in HERE:
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(event: str, arguments: tuple) -> None:
    place = EVENTS.get(event)
    if place is None:
        return
    target = arguments[place]
    if event in ("socket.connect", "socket.sendto"):
        if not isinstance(target, tuple):  # a socket in the file system
            return
        target = target[0]
    if not is_here(target):
        ATTEMPTS.append(f"{event} {target!r}")
        raise NetworkUse(f"Tests are offline: {event} of {target!r}.")
