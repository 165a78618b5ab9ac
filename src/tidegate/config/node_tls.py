"""The three settings of a node that make up its TLS, as one section.

Options and variables set single words, so a node has no section of its own for them.
"""

from __future__ import annotations

from tidegate.config.gateway import ServerTls
from tidegate.config.node import NodeConfig
from tidegate.errors import ConfigurationError

_KEYS = ("tls_certificate", "tls_key", "tls_client_ca")


def server_tls(config: NodeConfig) -> ServerTls | None:
    """Return the section that a gateway would have, or ``None`` for a node without TLS.

    Raises:
        ConfigurationError: some of the settings are given without the others that they need.
    """
    certificate, key, client_ca = (getattr(config, name) for name in _KEYS)
    if certificate is not None and key is not None:
        return ServerTls(certificate=certificate, key=key, client_ca=client_ca)
    given = [name for name in _KEYS if getattr(config, name) is not None]
    if given:
        raise ConfigurationError(
            f"tls_certificate and tls_key go together, and here is only {' and '.join(given)}: "
            "give both, or nothing of TLS"
        )
    return None


def with_whole_paths(config: NodeConfig) -> NodeConfig:
    """Return the settings with paths that mean the same from every folder."""
    paths = {name: path.absolute() for name in _KEYS if (path := getattr(config, name))}
    return config.model_copy(update=paths) if paths else config
