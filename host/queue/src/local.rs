//! The embedded engine: one store, many queues, one fsync for all who wait.
//!
//! ```text
//!  Queue (handles)            writer thread                    disk
//!  send, settle, … ──bounded──► drains what is waiting
//!                               applies each to its Ledger ──► one batch
//!                               (pure: time comes in)      ──► one fsync
//!  ◄────── answers ──────────── only then answers everyone
//!  job, jobs, dead ───────────────────────── reads ──────────► snapshot
//! ```
//!
//! What survives which crash:
//!
//! | | killed process | lost power |
//! | --- | --- | --- |
//! | an accepted message, a settlement, a redrive or purge that was answered | yes | yes |
//! | the count of a delivery that was handed out | yes | if anything was accepted or settled since |
//! | a lock | no: the message is ready again at once | no |
//!
//! A failing write (a full disk) makes the store unavailable until it can be
//! opened again. A failing fsync poisons it for good: the kernel may have
//! dropped what it could not write, so nothing it still shows can be trusted.

mod broker;
mod clock;
mod commands;
mod disk;
mod ledger;
#[cfg(any(test, feature = "simulation"))]
mod memory;
mod reader;
mod records;
#[cfg(feature = "simulation")]
mod simulated;
mod store;
mod writer;

pub use broker::{Broker, BrokerOptions, CreateError, Health, OpenError, Queue, Queues, Recovery};
pub use clock::{Clock, ManualClock};
#[cfg(feature = "simulation")]
pub use simulated::{Crash, Fault, Operation, SimulatedDisk};
