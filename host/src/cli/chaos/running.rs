//! The application that is judged, in a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::super::client::{authorized, client, get, send, url};
use super::super::{compiled_dir, environment, state_dir};
use super::{ChaosRunArgs, CliError, OpsArgs, Output, failed};
use crate::config::Config;
use crate::dispatch::chaos::Chaos;

/// The process, and where it listens.
pub(super) struct Running {
    child: Child,
    pub app: String,
    ops: OpsArgs,
    http: reqwest::Client,
}

impl Running {
    pub fn start(args: &ChaosRunArgs, config: &Config, dir: &Path) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(failed)?;
        let compiled = compiled_dir(
            environment("ORCHESTRATOR_CACHE_DIR"),
            &state_dir(None, config),
        );
        let mut child = Command::new(program)
            .args([
                "up",
                "--quiet",
                // What is judged is this application on a queue of its own.
                "--embedded-queue",
                "--judged",
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
            ])
            .arg("--from")
            .arg(&args.manifest.from)
            .arg("--state-dir")
            .arg(dir)
            .env("ORCHESTRATOR_CACHE_DIR", compiled)
            .envs(args.manifest.variables.iter().flat_map(|given| {
                let named = |(name, value): &(String, String)| {
                    (
                        format!("SPIN_VARIABLE_{}", name.to_uppercase()),
                        value.clone(),
                    )
                };
                given.0.iter().map(named).collect::<Vec<_>>()
            }))
            // What is injected is nobody's incident.
            .env("OTEL_SDK_DISABLED", "true")
            // Faults make noise; the verdict says what came of them.
            .env("ORCHESTRATOR_LOG", "off")
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        let mut lines = stdout
            .into_iter()
            .flat_map(|stdout| BufReader::new(stdout).lines());
        let mut address = || {
            let line = lines.next()?.ok()?;
            Some(line.split_once(' ')?.1.trim().to_owned())
        };
        let (Some(app), Some(ops)) = (address(), address()) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(
                "the application does not start: see above; `orchestrator doctor` says more",
            ));
        };
        let output = Output::Json;
        let ops = OpsArgs { ops, output };
        let http = client()?;
        Ok(Self {
            child,
            app,
            ops,
            http,
        })
    }

    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn check_alive(&mut self) -> Result<(), CliError> {
        match self.child.try_wait().map_err(failed)? {
            None => Ok(()),
            Some(status) => Err(failed(format!("the host ended by itself, with {status}"))),
        }
    }

    /// Faults on or off. The longest time: the run itself ends it.
    pub async fn switch(&self, queue: &str, faults: Option<&Chaos>) -> Result<(), CliError> {
        let at = url(&self.ops, &format!("/v1/chaos/{queue}"));
        let request = match faults {
            Some(faults) => client()?.put(format!("{at}?for=86400")).json(faults),
            None => client()?
                .put(format!("{at}?for=86400"))
                .json(&Chaos::default()),
        };
        send(&self.ops, request).await.map(|_| ())
    }

    pub async fn queue(&self, name: &str) -> Result<Value, CliError> {
        let queues = get(&self.ops, "/v1/queues").await?;
        let mut queues = queues.as_array().into_iter().flatten();
        let found = queues.find(|queue| queue["name"] == name);
        found
            .cloned()
            .ok_or_else(|| failed(format!("the host has no queue `{name}`")))
    }

    pub async fn job(&self, id: &str) -> Result<Option<Value>, CliError> {
        let request = self.http.get(url(&self.ops, &format!("/v1/jobs/{id}")));
        let answer = authorized(request).send().await;
        let answer = answer.map_err(failed)?;
        match answer.status().as_u16() {
            200 => answer.json().await.map(Some).map_err(failed),
            404 => Ok(None),
            other => Err(failed(format!("the host answers {other} for job `{id}`"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
