//! What a swap takes, and what jobs feel of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::load::{self, Bodies, Connection};
use super::{BenchError, Plan, Sample, Target, latencies, micros};
use crate::host::read;

/// What is measured of one swap, in the order of its samples.
pub const STEPS: [&str; 5] = [
    "swap → first job on the new version",
    "of that: read (uploaded)",
    "of that: compile",
    "of that: check, start once",
    "of that: write down, publish",
];
/// Pause between two swaps under load: ten a second.
const BETWEEN_SWAPS: Duration = Duration::from_millis(100);
/// Makes builds of their own.
static BUILDS: AtomicU64 = AtomicU64::new(0);

fn refused(why: impl std::fmt::Display) -> BenchError {
    BenchError::Refused(why.to_string())
}

/// Builds of the first queue's worker: the same code under other digests.
struct Builds {
    component: String,
    bytes: Vec<u8>,
    client: reqwest::Client,
    url: String,
}

impl Builds {
    async fn of(plan: &Plan, target: &Target) -> Result<Self, BenchError> {
        let trigger = plan.config.queues.first();
        let component = trigger
            .map(|trigger| trigger.component.clone())
            .ok_or_else(|| refused("the manifest has no worker"))?;
        let bytes = read(&component, &plan.config.components[&component]).await?;
        let client = orchestrator_servicebus::http_client().build();
        let ops = target
            .ops
            .ok_or_else(|| refused("no operations listener"))?;
        Ok(Self {
            url: format!("http://{ops}/v1/components/{component}?canary=0%25"),
            client: client.map_err(refused)?,
            component,
            bytes,
        })
    }

    /// With a custom section of this number at its end.
    fn build(&self, number: u64) -> Vec<u8> {
        let name = b"\x05bench";
        let size = u8::try_from(name.len() + 8).unwrap_or(u8::MAX);
        let number = number.to_be_bytes();
        [&self.bytes, &[0, size][..], name, &number].concat()
    }

    async fn swap(&self, number: u64) -> Result<(), BenchError> {
        let put = self.client.put(&self.url).body(self.build(number));
        let answer = put.send().await.map_err(refused)?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(refused(format!(
            "`{}` was not swapped: {}",
            self.component,
            answer.text().await.unwrap_or_default()
        )))
    }
}

/// One swap after the other on a host with nothing else to do.
pub fn alone(plan: &Plan, load: &Runtime, is_new: bool) -> Result<[Sample; 5], BenchError> {
    let target = Target::host(plan)?;
    let bodies = Bodies::due(&plan.payload);
    load.block_on(async {
        let builds = Builds::of(plan, &target).await?;
        let mut connection = Connection::open(target.addr).await?;
        // Two that take turns, compiled before the clock starts.
        for number in [0, 1] {
            builds.swap(number).await?;
        }
        let mut events = target.telemetry.follow();
        let mut histograms: [Histogram<u64>; 5] = std::array::from_fn(|_| latencies());
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < plan.duration {
            let number = match is_new {
                // Not even an earlier run has compiled it.
                true => {
                    let build = BUILDS.fetch_add(1, Ordering::Relaxed) + 2;
                    (u64::from(std::process::id()) << 32) + build
                }
                false => count % 2,
            };
            let swap_began = Instant::now();
            builds.swap(number).await?;
            // Sent after the answer: it runs on the new version.
            let (job, body) = bodies.next();
            let done = target.witness.expect(&job);
            connection.post(body).await?;
            done.await.map_err(|_| refused("a job did not end"))?;
            histograms[0].saturating_record(micros(swap_began.elapsed()));
            count += 1;
            // The swap's own events are there: its answer came after them.
            while let Ok(told) = events.try_recv() {
                let facts: Value = serde_json::from_str(&told.json).unwrap_or_default();
                let times = ["readUs", "compileUs", "checkUs", "publishUs"];
                for (histogram, time) in histograms[1..].iter_mut().zip(times) {
                    if let Some(micros) = facts["times"][time].as_u64() {
                        histogram.saturating_record(micros.max(1));
                    }
                }
            }
        }
        let took = began.elapsed();
        Ok(histograms.map(|histogram| Sample::new(count, took, &histogram)))
    })
}

/// A steady load, while the worker is swapped ten times a second.
pub fn under_load(plan: &Plan, load: &Runtime, rate: f64) -> Result<Sample, BenchError> {
    let target = Target::host(plan)?;
    load.block_on(async {
        let builds = Builds::of(plan, &target).await?;
        for number in [0, 1] {
            builds.swap(number).await?;
        }
        let swapping = async {
            for number in 0_u64.. {
                tokio::time::sleep(BETWEEN_SWAPS).await;
                builds.swap(number % 2).await?;
            }
            Ok(())
        };
        let bodies = Bodies::due(&plan.payload);
        let loading = load::steady(target.addr, &target.witness, &bodies, rate, plan.duration);
        tokio::select! {
            sample = loading => sample,
            Err(error) = swapping => Err(error),
        }
    })
}
