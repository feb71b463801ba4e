//! Names that are only ever compared with one another, as numbers.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Drawn once per process: with a hash that everybody can compute, whoever chooses part of a cache salt could search for
/// one that meets somebody else's.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Equal names have equal keys as long as the process lives. 0 stands for no name, so it is never a key.
pub(crate) fn key(name: &[u8]) -> u64 {
    HASHER.hash_one(name).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_names_apart() {
        assert_eq!(key(b"a"), key(b"a"));
        assert_ne!(key(b"a"), key(b"b"));
        assert_ne!(key(b""), 0);
    }
}
