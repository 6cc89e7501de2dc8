//! `spin`: puts this program where Spin looks for its trigger `servicebus`.
//!
//! A plugin is an executable and a manifest beside each other in Spin's data
//! directory. Installing writes both; a package is what `spin plugins install`
//! takes, for other machines.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use etcetera::BaseStrategy;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use url::Url;

use super::trigger::NAME;
use super::{CliError, environment, failed, print};

/// Versions of Spin that have WASI 0.3.0, as the components here: 4.0 has a
/// draft of it. A pre-release matches no range; Spin then warns, and goes on.
const SPIN_VERSIONS: &str = ">=4.1";
/// Mode of the executable.
const EXECUTABLE: u32 = 0o755;
/// Mode of other files.
const READABLE: u32 = 0o644;

#[derive(Debug, Subcommand)]
pub(super) enum SpinCommand {
    /// Make `spin up` run the queues of its applications with this program.
    Install,
    /// Take that back.
    Uninstall,
    /// Make a package for `spin plugins install --file`.
    Package(PackageArgs),
}

#[derive(Debug, Args)]
pub(super) struct PackageArgs {
    /// Where it is put.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// What Spin knows of a plugin.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    name: String,
    description: String,
    version: String,
    spin_compatibility: String,
    license: String,
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Package {
    os: String,
    arch: String,
    url: String,
    sha256: String,
}

pub(super) fn run(command: &SpinCommand) -> Result<(), CliError> {
    match command {
        SpinCommand::Install => install(),
        SpinCommand::Uninstall => uninstall(),
        SpinCommand::Package(args) => package(&args.out),
    }
}

/// Where Spin keeps plugins.
struct Plugins {
    executable: PathBuf,
    manifest: PathBuf,
}

impl Plugins {
    fn find() -> Result<Self, CliError> {
        let named = environment("SPIN_DATA_DIR").filter(|dir| !dir.is_empty());
        let data = match named.map(PathBuf::from).or_else(homebrew) {
            Some(dir) => dir,
            None => etcetera::base_strategy::choose_native_strategy()
                .map_err(|_| {
                    CliError::Usage(
                        "there is no home directory, so Spin's data directory is not known: name it with SPIN_DATA_DIR".to_owned(),
                    )
                })?
                .data_dir()
                .join("spin"),
        };
        let plugins = data.join("plugins");
        Ok(Self {
            executable: plugins.join(NAME).join(NAME),
            manifest: plugins.join("manifests").join(format!("{NAME}.json")),
        })
    }
}

/// Where a Spin that Homebrew has installed keeps its data.
fn homebrew() -> Option<PathBuf> {
    let prefix = PathBuf::from(environment("HOMEBREW_PREFIX")?);
    let path = environment("PATH")?;
    let spin = std::env::split_paths(&path).find(|dir| dir.join("spin").is_file())?;
    spin.starts_with(&prefix)
        .then(|| prefix.join("etc").join("spinframework-spin"))
}

/// What `doctor` asks: the plugin that Spin would start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// None.
    Nothing,
    /// This very program.
    This,
    /// Another build, of this version.
    Other(String),
}

/// Which plugin Spin would start.
pub(super) fn installed() -> Result<Installed, CliError> {
    let plugins = Plugins::find()?;
    let Ok(manifest) = std::fs::read(&plugins.manifest) else {
        return Ok(Installed::Nothing);
    };
    let version = serde_json::from_slice::<Manifest>(&manifest)
        .map_or_else(|_| "unknown".to_owned(), |manifest| manifest.version);
    let (Ok(theirs), Ok(ours)) = (std::fs::read(&plugins.executable), program_bytes()) else {
        return Ok(Installed::Nothing);
    };
    Ok(match theirs == ours {
        true => Installed::This,
        false => Installed::Other(version),
    })
}

fn program_bytes() -> Result<Vec<u8>, CliError> {
    let program = std::env::current_exe().map_err(failed)?;
    std::fs::read(&program)
        .map_err(|error| failed(format!("{} cannot be read: {error}", program.display())))
}

fn install() -> Result<(), CliError> {
    let plugins = Plugins::find()?;
    let program = program_bytes()?;
    let url = file_url(&plugins.executable)?;
    let manifest = manifest(url, &program)?;
    // In this order: what has a manifest can be started.
    write(&plugins.executable, EXECUTABLE, &program)?;
    write(&plugins.manifest, READABLE, &manifest)?;
    print(&format!(
        "installed {} {}\n  {}\n  {}\n`spin up` runs applications with `[[trigger.servicebus]]` now\n",
        NAME,
        env!("CARGO_PKG_VERSION"),
        plugins.executable.display(),
        plugins.manifest.display()
    ))
}

fn uninstall() -> Result<(), CliError> {
    let plugins = Plugins::find()?;
    let removed = [&plugins.manifest, &plugins.executable].map(|path| remove(path));
    let [manifest, executable] = removed;
    let what = match manifest? || executable? {
        true => "removed",
        false => "was not installed:",
    };
    if let Some(dir) = plugins.executable.parent() {
        // Spin's own notes on the plugin may be left in it.
        let _ = std::fs::remove_dir_all(dir);
    }
    print(&format!("{what} {}\n", plugins.executable.display()))
}

/// Removes a file; false if there was none.
fn remove(path: &Path) -> Result<bool, CliError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(format!(
            "{} cannot be removed: {error}",
            path.display()
        ))),
    }
}

fn package(out: &Path) -> Result<(), CliError> {
    let (os, arch) = platform()?;
    let out = std::path::absolute(out).map_err(failed)?;
    let archive = out.join(format!(
        "{NAME}-{}-{os}-{arch}.tar.gz",
        env!("CARGO_PKG_VERSION")
    ));
    let bytes = archived(&program_bytes()?).map_err(failed)?;
    let manifest_path = out.join(format!("{NAME}.json"));
    let manifest = manifest(file_url(&archive)?, &bytes)?;
    write(&archive, READABLE, &bytes)?;
    write(&manifest_path, READABLE, &manifest)?;
    print(&format!(
        "{}\n{}\ninstall it with `spin plugins install --file {} --yes`\n",
        archive.display(),
        manifest_path.display(),
        manifest_path.display()
    ))
}

/// The package's archive. The same program gives the same bytes.
fn archived(program: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let license = include_bytes!("../../../LICENSE");
    for (name, mode, bytes) in [(NAME, EXECUTABLE, program), ("LICENSE", READABLE, license)] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, bytes)?;
    }
    archive.into_inner()?.finish()
}

/// Spin's names for this machine.
fn platform() -> Result<(&'static str, &'static str), CliError> {
    use std::env::consts::{ARCH, OS};
    let arch = match ARCH {
        "x86_64" => "amd64",
        "aarch64" | "arm" => ARCH,
        _ => "",
    };
    if !["linux", "macos"].contains(&OS) || arch.is_empty() {
        return Err(failed(format!(
            "Spin knows no plugins for {OS} on {ARCH}: only for Linux and macOS on amd64, aarch64 and arm"
        )));
    }
    Ok((OS, arch))
}

fn manifest(url: String, content: &[u8]) -> Result<Vec<u8>, CliError> {
    let (os, arch) = platform()?;
    let manifest = Manifest {
        name: NAME.to_owned(),
        description: "Runs the queues of an application: durable, retried, swappable workers"
            .to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        spin_compatibility: SPIN_VERSIONS.to_owned(),
        license: env!("CARGO_PKG_LICENSE").to_owned(),
        packages: vec![Package {
            os: os.to_owned(),
            arch: arch.to_owned(),
            url,
            sha256: Sha256::digest(content)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        }],
    };
    serde_json::to_vec_pretty(&manifest).map_err(failed)
}

fn file_url(path: &Path) -> Result<String, CliError> {
    let absolute = std::path::absolute(path).map_err(failed)?;
    match Url::from_file_path(&absolute) {
        Ok(url) => Ok(url.into()),
        Err(()) => Err(failed(format!("{} has no URL", absolute.display()))),
    }
}

/// Writes a file whole or not at all: the program in it may be running.
fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), CliError> {
    let wrong = |error: &dyn std::fmt::Display| {
        failed(format!(
            "{} cannot be written: {error}; correct its permissions, or choose another directory",
            path.display()
        ))
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).map_err(|error| wrong(&error))?;
    let mut file = NamedTempFile::new_in(dir).map_err(|error| wrong(&error))?;
    let permissions = std::fs::Permissions::from_mode(mode);
    file.write_all(bytes)
        .and_then(|()| file.as_file().set_permissions(permissions))
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| wrong(&error))?;
    file.persist(path).map_err(|error| wrong(&error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_makes_the_same_package() {
        let once = archived(b"program").unwrap();
        assert_eq!(once, archived(b"program").unwrap());
        assert_ne!(once, archived(b"another").unwrap());
    }
}
