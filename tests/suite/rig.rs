//! Starts the real program on free ports with a manifest made for the test,
//! and looks at it as a client does.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for something that must come, before it says what
/// did not: far longer than it ever takes.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at something that has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The directory of the built components, built once per test process.
static COMPONENTS: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace");
    let installed = Command::new("rustup")
        .args(["target", "list", "--installed"])
        .output();
    let is_missing = |listed: &std::process::Output| {
        !String::from_utf8_lossy(&listed.stdout).contains("wasm32-wasip2")
    };
    if installed.is_ok_and(|listed| is_missing(&listed)) {
        eprintln!("the target wasm32-wasip2 is missing: running `rustup target add wasm32-wasip2`");
        run(Command::new("rustup").args(["target", "add", "wasm32-wasip2"]));
    }
    // A directory of its own: the build around this test may hold the usual one.
    let target = root.join("target/components");
    let cargo = || {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--locked",
            "--release",
            "--target",
            "wasm32-wasip2",
            "--target-dir",
        ]);
        cargo.arg(&target).current_dir(root);
        cargo
    };
    run(cargo().args(["-p", "ingest", "-p", "worker", "-p", "servicebus-queue"]));
    run(cargo().args(["-p", "guests", "--examples"]));
    target.join("wasm32-wasip2/release")
});

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?} ended with {status}");
}

/// The path of a component: `ingest`, `worker`, `servicebus_queue`, or one of
/// the test guests.
pub fn component(name: &str) -> String {
    let path = match name {
        "ingest" | "worker" | "servicebus_queue" => COMPONENTS.join(format!("{name}.wasm")),
        guest => COMPONENTS.join(format!("examples/{}.wasm", guest.replace('-', "_"))),
    };
    assert!(path.exists(), "{} was not built", path.display());
    path.display().to_string()
}

/// A manifest with the sample's ingest, and for each `(queue, component, keys)`
/// a queue with its worker.
pub fn manifest(queues: &[(&str, &str, &str)]) -> String {
    let mut text = format!(
        "spin_manifest_version = 2\n[application]\nname = \"test\"\n[[trigger.http]]\nroute = \"/api/IngestJob\"\ncomponent = \"ingest\"\n[component.ingest]\nsource = \"{}\"\n",
        component("ingest")
    );
    for (queue, worker, keys) in queues {
        text += &format!(
            "[[trigger.servicebus]]\nqueue = \"{queue}\"\ncomponent = \"{queue}-worker\"\n{keys}\n[component.{queue}-worker]\nsource = \"{}\"\n",
            component(worker)
        );
    }
    text
}

/// A route of its own for one of the test guests.
pub fn route(path: &str, guest: &str) -> String {
    format!(
        "[[trigger.http]]\nroute = \"{path}\"\ncomponent = \"{guest}\"\n[component.{guest}]\nsource = \"{}\"\n",
        component(guest)
    )
}

/// A running host and its directory, which outlives restarts.
pub struct Rig {
    dir: tempfile::TempDir,
    way: Way,
    child: Child,
    app: String,
    ops: String,
    bus: Option<String>,
    client: reqwest::Client,
}

/// Where a host's disk can be made to fail; see the fault library's own page.
#[derive(Clone)]
pub struct FaultyDisk {
    switches: PathBuf,
}

impl FaultyDisk {
    /// Turns a fault on: `full` (writes), `sync` (fsync).
    pub fn fail(&self, fault: &str) {
        std::fs::write(self.switches.join(fault), "").unwrap();
    }

    /// Kills the host before the `number`th sync, from now, of a path with this word.
    pub fn kill_before_sync(&self, word: &str, number: usize) {
        std::fs::write(
            self.switches.join("kill-before-sync"),
            format!("{word} {number}"),
        )
        .unwrap();
    }

    /// Turns it off.
    pub fn mend(&self, fault: &str) {
        std::fs::remove_file(self.switches.join(fault)).unwrap();
    }

    fn library() -> PathBuf {
        static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .expect("the package is in the workspace");
            let target = root.join("target/components");
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([
                "build",
                "--locked",
                "--release",
                "-p",
                "faultdisk",
                "--target-dir",
            ]);
            run(cargo.arg(&target).current_dir(root));
            target.join("release/libfaultdisk.so")
        });
        LIBRARY.clone()
    }
}

/// What became of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub printed: String,
    pub said: String,
}

impl Ran {
    /// What it printed, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.printed).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// How a host is started.
#[derive(Default)]
pub struct Way {
    pub arguments: Vec<&'static str>,
    pub environment: Vec<(&'static str, String)>,
    /// Serves its queues on the Service Bus wire.
    pub serves_bus: bool,
    pub faults: Option<FaultyDisk>,
}

impl Way {
    pub fn quiet() -> Self {
        Self {
            arguments: vec!["--quiet"],
            ..Self::default()
        }
    }
}

/// A started process whose announcement has been read.
struct Started {
    child: Child,
    app: String,
    ops: String,
    bus: Option<String>,
}

/// Starts a process, its bus where it was before; or says what it said instead.
fn start(dir: &Path, way: &Way, bus: Option<&str>) -> Result<Started, (ExitStatus, String)> {
    // Compiled code is shared by the tests, as it is by restarts.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled");
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchestrator"));
    if let Some(faults) = &way.faults {
        command
            .env("LD_PRELOAD", FaultyDisk::library())
            .env("FAULTDISK_SWITCHES", &faults.switches)
            .env("FAULTDISK_UNDER", dir.join(".spin"));
    }
    let mut bus_arguments = Vec::new();
    let ops_listen = if way.arguments.contains(&"--ops-listen") {
        &[][..]
    } else {
        &["--ops-listen", "127.0.0.1:0"]
    };
    if way.serves_bus {
        let address = bus.and_then(|bus| bus.strip_prefix("http://"));
        bus_arguments = vec!["--servicebus-listen", address.unwrap_or("127.0.0.1:0")];
    }
    let mut child = command
        .args(["up", "--listen", "127.0.0.1:0", "-f"])
        .arg(dir)
        .args(&way.arguments)
        .args(ops_listen)
        .args(bus_arguments)
        .env("ORCHESTRATOR_CACHE_DIR", cache)
        .envs(way.environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dir.join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut address = || Some(lines.next()?.unwrap().split_once(' ')?.1.trim().to_owned());
    match (address(), address()) {
        (Some(app), Some(ops)) => Ok(Started {
            child,
            app,
            ops,
            bus: way.serves_bus.then(|| address().expect("an address")),
        }),
        _ => {
            let status = child.wait().unwrap();
            let mut said = String::new();
            std::fs::File::open(dir.join("stderr"))
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            Err((status, said))
        }
    }
}

/// Starts a host that must refuse to start; says with which code and words.
pub fn refused(manifest: &str) -> (i32, String) {
    refused_in(manifest, &Way::quiet())
}

/// The same, started in this way.
pub fn refused_in(manifest: &str, way: &Way) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("spin.toml"), manifest).unwrap();
    let Err((status, said)) = start(dir.path(), way, None) else {
        panic!("it started")
    };
    (status.code().unwrap(), said)
}

impl Rig {
    pub fn up(manifest: &str) -> Self {
        Self::up_in(manifest, Way::quiet())
    }

    /// A host that is started in this way.
    pub fn up_in(manifest: &str, way: Way) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), way, manifest)
    }

    /// A host on a disk that can be made to fail.
    pub fn up_on_faulty_disk(manifest: &str) -> (Self, FaultyDisk) {
        let dir = tempfile::tempdir().unwrap();
        let switches = dir.path().join("faults");
        std::fs::create_dir(&switches).unwrap();
        let faults = FaultyDisk { switches };
        let way = Way {
            faults: Some(faults.clone()),
            ..Way::quiet()
        };
        (Self::start_in(dir, way, manifest), faults)
    }

    /// A host in this directory, which may have files already.
    pub fn start_in(dir: tempfile::TempDir, way: Way, manifest: &str) -> Self {
        std::fs::write(dir.path().join("spin.toml"), manifest).unwrap();
        let started = start(dir.path(), &way, None);
        let Started {
            child,
            app,
            ops,
            bus,
        } = started.unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
        let client = orchestrator_servicebus::http_client().build().unwrap();
        Self {
            dir,
            way,
            child,
            app,
            ops,
            bus,
            client,
        }
    }

    /// A host that the test has started by itself; its stderr goes to a file of
    /// that name in `dir`.
    pub fn attached(
        dir: tempfile::TempDir,
        child: Child,
        ops: String,
        bus: Option<String>,
    ) -> Self {
        Self {
            dir,
            way: Way::default(),
            child,
            app: String::new(),
            ops,
            bus,
            client: orchestrator_servicebus::http_client().build().unwrap(),
        }
    }

    /// Runs a command of the program against this host, or this application.
    pub fn command(&self, arguments: &[&str]) -> Ran {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled");
        let output = Command::new(env!("CARGO_BIN_EXE_orchestrator"))
            .args(arguments)
            .current_dir(self.dir.path())
            .env("ORCHESTRATOR_CACHE_DIR", cache)
            .env("ORCHESTRATOR_OPS", &self.ops)
            .envs(
                self.way
                    .environment
                    .iter()
                    .map(|(name, value)| (name, value)),
            )
            .output()
            .unwrap();
        Ran {
            code: output.status.code().unwrap(),
            printed: String::from_utf8(output.stdout).unwrap(),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn ops_url(&self) -> &str {
        &self.ops
    }

    /// `http://host:port` of its Service Bus listener.
    pub fn bus(&self) -> &str {
        self.bus.as_deref().expect("it serves the bus")
    }

    /// The directory of its manifest.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    pub fn app_address(&self) -> &str {
        self.app.strip_prefix("http://").unwrap()
    }

    /// `kill -9`, then a start on the same state.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.restart();
    }

    pub fn restart(&mut self) {
        let started = start(self.dir.path(), &self.way, self.bus.as_deref())
            .unwrap_or_else(|(status, said)| panic!("{status}: {said}"));
        (self.child, self.app, self.ops) = (started.child, started.app, started.ops);
    }

    pub fn rewrite(&self, manifest: &str) {
        std::fs::write(self.dir.path().join("spin.toml"), manifest).unwrap();
    }

    /// What the host has said on stderr so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args(["-s", name, &self.child.id().to_string()]));
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What is left of its standard output.
    pub fn stdout(&mut self) -> &mut std::process::ChildStdout {
        self.child.stdout.as_mut().expect("it is piped")
    }

    /// Waits for the process to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub async fn post(&self, body: &Value) -> reqwest::Result<reqwest::Response> {
        self.client
            .post(format!("{}/api/IngestJob", self.app))
            .json(body)
            .send()
            .await
    }

    /// Sends a job that must be accepted.
    pub async fn accepted(&self, id: &str, payload: Value) {
        let body = serde_json::json!({ "jobType": "test", "jobId": id, "payload": payload });
        let response = self.post(&body).await.unwrap();
        assert_eq!(response.status(), 202, "{}", response.text().await.unwrap());
    }

    pub async fn fetch(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        self.client.get(format!("{}{path}", self.app)).send().await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.fetch(path).await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    pub async fn ops(&self, path: &str) -> Value {
        let response = self
            .client
            .get(format!("{}{path}", self.ops))
            .send()
            .await
            .unwrap();
        response.json().await.unwrap()
    }

    pub async fn ops_text(&self, path: &str) -> (u16, String) {
        let response = self
            .client
            .get(format!("{}{path}", self.ops))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn ops_post(&self, path: &str, body: Value) -> Value {
        let response = self
            .client
            .post(format!("{}{path}", self.ops))
            .json(&body)
            .send()
            .await
            .unwrap();
        response.json().await.unwrap()
    }

    /// Waits until the host says that it is ready.
    pub async fn until_ready(&self) {
        let began = Instant::now();
        loop {
            let (status, told) = self.ops_text("/readyz").await;
            if status == 200 {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "not ready: {told}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The job, once it is in one of these states.
    pub async fn job_in(&self, id: &str, states: &[&str]) -> Value {
        let began = Instant::now();
        loop {
            let job = self.ops(&format!("/v1/jobs/{id}")).await;
            if job["state"]
                .as_str()
                .is_some_and(|state| states.contains(&state))
            {
                return job;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "job {id} is not in {states:?}: {job}"
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The number of jobs of the queue `jobs` that the host counts as done, once
    /// it is at least this. Over the wire that is later than the job's page.
    pub async fn succeeded(&self, at_least: u64) -> u64 {
        let began = Instant::now();
        loop {
            let (_, metrics) = self.ops_text("/metrics").await;
            let name = "orchestrator_job_success_total{queue=\"jobs\"} ";
            let mut lines = metrics.lines();
            let count = lines.find_map(|line| line.strip_prefix(name));
            let count = count.map_or(0, |count| count.parse().unwrap());
            if count >= at_least {
                return count;
            }
            assert!(began.elapsed() < PATIENCE, "{count} of {at_least} are done");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub async fn completed(&self, id: &str) -> Value {
        self.job_in(id, &["completed"]).await
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
