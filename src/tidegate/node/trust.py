"""The certificate of a node, and who vouches for its clients: read once, then followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tidegate.config.node import NodeConfig
from tidegate.config.node_tls import server_tls
from tidegate.edge.trust import ServerTls

if TYPE_CHECKING:
    from tidegate.edge.trust_files import Trust


class NodeTrust:
    """What the files of a node's TLS say; without any, nothing is read and nothing followed.

    Args:
        config: the node's settings.
        changed: is called when the files say something else.
        announce: is told, in lines, what is wrong with them.

    Raises:
        ConfigurationError: a file is of no use, or one is missing among the settings.
    """

    def __init__(
        self, config: NodeConfig, changed: Callable[[], None], announce: Callable[[str], None]
    ) -> None:
        self.tls: ServerTls | None = None
        self.problem: str | None = None
        """What is wrong with the files as they are now; what was known last is in effect."""
        self._changed = changed
        self._announce = announce
        section = server_tls(config)
        self._files = None
        if section is None:
            return
        # Here, since most nodes need none of it, and it takes a while to import.
        from tidegate.edge.trust_files import TrustFiles

        self._files = TrustFiles(section, None, None)
        self._known = self._files.read()
        self.tls = self._known.tls

    async def follow(self) -> None:
        """Look at the files again and again, until cancelled."""
        if self._files is not None:
            await self._files.follow(self._known, self._renew, self._tell)

    def _renew(self, known: Trust) -> None:
        self._known, self.tls = known, known.tls
        self._announce("the certificates of TLS are read anew")
        self._changed()

    def _tell(self, words: str | None) -> None:
        self.problem = words
        self._announce(f"certificates: {words or 'well again'}")
