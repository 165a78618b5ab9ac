"""Files of certificates and keys: what is refused, in which words, and how they are followed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.certificates import CA, chain, key, leaf, pem, write
from tests.edge.harness import until
from tidegate.config import gateway as sections
from tidegate.edge.certificates import read_client_tls, read_server_tls, valid_until
from tidegate.edge.key_file import read_api_keys
from tidegate.edge.trust import ClientTls, RateLimit
from tidegate.edge.trust_files import Trust, TrustFiles, rate_limits
from tidegate.errors import ConfigurationError

A, B = "a" * 32, "b" * 32


def test_a_pair_is_read(tmp_path: Path) -> None:
    paths = write(tmp_path, leaf())
    (tmp_path / "ca.crt").write_bytes(b"some words before it\n" + pem())
    found = read_server_tls(*paths, tmp_path / "ca.crt")
    assert found.certificate.startswith(b"-----BEGIN CERTIFICATE")
    assert found.client_ca == pem()
    assert found.mutual
    assert b"PRIVATE" not in repr(found).encode()
    assert not read_server_tls(*paths).mutual
    assert valid_until(found.certificate).timestamp() > 0
    client = read_client_tls(tmp_path / "ca.crt", *paths, "localhost")
    assert (client.ca, client.key) == (pem(), paths[1].read_bytes())
    assert b"PRIVATE" not in repr(client).encode()


def test_the_usual_authorities_are_the_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert b"BEGIN CERTIFICATE" in (read_client_tls().ca or b"")
    assert not read_client_tls().addresses_count
    ours = tmp_path / "ca.crt"
    ours.write_bytes(pem())
    assert not read_client_tls(ours, server_name="nodes.internal").addresses_count
    assert read_client_tls(ours).addresses_count
    monkeypatch.setenv("SSL_CERT_FILE", str(ours))
    assert read_client_tls().ca == pem()
    # Endpoints may speak TLS where no section says a word of it.
    nothing = TrustFiles(None, None, None)
    assert nothing.read().upstream_tls == read_client_tls()
    with ours.open("wb") as file:
        file.truncate(2**25)
    assert nothing.read().upstream_tls == ClientTls()


def test_a_key_in_the_file_of_the_certificate_stays_there(tmp_path: Path) -> None:
    certificate, secret = write(tmp_path, leaf())
    certificate.write_bytes(secret.read_bytes() + certificate.read_bytes())
    assert b"PRIVATE" not in read_server_tls(certificate, certificate).certificate


def refusal(certificate: Path, secret: Path, ca: Path | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_server_tls(certificate, secret, ca)
    return str(caught.value)


def test_what_is_wrong_with_a_certificate_is_said(tmp_path: Path) -> None:
    good, secret = write(tmp_path, leaf())
    other = write(tmp_path, leaf(), "other")
    old = write(tmp_path, leaf(valid=-1), "old")
    early = write(tmp_path, leaf(valid=60), "early")
    text = tmp_path / "text"
    text.write_text("hello")
    large = tmp_path / "large"
    large.write_bytes(bytes(2**20 + 1))
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    turned = tmp_path / "turned"
    turned.write_bytes(pem() + good.read_bytes())
    absent = tmp_path / "absent"
    for paths, words in (
        ((absent, secret), f"{absent} cannot be read: No such file or directory"),
        ((good, absent), f"{absent} cannot be read"),
        ((tmp_path, secret), f"{tmp_path} "),
        ((fifo, secret), f"{fifo} is no file"),
        ((large, secret), f"{large} has more than 1048576 bytes"),
        ((text, secret), f"{text} holds no certificate in PEM"),
        ((good, text), f"{text} holds no private key in PEM"),
        ((secret, good), "the two files may be swapped"),
        ((good, other[1]), f"the key in {other[1]} is not that of the certificate {good}"),
        ((turned, secret), "must be the first one"),
        (old, "CN=localhost"),
        (old, "was valid until"),
        (early, "is the clock right?"),
        ((good, secret, text), f"{text} holds no certificate in PEM"),
        ((good, secret, absent), f"{absent} cannot be read"),
    ):
        assert words in refusal(*paths), paths
    with pytest.raises(ConfigurationError, match="go together"):
        read_client_tls(None, good, None)


def test_keys_that_no_client_could_use_are_refused(tmp_path: Path) -> None:
    certificate, secret = write(tmp_path, leaf())
    own = serialization.load_pem_private_key(secret.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret.write_bytes(own.private_bytes(*form, serialization.BestAvailableEncryption(b"word")))
    assert "is encrypted" in refusal(certificate, secret)
    plain = serialization.NoEncryption()
    secret.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*form, plain))
    assert "ECDSA with P-256, or RSA" in refusal(certificate, secret)
    secret.write_bytes(rsa.generate_private_key(65537, 1024).private_bytes(*form, plain))
    assert "is not that of the certificate" in refusal(certificate, secret)


def keys_in(directory: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = directory / "keys"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)
    return path


def test_keys_are_read(tmp_path: Path) -> None:
    path = keys_in(tmp_path, f"# ours\n\n team-a {A}  \r\nteam-a\t{B}\n  # more\nx {'#' * 16}")
    found = read_api_keys(path, "x-key")
    assert [(key.name, key.secret) for key in found.keys] == [
        ("team-a", A), ("team-a", B), ("x", "#" * 16),
    ]  # fmt: skip
    assert found.header == "x-key"
    assert A not in repr(found)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o601])
def test_keys_that_others_may_read_are_refused(tmp_path: Path, mode: int) -> None:
    path = keys_in(tmp_path, f"team-a {A}", mode)
    with pytest.raises(ConfigurationError, match=f"run chmod 600 {path}"):
        read_api_keys(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# nothing\n", "holds no key"),
        (f"a {A}\nb\n", "line 2: there are 1 words"),
        (f"a {A} # mine", "there are 4 words"),
        (f"{'f' * 64} team-a", "the first word is not a name"),
        (f"ä {A}", "the first word is not a name"),
        ("a short", "16 to 512 printable characters"),
        (f"a {'x' * 513}", "16 to 512"),
        ("a pässword-pässword", "printable characters of ASCII"),
        (f"a {A}\nb {A}\n", "line 2: b has the same key as a"),
        (b"a \xff\xfe", "no text in UTF-8"),
    ],
)
def test_what_is_wrong_with_keys_is_said(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_api_keys(keys_in(tmp_path, text))
    assert words in str(caught.value)
    for secret in (A, "f" * 64, "short", "pässword"):
        assert secret not in str(caught.value).replace("too short", "")


@given(st.binary(max_size=200))
def test_whatever_a_file_of_keys_holds(content: bytes) -> None:
    path = Path(f"/dev/shm/tidegate-keys-{os.getpid()}")
    path.touch(0o600)
    try:
        path.write_bytes(content)
        with contextlib.suppress(ConfigurationError):
            assert read_api_keys(path).keys
    finally:
        path.unlink()


def test_rates_become_limits() -> None:
    found = rate_limits(
        sections.RateLimits.model_validate(
            {
                "per_key": "90/m",
                "keys": {"a": {"per_second": 5, "burst": 50}},
                "models": {"m": 0.1},
            }
        )
    )
    assert found.per_key == RateLimit(1.5, 2)
    assert found.keys == {"a": RateLimit(5, 50)}
    assert (found.per_model, found.models) == (None, {"m": RateLimit(0.1, 1)})


@dataclass
class Followed:
    known: list[Trust] = field(default_factory=list)
    problems: list[str | None] = field(default_factory=list)

    async def told(self, count: int) -> Trust:
        async def there() -> bool:
            return len(self.known) >= count

        await until(there)
        assert len(self.known) == count
        return self.known[-1]

    async def said(self, words: str | None) -> None:
        async def there() -> bool:
            last = self.problems[-1] if self.problems else None
            return words in last if words is not None and last is not None else last == words

        await until(there)


@contextlib.asynccontextmanager
async def following(files: TrustFiles) -> AsyncIterator[Followed]:
    followed = Followed()
    task = asyncio.create_task(
        files.follow(files.read(), followed.known.append, followed.problems.append, tick=0.02)
    )
    try:
        yield followed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_renewals_are_told_and_bad_ones_are_not(tmp_path: Path) -> None:
    paths = write(tmp_path, leaf())
    keys = keys_in(tmp_path, f"team-a {A}")
    files = TrustFiles(
        sections.ServerTls(certificate=paths[0], key=paths[1]),
        None,
        sections.ApiKeys(file=keys),
    )
    async with following(files) as followed:
        renewed = leaf()
        write(tmp_path, renewed)
        found = await followed.told(1)
        assert found.tls is not None
        assert found.tls.key == key(renewed)
        # The other half never comes: it is said, and the keys are taken up all the same.
        paths[0].write_bytes(chain(leaf()))
        await followed.said("is not that of the certificate")
        keys_in(tmp_path, f"team-b {B}")
        found = await followed.told(2)
        assert found.tls is not None
        assert found.tls.key == key(renewed)
        assert found.api_keys is not None
        assert [each.name for each in found.api_keys.keys] == ["team-b"]
        keys.chmod(0o644)
        await followed.said("chmod 600")
        paths[0].unlink()
        await followed.said("cannot be read")
        keys.chmod(0o600)
        # As Kubernetes and certbot do: links to what is put in place at once.
        last = leaf()
        (tmp_path / "new").mkdir()
        new = write(tmp_path / "new", last)
        for path, target in zip(paths, new):
            path.unlink(missing_ok=True)
            path.symlink_to(target)
        found = await followed.told(3)
        assert found.tls is not None
        assert found.tls.key == key(last)
        await followed.said(None)


async def test_a_certificate_that_expires_while_it_is_used_is_told(tmp_path: Path) -> None:
    paths = write(tmp_path, leaf(CA, valid=1 / 86400))
    files = TrustFiles(sections.ServerTls(certificate=paths[0], key=paths[1]), None, None)
    async with following(files) as followed:
        await followed.said("has expired")
        assert followed.known == []
        write(tmp_path, leaf())
        await followed.told(1)
        await followed.said(None)
