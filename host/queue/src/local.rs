//! The embedded engine: one store, many queues, one fsync for all who wait.
