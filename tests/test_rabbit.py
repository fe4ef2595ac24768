"""The private broker of the tests does what a real one does."""

from __future__ import annotations

import time

import pika
import pytest

from tests.support.waiting import wait_for


@pytest.mark.slow
def test_confirmed_messages_survive_a_crash(broker, vhost):
    queue, durable = "kept", {"x-queue-type": "quorum"}
    connection = pika.BlockingConnection(pika.URLParameters(vhost.url))
    channel = connection.channel()
    channel.queue_declare(queue, durable=True, arguments=durable)
    time.sleep(2)  # a quorum queue's first second may be lost with the node (rabbitmq-server#15725)
    channel.confirm_delivery()
    for number in range(20):
        channel.basic_publish("", queue, str(number).encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)
    broker.restart()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connection.process_data_events()
    with pika.BlockingConnection(pika.URLParameters(vhost.url)) as again:
        reader = again.channel()
        wait_for(  # a queue that has no leader yet says 0
            "20 messages", lambda: reader.queue_declare(queue, passive=True).method.message_count == 20
        )


def test_a_memory_alarm_stops_publishers_only(broker, vhost):
    with broker.memory_alarm():
        assert broker.blocks_publishers()
        with pika.BlockingConnection(pika.URLParameters(vhost.url)) as connection:
            connection.channel().queue_declare("mine", exclusive=True)
    assert not broker.blocks_publishers()
