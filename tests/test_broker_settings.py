"""A broker's URL and environment become settings; what is wrong is named, what is secret is not."""

from __future__ import annotations

import pytest

from bridge.settings import BrokerSettings
from hzzray.errors import UsageError


def read(url=None, prefix="hzzray", **environ):
    return BrokerSettings.from_url(
        url, prefix=prefix, environ={f"HZZRAY_BROKER{k}": str(v) for k, v in environ.items()}
    )


def test_a_url_says_all():
    settings = read("amqp://ann:p%40ss%2Fword@rabbit.example:5673/phy%2Fsics")
    assert (settings.host, settings.port, settings.vhost, settings.user) == (
        "rabbit.example",
        5673,
        "phy/sics",
        "ann",
    )
    assert settings.password.get_secret_value() == "p@ss/word"
    assert settings.management == "http://rabbit.example:15672"
    parameters = settings.parameters("me", blocked_s=7)
    assert (parameters.credentials.username, parameters.credentials.password) == ("ann", "p@ss/word")
    assert (parameters.virtual_host, parameters.blocked_connection_timeout) == ("phy/sics", 7)
    assert parameters.ssl_options is None


def test_what_a_url_leaves_out_is_as_usual():
    settings = read(**{"": "amqp://localhost"})
    assert (settings.port, settings.vhost, settings.user, settings.tls) == (5672, "/", "guest", None)
    assert settings.password.get_secret_value() == "guest"
    assert read("amqps://[::1]").management == "https://[::1]:15671"
    assert read("amqp://h", _MANAGEMENT="http://m:1/").management == "http://m:1"
    assert read("amqps://h").tls.check_host
    assert not read("amqps://h", _CHECK_HOST="no").tls.check_host


def test_a_password_comes_from_the_environment_or_a_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("from file\n")
    assert read("amqp://ann@h", _PASSWORD="from env").password.get_secret_value() == "from env"
    assert read("amqp://ann@h", _PASSWORD_FILE=secret).password.get_secret_value() == "from file"
    assert read("amqp://ann:url@h", _PASSWORD="from env").password.get_secret_value() == "url"
    secret.write_text("\n")
    for file in (secret, tmp_path / "absent"):
        with pytest.raises(UsageError, match=str(file)):
            read("amqp://ann@h", _PASSWORD_FILE=file)


def test_how_long_to_wait_for_a_broker():
    """Issue 11, item 28."""
    assert read("amqp://h").wait_s == 30
    assert read("amqp://h", _WAIT="600").wait_s == 600
    for wrong in ("soon", "-1", "inf", "nan"):
        with pytest.raises(UsageError, match=r"HZZRAY_BROKER_WAIT is a number of seconds, 0 or more, not"):
            read("amqp://h", _WAIT=wrong)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "which broker"),
        ("", "which broker"),
        ("http://h", "not 'http'"),
        ("rabbit", "amqp://"),
        ("amqp://", "no host"),
        ("amqp://u:hunter2@", "no host"),
        ("amqp://h:port", "port"),
        ("amqp://h:0", "port"),
        ("amqp://h:99999", "port"),
        ("amqp://u:hunter2@h/a/b", "%2F"),
        ("amqp://u:hunter2/x@h", "%2F"),
        ("amqp://u:hunter2#x@h", "%2F"),
        ("amqp://u:hunter2@h?heartbeat=1", "may have no ?"),
        ("amqp://[h", "port"),
        ("hunter2@h", "amqp://"),
        ("amqp://ann@h", "no password for the broker's user ann"),
    ],
)
def test_a_bad_url_is_named_without_its_password(url, says):
    with pytest.raises(UsageError) as caught:
        read(url)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__context__ if not caught.value.__suppress_context__ else None)


@pytest.mark.parametrize("prefix", ["", ".a", "a.", "a b", "a..b", "µ", "a*"])
def test_a_bad_prefix_is_refused(prefix):
    with pytest.raises(UsageError, match="can't begin queues' names"):
        read("amqp://h", prefix=prefix)


def test_tls_files_without_tls_are_no_silent_downgrade():
    with pytest.raises(UsageError, match="without TLS"):
        read("amqp://h", _CA="ca.pem")
    with pytest.raises(UsageError, match="_CERT"):
        read("amqps://h", _KEY="key.pem")


def test_bad_tls_files_are_named(tmp_path):
    absent, garbage = tmp_path / "absent.pem", tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for file in (absent, garbage):
        with pytest.raises(UsageError, match=str(file)):
            read("amqps://h", _CA=file).parameters("me")
        with pytest.raises(UsageError, match=str(file)):
            read("amqps://h", _CERT=file).parameters("me")


def test_a_key_with_a_passphrase_is_refused_without_asking_at_the_terminal(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from tests.support.certificates import Certificates

    client = Certificates(tmp_path / "tls").client
    locked = serialization.BestAvailableEncryption(b"secret")
    key = load_pem_private_key(client.key.read_bytes(), None)
    client.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(UsageError, match="needs a passphrase"):
        read("amqps://h", _CERT=client.certificate, _KEY=client.key).parameters("me")


def test_no_text_of_it_shows_the_password():
    settings = read("amqps://ann:hunter2@rabbit:5673/physics")
    assert str(settings) == "amqps://rabbit:5673/physics"
    assert str(read("amqp://ann:hunter2@[::1]")) == "amqp://[::1]"
    for text in (repr(settings), settings.model_dump_json(), repr(settings.parameters("me"))):
        assert "hunter2" not in text
    with pytest.raises(Exception, match="frozen"):
        settings.user = "other"
