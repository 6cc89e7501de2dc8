//! Commands that talk to a running host.

use serde_json::Value;

use super::{CliError, OpsArgs, Output, environment, failed, print, print_json};

pub(super) fn block_on(
    command: impl Future<Output = Result<(), CliError>>,
) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    runtime.block_on(command)
}

/// Whether a host answers there.
pub(super) fn ask_running(url: &str, patience: std::time::Duration) -> Result<bool, CliError> {
    let mut answered = false;
    block_on(async {
        let asked = client()?
            .get(format!("{url}/livez"))
            .timeout(patience)
            .send();
        answered = asked
            .await
            .is_ok_and(|response| response.status().is_success());
        Ok(())
    })?;
    Ok(answered)
}

pub(super) async fn status(ops: &OpsArgs) -> Result<(), CliError> {
    let components = get(ops, "/v1/components").await?;
    let queues = get(ops, "/v1/queues").await?;
    if ops.output == Output::Json {
        return print_json(&serde_json::json!({ "components": components, "queues": queues }));
    }
    let components = table(
        &components,
        &["id", "kind", "digest", "generation", "since"],
    ) + &canaries(&components);
    let columns = [
        "name",
        "component",
        "ready",
        "locked",
        "scheduled",
        "dead",
        "inFlight",
        "completed",
        "retried",
    ];
    print(&format!("{components}\n{}", table(&queues, &columns)))
}

/// A line for each canary under way.
fn canaries(components: &Value) -> String {
    let line = |component: &Value| {
        let canary = component["canary"].as_object()?;
        Some(format!(
            "canary of {}: {} does {}% of the jobs; {}\n",
            component["id"].as_str()?,
            canary["digest"].as_str()?,
            canary["share"].as_f64()? * 100.0,
            canary["told"].as_str()?
        ))
    };
    components
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(line)
        .collect()
}

pub(super) async fn jobs(id: Option<&str>, ops: &OpsArgs) -> Result<(), CliError> {
    match id {
        // One job whole is read as the document it is.
        Some(id) => print_json(&get(ops, &format!("/v1/jobs/{id}")).await?),
        None => {
            let jobs = get(ops, "/v1/jobs").await?;
            print_rows(
                ops,
                &jobs,
                &[
                    "jobId",
                    "queue",
                    "jobType",
                    "state",
                    "deliveryCount",
                    "enqueuedAt",
                ],
            )
        }
    }
}

pub(super) async fn dead(queue: &str, ops: &OpsArgs) -> Result<(), CliError> {
    let mut answer = get(ops, &format!("/v1/queues/{queue}/dead?limit=1000")).await?;
    let mut jobs = answer["jobs"].take();
    for job in jobs.as_array_mut().into_iter().flatten() {
        job["reason"] = job["deadLetter"]["reason"].clone();
        job["description"] = job["deadLetter"]["description"].clone();
    }
    print_rows(
        ops,
        &jobs,
        &["jobId", "jobType", "reason", "description", "finishedAt"],
    )
}

pub(super) async fn dead_letter(id: &str, queue: &str, ops: &OpsArgs) -> Result<(), CliError> {
    let job = get(ops, &format!("/v1/jobs/{id}")).await?;
    if job["state"] != "dead" || job["queue"] != queue {
        return Err(failed(format!(
            "`{id}` is no dead letter of `{queue}`: it is {} in `{}`",
            job["state"].as_str().unwrap_or("unknown"),
            job["queue"].as_str().unwrap_or("no queue")
        )));
    }
    print_json(&job)
}

pub(super) async fn act(
    action: &str,
    queue: &str,
    id: Option<&str>,
    ops: &OpsArgs,
) -> Result<(), CliError> {
    let body = match id {
        Some(id) => serde_json::json!({ "jobId": id }),
        None => serde_json::json!({ "all": true }),
    };
    let request = client()?
        .post(url(ops, &format!("/v1/queues/{queue}/dead/{action}")))
        .json(&body);
    print_json(&send(ops, request).await?)
}

pub(super) async fn get(ops: &OpsArgs, path: &str) -> Result<Value, CliError> {
    send(ops, client()?.get(url(ops, path))).await
}

pub(super) fn client() -> Result<reqwest::Client, CliError> {
    orchestrator_servicebus::http_client()
        .build()
        .map_err(failed)
}

pub(super) fn url(ops: &OpsArgs, path: &str) -> String {
    format!("{}{path}", ops.ops.trim_end_matches('/'))
}

/// With the host's token, if there is one.
pub(super) fn authorized(request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
    match environment("ORCHESTRATOR_OPS_TOKEN") {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}

pub(super) async fn send(
    ops: &OpsArgs,
    request: reqwest::RequestBuilder,
) -> Result<Value, CliError> {
    let response = authorized(request).send().await.map_err(|error| {
        failed(format!("no host answers at {}: {error}; start one with `orchestrator up`, or name it with `--ops`", ops.ops))
    })?;
    let is_success = response.status().is_success();
    let answer: Value = response.json().await.map_err(|error| {
        failed(format!(
            "{} does not answer like a host of ours: {error}",
            ops.ops
        ))
    })?;
    if is_success {
        return Ok(answer);
    }
    Err(failed(
        answer["detail"]
            .as_str()
            .unwrap_or("the host refused without saying why"),
    ))
}

fn print_rows(ops: &OpsArgs, rows: &Value, columns: &[&str]) -> Result<(), CliError> {
    if ops.output == Output::Json {
        return print_json(rows);
    }
    print(&table(rows, columns))
}

/// Rows of objects as aligned columns under their names.
pub(super) fn table(rows: &Value, columns: &[&str]) -> String {
    let cell = |row: &Value, column: &str| match &row[column] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut lines = vec![
        columns
            .iter()
            .map(|column| (*column).to_owned())
            .collect::<Vec<_>>(),
    ];
    for row in rows.as_array().into_iter().flatten() {
        lines.push(columns.iter().map(|column| cell(row, column)).collect());
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|n| {
            lines
                .iter()
                .map(|line| line[n].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let padded: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(padded.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_what_is_missing_is_a_dash() {
        let rows = serde_json::json!([{ "id": "ingest", "n": 7 }, { "id": "w", "n": null }]);
        assert_eq!(
            table(&rows, &["id", "n"]),
            "id      n\ningest  7\nw       -\n"
        );
    }
}
