//! The command line as a person or a script uses it.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::rig::{Rig, Way, manifest, refused_in};

const FAILS_TWICE: &str =
    "max_attempts = 2\nretry = { initial = \"1ms\" }\nchaos = { failure_rate = 1.0, seed = 7 }";

#[tokio::test]
async fn dead_letters_are_listed_shown_brought_back_and_thrown_away() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", FAILS_TWICE)]));
    for id in ["a", "b"] {
        rig.accepted(id, json!({})).await;
        rig.job_in(id, &["dead"]).await;
    }
    let listed = rig.command(&["dead", "list"]);
    assert!(
        listed.printed.lines().count() == 3 && listed.printed.contains("MaxDeliveryCountExceeded"),
        "{listed:?}"
    );
    assert_eq!(
        rig.command(&["dead", "list", "--output", "json"]).json()[1]["jobId"],
        "b"
    );
    let shown = rig.command(&["dead", "show", "a"]).json();
    assert_eq!(shown["attempts"][1]["error"], "Simulated Crash");
    let missing = rig.command(&["dead", "show", "nobody"]);
    assert!(
        missing.code == 1 && missing.said.contains("nobody"),
        "{missing:?}"
    );

    let redriven = rig.command(&["dead", "redrive", "a"]);
    assert_eq!(redriven.json(), json!({ "redriven": 1 }));
    rig.job_in("a", &["dead"]).await;
    assert_eq!(
        rig.command(&["dead", "purge", "b"]).json(),
        json!({ "purged": 1 })
    );
    assert_eq!(
        rig.command(&["dead", "purge", "--all"]).json(),
        json!({ "purged": 1 })
    );
    assert_eq!(
        rig.command(&["dead", "list", "--output", "json"]).json(),
        json!([])
    );
    let neither = rig.command(&["dead", "purge"]);
    assert!(
        neither.code == 64 && neither.said.contains("--all"),
        "{neither:?}"
    );
}

#[tokio::test]
async fn status_and_jobs_show_what_the_host_does() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    rig.accepted("one", json!({ "n": 1 })).await;
    rig.completed("one").await;
    let status = rig.command(&["status"]);
    for told in ["ingest", "jobs-worker", "sha256:", "inFlight"] {
        assert!(
            status.printed.contains(told),
            "{told} is missing from {status:?}"
        );
    }
    let status = rig.command(&["status", "--output", "json"]).json();
    assert_eq!(status["queues"][0]["completed"], 1);
    assert!(rig.command(&["jobs"]).printed.contains("one"));
    assert_eq!(rig.command(&["jobs", "one"]).json()["state"], "completed");
    let missing = rig.command(&["jobs", "nobody"]);
    assert!(
        missing.code == 1 && missing.said.contains("no job `nobody`"),
        "{missing:?}"
    );
    let nowhere = rig.command(&["status", "--ops", "http://127.0.0.1:9"]);
    assert!(
        nowhere.code == 1 && nowhere.said.contains("orchestrator up"),
        "{nowhere:?}"
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let mut child = Command::new(env!("CARGO_BIN_EXE_orchestrator"))
        .args(["status", "--ops", rig.ops_url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn doctor_says_what_is_wrong_and_how_to_mend_it() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let free = ["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];
    let doctor = |more: &[&str]| rig.command(&[&["doctor", "--state-dir", "state"], more].concat());
    let well = doctor(&free);
    assert_eq!(well.code, 0, "{well:?}");
    assert!(well.printed.contains("component jobs-worker"), "{well:?}");

    let taken = doctor(&[
        "--listen",
        rig.app_address(),
        "--output",
        "json",
        "--ops-listen",
        "127.0.0.1:0",
    ]);
    let finding = |ran: &crate::rig::Ran, check: &str| -> Value {
        let found = ran.json();
        let mut findings = found.as_array().unwrap().iter();
        findings
            .find(|finding| finding["check"] == check)
            .cloned()
            .unwrap()
    };
    let listener = finding(&taken, "application listener");
    assert_eq!((taken.code, &listener["verdict"]), (1, &json!("fail")));
    assert!(listener["mend"].as_str().unwrap().contains("--listen"));
    // Here or not, it is no failure.
    assert_eq!(finding(&taken, "spin")["verdict"], "ok");

    rig.rewrite(&manifest(&[("jobs", "no_export", "")]));
    let ran = doctor(&[&["--output", "json"], &free[..]].concat());
    let worker = finding(&ran, "component jobs-worker");
    assert!(
        worker["told"]
            .as_str()
            .unwrap()
            .contains("it does not export"),
        "{worker}"
    );
    rig.rewrite("nonsense = 1");
    assert_eq!(doctor(&free).code, 1);
}

#[tokio::test]
async fn bench_measures_every_part() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let quick = [
        "bench",
        "--rounds",
        "1",
        "--duration",
        "100ms",
        "--state-dir",
        "bench",
    ];
    let ran = rig.command(&[&quick[..], &["--output", "json"]].concat());
    let rows = ran.json()["rows"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 22, "{ran:?}");
    for row in &rows {
        assert!(row["perSecond"].as_f64().unwrap() > 0.0, "{row}");
    }
    let ratios = rows.iter().filter(|row| row["ratio"].is_f64()).count();
    assert_eq!(ratios, 2, "{ran:?}");
    assert_eq!(ran.said, "", "progress stays silent in a pipe");
}

#[tokio::test]
async fn a_token_guards_everything_but_the_probes() {
    let way = || Way {
        environment: vec![("ORCHESTRATOR_OPS_TOKEN", "s3cret".to_owned())],
        ..Way::default()
    };
    let rig = Rig::up_in(&manifest(&[("jobs", "worker", "")]), way());
    let asked = async |path: &str, token: Option<&str>| {
        let request = rig.client().get(format!("{}{path}", rig.ops_url()));
        let request = match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.unwrap().status().as_u16()
    };
    for path in ["/v1/jobs", "/v1/queues", "/v1/components", "/metrics"] {
        assert_eq!(asked(path, None).await, 401, "{path}");
        assert_eq!(asked(path, Some("s3cre")).await, 401, "{path}");
        assert_eq!(asked(path, Some("s3cret")).await, 200, "{path}");
    }
    for path in ["/livez", "/readyz"] {
        assert_eq!(asked(path, None).await, 200, "{path}");
    }
    // The command line finds the token where the host did.
    assert_eq!(rig.command(&["status"]).code, 0);
}

#[tokio::test]
async fn the_operations_listener_is_for_this_machine() {
    let rig = Rig::up(&manifest(&[("jobs", "worker", "")]));
    let asked = async |header: &str, value: &str| {
        let request = rig.client().get(format!("{}/v1/jobs", rig.ops_url()));
        let response = request.header(header, value).send().await.unwrap();
        response.status().as_u16()
    };
    assert_eq!(asked("host", "evil.example").await, 403);
    assert_eq!(asked("origin", "http://evil.example").await, 403);
    assert_eq!(asked("origin", rig.ops_url()).await, 200);
    let open = Way {
        arguments: vec!["--ops-listen", "0.0.0.0:0"],
        ..Way::default()
    };
    let (code, said) = refused_in(&manifest(&[("jobs", "worker", "")]), &open);
    assert!(
        code == 1 && said.contains("ORCHESTRATOR_OPS_TOKEN"),
        "{said}"
    );
}

#[tokio::test]
async fn log_lines_are_json_when_asked_for_and_name_their_job() {
    let way = Way {
        arguments: vec!["--log-format", "json"],
        ..Way::default()
    };
    let mut rig = Rig::up_in(&manifest(&[("jobs", "traps", "max_attempts = 1")]), way);
    rig.accepted("one", json!("it broke")).await;
    rig.job_in("one", &["dead"]).await;
    rig.signal("TERM");
    assert_eq!(rig.ended().code(), Some(0));
    let said = rig.said();
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let about_job = |text: &str| {
        lines
            .iter()
            .any(|line| line["job"] == "one" && line["message"].as_str().unwrap().contains(text))
    };
    assert!(
        about_job("dead-lettered") && about_job("it broke"),
        "{said}"
    );
}

#[test]
fn a_variable_file_that_is_missing_is_bad_usage() {
    let way = Way {
        arguments: vec!["--variable", "@given.toml"],
        ..Way::default()
    };
    let (code, said) = refused_in(&manifest(&[("jobs", "worker", "")]), &way);
    assert!(
        code == 64 && said.contains("given.toml cannot be read"),
        "{said}"
    );
}
