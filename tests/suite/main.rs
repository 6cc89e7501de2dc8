//! End to end: the real program, real compiled components, from the outside.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod bad_wire;
mod chaos;
mod commands;
mod composed;
mod dashboards;
#[cfg(target_os = "linux")]
mod faulty_disk;
mod guests;
mod pipeline;
mod queue_contract;
mod queue_rig;
mod requests;
mod rig;
mod shared_queue;
mod soak;
mod spin;
mod swap;
mod telemetry;
mod two_ways;
mod wire;
