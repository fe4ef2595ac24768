"""A broker by TLS: it proves who it is, and we to it."""

from __future__ import annotations

import asyncio
import time

import pytest

from bridge.connection import BrokerError, Link
from bridge.provision import apply, check, connected
from bridge.settings import BrokerSettings
from bridge.topology import Topology
from tests.support.certificates import Certificates

HIS_WORDS = "certificate required", "alert unknown ca", "alert"


@pytest.fixture(scope="module")
def untrusted(tmp_path_factory):
    """Certificates of an authority that the broker doesn't know."""
    return Certificates(tmp_path_factory.mktemp("untrusted") / "tls")


@pytest.fixture
def settings(vhost):
    """Settings from the environment that one gives it."""

    def make(url=None, *, authority=None, client=None, **environ):
        environ["HZZRAY_BROKER_MANAGEMENT"] = vhost.broker.management_tls_url
        if authority is not None:
            environ["HZZRAY_BROKER_CA"] = str(authority)
        if client is not None:
            environ |= {"HZZRAY_BROKER_CERT": str(client.certificate), "HZZRAY_BROKER_KEY": str(client.key)}
        return BrokerSettings.from_url(url or vhost.tls_url, environ=environ)

    return make


def test_with_the_right_certificates_all_goes_by_tls(broker, settings):
    ours = broker.certificates
    right = settings(authority=ours.authority, client=ours.client)
    found = apply(right, Topology())
    assert (found.lacks, found.unseen) == ((), ())


def test_what_is_wrong_with_tls_is_named_at_once(broker, vhost, settings, untrusted):
    ours = broker.certificates
    elsewhere = vhost.tls_url.replace("127.0.0.1", "localhost")
    for wrong, reason in (
        (settings(authority=untrusted.authority, client=ours.client), "certificate verify failed: self-signed"),
        (settings(client=ours.client), "certificate verify failed: self-signed"),
        (settings(elsewhere, authority=ours.authority, client=ours.client), "not valid for 'localhost'"),
        (settings(authority=ours.authority), HIS_WORDS[0]),
        (settings(authority=ours.authority, client=untrusted.client), HIS_WORDS[1]),
        (settings(authority=ours.authority, client=ours.server), HIS_WORDS[2]),
    ):
        # A broker that refuses our certificate hangs up, now and then before its reason gets through.
        hung_up = "|or a client's certificate: " if reason in HIS_WORDS else ""
        with pytest.raises(BrokerError, match=f"no broker at amqps://.*(: TLS: .*{reason}{hung_up})"):
            ask(wrong)
        began = time.monotonic()
        with pytest.raises(BrokerError, match=f"no broker at amqps://.*: TLS: .*{reason}"):
            asyncio.run(first(wrong))
        assert time.monotonic() - began < 5  # another try would end the same


def ask(broker):
    """Connect as a command does."""
    with connected(broker, "test"):
        pass


async def first(broker):
    """Connect as a bridge does."""
    link = Link(broker, "test")
    try:
        await link.start(30)
    finally:
        await link.stop()


def test_the_check_of_the_host_can_be_left_out(broker, vhost, settings):
    ours, elsewhere = broker.certificates, vhost.tls_url.replace("127.0.0.1", "localhost")
    lenient = settings(elsewhere, authority=ours.authority, client=ours.client, HZZRAY_BROKER_CHECK_HOST="no")
    asyncio.run(first(lenient))


def test_tls_where_there_is_none_and_none_where_there_is(broker, vhost, settings):
    ours = broker.certificates
    to_plain = vhost.url.replace("amqp:", "amqps:")
    wrong = settings(to_plain, authority=ours.authority, client=ours.client)
    with pytest.raises(BrokerError, match="TLS: "):
        ask(wrong)
    to_tls = vhost.tls_url.replace("amqps:", "amqp:")
    with pytest.raises(BrokerError, match="nobody speaks AMQP there"):
        ask(settings(to_tls, HZZRAY_BROKER_WAIT="2"))


def test_the_management_plugin_must_prove_itself_too(broker, settings, untrusted):
    ours = broker.certificates
    right = settings(authority=ours.authority, client=ours.client)
    apply(right, Topology())
    elsewhere = right.model_copy(update={"management": broker.management_tls_url.replace("127.0.0.1", "localhost")})
    (unseen,) = check(elsewhere, Topology()).unseen
    assert "not valid for 'localhost'" in unseen
    lenient = elsewhere.model_copy(update={"tls": right.tls.model_copy(update={"check_host": False})})
    assert check(lenient, Topology()).unseen == ()
    for change in ({"authority": None}, {"authority": untrusted.authority}, {"authority": None, "check_host": False}):
        other = right.model_copy(update={"tls": right.tls.model_copy(update=change)})
        with pytest.raises(BrokerError, match=r"no management plugin at https://.*: self-signed certificate"):
            apply(other, Topology())
