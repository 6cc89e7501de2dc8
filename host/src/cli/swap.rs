//! `swap`, `rollback` and `promote`: versions of a running host's components.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use base64::Engine;
use serde_json::{Value, json};

use super::client::{client, get, send, url};
use super::{CliError, OpsArgs, Output, SwapArgs, environment, failed, print, print_json};

/// Time between two looks at a canary.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

pub(super) async fn swap(args: &SwapArgs) -> Result<(), CliError> {
    if let Some(share) = args.canary.as_deref().filter(|share| *share != "0%") {
        crate::components::share(share).map_err(CliError::Usage)?;
    }
    let file = args.file.display();
    let bytes = tokio::fs::read(&args.file)
        .await
        .map_err(|error| failed(format!("{file} cannot be read: {error}")))?;
    let mut query = vec![("by", me())];
    query.extend(args.canary.clone().map(|share| ("canary", share)));
    query.extend(args.reason.clone().map(|reason| ("reason", reason)));
    let path = format!("/v1/components/{}", args.component);
    let mut request = client()?
        .put(url(&args.ops, &path))
        .query(&query)
        .body(bytes);
    if let Some(signature) = crate::components::signature_beside(&args.file) {
        let signature = base64::engine::general_purpose::STANDARD.encode(signature);
        request = request.header("x-minisign", signature);
    }
    let change = send(&args.ops, request).await?;
    if change["outcome"] == "canary" && !args.detach {
        print_change(&args.ops, &change)?;
        return follow(args, &path, &change).await;
    }
    print_change(&args.ops, &change)
}

/// Waits for the judgement on a canary, and ends as it does.
async fn follow(args: &SwapArgs, path: &str, change: &Value) -> Result<(), CliError> {
    let digest = &change["digest"];
    let is_terminal = std::io::stderr().is_terminal();
    let progress = |text: &str| {
        if is_terminal {
            // A terminal that has gone away is no reason to stop.
            let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
        }
    };
    loop {
        let now = get(&args.ops, path).await?;
        let mut versions = now["versions"].as_array().into_iter().flatten();
        let known = versions.find(|version| version["digest"] == *digest);
        let known = known.unwrap_or(&Value::Null);
        if known["outcome"] == "canary" {
            progress(now["canary"]["told"].as_str().unwrap_or_default());
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        progress("");
        let why = known["told"].as_str().unwrap_or("it is not known why");
        if known["outcome"] != "promoted" {
            return Err(failed(format!("{} rolled back: {why}", show(digest))));
        }
        let end = json!({ "outcome": "promoted", "digest": digest, "why": why });
        return match args.ops.output {
            Output::Json => print_json(&end),
            Output::Text => print(&format!("promoted {}: {why}\n", show(digest))),
        };
    }
}

pub(super) async fn roll_back(
    component: &str,
    digest: Option<&str>,
    reason: Option<&str>,
    ops: &OpsArgs,
) -> Result<(), CliError> {
    let body = json!({ "digest": digest, "by": me(), "reason": reason });
    let path = format!("/v1/components/{component}/rollback");
    let request = client()?.post(url(ops, &path)).json(&body);
    print_change(ops, &send(ops, request).await?)
}

pub(super) async fn promote(component: &str, ops: &OpsArgs) -> Result<(), CliError> {
    let path = format!("/v1/components/{component}/promote");
    let request = client()?.post(url(ops, &path)).json(&json!({ "by": me() }));
    print_change(ops, &send(ops, request).await?)
}

fn print_change(ops: &OpsArgs, change: &Value) -> Result<(), CliError> {
    if ops.output == Output::Json {
        return print_json(change);
    }
    let text = |name: &str| change[name].as_str().unwrap_or_default();
    print(&format!(
        "{} {}: {} → {} ({})\n",
        text("outcome"),
        text("component"),
        show(&change["previous"]),
        show(&change["digest"]),
        text("why")
    ))
}

/// The beginning of a digest, long enough for `rollback`.
fn show(digest: &Value) -> String {
    let digest = digest.as_str().unwrap_or_default();
    let short = digest.strip_prefix("sha256:").unwrap_or(digest);
    format!("sha256:{}", crate::components::short(short))
}

/// Who makes the change, for the record.
fn me() -> String {
    environment("USER").unwrap_or_else(|| "the command line".to_owned())
}
