"""Archives come from the indexes of the user's pip, with its settings, and no code in them runs."""

from __future__ import annotations

import base64
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from dhr_batch.pipeline.models import catalogue, downloads
from dhr_batch.tests.pipeline.pulled import (
    FILES,
    describe,
    left_behind,
    make_sdist,
    make_wheel,
    pypi,
)

NAME = "fake-weights"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache and a home folder of their own, and a pip without any setting or package index."""
    settings = re.compile("PIP_|REQUESTS_CA|CURL_CA|.*PROXY", re.IGNORECASE)
    for name in list(filter(settings.match, os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "no-index").as_uri())
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("BACKEND_MARK", str(tmp_path / "ran"))
    monkeypatch.setenv("DHR_BATCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def archive(home: Path, tmp_path: Path) -> Path:
    """An sdist, and the model `net` that describes it."""
    (tmp_path / "files").mkdir()
    made = make_sdist(tmp_path / "files")
    describe(home, "net", pypi(made, "weights.bin"))
    return made


@contextmanager
def serving(
    archive: Path,
    login: str = "",
    context: ssl.SSLContext | None = None,
    page: bytes = b"",
    kind: str = "text/html",
) -> Iterator[tuple[str, list[str]]]:
    """An index with one package, and the paths that it was asked for.

    login: the user and password that it asks for. It also answers as a proxy of any other host.
    """
    asked: list[str] = []
    page = page or f'<a href="../../files/{archive.name}">{archive.name}</a>'.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            wanted = "Basic " + base64.b64encode(login.encode()).decode()
            found = page if self.path.endswith(f"/simple/{NAME}/") else None
            found = archive.read_bytes() if self.path.endswith(f"/files/{archive.name}") else found
            allowed = not login or self.headers.get("Authorization") == wanted
            self.send_response(401 if not allowed else 200 if found else 404)
            self.send_header("Content-Type", kind if found == page else "application/x-tar")
            body = found if found and allowed else b""
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pulled() -> bytes:
    return downloads.pull(["net"])[0].read_bytes()


@pytest.mark.parametrize("make", [make_sdist, make_wheel])
def test_only_members_are_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    """The case sdist_runs_build_backend."""
    (tmp_path / "files").mkdir()
    describe(home, "net", pypi(make(tmp_path / "files"), "weights.bin"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "files"))
    assert pulled() == FILES["weights.bin"]
    assert not (tmp_path / "ran").exists()


def test_the_settings_of_pip_hold(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places in a file or in variables, and passwords in URLs or in netrc."""
    (tmp_path / "links.html").write_text(f'<a href="{archive.as_uri()}">{archive.name}</a>')
    with serving(archive, "me:secret") as (host, asked):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        (tmp_path / "pip.conf").write_text(f"[global]\nindex-url = http://{host}/simple\n")
        settings = {
            "file and netrc": {
                "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
                "PIP_INDEX_URL": None,
                "NETRC": str(tmp_path / "netrc"),
            },
            "further index": {"PIP_EXTRA_INDEX_URL": f"http://me:secret@{host}/simple"},
            "page of links": {"PIP_FIND_LINKS": (tmp_path / "links.html").as_uri()},
            "proxy": {
                "PIP_INDEX_URL": "http://me:secret@index.invalid/simple",
                "PIP_TRUSTED_HOST": "index.invalid",
                "PIP_PROXY": f"http://{host}",
            },
        }
        for name, variables in settings.items():
            with monkeypatch.context() as patch:
                patch.setenv("DHR_BATCH_HOME", str(tmp_path / name))
                describe(tmp_path / name, "net", pypi(archive, "weights.bin"))
                for variable, value in variables.items():
                    patch.delenv(variable, raising=False)
                    if value:
                        patch.setenv(variable, value)
                asked.clear()
                assert pulled() == FILES["weights.bin"], name
                assert bool(asked) == (name != "page of links"), name
    assert not (tmp_path / "ran").exists()


def certified(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's own certificate for 127.0.0.1, and the file of it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(name, name, key.public_key(), serial_number=1)
    made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = made.add_extension(address, critical=False)
    signed = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    file = folder / "certificate.pem"
    file.write_bytes(signed)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "both.pem").write_bytes(secret + signed)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context, file


def test_the_certificates_of_pip_are_checked(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, file = certified(tmp_path)
    with serving(archive, context=context) as (host, _):
        monkeypatch.setenv("PIP_INDEX_URL", f"https://{host}/simple")
        with pytest.raises(catalogue.RegistryError, match="found no matching distribution"):
            pulled()
        monkeypatch.setenv("PIP_CERT", str(file))
        assert pulled() == FILES["weights.bin"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "found no matching distribution"),
        ({"PIP_FIND_LINKS": "files", "PIP_TIMEOUT": "soon"}, "settings of pip are invalid"),
    ],
)
def test_failures_of_pip_are_told(
    archive: Path, home: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(catalogue.RegistryError, match=said) as error:
        pulled()
    assert "\n" not in str(error.value)
    assert left_behind(home) == []


JSON = "application/vnd.pypi.simple.v1+json"


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (b'{"meta": {"api-version": "1.0"}, "files": [', JSON),
        (b"[1, 2]", JSON),
        (b'{"files": 3}', JSON),
        (b'{"files": [{"url": 3}]}', JSON),
        (b'{"files": [{"filename": "fake-weights-1.0.tar.gz", "url": "http://[x/a"}]}', JSON),
        (b"\xff\xfe" * 99, JSON),
        (b'<a href="http://[::1/fake-weights-1.0.tar.gz">fake-weights-1.0.tar.gz</a>', "text/html"),
        (b'<a href="nowhere/fake-weights-1.0.tar.gz">fake-weights-1.0.tar.gz</a>', "text/html"),
        (b"<" * 1000, "text/html"),
        (b"\x1f\x8b", "application/gzip"),
    ],
)
def test_answers_of_indexes_that_are_none(
    archive: Path, monkeypatch: pytest.MonkeyPatch, page: bytes, kind: str
) -> None:
    with serving(archive, page=page, kind=kind) as (host, _):
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{host}/simple")
        with pytest.raises(catalogue.RegistryError) as error:
            pulled()
    assert "fake-weights==1.0 (sdist)" in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIP_CERT", "/no/such/file.pem"),
        ("PIP_CLIENT_CERT", "/no/such/file.pem"),
        ("PIP_PROXY", "::::"),
        ("http_proxy", "http://[::1"),
        ("PIP_INDEX_URL", "http://[::1/simple"),
        ("PIP_INDEX_URL", "nonsense"),
        ("PIP_FIND_LINKS", "http://[::1/links"),
        ("PIP_EXTRA_INDEX_URL", "::::"),
        ("PIP_USE_FEATURE", "nonsense"),
        ("PIP_CONFIG_FILE", "pip.conf"),
        ("NETRC", "/dev/null/x"),
    ],
)
def test_settings_of_pip_that_are_none(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    (tmp_path / "pip.conf").write_bytes(b"[global\n\xff = ")
    monkeypatch.chdir(tmp_path)
    with serving(archive, page=b"<html>") as (host, _):
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{host}/simple")
        monkeypatch.setenv(variable, value)
        with pytest.raises(catalogue.RegistryError) as error:
            pulled()
    assert left_behind(tmp_path / "home") == []
    assert error.value.way_out


def test_passwords_of_indexes_are_not_told(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(archive, "me:secret") as (host, _):
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{host}/simple")
        archive.write_bytes(b"another archive")
        with pytest.raises(catalogue.RegistryError, match="is not the described file") as error:
            pulled()
    assert "secret" not in str(error.value)
