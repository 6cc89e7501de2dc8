"""Holds our items for Application Insights against those of Azure's own exporter.

A real host runs jobs with its telemetry sent here. Then `azure-monitor-opentelemetry-exporter`
is told the same facts (a request, a message, its attempts and their settlement, a failure,
lines, events, metrics, with the same ids and times) by OpenTelemetry's own SDK and sends them
here, too. Each pair of items must be equal but for DIFFERENCES. Which traces are kept when they
are sampled must be the same for all of a list. Usage: official_exporter.py PROGRAM COMPONENTS
"""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Nothing of the exporter's own may go to the internet.
os.environ["APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL"] = "true"
os.environ["APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED"] = "true"
os.environ["APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED"] = "true"

from azure.monitor.opentelemetry.exporter import (  # noqa: E402
    ApplicationInsightsSampler,
    AzureMonitorLogExporter,
    AzureMonitorMetricExporter,
    AzureMonitorTraceExporter,
)
from opentelemetry import trace  # noqa: E402
from opentelemetry._logs import LogRecord, SeverityNumber  # noqa: E402
from opentelemetry.sdk._logs import LoggerProvider  # noqa: E402
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor  # noqa: E402
from opentelemetry.sdk.metrics import MeterProvider  # noqa: E402
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader  # noqa: E402
from opentelemetry.sdk.resources import Resource  # noqa: E402
from opentelemetry.sdk.trace import TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.id_generator import IdGenerator  # noqa: E402
from opentelemetry.sdk.trace.sampling import Decision  # noqa: E402
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)  # noqa: E402

KEY = "00000000-1111-2222-3333-444444444444"
CLIENT_SPAN = "b7ad6b7169203331"
GOOD_TRACE = "0af7651916cd43dd8448eb211c80319c"
BAD_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PAYLOAD = {"n": 1}
RATIO = 0.4
PATIENCE_SECONDS = 60
ABSENT = "absent"


def seconds(duration):
    days, rest = duration.split(".", 1)
    hours, minutes, rest = rest.split(":")
    return int(days) * 86400 + int(hours) * 3600 + int(minutes) * 60 + float(rest)


# Where (end of the kind of item, path in it), what may differ, and why. One that meets no
# difference is an error, too.
DIFFERENCES = [
    (
        "",
        "tags/ai.internal.sdkVersion",
        lambda ours, theirs: ours.startswith("orchestrator:"),
        "names who wrote the item",
    ),
    (
        "",
        "tags/ai.internal.nodeName",
        lambda ours, theirs: ours == ABSENT,
        "the service bills by it; the instance says it",
    ),
    (
        "",
        "tags/ai.device.*",
        lambda ours, theirs: ours == ABSENT,
        "locale and system of a process tell nothing of a job",
    ),
    (
        "",
        "data/baseData/duration",
        lambda ours, theirs: abs(seconds(ours) - seconds(theirs)) <= 0.000501,
        "microseconds, where theirs rounds to milliseconds: attempts take less than one",
    ),
    *(
        (kind, "tags/ai.operation.name", lambda ours, theirs: (ours, theirs) == ("worker", ABSENT), why)
        for kind, why in [
            ("Exception", "what stands under a request bears its operation's name, as in Functions"),
            ("Message", "the same"),
            ("Event", "the same"),
        ]
    ),
    (
        "",
        "data/baseData/properties/az.namespace",
        lambda ours, theirs: (ours, theirs) == (ABSENT, "Microsoft.ServiceBus"),
        "the exporter's own switch, which the type says already",
    ),
    (
        "RemoteDependency",
        "tags/ai.operation.name",
        lambda ours, theirs: ours == ABSENT,
        "theirs is the dependency's own name; the operation's is the request's, which is not known there",
    ),
    (
        "RemoteDependency",
        "data/baseData/type",
        lambda ours, theirs: ours == "Azure Service Bus" and "Microsoft.ServiceBus" in theirs,
        "the type that Functions shows, which the application map draws with its own symbol",
    ),
    (
        "RemoteDependency",
        "data/baseData/resultCode",
        lambda ours, theirs: (ours, theirs) == (ABSENT, "0"),
        "there is no code",
    ),
    (
        "",
        "data/baseData/properties/Injected",
        lambda ours, theirs: ours == theirs.lower(),
        "a boolean in the spelling of JSON, not of Python",
    ),
    (
        "Request",
        "data/baseData/properties/_MS.links",
        lambda ours, theirs: ours == ABSENT and theirs == PARENT_AS_LINK[0],
        "the message is the attempt's parent, as in Functions; a link would say it again",
    ),
    (
        "Exception",
        "data/baseData/severityLevel",
        lambda ours, theirs: (ours, theirs) == (3, ABSENT),
        "an error, as Functions marks it; theirs leaves it out for a span's exception",
    ),
    (
        "Exception",
        "data/baseData/exceptions/0/stack",
        lambda ours, theirs: (ours, theirs) == (ABSENT, "None"),
        "theirs writes Python's None where there is no stack",
    ),
    (
        "Message",
        "data/baseData/properties/logger_name",
        lambda ours, theirs: ours == ABSENT,
        "who logs is the attempt that the line stands under",
    ),
    ("Event", "data/baseData/properties/logger_name", lambda ours, theirs: ours == ABSENT, "the same"),
    (
        "Message",
        "sampleRate",
        lambda ours, theirs: (ours, theirs) == (100.0, ABSENT),
        "lines are kept or left out with their trace, and stand for as many",
    ),
    ("Event", "sampleRate", lambda ours, theirs: (ours, theirs) == (100.0, ABSENT), "the same"),
    (
        "Metric",
        "data/baseData/metrics/0/name",
        lambda ours, theirs: ours.lower() == theirs,
        "OpenTelemetry's SDK for Python spells the names of instruments in small letters",
    ),
    (
        "Metric",
        "data/baseData/metrics/0/count",
        lambda ours, theirs: (ours, theirs) == (ABSENT, 1),
        "one value, which is what the service takes an absent count for",
    ),
]
PARENT_AS_LINK = [""]


class Endpoint:
    """An ingestion endpoint that takes everything."""

    def __init__(self):
        items = self.items = []
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v2.1/track", self.path
                received = json.loads(body)
                with lock:
                    items.extend(received)
                answer = {"itemsReceived": len(received), "itemsAccepted": len(received), "errors": []}
                answer = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def connection_string(self):
        return f"InstrumentationKey={KEY};IngestionEndpoint=http://127.0.0.1:{self.server.server_port}/"

    def one(self, kind, is_it):
        """The only item of this kind that is it."""
        found = [
            item for item in self.items if item["name"].endswith("." + kind) and is_it(item["data"]["baseData"], item)
        ]
        assert len(found) == 1, f"{len(found)} {kind} of {json.dumps(self.items, indent=1)}"
        return found[0]


class Host:
    """A running program whose telemetry goes to an endpoint."""

    def __init__(self, program, components, endpoint, **environment):
        self.directory = tempfile.TemporaryDirectory()
        manifest = f"""
spin_manifest_version = 2
[application]
name = "reference"
[[trigger.http]]
route = "/api/IngestJob"
component = "ingest"
[[trigger.servicebus]]
queue = "jobs"
component = "worker"
max_attempts = 1
[component.ingest]
source = "{components}/ingest.wasm"
[component.worker]
source = "{components}/examples/echo.wasm"
"""
        Path(self.directory.name, "spin.toml").write_text(manifest)
        arguments = [
            "up",
            "--quiet",
            "-f",
            self.directory.name,
            "--listen",
            "127.0.0.1:0",
            "--ops-listen",
            "127.0.0.1:0",
        ]
        known = {**os.environ, "APPLICATIONINSIGHTS_CONNECTION_STRING": endpoint.connection_string(), **environment}
        self.process = subprocess.Popen([program, *arguments], stdout=subprocess.PIPE, text=True, env=known)
        self.app, self.ops = (self.process.stdout.readline().split()[1] for _ in range(2))

    def call(self, method, url, body, **headers):
        headers = {"content-type": "application/json", **headers}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def post(self, job, trace_id):
        parent = f"00-{trace_id}-{CLIENT_SPAN}-01"
        body = {"jobType": "reference", "jobId": job, "payload": PAYLOAD}
        self.call("POST", f"{self.app}/api/IngestJob", body, traceparent=parent)

    def until(self, job, state):
        began = time.monotonic()
        while True:
            with urllib.request.urlopen(f"{self.ops}/v1/jobs/{job}", timeout=PATIENCE_SECONDS) as answer:
                seen = json.load(answer)
            if seen["state"] == state:
                return
            assert time.monotonic() - began < PATIENCE_SECONDS, seen
            time.sleep(0.02)

    def stop(self):
        """Stops it; its last items are sent before it ends."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(PATIENCE_SECONDS) == 0
        self.directory.cleanup()


class GivenIds(IdGenerator):
    """The ids of our spans, for theirs."""

    span_id = 0

    def generate_span_id(self):
        return int(self.span_id, 16)

    def generate_trace_id(self):
        raise AssertionError("every span has a parent")


def nanoseconds(stamp):
    """Of an item's time, which has microseconds."""
    at = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    whole = int(at.replace(microsecond=0).astimezone(timezone.utc).timestamp())
    return (whole * 1_000_000 + at.microsecond) * 1_000


def under(trace_id, span_id):
    """A context whose span is this one, of another process."""
    context = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(context)), context


class Official:
    """Tells facts to Azure's own exporter, through OpenTelemetry's SDK."""

    def __init__(self, endpoint, role, instance):
        connection = {"connection_string": endpoint.connection_string(), "disable_offline_storage": True}
        resource = Resource({"service.name": role, "service.instance.id": instance})
        self.endpoint = endpoint
        self.ids = GivenIds()
        spans = TracerProvider(ApplicationInsightsSampler(1.0), resource, id_generator=self.ids)
        spans.add_span_processor(SimpleSpanProcessor(AzureMonitorTraceExporter(**connection)))
        self.tracer = spans.get_tracer("reference")
        logs = LoggerProvider(resource)
        logs.add_log_record_processor(SimpleLogRecordProcessor(AzureMonitorLogExporter(**connection)))
        self.logger = logs.get_logger("reference")
        reader = PeriodicExportingMetricReader(AzureMonitorMetricExporter(**connection), 3_600_000)
        self.metrics = MeterProvider([reader], resource)

    def new(self):
        """The items since the last call."""
        items = list(self.endpoint.items)
        self.endpoint.items.clear()
        return items

    def span(self, ours, name, kind, trace_id, parent, attributes, links=(), failure=None):
        """A span; its id and times are those of our item. Its items."""
        data = ours["data"]["baseData"]
        self.ids.span_id = data["id"]
        start = nanoseconds(ours["time"])
        context, _ = under(trace_id, parent)
        span = self.tracer.start_span(name, context, kind, attributes, links, start)
        if failure:
            at, facts = failure
            span.add_event("exception", facts, nanoseconds(at))
            span.set_status(Status(StatusCode.ERROR, facts["exception.message"]))
        span.end(start + round(seconds(data["duration"]) * 1_000_000) * 1_000)
        return self.new()

    def log(self, at, trace_id, span_id, severity, body, attributes=None):
        context, _ = under(trace_id, span_id)
        record = LogRecord(
            timestamp=nanoseconds(at), context=context, severity_number=severity, body=body, attributes=attributes
        )
        self.logger.emit(record)
        return self.new()

    def metric(self, record):
        record(self.metrics.get_meter("reference"))
        self.metrics.force_flush()
        return self.new()


def flat(value, path=""):
    """Every leaf with its path; what is empty says nothing."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {path: value}
    return {
        leaf: found
        for key, part in parts
        for leaf, found in flat(part, f"{path}/{key}" if path else str(key)).items()
    }


def matches(pattern, path):
    return path.startswith(pattern[:-1]) if pattern.endswith("*") else path == pattern


class Comparison:
    def __init__(self):
        self.met = set()
        self.wrong = []

    def hold(self, what, ours, theirs):
        left, right = flat(ours), flat(theirs)
        for path in sorted(left.keys() | right.keys()):
            one, other = left.get(path, ABSENT), right.get(path, ABSENT)
            if one == other and type(one) is type(other):
                continue
            numbers = {type(one), type(other)} <= {int, float}
            if numbers and one == other:
                continue
            for place, (kind, pattern, allows, _) in enumerate(DIFFERENCES):
                if ours["name"].endswith(kind) and matches(pattern, path) and allows(one, other):
                    self.met.add(place)
                    break
            else:
                self.wrong.append(f"{what}: {path}: ours {one!r}, theirs {other!r}")

    def end(self):
        for place, (kind, pattern, _, _) in enumerate(DIFFERENCES):
            if place not in self.met:
                self.wrong.append(f"no difference in {kind} {pattern}: it is no longer one on purpose")
        assert not self.wrong, "\n" + "\n".join(self.wrong)


def text(item, *names):
    """Facts that only the run knows, as attributes."""
    properties = item["data"]["baseData"]["properties"]
    return {name: properties[name] for name in names}


def envelopes(program, components):
    ours = Endpoint()
    host = Host(program, components, ours, OTEL_METRIC_EXPORT_INTERVAL="3600000")
    host.post("good", GOOD_TRACE)
    host.until("good", "completed")
    host.call("PUT", f"{host.ops}/v1/chaos/jobs?for=60", {"failureRate": 1})
    host.post("bad", BAD_TRACE)
    host.until("bad", "dead")
    host.stop()

    def of_job(job, name):
        return lambda data, item: data["properties"].get("MessageId") == job and data["name"] == name

    def of_trace(trace_id, name):
        return lambda data, item: item["tags"].get("ai.operation.id") == trace_id and data["name"] == name

    posted = ours.one("Request", of_trace(GOOD_TRACE, "POST /api/IngestJob"))
    message = ours.one("RemoteDependency", of_job("good", "Message"))
    attempt = ours.one("Request", of_job("good", "worker"))
    settled = ours.one("RemoteDependency", of_trace(GOOD_TRACE, "ServiceBusReceiver.Complete"))
    bad_message = ours.one("RemoteDependency", of_job("bad", "Message"))
    bad = ours.one("Request", of_job("bad", "worker"))
    crash = ours.one("Exception", lambda data, item: True)
    died = ours.one("Event", lambda data, item: data["name"] == "JobDeadLettered")

    def span_id(item):
        return item["data"]["baseData"]["id"]

    official = Official(Endpoint(), "reference", posted["tags"]["ai.cloud.roleInstance"])
    comparison = Comparison()
    servicebus = {
        "az.namespace": "Microsoft.ServiceBus",
        "messaging.system": "servicebus",
        "messaging.destination.name": "jobs",
        "server.address": "embedded",
    }

    def measured(item, *names):
        found = item["data"]["baseData"]["measurements"]
        return {"microsoft.custom_measurements": json.dumps({name: found[name] for name in names})}

    http = {
        "http.request.method": "POST",
        "http.response.status_code": 202,
        "url.full": "/api/IngestJob",
        "Component": "ingest",
    }
    [theirs] = official.span(posted, "POST /api/IngestJob", SpanKind.SERVER, GOOD_TRACE, CLIENT_SPAN, http)
    comparison.hold("the POST", posted, theirs)

    sent = {**servicebus, "MessageId": "good"}
    [theirs] = official.span(message, "Message", SpanKind.PRODUCER, GOOD_TRACE, span_id(posted), sent)
    comparison.hold("the message", message, theirs)

    # What is on an attempt's span.
    facts = ["memoryPeakBytes", "cpuTimeMs", "DeliveryCount", "timeSinceEnqueued"]

    def attempted(item, job, verdict, injected):
        known = {"MessageId": job, "JobType": "reference", "Verdict": verdict, "Injected": injected}
        return {**servicebus, **known, **text(item, "ComponentDigest"), **measured(item, *facts)}

    def linked(item, parent, trace_id):
        """Azure's own client links to the message, with the time of its arrival in milliseconds."""
        waited = item["data"]["baseData"]["measurements"]["timeSinceEnqueued"]
        started = nanoseconds(item["time"]) / 1_000_000
        _, context = under(trace_id, span_id(parent))
        PARENT_AS_LINK[0] = json.dumps([{"operation_Id": trace_id, "id": span_id(parent)}])
        return [Link(context, {"enqueuedTime": int(started - waited)})]

    def waited_about(ours, theirs):
        """Theirs comes from whole milliseconds of another clock reading; ours from the queue's."""
        mine, other = (item["data"]["baseData"]["measurements"] for item in (ours, theirs))
        assert abs(mine["timeSinceEnqueued"] - other.pop("timeSinceEnqueued")) <= 1, (mine, other)
        other["timeSinceEnqueued"] = mine["timeSinceEnqueued"]

    links = linked(attempt, message, GOOD_TRACE)
    known = attempted(attempt, "good", "completed", False)
    [theirs] = official.span(attempt, "worker", SpanKind.CONSUMER, GOOD_TRACE, span_id(message), known, links)
    waited_about(attempt, theirs)
    comparison.hold("the attempt", attempt, theirs)

    [theirs] = official.span(
        settled, "ServiceBusReceiver.Complete", SpanKind.CLIENT, GOOD_TRACE, span_id(attempt), servicebus
    )
    comparison.hold("the settlement", settled, theirs)

    links = linked(bad, bad_message, BAD_TRACE)
    failure = {"exception.type": "chaos", "exception.message": "Simulated Crash", "Injected": True}
    known = attempted(bad, "bad", "chaos", True)
    theirs, exception = official.span(
        bad, "worker", SpanKind.CONSUMER, BAD_TRACE, span_id(bad_message), known, links, (crash["time"], failure)
    )
    waited_about(bad, theirs)
    comparison.hold("the failed attempt", bad, theirs)
    comparison.hold("the failure", crash, exception)

    for line, severity in [
        ("good on stdout", SeverityNumber.INFO),
        ("good on stderr", SeverityNumber.WARN),
        ("good in the log", SeverityNumber.INFO),
    ]:
        mine = ours.one("Message", lambda data, item: data["message"] == line)
        [theirs] = official.log(mine["time"], GOOD_TRACE, span_id(attempt), severity, line)
        comparison.hold("a line", mine, theirs)

    facts = {"microsoft.custom_event.name": "JobDeadLettered", **text(died, "Reason", "Description")}
    [theirs] = official.log(died["time"], BAD_TRACE, span_id(bad), SeverityNumber.INFO, None, facts)
    comparison.hold("the dead letter", died, theirs)

    digest = attempt["data"]["baseData"]["properties"]["ComponentDigest"].removeprefix("sha256:")[:12]
    labels = {"queue": "jobs", "version": digest}
    is_good = lambda data, item: data["metrics"][0]["name"] == "JobSuccess"  # noqa: E731
    success = ours.one("Metric", is_good)
    [theirs] = official.metric(lambda meter: meter.create_counter("JobSuccess").add(1, labels))
    theirs["time"] = success["time"]
    comparison.hold("a counter", success, theirs)
    measured_here = ours.one("Metric", lambda data, item: data["metrics"][0]["name"] == "GuestMetric")
    value = float(len(json.dumps(PAYLOAD)))
    labels = {"component": "worker", "name": "EchoBytes"}
    [theirs] = official.metric(lambda meter: meter.create_histogram("GuestMetric").record(value, labels))
    theirs["time"] = measured_here["time"]
    comparison.hold("a histogram", measured_here, theirs)
    comparison.end()


def sampling(program, components):
    ours = Endpoint()
    host = Host(program, components, ours, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG=str(RATIO))
    numbers = random.Random(7)
    traces = [f"{numbers.getrandbits(128):032x}" for _ in range(200)]
    for number, trace_id in enumerate(traces):
        host.post(f"s{number}", trace_id)
    for number in range(len(traces)):
        host.until(f"s{number}", "completed")
    host.stop()
    sampler = ApplicationInsightsSampler(RATIO)
    decided = {trace_id: sampler.should_sample(None, int(trace_id, 16), "x") for trace_id in traces}
    expected = {trace_id for trace_id, result in decided.items() if result.decision == Decision.RECORD_AND_SAMPLE}
    assert 0.25 * len(traces) < len(expected) < 0.55 * len(traces), len(expected)
    for kind in ("Request", "RemoteDependency", "Message"):
        items = [item for item in ours.items if item["name"].endswith("." + kind)]
        kept = {item["tags"]["ai.operation.id"] for item in items}
        assert (
            kept == expected
        ), f"{kind}: {len(kept - expected)} kept and {len(expected - kept)} left out against the reference"
        rates = {item["sampleRate"] for item in items}
        assert rates == {decided[trace_id].attributes["_MS.sampleRate"] for trace_id in expected}, rates


def main(program, components):
    for test in (envelopes, sampling):
        test(program, Path(components).resolve())
        print(f"test official_exporter_{test.__name__} ... ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
