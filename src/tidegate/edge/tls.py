"""TLS on both sides of an edge.

Certificates travel as secrets of their own (SDS, over the control socket): a new one counts for
the connections that come after it, and those that are open stay.

Source: https://www.envoyproxy.io/docs/envoy/latest/configuration/security/secret
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from google.protobuf import any_pb2

from tidegate.edge.messages import from_controller, packed
from tidegate.edge.names import CLIENTS_CA, ENDPOINTS_CA, OUR_CERTIFICATE, SERVER_CERTIFICATE
from tidegate.edge.trust import ClientTls, ServerTls

_SOCKET = "envoy.transport_sockets.tls"
_DNS_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
NOBODY = "nobody.invalid"
"""The name that is asked for where nobody is to be believed; nobody can have it (RFC 2606)."""
_SAN = common_pb2.SubjectAltNameMatcher


def server_secrets(tls: ServerTls | None) -> dict[str, any_pb2.Any]:
    """Return the secrets that :func:`listener_transport_socket` names, by name."""
    if tls is None:
        return {}
    found = {SERVER_CERTIFICATE: _certificate(SERVER_CERTIFICATE, tls.certificate, tls.key)}
    if tls.client_ca is not None:
        found[CLIENTS_CA] = _authorities(CLIENTS_CA, tls.client_ca)
    return found


def endpoint_secrets(tls: ClientTls) -> dict[str, any_pb2.Any]:
    """Return the secrets that sockets of :func:`upstream_transport_socket` share, by name.

    They belong in a snapshot in which a cluster has that socket, and in no other: the session
    waits until Envoy has fetched them.
    """
    found = {}
    if tls.ca is not None and not tls.addresses_count:
        found[ENDPOINTS_CA] = _authorities(ENDPOINTS_CA, tls.ca)
    if tls.certificate is not None and tls.key is not None:
        found[OUR_CERTIFICATE] = _certificate(OUR_CERTIFICATE, tls.certificate, tls.key)
    return found


def cluster_authorities(cluster: str) -> str:
    """Return the name of the secret that says whom one cluster believes."""
    return f"{ENDPOINTS_CA}/{cluster}"


def cluster_secret(cluster: str, ca: bytes, addresses: Iterable[str]) -> any_pb2.Any:
    """Return that secret: the authorities, and the addresses that certificates may be for.

    They are those of the cluster's own endpoints that are known by no name. Envoy cannot tell
    which of them it is connected to, so one endpoint may pass for another of the same cluster,
    and for no other machine of the authority's. Told as a secret, they come and go without the
    cluster, whose endpoints would all be checked anew.
    """
    expected = common_pb2.CertificateValidationContext(
        trusted_ca=base_pb2.DataSource(inline_bytes=ca),
        match_typed_subject_alt_names=[_named(address) for address in sorted(addresses)],
    )
    name = cluster_authorities(cluster)
    return packed(secret_pb2.Secret(name=name, validation_context=expected))


def listener_transport_socket(tls: ServerTls) -> base_pb2.TransportSocket:
    """Return the socket of a listener that speaks TLS 1.2 or 1.3, and HTTP/2 or HTTP/1.1."""
    context = tls_pb2.DownstreamTlsContext()
    common = context.common_tls_context
    _bound_versions(common)
    common.alpn_protocols.extend(("h2", "http/1.1"))
    common.tls_certificate_sds_secret_configs.append(_secret_source(SERVER_CERTIFICATE))
    if tls.client_ca is not None:
        common.validation_context_sds_secret_config.CopyFrom(_secret_source(CLIENTS_CA))
    context.require_client_certificate.value = tls.mutual
    return base_pb2.TransportSocket(name=_SOCKET, typed_config=packed(context))


def upstream_transport_socket(tls: ClientTls, alpn: str, cluster: str) -> base_pb2.TransportSocket:
    """Return the socket of a cluster whose endpoints speak TLS, and what ``alpn`` says in it.

    Without a ``server_name`` Envoy asks for the host name that it is told with each endpoint.
    Where that is empty, the certificate must be for an address that :func:`cluster_secret` names;
    it would be anybody's if nothing were asked for.
    """
    context = tls_pb2.UpstreamTlsContext()
    common = context.common_tls_context
    _bound_versions(common)
    common.alpn_protocols.append(alpn)
    if tls.certificate is not None:
        common.tls_certificate_sds_secret_configs.append(_secret_source(OUR_CERTIFICATE))
    expected = common_pb2.CertificateValidationContext()
    if tls.ca is None:
        # Nobody vouches for anybody: no certificate has this digest.
        expected.verify_certificate_hash.append("00" * 32)
        common.validation_context.CopyFrom(expected)
        return base_pb2.TransportSocket(name=_SOCKET, typed_config=packed(context))
    if tls.server_name is None:
        context.auto_host_sni = True
        context.auto_sni_san_validation = True
        expected.match_typed_subject_alt_names.append(_named(NOBODY))
    else:
        expected.match_typed_subject_alt_names.append(_named(tls.server_name))
        if not _is_address(tls.server_name):
            context.sni = tls.server_name
    combined = common.combined_validation_context
    combined.default_validation_context.CopyFrom(expected)
    known = cluster_authorities(cluster) if tls.addresses_count else ENDPOINTS_CA
    combined.validation_context_sds_secret_config.CopyFrom(_secret_source(known))
    return base_pb2.TransportSocket(name=_SOCKET, typed_config=packed(context))


def certificate_name(name: str) -> str | None:
    """Return the host name in what people call an endpoint; ``None``: there is none.

    It is what its certificate must be for, unless a ``server_name`` says otherwise.
    """
    host = name.rpartition(":")[0] or name
    return host if _DNS_NAME.fullmatch(host) is not None and not _is_address(host) else None


def _bound_versions(common: tls_pb2.CommonTlsContext) -> None:
    common.tls_params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
    common.tls_params.tls_maximum_protocol_version = common_pb2.TlsParameters.TLSv1_3


def _secret_source(name: str) -> secret_pb2.SdsSecretConfig:
    # 0: nobody is answered without a certificate, however late it comes.
    return secret_pb2.SdsSecretConfig(
        name=name, sds_config=from_controller(initial_fetch_timeout=0)
    )


def _certificate(name: str, chain: bytes, key: bytes) -> any_pb2.Any:
    return packed(
        secret_pb2.Secret(
            name=name,
            tls_certificate=common_pb2.TlsCertificate(
                certificate_chain=base_pb2.DataSource(inline_bytes=chain),
                private_key=base_pb2.DataSource(inline_bytes=key),
            ),
        )
    )


def _authorities(name: str, certificates: bytes) -> any_pb2.Any:
    return packed(
        secret_pb2.Secret(
            name=name,
            validation_context=common_pb2.CertificateValidationContext(
                trusted_ca=base_pb2.DataSource(inline_bytes=certificates)
            ),
        )
    )


def _named(name: str) -> common_pb2.SubjectAltNameMatcher:
    kind = _SAN.IP_ADDRESS if _is_address(name) else _SAN.DNS
    matcher = _SAN(san_type=kind)
    matcher.matcher.exact = name
    return matcher


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
