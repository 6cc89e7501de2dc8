//! One attempt in a fresh instance: instantiate, call, tear down.
//!
//! `cargo bench -p orchestrator-engine`. Builds the guest it runs (`echo`, the
//! emptiest of the test guests).
#![allow(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use orchestrator_engine::worker::{Grants, Job, Limits};
use orchestrator_engine::{Outcome, Runtime, RuntimeConfig, WorkerComponent};

const LIMITS: Limits = Limits {
    memory_bytes_max: 64 << 20,
    deadline: Duration::from_secs(60),
};

fn echo() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/components");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            "wasm32-wasip2",
        ])
        .args(["-p", "guests", "--example", "echo", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(built.success(), "the guest cannot be built");
    std::fs::read(target.join("wasm32-wasip2/release/examples/echo.wasm")).unwrap()
}

fn job() -> Job {
    Job {
        id: "bench".to_owned(),
        job_type: "bench".to_owned(),
        payload: b"{}".to_vec(),
        content_type: "application/json".to_owned(),
        properties: Vec::new(),
        queue: "bench".to_owned(),
        attempt: 1,
        attempts_max: 1,
        enqueued_at_ms: 0,
        traceparent: None,
    }
}

fn benches(criterion: &mut Criterion) {
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let engine = Runtime::new(&RuntimeConfig {
        instances_max: 64,
        memory_bytes_max: LIMITS.memory_bytes_max,
        compiled_dir: dir.path().to_owned(),
    })
    .unwrap();
    let grants = Grants::new(Vec::new(), Vec::new(), Default::default());
    let worker = tokio
        .block_on(WorkerComponent::load(&engine, echo(), grants, LIMITS))
        .unwrap();
    criterion.bench_function("attempt in a fresh instance", |bencher| {
        bencher.to_async(&tokio).iter(|| async {
            let attempt = worker.run(job(), LIMITS).await;
            assert!(matches!(attempt.outcome, Outcome::Done { .. }));
        });
    });
}

criterion_group!(instantiate, benches);
criterion_main!(instantiate);
