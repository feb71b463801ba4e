//! Engines so small that everything runs out, each of something else.

/// What an engine offers.
#[derive(Debug)]
pub(in crate::scheduler::tests) struct Size {
    /// Tokens per block and blocks of each KV group.
    pub(super) groups: &'static [(u32, u32)],
    pub(super) num_seats: u32,
    pub(super) num_lanes: u32,
    pub(super) max_rows: u32,
    pub(super) max_prompt_tokens: u32,
    pub(super) mixed_sizes: &'static [u32],
    /// Steps after which something must have got on, whenever there is work.
    pub(super) max_quiet: u32,
}

const USUAL: Size = Size {
    groups: &[(2, 14), (4, 7)],
    num_seats: 5,
    num_lanes: 1,
    max_rows: 4,
    max_prompt_tokens: 7,
    mixed_sizes: &[2, 4, 8],
    max_quiet: 32,
};

/// The first has one KV group and is the one that histories are recorded for.
pub(in crate::scheduler::tests) static SIZES: [Size; 8] = [
    Size {
        groups: &[(2, 12)],
        ..USUAL
    },
    USUAL,
    // One token at a time.
    Size {
        groups: &[(2, 12)],
        max_prompt_tokens: 1,
        mixed_sizes: &[8],
        max_quiet: 128,
        ..USUAL
    },
    // As many rows as tokens.
    Size {
        groups: &[(2, 12)],
        max_prompt_tokens: 4,
        mixed_sizes: &[4],
        max_quiet: 64,
        ..USUAL
    },
    // One request at a time.
    Size {
        groups: &[(4, 7)],
        num_seats: 1,
        max_rows: 1,
        ..USUAL
    },
    // More requests than seats that they may have at once.
    Size {
        groups: &[(2, 12)],
        num_seats: 12,
        num_lanes: 0,
        max_rows: 2,
        ..USUAL
    },
    // One block for all.
    Size {
        groups: &[(16, 1)],
        ..USUAL
    },
    // Blocks of one token, and groups of which neither fits into the other.
    Size {
        groups: &[(1, 27), (2, 14), (3, 10)],
        ..USUAL
    },
];
