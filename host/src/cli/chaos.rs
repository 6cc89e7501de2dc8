//! `chaos`: switches faults on in a running host, or runs an application under
//! them and judges it.

mod judge;
mod run;
mod running;

use super::client::{client, get, send, url};
use super::{ChaosArgs, ChaosRunArgs, CliError, OpsArgs, Output, failed, print_json};
use crate::dispatch::chaos::Chaos;
pub(super) use run::run;

pub(super) async fn show(ops: &OpsArgs) -> Result<(), CliError> {
    print_json(&get(ops, "/v1/chaos").await?)
}

pub(super) async fn set(args: &ChaosArgs) -> Result<(), CliError> {
    let faults = Chaos {
        failure_rate: args.failure_rate,
        trap_rate: args.trap_rate,
        latency_rate: args.latency_rate,
        lock_loss_rate: args.lock_loss_rate,
        late_settle_rate: args.late_settle_rate,
        broker_down_rate: args.broker_down_rate,
        broker_throttle_rate: args.broker_throttle_rate,
        broker_slow_rate: args.broker_slow_rate,
        seed: args.seed,
        ..Chaos::default()
    };
    faults.check().map_err(CliError::Usage)?;
    let path = format!("/v1/chaos/{}?for={}", args.queue, args.time.as_secs());
    let request = client()?.put(url(&args.ops, &path)).json(&faults);
    print_json(&send(&args.ops, request).await?)
}

pub(super) async fn off(queue: &str, ops: &OpsArgs) -> Result<(), CliError> {
    let request = client()?.delete(url(ops, &format!("/v1/chaos/{queue}")));
    print_json(&send(ops, request).await?)
}
