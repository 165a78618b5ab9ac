"""``tidegate doctor gateway.yaml``: what a gateway would meet if it started now."""

from __future__ import annotations

import asyncio
import functools
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.findings import Finding, fail, ok, warn
from tidegate.cli.serving import check_serving_parts
from tidegate.config.gateway import GatewayConfig
from tidegate.errors import ConfigurationError

if TYPE_CHECKING:
    from tidegate.gateway.survey import Pool, Survey

_SHOWN = 5
"""Endpoints of one pool that are told of one by one."""
_SOON = timedelta(days=14)


def looks(config: GatewayConfig) -> list[tuple[str, Callable[[], Iterator[Finding]]]]:
    """Return what there is to look at that nodes do not have."""
    check_serving_parts()

    @functools.cache
    def found() -> Survey:
        from tidegate.gateway.survey import survey

        return asyncio.run(survey(config))

    return [
        ("admin API", lambda: admin(config)),
        ("certificates", lambda: certificates(config)),
        ("API keys", lambda: api_keys(config)),
        ("sources", lambda: sources(found())),
        ("endpoints", lambda: endpoints(config, found())),
        ("open files", lambda: open_files(found())),
    ]


def admin(config: GatewayConfig) -> Iterator[Finding]:
    """Examine who may use the admin API, and by which token."""
    from tidegate.controller.tokens import read_token
    from tidegate.gateway.admin import check_reach

    token_file = None if config.registration is None else config.registration.token_file
    try:
        check_reach(config)
        if token_file is not None:
            read_token(token_file)
    except ConfigurationError as error:
        yield fail("admin API", str(error), "")
    else:
        yield ok("admin API", f"on {config.admin_host}, {'with' if token_file else 'no'} token")


def certificates(config: GatewayConfig) -> Iterator[Finding]:
    """Examine the files of both directions of TLS, if there are any."""
    from tidegate.edge.certificates import valid_until
    from tidegate.edge.trust_files import TrustFiles

    for what, section, own in (
        ("tls", config.tls, TrustFiles(config.tls, None, None)),
        ("endpoint_tls", config.endpoint_tls, TrustFiles(None, config.endpoint_tls, None)),
    ):
        if section is None:
            continue
        try:
            trust = own.read()
        except ConfigurationError as error:
            yield fail(what, str(error), "")
            continue
        shown = trust.tls if what == "tls" else trust.upstream_tls
        chain = None if shown is None else shown.certificate
        if chain is None or section.key is None:
            yield ok(what, "no certificate is shown")
            continue
        ends = valid_until(chain)
        detail = f"{section.certificate} is valid until {ends:%Y-%m-%d}"
        if ends - datetime.now(UTC) < _SOON:
            yield warn(what, detail, "renew it: the new files count without a restart")
        else:
            yield ok(what, detail)
        yield from _mode(what, section.key)


def _mode(what: str, key: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(key.stat().st_mode)
    if mode & 0o077:
        detail = f"others than its owner may read or write {key} (its mode is {mode:04o})"
        yield warn(what, detail, f"chmod 600 {key}")


def api_keys(config: GatewayConfig) -> Iterator[Finding]:
    """Examine the file of keys, if there is one."""
    from tidegate.edge.trust_files import TrustFiles

    if config.api_keys is None:
        return
    try:
        found = TrustFiles(None, None, config.api_keys).read().api_keys
    except ConfigurationError as error:
        yield fail("API keys", str(error), "")
    else:
        yield ok(
            "API keys", f"{0 if found is None else len(found.keys)} in {config.api_keys.file}"
        )


def sources(found: Survey) -> Iterator[Finding]:
    """Examine DNS, files and API servers that tell of endpoints."""
    for source, words in found.problems:
        yield warn(
            source, words, "the gateway starts without these endpoints, and goes on looking"
        )


def endpoints(config: GatewayConfig, found: Survey) -> Iterator[Finding]:
    """Examine the endpoints of each model: whether they answer as it is declared."""
    if found.unasked is not None:
        yield warn("endpoints", f"could not be asked: {found.unasked}", "mend that first")
        return
    if not found.pools and config.registration is None:
        yield warn("models", "there are none, and no node may join", "write some below 'models:'")
    for pool in found.pools:
        yield from _pool(config, pool)


def _pool(config: GatewayConfig, pool: Pool) -> Iterator[Finding]:
    what = f"model {pool.name.replace('/', ' ')}"
    if not pool.endpoints:
        waits = config.registration is not None
        yield (
            ok(what, "waits for nodes that join")
            if waits
            else warn(what, "has no endpoint", "see what is said of its sources")
        )
        return
    counts = Counter(answer.state for answer in pool.answers)
    of = len(pool.endpoints)
    detail = f"{counts['ready']} of {of} endpoint{'s' * (of > 1)} ready"
    if counts["ready"] == of:
        yield ok(what, detail)
        return
    if counts["not asked"]:
        detail += f", {counts['not asked']} not asked for want of time"
    if counts["ready"] or counts["not asked"] == of:
        yield warn(what, detail, "")
    else:
        yield fail(what, detail, "its calls would fail")
    others = [(e, a) for e, a in zip(pool.endpoints, pool.answers, strict=True) if a.words]
    told = [(e, a) for e, a in others if a.state in ("wrong", "not ready")]
    for endpoint, answer in told[:_SHOWN]:
        name = endpoint.name if endpoint.name and endpoint.name not in endpoint.address else ""
        words = f"{endpoint.address}{f' ({name})' if name else ''}: {answer.words}"
        wrong = answer.state == "wrong"
        yield fail(what, words, "") if wrong else warn(what, words, "")
    if len(told) > _SHOWN:
        yield warn(what, f"and {len(told) - _SHOWN} endpoints more", "")


def open_files(found: Survey) -> Iterator[Finding]:
    """Examine the limit of open files against the number of endpoints."""
    from tidegate.gateway.descriptors import REMEDY, short_of_files

    count = len({e.address for pool in found.pools for e in pool.endpoints})
    short = short_of_files(count)
    if short is None:
        yield ok("open files", f"enough for {count} endpoints")
    else:
        yield fail("open files", short, REMEDY)
