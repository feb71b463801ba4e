//! Where the shards' compiler keeps its kernels, so that a restart compiles none.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use tracing::warn;

use crate::args::PythonArgs;

/// The flag's folder, else one in the user's cache, which is made, else `fallback`: a container's home may be read-only.
pub(crate) fn folder(args: &PythonArgs, fallback: &Path) -> PathBuf {
    if let Some(named) = not_empty(args.kernel_cache_dir.as_deref()) {
        return named.to_path_buf();
    }
    let xdg = args.xdg_cache_home.as_deref();
    let cache = match xdg.filter(|path| path.is_absolute()) {
        Some(path) => Some(path.to_path_buf()),
        None => std::env::home_dir().map(|home| home.join(".cache")),
    };
    let made = cache.map_or_else(
        || Err(io::Error::other("this user has no home")),
        |cache| make_private(cache.join("penstock").join("triton")),
    );
    made.unwrap_or_else(|error| {
        warn!(
            "compiled kernels will not be kept for the next start: {error}; give --kernel-cache-dir (TRITON_CACHE_DIR) a folder that stays"
        );
        fallback.to_path_buf()
    })
}

fn not_empty(path: Option<&Path>) -> Option<&Path> {
    path.filter(|path| !path.as_os_str().is_empty())
}

/// Kernels are code: the folder is for its owner alone, and one of another user is not trusted.
fn make_private(folder: PathBuf) -> io::Result<PathBuf> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(named)?;
    if fs::metadata(&folder).map_err(named)?.uid() != geteuid().as_raw() {
        return Err(named(io::Error::other("it belongs to another user")));
    }
    // Permissions alone do not tell: the file system may be read-only, and root may do everything else.
    let probe = folder.join(format!("probe-{}", std::process::id()));
    fs::write(&probe, [])
        .and_then(|()| fs::remove_file(&probe))
        .map_err(named)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn args(named: Option<&str>, xdg: Option<&Path>) -> PythonArgs {
        PythonArgs {
            python: None,
            kernel_cache_dir: named.map(PathBuf::from),
            xdg_cache_home: xdg.map(Path::to_path_buf),
        }
    }

    #[test]
    fn a_named_folder_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let found = folder(
            &args(Some("/x/kernels"), Some(root.path())),
            Path::new("/y"),
        );
        assert_eq!(found, Path::new("/x/kernels"));
        assert!(!root.path().join("penstock").exists());
    }

    #[test]
    fn else_it_is_made_in_the_users_cache_for_nobody_else_and_found_again() {
        let root = tempfile::tempdir().unwrap();
        for named in [None, Some("")] {
            let found = folder(&args(named, Some(root.path())), Path::new("/y"));
            assert_eq!(found, root.path().join("penstock/triton"));
            let mode = fs::metadata(&found).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            assert_eq!(fs::read_dir(&found).unwrap().count(), 0);
        }
    }

    #[test]
    fn where_that_cannot_be_made_or_written_it_is_the_fallback() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, []).unwrap();
        // Nobody can make a folder in /proc, not even root.
        for cache in [file.as_path(), Path::new("/proc")] {
            let found = folder(&args(None, Some(cache)), Path::new("/y"));
            assert_eq!(found, Path::new("/y"), "{}", cache.display());
        }
        // A folder that is there and that nobody can write.
        assert!(make_private(PathBuf::from("/proc/self/task")).is_err());
    }
}
