//! The program as Spin's trigger: started as `spin up` starts it, with what
//! Spin writes, and installed where Spin looks.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use orchestrator_servicebus::sas;
use orchestrator_servicebus::secret::Secret;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use crate::rig::{Rig, component};
use crate::shared_queue;
use crate::two_ways::{KEY, KEY_NAME};

const NAME: &str = "trigger-servicebus";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A directory with an application (its path has a space, as paths may), a
/// working directory of Spin's, a plugin, and somewhere else to be.
fn scene() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["an app", "spinup-x y", "elsewhere", "plugin"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_orchestrator");
    std::os::unix::fs::symlink(program, dir.path().join("plugin").join(NAME)).unwrap();
    dir
}

fn url(path: &Path) -> String {
    Url::from_file_path(path).unwrap().into()
}

/// Puts a guest's file into the application; says where.
fn put(dir: &Path, name: &str, guest: &str) -> PathBuf {
    let path = dir.join("an app").join(name);
    std::fs::copy(component(guest), &path).unwrap();
    path
}

/// An application as Spin 4 locks it: an HTTP trigger and its component, which
/// are none of the plugin's, and a worker on two queues.
fn lock(dir: &Path, worker: &Path) -> Value {
    let trigger = |id: &str, config: Value| json!({ "id": id, "trigger_type": "servicebus", "trigger_config": config });
    json!({
        "spin_lock_version": 1,
        "must_understand": ["component_host_requirements"],
        "metadata": {
            "name": "pipeline",
            "version": "0.1.0",
            "authors": ["someone"],
            "origin": url(&dir.join("an app/spin.toml")),
            "triggers": {
                "servicebus": {
                    "servicebus_listen": "127.0.0.1:{{ sb_port }}",
                    "shutdown_timeout": "60s",
                },
            },
        },
        "variables": {
            "sb_port": { "default": "0" },
            "greeting": { "description": "what to say", "secret": true },
            "queue": { "default": "jobs" },
        },
        "triggers": [
            {
                "id": "ingest-http-trigger",
                "trigger_type": "http",
                "trigger_config": { "component": "ingest", "route": "/...", "executor": null },
            },
            trigger("worker-servicebus-trigger", json!({
                "component": "worker",
                "queue": "{{ queue }}",
                "concurrency": 4,
                "timeout": "50s",
                "max_attempts": 2,
                "retry": { "initial": "1ms", "factor": 2.0 },
            })),
            trigger("other", json!({ "component": "worker", "queue": "other" })),
        ],
        "components": [
            {
                "id": "ingest",
                "metadata": { "allowed_outbound_hosts": ["redis://cache.spin.internal"], "key_value_stores": ["default"] },
                "source": { "content_type": "application/wasm", "source": "file:///nowhere/ingest.wasm" },
                "host_requirements": { "local_service_chaining": "required" },
            },
            {
                "id": "worker",
                "metadata": {
                    "allowed_outbound_hosts": ["http://127.0.0.1:{{ sb_port }}"],
                    "build": { "command": "make", "watch": ["*.c"] },
                    "key_value_stores": [],
                },
                "source": { "content_type": "application/wasm", "source": url(worker), "digest": null },
                "env": { "PLACE": "world" },
                "config": { "greeting": "{{ greeting }}, {{queue}}" },
                "host_requirements": { "middleware": "optional" },
                "new_in_a_later_spin": [1, 2, 3],
            },
        ],
    })
}

/// The plugin as Spin runs it, in this scene, on this lock.
fn plugin(dir: &Path, lock: &Value) -> Command {
    plugin_on(dir, lock, "127.0.0.1:0")
}

/// The same, with its operations listener here.
fn plugin_on(dir: &Path, lock: &Value, ops: &str) -> Command {
    let working = dir.join("spinup-x y");
    let path = working.join("spin.lock");
    std::fs::write(&path, serde_json::to_vec_pretty(lock).unwrap()).unwrap();
    let mut command = Command::new(dir.join("plugin").join(NAME));
    command
        .current_dir(dir.join("elsewhere"))
        .env_remove("SERVICEBUS_CONNECTION_STRING")
        .env(
            "ORCHESTRATOR_CACHE_DIR",
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled"),
        )
        .env("SPIN_LOCKED_URL", url(&path))
        .env("SPIN_WORKING_DIR", &working)
        .env("SPIN_LOCAL_APP_DIR", dir.join("an app"))
        .env("SPIN_VERSION", "4.1.0-pre0")
        .env("SPIN_VARIABLE_GREETING", "hello")
        .args(["--ops-listen", ops])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The plugin once it runs, after it has announced so many listeners.
fn started(dir: tempfile::TempDir, command: &mut Command, listeners: usize) -> Rig {
    let stderr = std::fs::File::create(dir.path().join("stderr")).unwrap();
    let mut child = command.stderr(stderr).spawn().unwrap();
    let (ops, bus) = announced(&dir, &mut child, listeners);
    Rig::attached(dir, child, ops, bus)
}

fn announced(
    dir: &tempfile::TempDir,
    child: &mut Child,
    listeners: usize,
) -> (String, Option<String>) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut told = Vec::new();
    for _ in 0..listeners {
        let line = lines.next().unwrap_or_else(|| {
            panic!(
                "{}",
                std::fs::read_to_string(dir.path().join("stderr")).unwrap()
            )
        });
        let line = line.unwrap();
        let (listener, address) = line.split_once(' ').unwrap();
        told.push((listener.to_owned(), address.trim().to_owned()));
    }
    let find = |name: &str| told.iter().find(|(listener, _)| listener == name);
    assert!(
        find("application:").is_none(),
        "HTTP is served by Spin: {told:?}"
    );
    let address = |name: &str| find(name).map(|(_, address)| address.clone());
    (address("operations:").unwrap(), address("servicebus:"))
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Sends a job over the wire of Service Bus, as an HTTP component under Spin does.
async fn send(rig: &Rig, bus: &str, queue: &str, id: &str, payload: Value) {
    let token = sas::sign(bus, KEY_NAME, &Secret::new(KEY), u64::MAX / 2);
    let sent = rig
        .client()
        .post(format!("{bus}/{queue}/messages"))
        .header("authorization", token)
        .header(
            "brokerproperties",
            json!({ "MessageId": id, "Label": "test" }).to_string(),
        )
        .json(&payload)
        .send()
        .await
        .unwrap();
    assert_eq!(sent.status(), 201, "{}", sent.text().await.unwrap());
}

/// The job, once the host has done it.
async fn completed(rig: &Rig, id: &str) -> Value {
    rig.completed(id).await
}

/// Waits until the job is being done.
async fn until_running(rig: &Rig, id: &str) {
    rig.job_in(id, &["running"]).await;
}

#[test]
fn spin_is_told_flags_and_help_without_being_started() {
    let dir = scene();
    let asked = |flag: &str| {
        let mut command = Command::new(dir.path().join("plugin").join(NAME));
        run(command.arg(flag).env_clear().current_dir(dir.path()))
    };
    let (code, printed, said) = asked("--launch-metadata-only");
    assert_eq!((code, printed.as_str()), (0, ""));
    let metadata: Value = serde_json::from_str(&said).unwrap();
    let flags = metadata["all_flags"].as_array().unwrap();
    let quiet = json!({ "short": "-q", "long": "--quiet" });
    assert!(flags.contains(&quiet), "{metadata}");
    assert!(
        flags.contains(&json!({ "long": "--variable" })),
        "{metadata}"
    );

    let (code, printed, said) = asked("--help-args-only");
    assert_eq!((code, said.as_str()), (0, ""));
    // Every flag that it says it takes it also explains.
    for flag in flags {
        let long = flag["long"].as_str().unwrap();
        assert!(printed.contains(long), "{long}: {printed}");
    }
    assert!(
        !printed.contains("--listen ") && !printed.contains("Usage"),
        "{printed}"
    );

    // The same by the program's own name.
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
    let (code, _, again) = run(command.args([NAME, "--launch-metadata-only"]));
    assert_eq!(
        (code, again),
        (0, serde_json::to_string(&metadata).unwrap() + "\n")
    );
}

#[tokio::test]
async fn it_runs_the_queues_that_spin_has_locked_and_swaps_their_workers() {
    let dir = scene();
    let worker = put(dir.path(), "worker é.wasm", "reads_env");
    let lock = lock(dir.path(), &worker);
    std::fs::write(
        dir.path().join("elsewhere/.env"),
        "SPIN_VARIABLE_GREETING=hello\nSPIN_VARIABLE_QUEUE=not-this\n",
    )
    .unwrap();
    // As Spin passes on what was typed for all triggers.
    let mut command = plugin(dir.path(), &lock);
    command.env_remove("SPIN_VARIABLE_GREETING");
    command.args([
        "--variable",
        "queue=more/jobs",
        "-q",
        "--disable-cache",
        "--key-value",
        "a=b",
    ]);
    let mut rig = started(dir, &mut command, 2);
    let bus = rig.bus().to_owned();
    for (queue, id) in [("more/jobs", "one"), ("other", "two")] {
        send(&rig, &bus, queue, id, json!({})).await;
        let job = completed(&rig, id).await;
        assert_eq!(job["result"]["greeting"], "hello, more/jobs", "{job}");
        assert_eq!(job["result"]["env"]["PLACE"], "world", "{job}");
    }
    assert_eq!(rig.command(&["status"]).code, 0);
    let durable = rig.dir().join("an app/.spin/orchestrator/queue");
    assert!(durable.is_dir(), "{} is not there", durable.display());

    // The worker's file is replaced while the plugin runs: until that is
    // noticed jobs run on the version before.
    std::fs::copy(component("echo"), &worker).unwrap();
    let digest = orchestrator_engine::loader::digest(&std::fs::read(&worker).unwrap());
    let began = Instant::now();
    for n in 0.. {
        let id = format!("swapped-{n}");
        send(&rig, &bus, "other", &id, json!({ "n": n })).await;
        let job = completed(&rig, &id).await;
        if job["attempts"][0]["componentDigest"] == format!("sha256:{digest}") {
            assert_eq!(job["result"], json!({ "n": n }), "{job}");
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    rig.signal("TERM");
    assert_eq!(rig.ended().code(), Some(0), "{}", rig.said());
}

#[tokio::test]
async fn signals_in_a_burst_are_one_and_a_later_one_stops_at_once() {
    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "sleeps");
    let lock = lock(dir.path(), &worker);
    let mut command = plugin(dir.path(), &lock);
    let mut rig = started(dir, &mut command, 2);
    let bus = rig.bus().to_owned();
    send(&rig, &bus, "jobs", "short", json!({ "ms": 2_000 })).await;
    until_running(&rig, "short").await;
    // As on Ctrl-C at a terminal: one from it, one from each process above.
    for signal in ["INT", "TERM", "TERM"] {
        rig.signal(signal);
    }
    assert_eq!(rig.ended().code(), Some(0), "{}", rig.said());

    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "sleeps");
    let mut command = plugin(dir.path(), &self::lock(dir.path(), &worker));
    let config = dir.path().join("runtime.toml");
    let state = dir.path().join("by runtime config");
    std::fs::write(&config, format!("state_dir = {state:?}\n")).unwrap();
    command.arg("--runtime-config-file").arg(&config);
    let mut rig = started(dir, &mut command, 2);
    assert!(state.join("orchestrator/queue").is_dir(), "{state:?}");
    let bus = rig.bus().to_owned();
    send(&rig, &bus, "jobs", "long", json!({ "ms": 40_000 })).await;
    until_running(&rig, "long").await;
    let began = Instant::now();
    let mut signals = 0;
    while rig.is_running() {
        rig.signal("TERM");
        signals += 1;
        assert!(began.elapsed() < Duration::from_secs(30), "it drains on");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    assert!(signals > 2, "the second of a burst has stopped it");
    assert_eq!(rig.ended().code(), Some(1), "{}", rig.said());
    assert!(rig.said().contains("second signal"), "{}", rig.said());
}

#[tokio::test]
async fn it_ends_with_the_process_that_started_it() {
    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "sleeps");
    let lock = lock(dir.path(), &worker);
    let mut spawned = plugin(dir.path(), &lock);
    // As Spin says it when `spin up` was typed beside the manifest.
    spawned
        .current_dir(dir.path().join("an app"))
        .env("SPIN_LOCAL_APP_DIR", "");
    let mut parent = Command::new("sh");
    parent
        .args(["-c", "\"$0\" \"$@\" & wait"])
        .arg(spawned.get_program())
        .args(spawned.get_args())
        .envs(
            spawned
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .current_dir(spawned.get_current_dir().unwrap())
        .stdout(Stdio::piped());
    let mut rig = started(dir, &mut parent, 2);
    let bus = rig.bus().to_owned();
    send(&rig, &bus, "jobs", "short", json!({ "ms": 2_000 })).await;
    until_running(&rig, "short").await;
    rig.signal("KILL");
    // The pipe ends with the last process that has it.
    let mut rest = String::new();
    rig.stdout().read_to_string(&mut rest).unwrap();
    assert!(rig.said().contains("is gone"), "{}", rig.said());
    // It has drained, into the store that any other run has: the job is not run again.
    let mut command = plugin(rig.dir(), &lock);
    let mut next = started(tempfile::tempdir().unwrap(), &mut command, 2);
    let job = completed(&next, "short").await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
    next.signal("TERM");
    assert_eq!(next.ended().code(), Some(0));
}

#[tokio::test]
async fn a_run_waits_for_the_one_before_to_let_go() {
    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "sleeps");
    let lock = lock(dir.path(), &worker);
    let mut command = plugin(dir.path(), &lock);
    let mut first = started(dir, &mut command, 2);
    let bus = first.bus().to_owned();
    send(&first, &bus, "jobs", "long", json!({ "ms": 12_000 })).await;
    until_running(&first, "long").await;
    first.signal("TERM");
    let ops = first.ops_url().strip_prefix("http://").unwrap().to_owned();
    let bus = bus.strip_prefix("http://").unwrap();
    let mut again = plugin_on(first.dir(), &lock, &ops);
    // As Spin says it when `spin up -f "../an app"` was typed elsewhere.
    again
        .env("SPIN_LOCAL_APP_DIR", "../an app")
        .args(["--servicebus-listen", bus]);
    let dir = tempfile::tempdir().unwrap();
    let mut second = started(dir, &mut again, 2);
    assert_eq!(first.ended().code(), Some(0), "{}", first.said());
    assert!(
        second.said().contains("waiting for an earlier run"),
        "{}",
        second.said()
    );
    let job = completed(&second, "long").await;
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "{job}");
    second.signal("TERM");
    assert_eq!(second.ended().code(), Some(0));
}

#[tokio::test]
async fn with_a_connection_string_it_works_that_queue_and_serves_none() {
    let bus = shared_queue::bus().await;
    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "echo");
    let mut lock = lock(dir.path(), &worker);
    let connection = format!(
        "Endpoint={};SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY}",
        bus.bus()
    );
    lock["variables"]["connection"] = json!({ "default": connection });
    lock["metadata"]["triggers"]["servicebus"]["connection_string"] = json!("{{ connection }}");
    lock["triggers"].as_array_mut().unwrap().pop();
    // Of a registry, so without a directory of its own.
    let mut command = plugin(dir.path(), &lock);
    command
        .env_remove("SPIN_LOCAL_APP_DIR")
        .args(["--state-dir", "its state"]);
    let mut rig = started(dir, &mut command, 1);
    let durable = rig.dir().join("elsewhere/its state/orchestrator");
    assert!(durable.is_dir(), "{} is not there", durable.display());
    send(&rig, bus.bus(), "jobs", "one", json!({ "n": 1 })).await;
    completed(&rig, "one").await;
    rig.signal("TERM");
    assert_eq!(rig.ended().code(), Some(0), "{}", rig.said());
}

/// What is done to a good lock.
type Edit = Box<dyn Fn(&mut Value)>;

#[test]
fn what_it_cannot_run_is_refused_with_the_manifest_and_the_key() {
    let dir = scene();
    let worker = put(dir.path(), "worker.wasm", "echo");
    let good = lock(dir.path(), &worker);
    let refused = |edit: &dyn Fn(&mut Value)| {
        let mut lock = good.clone();
        edit(&mut lock);
        run(&mut plugin(dir.path(), &lock))
    };
    let worker = |key: &'static str, value: Value| {
        move |lock: &mut Value| lock["components"][1][key] = value.clone()
    };
    let metadata = |key: &'static str, value: Value| {
        move |lock: &mut Value| lock["components"][1]["metadata"][key] = value.clone()
    };
    let trigger = |key: &'static str, value: Value| {
        move |lock: &mut Value| lock["triggers"][1]["trigger_config"][key] = value.clone()
    };
    let file = dir.path().join("an app/spin.toml").display().to_string();
    let cases: Vec<(Edit, &str)> = vec![
        (
            Box::new(|lock| lock["must_understand"] = json!(["magic"])),
            "`magic`",
        ),
        (
            Box::new(|lock| lock["spin_lock_version"] = json!(7)),
            "format 7",
        ),
        (
            Box::new(worker(
                "host_requirements",
                json!({ "local_service_chaining": "required" }),
            )),
            "component `worker` needs `local_service_chaining`",
        ),
        (
            Box::new(worker(
                "files",
                json!([{ "source": "file:///a", "path": "/" }]),
            )),
            "component `worker` has `files`",
        ),
        (
            Box::new(metadata("key_value_stores", json!(["default"]))),
            "component `worker` has `key_value_stores`",
        ),
        (
            Box::new(metadata("databases", json!(["default"]))),
            "component `worker` has `sqlite_databases`",
        ),
        (
            Box::new(metadata("ai_models", json!(["llama"]))),
            "component `worker` has `ai_models`",
        ),
        (
            Box::new(metadata("allowed_outbound_hosts", json!(["redis://x"]))),
            "component `worker`: `allowed_outbound_hosts`",
        ),
        (
            Box::new(worker("source", json!({ "inline": "AGFzbQ==" }))),
            "component `worker` has no file as its source",
        ),
        (
            Box::new(trigger("concurrency", json!(0))),
            "trigger `worker-servicebus-trigger`: `concurrency` is 0",
        ),
        (
            Box::new(trigger("concurency", json!(3))),
            "trigger `worker-servicebus-trigger`: unknown field `concurency`",
        ),
        (
            Box::new(trigger("component", json!("nobody"))),
            "trigger `worker-servicebus-trigger`: component `nobody` is not in the manifest",
        ),
        (
            Box::new(|lock| lock["variables"]["needed"] = json!({})),
            "required variables without a value: needed",
        ),
        (
            Box::new(|lock| {
                lock["metadata"]["triggers"]["servicebus"]["servicebus_listen"] = json!("here");
            }),
            "`[application.trigger.servicebus]`: `servicebus_listen` is not an address",
        ),
    ];
    for (edit, words) in cases {
        let (code, printed, said) = refused(&edit);
        assert_eq!((code, printed.as_str()), (64, ""), "{words}: {said}");
        let told = said
            .strip_prefix("error: ")
            .unwrap_or_else(|| panic!("{said}"));
        assert!(
            told.starts_with(&file) && told.contains(words),
            "{words}: {said}"
        );
    }
    let (code, _, said) =
        run(Command::new(dir.path().join("plugin").join(NAME)).env_remove("SPIN_LOCKED_URL"));
    assert!(code == 64 && said.contains("spin up"), "{said}");
    let (code, _, said) = run(plugin(dir.path(), &good).env_remove("SPIN_LOCAL_APP_DIR"));
    assert!(code == 64 && said.contains("--state-dir"), "{said}");
    let config = dir.path().join("runtime.toml");
    std::fs::write(&config, "[[variables_provider]]\ntype = \"vault\"\n").unwrap();
    let (code, _, said) = run(plugin(dir.path(), &good)
        .arg("--runtime-config-file")
        .arg(&config));
    assert!(code == 64 && said.contains("variables_provider"), "{said}");
    // A worker that is not there is no matter of the manifest.
    let missing = |lock: &mut Value| {
        lock["components"][1]["source"]["source"] = json!("file:///nowhere/x.wasm");
    };
    let (code, _, said) = refused(&missing);
    assert!(code == 1 && said.contains("/nowhere/x.wasm"), "{said}");
}

#[test]
fn it_installs_where_spin_looks_and_can_be_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let spin = |command: &str| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
        run(program
            .args(["spin", command])
            .env("SPIN_DATA_DIR", dir.path().join("data")))
    };
    let executable = dir.path().join("data/plugins").join(NAME).join(NAME);
    // As well when it is there already.
    for _ in 0..2 {
        let (code, printed, said) = spin("install");
        assert!(
            code == 0 && printed.contains(executable.to_str().unwrap()),
            "{said}"
        );
    }
    let beside = std::fs::read_dir(executable.parent().unwrap())
        .unwrap()
        .count();
    assert_eq!(beside, 1, "what was written beside is left");
    let manifest: Value = serde_json::from_slice(
        &std::fs::read(
            dir.path()
                .join("data/plugins/manifests/trigger-servicebus.json"),
        )
        .unwrap(),
    )
    .unwrap();
    assert_eq!(manifest["name"], NAME);
    assert_eq!(manifest["version"], env!("CARGO_PKG_VERSION"));
    let (code, _, said) = run(Command::new(&executable).arg("--launch-metadata-only"));
    assert!(code == 0 && said.contains("--ops-listen"), "{said}");

    let (code, printed, _) = spin("uninstall");
    assert!(code == 0 && printed.starts_with("removed"), "{printed}");
    assert!(!executable.exists());
    let (code, printed, _) = spin("uninstall");
    assert!(
        code == 0 && printed.contains("was not installed"),
        "{printed}"
    );

    std::fs::write(dir.path().join("file"), "").unwrap();
    let (code, _, said) = run(Command::new(env!("CARGO_BIN_EXE_orchestrator"))
        .args(["spin", "install"])
        .env("SPIN_DATA_DIR", dir.path().join("file")));
    assert!(code == 1 && said.contains("cannot be written"), "{said}");
}

#[test]
fn its_package_is_what_spin_installs() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a package");
    let (code, printed, said) = run(Command::new(env!("CARGO_BIN_EXE_orchestrator"))
        .args(["spin", "package", "--out"])
        .arg(&out));
    assert_eq!(code, 0, "{said}");
    assert!(printed.contains("spin plugins install --file"), "{printed}");
    let manifest: Value =
        serde_json::from_slice(&std::fs::read(out.join("trigger-servicebus.json")).unwrap())
            .unwrap();
    let package = &manifest["packages"][0];
    let archive = Url::parse(package["url"].as_str().unwrap()).unwrap();
    let bytes = std::fs::read(archive.to_file_path().unwrap()).unwrap();
    let digest: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(package["sha256"], digest);
    assert_eq!(manifest["license"], "Apache-2.0");

    // As Spin unpacks it: with its permissions, into the plugin's directory.
    let unpacked = dir.path().join("unpacked");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    archive.set_preserve_permissions(true);
    archive.unpack(&unpacked).unwrap();
    let program = unpacked.join(NAME);
    let ours = std::fs::read(env!("CARGO_BIN_EXE_orchestrator")).unwrap();
    assert!(
        std::fs::read(&program).unwrap() == ours,
        "another program is in it"
    );
    let (code, _, said) = run(Command::new(&program).arg("--launch-metadata-only"));
    assert!(code == 0 && said.contains("all_flags"), "{said}");
}
