//! The peek-lock contract, and the engine that keeps it on this machine.
//!
//! This crate has never heard of WebAssembly or HTTP. It promises:
//!
//! - **Accepted means durable**: [`Queue::send`] answers after the fsync that
//!   covers the message, never before.
//! - **One holder at a time**: a [`Delivery`] is locked until its lock expires;
//!   its [`Lock`] is renewed while work goes on and consumed by settling.
//! - **Settled once**: a settle under a stale lock is refused with
//!   [`SettleError::LockLost`] and changes nothing.
//! - **A crash at any instant** loses no accepted message and leaves none
//!   locked: locks live in memory, so after a restart every message that was
//!   not settled is ready (or due) again, with its delivery count.
//!
//! Times are milliseconds since 1970-01-01 UTC ([`Millis`]).
//!
//! For WebAssembly only the contract is built: a component that sends over a
//! wire speaks it too, and has no disk.

mod contract;
#[cfg(not(target_family = "wasm"))]
pub mod local;
pub mod planted;

pub use contract::*;
