//! Components that are made of several, and the queue as one of them: what it
//! says while its service is away, full, or will not have it.

use std::time::{Duration, Instant};

use orchestrator_servicebus::atom::QueueDescription;
use serde_json::{Value, json};

use crate::rig::{Rig, component, manifest, refused, route};
use crate::two_ways::{Ends, KEY_NAME, bus, front, ingest_front};
use crate::wire::{Fate, Wire};

fn job(id: &str) -> Value {
    json!({ "jobType": "t", "jobId": id, "payload": { "n": 1 } })
}

/// Posts a job that must be refused for now: with this status, and with
/// the time to come back. Says the sentence.
async fn put_off(front: &Rig, id: &str, status: u16) -> String {
    let response = front.post(&job(id)).await.unwrap();
    let (got, headers) = (response.status().as_u16(), response.headers().clone());
    let problem: Value = response.json().await.unwrap();
    assert_eq!(got, status, "{problem}");
    assert!(headers.contains_key("retry-after"), "{headers:?}");
    problem["detail"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_service_is_away_clients_are_told_and_lose_nothing() {
    let mut ends = Ends::composed("worker", "").await;
    ends.front.accepted("before", json!({})).await;
    let bus = ends.bus.as_mut().unwrap();
    bus.signal("KILL");
    bus.ended();
    let told = put_off(&ends.front, "meanwhile", 503).await;
    assert!(
        told.contains("does not answer") && told.contains("`meanwhile`"),
        "{told}"
    );
    bus.restart();
    let response = ends.front.post(&job("meanwhile")).await.unwrap();
    assert_eq!(response.status(), 202);
    for id in ["before", "meanwhile"] {
        ends.worker().completed(id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_moment_of_the_service_is_not_seen_by_clients() {
    let ends = Ends::composed("worker", "").await;
    let server = ends.bus.as_ref().unwrap().bus();
    let wire = Wire::to(server.strip_prefix("http://").unwrap().parse().unwrap()).await;
    let front = Rig::up(&ingest_front(&format!("http://{}", wire.address)));
    let fate = Fate::default;
    let fates = [
        Fate {
            refused: Some((503, Some(1))),
            ..fate()
        },
        Fate {
            refused: Some((429, None)),
            ..fate()
        },
        Fate {
            cut: true,
            ..fate()
        },
        // The service has it, and the repetition under the same id is no second one.
        Fate {
            answer_lost: true,
            ..fate()
        },
    ];
    for (number, fate) in fates.into_iter().enumerate() {
        let asked = wire.requests();
        let mut fate = Some(fate);
        wire.script(move |_| fate.take().unwrap_or_default());
        let id = format!("m{number}");
        front.accepted(&id, json!({})).await;
        assert_eq!(wire.requests() - asked, 2, "one repetition of {id}");
        assert_eq!(ends.worker().completed(&id).await["deliveryCount"], 1);
    }
    assert_eq!(ends.worker().succeeded(4).await, 4);

    wire.script(|_| Fate {
        half_open: true,
        ..Fate::default()
    });
    let told = put_off(&front, "silence", 503).await;
    assert!(told.contains("does not answer"), "{told}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_told_at_once_and_with_its_reason() {
    let bus = bus(&QueueDescription::default()).await;
    let address = bus.bus();
    let string = |key: &str| {
        format!("Endpoint={address};SharedAccessKeyName={KEY_NAME};SharedAccessKey={key}")
    };
    let wrong = string("wrong");
    let right = string("SAS_KEY_VALUE");
    let keyless = format!("Endpoint={address}");
    let connection = "servicebus_connection_string";
    let queue = ("servicebus_queue", "jobs");
    for (allowed, variables, told) in [
        (
            address,
            vec![(connection, wrong.as_str()), queue],
            "refuses the credential (401)",
        ),
        (
            address,
            vec![(connection, keyless.as_str()), queue],
            "Entra ID",
        ),
        (address, vec![(connection, "nonsense"), queue], connection),
        (
            address,
            vec![
                (connection, right.as_str()),
                ("servicebus_queue", "nowhere"),
            ],
            "has no queue `nowhere`",
        ),
        (
            "https://*.servicebus.windows.net",
            vec![(connection, right.as_str()), queue],
            "allowed_outbound_hosts",
        ),
    ] {
        let front = Rig::up(&front("ingest", "/api/IngestJob", allowed, &variables));
        let began = Instant::now();
        let sentence = put_off(&front, "j", 503).await;
        assert!(sentence.contains(told), "{told}: {sentence}");
        // None of these is tried again.
        assert!(began.elapsed() < Duration::from_secs(5), "{sentence}");
        assert!(!sentence.contains("wrong"), "{sentence}");
    }
    // The right key, in the string that the portal gives.
    let with_entity = format!("{right};EntityPath=jobs");
    let variables = [(connection, with_entity.as_str())];
    let front = Rig::up(&front("ingest", "/api/IngestJob", address, &variables));
    front.accepted("j", json!({})).await;
}

#[tokio::test]
async fn a_full_queue_is_told_as_full() {
    let small = QueueDescription {
        max_size_megabytes: Some(1),
        ..QueueDescription::default()
    };
    let bus = bus(&small).await;
    let front = Rig::up(&ingest_front(bus.bus()));
    let big = "x".repeat(200_000);
    let mut accepted = 0;
    loop {
        let body = json!({ "jobType": "t", "payload": big });
        let response = front.post(&body).await.unwrap();
        match response.status().as_u16() {
            202 => accepted += 1,
            429 => {
                assert!(response.headers().contains_key("retry-after"));
                break;
            }
            _ => panic!("{}", response.text().await.unwrap()),
        }
        assert!(accepted < 6, "more than a megabyte was accepted");
    }
    assert!(accepted > 3, "{accepted}");
}

#[tokio::test]
async fn of_many_sent_at_once_each_has_its_own_fate() {
    let native = manifest(&[("jobs", "worker", "")]) + &route("/sends", "http-sends");
    let bus = bus(&QueueDescription::default()).await;
    let variables = [
        ("servicebus_endpoint", bus.bus()),
        ("servicebus_queue", "jobs"),
    ];
    let composed = front("http-sends", "/sends", bus.bus(), &variables);
    for (name, text) in [("native", native), ("composed", composed)] {
        let rig = Rig::up(&text);
        let (status, ends) = rig.get("/sends?600").await;
        assert_eq!(status, 200, "{name}: {ends}");
        let ends = ends.as_array().unwrap();
        assert_eq!(ends.len(), 600, "{name}");
        for (place, end) in ends.iter().enumerate() {
            let expected = match place {
                1 | 2 => "invalid".to_owned(),
                place => format!("many{place}"),
            };
            assert_eq!(*end, json!(expected), "{name}");
        }
        let (_, ends) = rig.get("/sends?1001").await;
        let ends = ends.as_array().unwrap();
        assert_eq!(ends.len(), 1_001, "{name}");
        assert!(ends.iter().all(|end| end == "invalid"), "{name}");
    }
    let worker = crate::two_ways::worker_of(&bus, "worker", "");
    for id in ["many0", "many599"] {
        worker.completed(id).await;
    }
}

/// A worker `asks_part` whose part is `part`, with these keys beside its source
/// and in its dependency.
fn whole(keys: &str, dependency: &str, inherits: &str) -> String {
    manifest(&[("jobs", "asks_part", "")])
        + keys
        + &format!(
            "[component.jobs-worker.dependencies]\n\"{dependency}\" = {{ path = \"{}\", inherit_configuration = {inherits} }}\n",
            component("part")
        )
}

const GREETING: &str = "variables = { greeting = \"hello\", other = \"x\" }\n";

#[tokio::test]
async fn a_component_is_composed_with_its_part_which_reads_what_it_inherits() {
    for dependency in ["test:parts/teller@1.0.0", "test:parts/teller", "test:parts"] {
        let rig = Rig::up(&whole(GREETING, dependency, "[\"variables\"]"));
        rig.accepted("job", json!({})).await;
        let result = &rig.completed("job").await["result"];
        let told: Vec<&str> = result
            .as_array()
            .unwrap()
            .iter()
            .map(|line| line.as_str().unwrap())
            .collect();
        assert_eq!(
            told[..4],
            ["hello", "hello", "Ok(Some(\"hello\"))", "Ok(2)"],
            "{dependency}"
        );
        assert!(
            told[4].contains("Undefined") && told[4].contains("nobody"),
            "{told:?}"
        );
        assert!(told[5].contains("InvalidName"), "{told:?}");
    }
}

#[tokio::test]
async fn a_swapped_component_is_composed_as_the_first_was() {
    let rig = Rig::up(&whole(GREETING, "test:parts/teller", "true"));
    // Another build: a custom section that says nothing.
    let mut other = std::fs::read(component("asks_part")).unwrap();
    other.extend(b"\0\x05\x04same");
    let path = rig.dir().join("other.wasm");
    std::fs::write(&path, &other).unwrap();
    let ran = rig.command(&[
        "swap",
        "jobs-worker",
        path.to_str().unwrap(),
        "--output",
        "json",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    rig.accepted("job", json!({})).await;
    let job = rig.completed("job").await;
    assert_eq!(job["result"][0], "hello");
    // The version is that of its own file.
    let digest = orchestrator_engine::loader::digest(&other);
    assert_eq!(
        job["attempts"][0]["componentDigest"],
        format!("sha256:{digest}")
    );
}

#[test]
fn a_dependency_sends_no_jobs_in_the_name_of_its_component() {
    let sends = whole("", "test:parts/teller", "[\"variables\"]")
        .replace(&component("part"), &component("part_sends"));
    let (code, said) = refused(&sends);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("it could send jobs"), "{said}");
}

#[test]
fn a_dependency_that_does_not_fit_is_refused_with_a_sentence() {
    for (keys, dependency, inherits, told) in [
        (
            GREETING,
            "test:parts/teller",
            "false",
            "add `variables` to its `inherit_configuration`",
        ),
        (
            "environment = { A = \"b\" }\n",
            "test:parts/teller",
            "[\"variables\"]",
            "add `environment` to its `inherit_configuration`",
        ),
        (
            "",
            "test:parts/teller@1.0.1",
            "true",
            "dependency `test:parts/teller@1.0.1` matches no import",
        ),
        ("", "test:parts/other", "true", "matches no import"),
    ] {
        let (code, said) = refused(&whole(keys, dependency, inherits));
        assert_eq!(code, 1, "{said}");
        assert!(
            said.contains(told) && said.contains(&component("asks_part")),
            "{said}"
        );
    }
    let without_part = manifest(&[("jobs", "asks_part", "")]);
    let dependency = "[component.jobs-worker.dependencies]\n\"test:parts/teller\" = ";
    for (value, told) in [
        (
            format!("{{ path = \"{}\" }}\n", component("echo")),
            "does not export `test:parts/teller@1.0.0`",
        ),
        (
            "{ path = \"nowhere.wasm\" }\n".to_owned(),
            "nowhere.wasm): it cannot be read",
        ),
    ] {
        let (code, said) = refused(&format!("{without_part}{dependency}{value}"));
        assert!(code == 1 && said.contains(told), "{said}");
    }
}

#[tokio::test]
async fn a_dependency_for_what_the_host_offers_is_left_alone() {
    let text = manifest(&[("jobs", "worker", "")]);
    // Not even read.
    let text = text.replace(
        "[[trigger.servicebus]]",
        "[component.ingest.dependencies]\n\"orchestrator:pipeline/queue@0.1.0\" = { path = \"nowhere.wasm\" }\n[[trigger.servicebus]]",
    );
    let rig = Rig::up(&text);
    rig.accepted("job", json!({})).await;
    rig.completed("job").await;
    let ran = rig.command(&["doctor", "--output", "json"]);
    let findings = ran.json();
    let told = findings
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["check"] == "dependency of ingest")
        .unwrap_or_else(|| panic!("{findings}"));
    assert!(
        told["told"]
            .as_str()
            .unwrap()
            .contains("not used: this host offers"),
        "{told}"
    );
}
