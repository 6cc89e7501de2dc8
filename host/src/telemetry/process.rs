//! The metrics of this process, under the names that all of Prometheus'
//! clients use. They are read where the system has `/proc`, else absent.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What the system knows of this process.
pub(super) struct Process {
    registry: Registry,
    cpu_seconds: Counter<f64, AtomicU64>,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    threads: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    started: Gauge,
}

impl Default for Process {
    fn default() -> Self {
        let mut process = Self {
            registry: Registry::with_prefix("process"),
            cpu_seconds: Counter::default(),
            resident_bytes: Gauge::default(),
            virtual_bytes: Gauge::default(),
            threads: Gauge::default(),
            open_fds: Gauge::default(),
            max_fds: Gauge::default(),
            started: Gauge::default(),
        };
        if cfg!(target_os = "linux") {
            process.register();
        }
        process
    }
}

impl Process {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "cpu_seconds",
            "Processor time used, in user and system mode",
            self.cpu_seconds.clone(),
        );
        r.register(
            "resident_memory_bytes",
            "Memory in use",
            self.resident_bytes.clone(),
        );
        r.register(
            "virtual_memory_bytes",
            "Addresses in use; compiled components and pools reserve many",
            self.virtual_bytes.clone(),
        );
        r.register("threads", "Threads", self.threads.clone());
        r.register("open_fds", "Open file descriptors", self.open_fds.clone());
        r.register(
            "max_fds",
            "Open file descriptors allowed",
            self.max_fds.clone(),
        );
        r.register(
            "start_time_seconds",
            "When the process started, since 1970-01-01 UTC",
            self.started.clone(),
        );
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Reads everything again. What cannot be read keeps its last value.
    #[cfg(target_os = "linux")]
    pub(super) fn refresh(&self) {
        use procfs::process::{LimitValue, Process};
        let Ok(process) = Process::myself() else {
            return;
        };
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        if let Ok(stat) = process.stat() {
            let ticks = procfs::ticks_per_second();
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let used = (stat.utime + stat.stime) as f64 / ticks as f64;
            self.cpu_seconds
                .inc_by((used - self.cpu_seconds.get()).max(0.0));
            self.resident_bytes
                .set(number(stat.rss.saturating_mul(procfs::page_size())));
            self.virtual_bytes.set(number(stat.vsize));
            self.threads.set(stat.num_threads);
            if let Ok(booted) = procfs::boot_time_secs() {
                self.started.set(number(booted + stat.starttime / ticks));
            }
        }
        if let Ok(count) = process.fd_count() {
            self.open_fds.set(number(count as u64));
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            self.max_fds.set(number(most));
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn refresh(&self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_alive() {
        let process = Process::default();
        process.refresh();
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .expect("it is later");
        let age = i64::try_from(now.as_secs()).expect("seconds") - process.started.get();
        assert!((0..24 * 3600).contains(&age), "{age}");
        assert!(process.resident_bytes.get() > 1024 * 1024);
        assert!(process.resident_bytes.get() < process.virtual_bytes.get());
        assert!(process.threads.get() >= 1);
        assert!((3..process.max_fds.get()).contains(&process.open_fds.get()));
        let used = process.cpu_seconds.get();
        process.refresh();
        assert!(process.cpu_seconds.get() >= used);
    }
}
