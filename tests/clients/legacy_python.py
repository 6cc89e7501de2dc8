"""Drives the Service Bus listener with Azure's own client of the REST wire.

`azure-servicebus` 0.21.1 is the last release of that client; it was written
against the real service and knows nothing of us. Usage: legacy_python.py PROGRAM
"""

import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

from azure.common import AzureConflictHttpError, AzureHttpError, AzureMissingResourceHttpError
from azure.servicebus import Message, Queue, ServiceBusService
from azure.servicebus.models import AzureServiceBusResourceNotFound

MANIFEST = 'spin_manifest_version = 2\n[application]\nname = "bus"\n'


def connect(address, key="SAS_KEY_VALUE"):
    client = ServiceBusService(
        service_namespace="127.0.0.1",
        host_base=":" + address.rsplit(":", 1)[1],
        shared_access_key_name="RootManageSharedAccessKey",
        shared_access_key_value=key,
    )
    # The client knows TLS only; the listener is on loopback.
    client._httpclient.protocol = "http"
    return client


def refused(error, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except error as refusal:
        return refusal
    raise AssertionError(f"{call.__name__}{arguments} was not refused")


def management(client):
    description = Queue(
        lock_duration="PT5S",
        requires_duplicate_detection=True,
        max_delivery_count=2,
        default_message_time_to_live="PT1H",
        dead_lettering_on_message_expiration=True,
    )
    assert client.create_queue("orders", description, fail_on_exist=True)
    refused(AzureConflictHttpError, client.create_queue, "orders", fail_on_exist=True)
    assert not client.create_queue("orders")
    assert client.create_queue("plain")
    queue = client.get_queue("orders")
    assert queue.lock_duration == "PT5S", queue.lock_duration
    assert queue.requires_duplicate_detection is True
    assert queue.max_delivery_count == 2, queue.max_delivery_count
    assert queue.default_message_time_to_live == "PT1H"
    assert queue.message_count == 0
    assert client.get_queue("plain").requires_duplicate_detection is False
    names = [queue.name for queue in client.list_queues()]
    assert names == ["orders", "plain"], names
    refused(AzureServiceBusResourceNotFound, client.get_queue, "nobody")
    refused(AzureMissingResourceHttpError, client.delete_queue, "nobody", fail_not_exist=True)


def runtime(client):
    due = datetime.now(timezone.utc) + timedelta(seconds=2)
    sent = Message(
        b"caf\xc3\xa9 \x00\xff",
        type="application/x-made-up",
        custom_properties={"number": 7, "share": 2.5, "flag": True, "text": 'a "b" c'},
        broker_properties=json.dumps({"MessageId": "m1", "Label": "demo", "CorrelationId": "c1", "TimeToLive": 90}),
    )
    client.send_queue_message("orders", sent)
    # The same id again: accepted, and one message all the same.
    client.send_queue_message("orders", sent)
    assert client.get_queue("orders").message_count == 1

    taken = client.receive_queue_message("orders", peek_lock=True, timeout=5)
    assert taken.body == b"caf\xc3\xa9 \x00\xff", taken.body
    assert taken.type == "application/x-made-up", taken.type
    known = taken.broker_properties
    assert (known["MessageId"], known["Label"], known["CorrelationId"]) == ("m1", "demo", "c1")
    assert (known["DeliveryCount"], known["SequenceNumber"]) == (1, 1), known
    custom = taken.custom_properties
    assert (custom["number"], custom["share"], custom["flag"], custom["text"]) == (7, 2.5, True, 'a "b" c'), custom
    taken.renew_lock()
    taken.unlock()
    refused(AzureHttpError, taken.delete)
    again = client.receive_queue_message("orders", peek_lock=True, timeout=5)
    assert again.broker_properties["DeliveryCount"] == 2
    again.delete()
    refused(AzureHttpError, again.renew_lock)
    assert client.receive_queue_message("orders", peek_lock=True, timeout=0).body is None

    batch = [Message(f"b{n}", custom_properties={"n": n}) for n in range(20)]
    client.send_queue_message_batch("plain", batch)
    bodies = [client.receive_queue_message("plain", peek_lock=False, timeout=5).body for _ in batch]
    assert bodies == [f"b{n}".encode() for n in range(20)], bodies

    stamp = due.strftime("%a, %d %b %Y %H:%M:%S GMT")
    later = Message("later", broker_properties=json.dumps({"ScheduledEnqueueTimeUtc": stamp}))
    client.send_queue_message("plain", later)
    assert client.receive_queue_message("plain", peek_lock=False, timeout=0).body is None
    assert client.receive_queue_message("plain", peek_lock=False, timeout=10).body == b"later"
    assert datetime.now(timezone.utc) >= due.replace(microsecond=0)


def dead_letters(client):
    client.send_queue_message("orders", Message("poison", broker_properties=json.dumps({"MessageId": "p"})))
    for _ in range(2):
        client.receive_queue_message("orders", peek_lock=True, timeout=5).unlock()
    assert client.receive_queue_message("orders", peek_lock=True, timeout=0).body is None
    dead = client.receive_queue_message("orders/$DeadLetterQueue", peek_lock=True, timeout=5)
    assert dead.body == b"poison"
    assert dead.custom_properties["deadletterreason"] == "MaxDeliveryCountExceeded", dead.custom_properties
    dead.delete()
    assert client.receive_queue_message("orders/$DeadLetterQueue", peek_lock=True, timeout=0).body is None


def refusals(client, address):
    wrong = connect(address, key="another")
    refused(AzureHttpError, wrong.send_queue_message, "orders", Message("x"))
    gone = refused(AzureHttpError, client.send_queue_message, "nobody", Message("x"))
    assert gone.status_code == 410, gone.status_code
    refused(AzureHttpError, client.send_queue_message, "orders", Message("x" * (1024 * 1024 + 1)))
    client.send_queue_message("plain", Message("kept"))
    assert client.delete_queue("orders")
    refused(AzureServiceBusResourceNotFound, client.get_queue, "orders")


def start(program, directory, listen):
    arguments = ["up", "--quiet", "-f", directory, "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        [program, *arguments, "--servicebus-listen", listen], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        name, _, address = line.partition(":")
        if name == "servicebus":
            return process, address.strip().removeprefix("http://")
    raise SystemExit(f"the host ended with {process.wait()}")


def main(program):
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "spin.toml").write_text(MANIFEST)
        process, address = start(program, directory, "127.0.0.1:0")
        try:
            client = connect(address)
            for test in (management, runtime, dead_letters):
                test(client)
                print(f"test {test.__name__} ... ok")
            refusals(client, address)
            print("test refusals ... ok")
            process.kill()
            process.wait()
            process, _ = start(program, directory, address)
            kept = client.receive_queue_message("plain", peek_lock=False, timeout=5)
            assert kept.body == b"kept", kept.body
            assert [queue.name for queue in client.list_queues()] == ["plain"]
            print("test queues_and_messages_survive_a_kill ... ok")
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main(sys.argv[1])
