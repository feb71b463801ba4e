//! How much memory this process and its children may still take: the machine's, and that of every control group above.

use std::fs;
use std::path::{Path, PathBuf};

/// Free memory, and whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    pub(crate) limited_by: &'static str,
}

const MACHINE: &str = "this machine";
const CONTAINER: &str = "the control group (container)";

/// The smallest of the machine's and the control groups' headroom; `None` where /proc is not readable.
pub(crate) fn available() -> Option<Available> {
    let machine = mem_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let limited = group_folders(&groups, &mounts)
        .iter()
        .filter_map(Group::headroom)
        .min();
    Some(match limited {
        Some(bytes) if bytes < machine => Available {
            bytes,
            limited_by: CONTAINER,
        },
        _ => Available {
            bytes: machine,
            limited_by: MACHINE,
        },
    })
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// One control group's folder and the file names of its version.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// Limit minus what cannot be reclaimed; `None` without a limit. Page cache counts as free: the kernel drops it
    /// first, and a checkpoint that was read before sits there.
    fn headroom(&self) -> Option<u64> {
        let (limit, usage, inactive, active) = match self.version {
            Version::One => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file ",
                "total_active_file ",
            ),
            Version::Two => (
                "memory.max",
                "memory.current",
                "inactive_file ",
                "active_file ",
            ),
        };
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(self.folder.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        // "max" does not parse; version 1 writes the largest page-aligned number instead.
        let limit = number(limit).filter(|&limit| limit < 1 << 60)?;
        let statistics = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let cache = |key: &str| -> u64 {
            let value = statistics.lines().find_map(|line| line.strip_prefix(key));
            value.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let used = number(usage)?.saturating_sub(cache(inactive) + cache(active));
        Some(limit.saturating_sub(used))
    }
}

/// Folders of this process's memory groups, each with all its ancestors: any of them may hold the limit.
fn group_folders(groups: &str, mounts: &str) -> Vec<Group> {
    let mut folders = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = if controllers.is_empty() {
            Version::Two
        } else {
            Version::One
        };
        if version == Version::One && !controllers.split(',').any(|name| name == "memory") {
            continue;
        }
        let Some(mount) = mount_point(mounts, version) else {
            continue;
        };
        // Inside a container the mount may already be the group's own folder, and the path is then not below it.
        let mut below = Path::new(path.trim_start_matches('/'));
        loop {
            folders.push(Group {
                folder: mount.join(below),
                version,
            });
            match below.parent() {
                Some(parent) => below = parent,
                None => break,
            }
        }
    }
    folders
}

fn mount_point(mounts: &str, version: Version) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, point, kind, options, ..] = fields.as_slice() else {
            return None;
        };
        let matches = match version {
            Version::One => {
                *kind == "cgroup" && options.split(',').any(|option| option == "memory")
            }
            Version::Two => *kind == "cgroup2",
        };
        matches.then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(version: Version, files: &[(&str, &str)]) -> (tempfile::TempDir, Group) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let group = Group {
            folder: folder.path().to_path_buf(),
            version,
        };
        (folder, group)
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available().unwrap().bytes > 0);
        assert_eq!(
            mem_available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"),
            Some(2 << 20)
        );
    }

    #[test]
    fn headroom_counts_page_cache_as_free() {
        let (_guard, two) = group(
            Version::Two,
            &[
                ("memory.max", "1000\n"),
                ("memory.current", "700\n"),
                (
                    "memory.stat",
                    "anon 5\ninactive_file 200\nactive_file 100\n",
                ),
            ],
        );
        assert_eq!(two.headroom(), Some(600));
        let (_guard, one) = group(
            Version::One,
            &[
                ("memory.limit_in_bytes", "1000"),
                ("memory.usage_in_bytes", "900"),
                ("memory.stat", "inactive_file 9\ntotal_inactive_file 50\n"),
            ],
        );
        assert_eq!(one.headroom(), Some(150));
    }

    #[test]
    fn no_limit_is_no_headroom_figure() {
        for limit in ["max\n", "9223372036854771712\n"] {
            let (_guard, group) = group(
                Version::Two,
                &[("memory.max", limit), ("memory.current", "1")],
            );
            assert_eq!(group.headroom(), None, "{limit}");
        }
    }

    #[test]
    fn every_ancestor_is_looked_at() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /cg/cpu cgroup rw,cpu 0 0\ncgroup /cg/memory cgroup rw,memory 0 0\ncgroup2 /cg/two cgroup2 rw 0 0\n";
        let folders: Vec<_> = group_folders("4:memory:/a/b\n2:cpu:/x\n0::/\n", mounts)
            .into_iter()
            .map(|group| group.folder.display().to_string())
            .collect();
        assert_eq!(
            folders,
            ["/cg/memory/a/b", "/cg/memory/a", "/cg/memory/", "/cg/two/"]
        );
    }
}
