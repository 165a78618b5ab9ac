"""Which side refused the other's certificate, where a connection over TLS came to nothing.

By TLS 1.3 a server refuses a client when that thinks itself let in and has sent its first call.
The server closes the connection then, and what it said of its reason is lost with it. And gRPC
tells of a handshake in words that change. So who meets such a fault shakes hands once more, by
Python's TLS, and sends nothing.
"""

from __future__ import annotations

import socket
import ssl
import time

from tidegate.client.connection import Connection
from tidegate.client.proxies import proxy_to
from tidegate.errors import ServerUnreachable

_LONGEST = 2.0
_ALERT = 0.3
"""Seconds in which an alert has come, on a network that is no slower than most."""
_NOT_LET_IN = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR", "HANDSHAKE_FAILURE")
"""Of the alerts of TLS (RFC 8446, section 6), what a server says of a client's certificate."""
_OTHER_NAME = (62, 64)
"""``X509_V_ERR_HOSTNAME_MISMATCH`` and ``…_IP_ADDRESS_MISMATCH`` of OpenSSL."""
_EXPIRED = 10


def refusal_of(connection: Connection, error: BaseException) -> ServerUnreachable | None:
    """Return what an error, or one that it wraps, says of certificates; ``None``: nothing."""
    for each in (error, *error.args):
        if isinstance(each, ssl.SSLCertVerificationError):
            return connection.not_believed(each.verify_message, _advice(each.verify_code))
        alert = each.reason or "" if isinstance(each, ssl.SSLError) else ""
        if "_ALERT_" in alert and any(words in alert for words in _NOT_LET_IN):
            return connection.not_let_in(each)
    return None


def look_for_refusal(
    connection: Connection, context: ssl.SSLContext, timeout: float
) -> ServerUnreachable | None:
    """Shake hands, and wait for what the server says then; ``None``: nobody refuses anybody."""
    address = connection.address
    timeout = min(timeout, _LONGEST)
    if timeout <= 0 or proxy_to(address) is not None:
        return None
    began = time.monotonic()
    try:
        with (
            socket.create_connection((address.host, address.port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secure,
        ):
            took = time.monotonic() - began
            secure.settimeout(max(0.01, min(timeout - took, max(_ALERT, 2 * took))))
            secure.recv(1)
    except (OSError, ValueError) as error:
        return refusal_of(connection, error)
    return None


def _advice(code: int) -> str:
    if code in _OTHER_NAME:
        return "give the URL with a name, or an address, that its certificate has"
    if code == _EXPIRED:
        return "it has to be renewed there"
    return "give ca_file the certificates of who vouches for it"
