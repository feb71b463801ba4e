//! The folder of the shards' sockets: private to this user, locked while this launcher lives, swept when it does not.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime};

use nix::unistd::geteuid;
use tracing::debug;

use crate::failure::Failure;

const PREFIX: &str = "penstock-run-";
const LOCK: &str = "lock";
/// The kernel's limit for the path of a unix socket, its final zero included.
const MAX_SOCKET_PATH: usize = 108;
/// A folder without a lock file is being made by another launcher, unless it is old.
const UNLOCKED_GRACE: Duration = Duration::from_secs(60);

/// Removed on drop.
#[derive(Debug)]
pub(crate) struct RuntimeFolder {
    path: PathBuf,
    /// The kernel releases this lock however the process ends, so a folder whose lock is free is a dead launcher's.
    /// (A process id in the name would mistake a reused id, or one of another container, for a live or a dead owner.)
    _lock: File,
}

impl RuntimeFolder {
    /// Makes the folder below `parent` after sweeping those of dead launchers.
    pub(crate) fn create(parent: &Path) -> Result<Self, Failure> {
        sweep(parent);
        let path = parent.join(format!("{PREFIX}{}-{:08x}", process::id(), rand_suffix()));
        let longest = path.join("shard-7.sock");
        if longest.as_os_str().len() >= MAX_SOCKET_PATH {
            return Err(Failure::Failed(format!(
                "{} is too long for a unix socket (at most {} bytes); set TMPDIR to a shorter path",
                longest.display(),
                MAX_SOCKET_PATH - 1
            )));
        }
        let make = || -> io::Result<File> {
            DirBuilder::new().mode(0o700).create(&path)?;
            // Locked under another name first: nobody ever sees an unlocked lock file.
            let lock = File::create(path.join("lock.new"))?;
            lock.lock()?;
            fs::rename(path.join("lock.new"), path.join(LOCK))?;
            Ok(lock)
        };
        let lock = make().map_err(|error| {
            Failure::io(
                format!("cannot make {} (TMPDIR must be writable)", path.display()),
                &error,
            )
        })?;
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RuntimeFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Different for two launchers of one process id (containers that share a TMPDIR).
fn rand_suffix() -> u32 {
    let nanos = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    nanos.subsec_nanos()
}

/// Removes this user's folders whose launcher is gone. What cannot be judged stays.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let named_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if named_ours && is_abandoned(&entry.path()).unwrap_or(false) {
            debug!(
                "removing {}, left by a launcher that was killed",
                entry.path().display()
            );
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                debug!("cannot remove {}: {error}", entry.path().display());
            }
        }
    }
}

fn is_abandoned(folder: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(folder)?;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        return Ok(false);
    }
    let lock = match File::open(folder.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(metadata
                .modified()?
                .elapsed()
                .is_ok_and(|age| age > UNLOCKED_GRACE));
        }
        Err(error) => return Err(error),
    };
    match lock.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RuntimeFolder::create(parent.path()).unwrap();
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(folder);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_folders_without_a_living_owner_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let alive = RuntimeFolder::create(parent.path()).unwrap();
        let dead = parent.path().join("penstock-run-1-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join(LOCK), "").unwrap();
        let being_made = parent.path().join("penstock-run-2-new");
        fs::create_dir(&being_made).unwrap();
        let foreign = parent.path().join("other-1");
        fs::create_dir(&foreign).unwrap();
        let second = RuntimeFolder::create(parent.path()).unwrap();
        assert!(!dead.exists());
        for kept in [alive.path(), second.path(), &being_made, &foreign] {
            assert!(kept.exists(), "{}", kept.display());
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let deep = parent.path().join("d".repeat(100));
        let text = RuntimeFolder::create(&deep).unwrap_err().to_string();
        assert!(text.contains("set TMPDIR"), "{text}");
    }
}
