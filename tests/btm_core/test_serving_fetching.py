"""Images by URL: what is fetched, and what a server that anybody may ask must not do."""

import datetime
import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from btm_core.errors import ConfigError, DataError
from btm_core.serving import fetching
from btm_core.serving.fetching import fetch_image
from btm_core.serving.settings import ServingSettings, serving_settings

LOCAL = ServingSettings(urls=True, url_private=True, url_megabytes=0.001, url_seconds=5)
SECOND_LOOPBACK = "127.0.0.2"


class Site(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    hosts: ClassVar[list[str]] = []
    hang: ClassVar[threading.Event]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.hosts.append(self.headers["Host"])
        port = self.server.server_address[1]
        redirects = {
            "/once": "/image?a=b",
            "/round": "/round",
            "/file": "file:///etc/passwd",
            "/private": f"http://{SECOND_LOOPBACK}:{port}/image",
            "/nowhere": "",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
            return
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/trickle":  # a byte every tenth of a second: no single one is late
            for _ in range(100):
                if self.hang.wait(0.1):
                    break
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
        self.wfile.write(b"x" * (1001 if self.path == "/large" else 1000))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Site.asked, Site.hosts, Site.hang = [], [], threading.Event()
    with http.server.ThreadingHTTPServer(("", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Site.hang.set()
        server.shutdown()
        thread.join()


def test_an_image_is_fetched_through_a_redirect(site: str) -> None:
    assert fetch_image(f"{site}/once", LOCAL) == b"x" * 1000
    assert Site.asked == ["/once", "/image?a=b"]
    assert set(Site.hosts) == {site.removeprefix("http://")}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/large", "more than 0.001 MB"),
        ("/missing", "answers 404"),
        ("/round", "more than 3 redirects"),
        ("/file", "no http or https URL"),
        ("/nowhere", "more than 3 redirects|no http"),
    ],
)
def test_what_is_no_image_is_refused(site: str, path: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        fetch_image(f"{site}{path}", LOCAL)
    assert str(error.value).startswith(f"{site}{path}: ")


def test_a_server_that_is_slow_without_end_is_left(site: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"longer than 0\.5 s"):
        fetch_image(f"{site}/trickle", LOCAL.model_copy(update={"url_seconds": 0.5}))
    assert time.monotonic() - began < 3


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of localhost by nobody anyone trusts, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = builder.sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path / "certificate.pem"
    path.write_bytes(made.public_bytes(form[0]) + key.private_bytes(*form))
    return path


def test_https_is_verified_and_has_the_same_deadline(
    site: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"https://localhost:{server.server_address[1]}"
        try:
            with pytest.raises(DataError, match="certificate verify failed"):
                fetch_image(f"{url}/image", LOCAL)
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
            assert fetch_image(f"{url}/once", LOCAL) == b"x" * 1000
            began = time.monotonic()
            with pytest.raises(DataError, match=r"longer than 0\.5 s"):
                fetch_image(f"{url}/trickle", LOCAL.model_copy(update={"url_seconds": 0.5}))
            assert time.monotonic() - began < 3
        finally:
            Site.hang.set()
            server.shutdown()
            thread.join()


def test_private_addresses_are_not_even_connected_to(site: str) -> None:
    careful = LOCAL.model_copy(update={"url_private": False})
    port = site.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1"):
        with pytest.raises(DataError, match="private network"):
            fetch_image(f"http://{host}:{port}/image", careful)
    assert Site.asked == []


def test_a_redirect_to_a_private_address_is_not_followed(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.1 plays the public server here; 127.0.0.2 is what it is."""
    judge = fetching._is_public
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1" or judge(address))
    careful = LOCAL.model_copy(update={"url_private": False})
    assert fetch_image(f"{site}/image", careful)
    with pytest.raises(DataError, match=rf"{SECOND_LOOPBACK} is an address of a private network"):
        fetch_image(f"{site}/private", careful)
    assert Site.asked == ["/image", "/private"]
    assert fetch_image(f"{site}/private", LOCAL)  # it would have been there


@pytest.mark.parametrize(
    "address",
    [
        *(
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *(
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "ff02::1",
            "255.255.255.255",
        ),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not fetching._is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert fetching._is_public(address)


def test_credentials_are_refused_and_not_shown() -> None:
    with pytest.raises(DataError, match="URLs with a user or password are not fetched") as error:
        fetch_image("http://me:secret@127.0.0.1/a?token=hidden", LOCAL)
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)


def test_settings_come_from_the_environment_and_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert serving_settings() == ServingSettings()
    monkeypatch.setenv("BTM_SERVE_URLS", "1")
    monkeypatch.setenv("BTM_SERVE_URL_SECONDS", "2.5")
    assert serving_settings() == ServingSettings(urls=True, url_seconds=2.5)
    monkeypatch.setenv("BTM_SERVE_URLS", "perhaps")
    monkeypatch.setenv("BTM_SERVE_URL_SECONDS", "0")
    with pytest.raises(ConfigError, match=r"BTM_SERVE_URLS: .*; BTM_SERVE_URL_SECONDS: "):
        serving_settings()
