//! The whole pipeline: POST → completed, durable before 202, with the sample's
//! components, which it builds.
//!
//! `cargo bench -p orchestrator --bench pipeline`. One iteration is one job,
//! 256 of them on their way at the same time. For ratios to native
//! counterparts, see `orchestrator bench`.
#![allow(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orchestrator::bench::{Plan, pipeline_once};
use orchestrator::config::Config;

/// Long enough that starting a host weighs little.
const ROUND: Duration = Duration::from_secs(1);

fn benches(criterion: &mut Criterion) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = root.join("target/components");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            "wasm32-wasip2",
        ])
        .args(["-p", "ingest", "-p", "worker", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(built.success(), "the components cannot be built");
    let mut config = Config::read(&root, &[], &|_| None).unwrap();
    for (name, component) in &mut config.components {
        component.source = target.join(format!("wasm32-wasip2/release/{name}.wasm"));
    }
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan {
        config,
        dir: dir.path().to_owned(),
        compiled_dir: dir.path().join("compiled"),
        payload: r#"{"n":1}"#.to_owned(),
        duration: ROUND,
        rounds: 1,
    };
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.bench_function("post_to_completed", |bencher| {
        bencher.iter_custom(|count| {
            let sample = pipeline_once(&plan).unwrap();
            #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
            Duration::from_secs_f64(count as f64 / sample.per_second())
        });
    });
    group.finish();
}

criterion_group!(pipeline, benches);
criterion_main!(pipeline);
