"""Where a server listens. Imports nothing heavy: a port in use is told before a model is loaded."""

from __future__ import annotations

import socket

from lightthinker.errors import ConfigError


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket.

    Raises:
        ConfigError: The address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error}. Choose another --port, or end the program "
            "that has it."
        ) from error
    return sock


def is_loopback(host: str) -> bool:
    """Whether an address is only reachable from this machine."""
    return host in ("localhost", "::1") or host.startswith("127.")
