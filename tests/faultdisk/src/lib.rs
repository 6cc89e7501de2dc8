//! Stands between a program and the C library (`LD_PRELOAD`, Linux): writes and
//! syncs of files under `FAULTDISK_UNDER` fail while a file of the fault's name
//! is in the directory `FAULTDISK_SWITCHES`:
//!
//! | switch | what fails | with |
//! | --- | --- | --- |
//! | `full` | `write`, `writev`, `pwrite`, `ftruncate` | `ENOSPC` |
//! | `sync` | `fsync`, `fdatasync` | `EIO` |
//! | `kill-before-sync` | the process, by SIGKILL, before the `fsync` that the file's text names: `components 3`, the third of a path with that word | |
//!
//! Everything else goes to the kernel as it came.
#![cfg(target_os = "linux")]
#![allow(
    unsafe_code,
    reason = "standing in for the C library's functions needs their symbols and their pointers"
)]

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{c_int, c_long, c_void, iovec, off_t, size_t, ssize_t};

struct Faults {
    switches: PathBuf,
    under: PathBuf,
}

fn faults() -> Option<&'static Faults> {
    static FAULTS: OnceLock<Option<Faults>> = OnceLock::new();
    let read = || {
        Some(Faults {
            switches: std::env::var_os("FAULTDISK_SWITCHES")?.into(),
            under: std::env::var_os("FAULTDISK_UNDER")?.into(),
        })
    };
    FAULTS.get_or_init(read).as_ref()
}

/// True if `fault` is on and `fd` is a file that it is for.
fn hits(fd: c_int, fault: &str) -> bool {
    faults().is_some_and(|faults| {
        faults.switches.join(fault).exists()
            && std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|path| {
                path.as_os_str()
                    .as_bytes()
                    .starts_with(faults.under.as_os_str().as_bytes())
            })
    })
}

fn fail(errno: c_int) -> c_long {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// # Safety
/// As `write(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, data: *const c_void, size: size_t) -> ssize_t {
    if hits(fd, "full") {
        return fail(libc::ENOSPC) as ssize_t;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_write, fd, data, size) as ssize_t }
}

/// # Safety
/// As `writev(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    if hits(fd, "full") {
        return fail(libc::ENOSPC) as ssize_t;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) as ssize_t }
}

/// # Safety
/// As `pwrite(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    fd: c_int,
    data: *const c_void,
    size: size_t,
    at: off_t,
) -> ssize_t {
    if hits(fd, "full") {
        return fail(libc::ENOSPC) as ssize_t;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_pwrite64, fd, data, size, at) as ssize_t }
}

/// # Safety
/// As `ftruncate(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ftruncate64(fd: c_int, size: off_t) -> c_int {
    if hits(fd, "full") {
        return fail(libc::ENOSPC) as c_int;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_ftruncate, fd, size) as c_int }
}

/// Ends the process if this is the sync that it is to be killed before.
fn die_if_told(fd: c_int) {
    static SYNCS: AtomicUsize = AtomicUsize::new(0);
    let is_told = || {
        let text = std::fs::read_to_string(faults()?.switches.join("kill-before-sync")).ok()?;
        let (word, number) = text.split_once(' ')?;
        let path = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let is_meant = path.to_string_lossy().contains(word);
        let nth = SYNCS.fetch_add(usize::from(is_meant), Ordering::SeqCst) + 1;
        Some(is_meant && nth == number.trim().parse().ok()?)
    };
    if is_told() == Some(true) {
        // SAFETY: a signal to this very process.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}

/// # Safety
/// As `fsync(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    die_if_told(fd);
    if hits(fd, "sync") {
        return fail(libc::EIO) as c_int;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_fsync, fd) as c_int }
}

/// # Safety
/// As `fdatasync(2)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    if hits(fd, "sync") {
        return fail(libc::EIO) as c_int;
    }
    // SAFETY: as promised by the caller.
    unsafe { libc::syscall(libc::SYS_fdatasync, fd) as c_int }
}
