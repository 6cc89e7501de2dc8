//! The pipeline in a world that one seed makes: simulated time, a disk that
//! fails and forgets, hosts that are killed, lose power or stop in the middle,
//! clients that repeat themselves, workers of every kind, and injected faults.
//!
//! What runs in that world is the real thing, down to the disk: the queue's
//! handles, its writer and its ledger, the dispatcher, its table and its lock
//! keeper. Time is the runtime's and stands still while anything is to be done,
//! so that hours pass in milliseconds, and a seed repeats its run exactly.
//!
//! ```text
//! cargo test -p orchestrator --test simulation                     # 1,000 seeds
//! SIMULATION_SECONDS=180 SIMULATION_SEED=77 cargo test …           # from 77, for so long
//! SIMULATION_SEED=77 SIMULATION_SEEDS=1 cargo test … -- --nocapture  # one, with its log
//! ```

mod judge;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use orchestrator_queue::planted::{Planted, plant};

use plan::Plan;

/// Seeds of a usual test run: a few seconds.
const SEEDS: u64 = 1_000;
/// Seeds after which a planted bug must have been found.
const SEEDS_TO_FIND_A_BUG: u64 = 500;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is no number")),
    )
}

/// What was broken, and the log of the run, which its seed repeats.
fn violations(seed: u64) -> (Vec<String>, String) {
    let plan = Plan::of(seed);
    let run = AssertUnwindSafe(|| world::run(&plan));
    match catch_unwind(run) {
        Ok(seen) => (judge::judge(&plan, &seen), seen.log()),
        Err(_) => (vec!["the host does not panic".to_owned()], String::new()),
    }
}

#[test]
fn every_promise_holds_whatever_the_seed() {
    let first = setting("SIMULATION_SEED").unwrap_or(1);
    let seconds = setting("SIMULATION_SECONDS");
    let most = setting("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    let mut seed = first;
    loop {
        let is_over = match seconds {
            Some(seconds) => began.elapsed() >= Duration::from_secs(seconds),
            None => seed - first >= most,
        };
        if is_over {
            break;
        }
        let (broken, log) = violations(seed);
        if most == 1 {
            println!("{log}");
        }
        assert!(
            broken.is_empty(),
            "SEED {seed} breaks promises; repeat it with SIMULATION_SEED={seed} SIMULATION_SEEDS=1\n{}\n{log}",
            broken.join("\n")
        );
        seed += 1;
    }
    println!(
        "{} seeds from {first} in {:.1} s: every promise held",
        seed - first,
        began.elapsed().as_secs_f64()
    );
}

#[test]
fn a_seed_repeats_its_run_exactly() {
    for seed in 1..=50 {
        let (one, other) = (violations(seed), violations(seed));
        assert!(!one.1.is_empty());
        assert_eq!(one, other, "seed {seed}");
    }
}

#[test]
fn each_planted_bug_is_found() {
    for bug in Planted::ALL {
        plant(Some(bug));
        let found = (1..=SEEDS_TO_FIND_A_BUG).find(|seed| !violations(*seed).0.is_empty());
        plant(None);
        let seed = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: found by seed {seed}");
    }
}
