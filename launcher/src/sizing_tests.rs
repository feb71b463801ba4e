use std::path::PathBuf;

use clap::Parser;

use super::*;
use crate::safetensors::WeightTotals;

const GIB: u64 = 1 << 30;

fn cli(flags: &[&str]) -> Cli {
    Cli::try_parse_from([&["launcher"], flags].concat()).unwrap()
}

/// 8 KiB of KV a token in fp32, 1 Gi parameters.
fn model() -> Checkpoint {
    Checkpoint {
        folder: PathBuf::new(),
        num_layers: 8,
        num_heads: 8,
        num_kv_heads: 4,
        head_dim: 32,
        vocab_size: 4096,
        max_positions: 2048,
        weights: WeightTotals {
            elements: GIB,
            bytes: 2 * GIB,
        },
    }
}

fn machine(gib: u64) -> Machine {
    let memory = Some(Available {
        bytes: gib * GIB,
        limited_by: "this machine",
    });
    Machine {
        cuda: false,
        cores: 4,
        bfloat16: true,
        memory,
    }
}

fn refusal(flags: &[&str], machine: &Machine, num_ranks: u64) -> String {
    sizes(&cli(flags), &model(), machine, num_ranks)
        .unwrap_err()
        .to_string()
}

#[test]
fn the_default_pool_is_what_requests_can_use_at_most_a_quarter() {
    let roomy = sizes(&cli(&[]), &model(), &machine(64), 1).unwrap();
    assert_eq!(roomy.num_blocks, Some(128 * 2048 / 16 + 1));
    assert_eq!(
        (roomy.max_seq_len, roomy.max_rows, roomy.num_threads),
        (2048, 128, 4)
    );
    // 6 GiB - 4 GiB of weights - 1 GiB leave 1 GiB; a quarter holds 32,768 tokens of 8 KiB.
    let tight = sizes(&cli(&[]), &model(), &machine(6), 1).unwrap();
    assert_eq!(tight.num_blocks, Some(32_768 / 16 + 1));
}

#[test]
fn flags_win_over_defaults() {
    let flags = [
        "--max-batch-total-tokens",
        "5000",
        "--max-batch-size",
        "7",
        "--max-total-tokens",
        "100",
        "--max-batch-prefill-tokens",
        "64",
    ];
    let sizes = sizes(&cli(&flags), &model(), &machine(64), 2).unwrap();
    let expected = Sizes {
        num_blocks: Some(314),
        max_rows: 7,
        max_step_tokens: 71,
        max_seq_len: 100,
        num_seats: 14,
        num_penalty_lanes: 7,
        num_threads: 2,
    };
    assert_eq!(sizes, expected);
}

#[test]
fn a_gpu_measures_its_pool_itself() {
    let mut machine = machine(1);
    machine.cuda = true;
    let sizes = sizes(&cli(&[]), &model(), &machine, 1).unwrap();
    assert_eq!(
        (sizes.num_blocks, sizes.max_seq_len, sizes.max_step_tokens),
        (None, 2048, 2048 + 128)
    );
}

#[test]
fn a_small_pool_bounds_the_sequence() {
    let sizes = sizes(
        &cli(&["--max-batch-total-tokens", "512"]),
        &model(),
        &machine(64),
        1,
    )
    .unwrap();
    assert_eq!(sizes.max_seq_len, 512);
}

#[test]
fn memory_refusal_has_three_numbers_and_the_flag() {
    let text = refusal(&["--max-batch-total-tokens", "1000000"], &machine(8), 2);
    for part in [
        "weights 4.00 GiB",
        "KV cache 7.63 GiB",
        "2.00 GiB for 2 shard processes",
        "the 8.00 GiB available on this machine",
        "--max-batch-total-tokens to at most 262128",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(refusal(&[], &machine(4), 1).contains("choose a smaller model"));
    // bfloat16 halves the weights where the processor has it, and only there.
    let bfloat16 = ["--dtype", "bfloat16"];
    assert!(sizes(&cli(&bfloat16), &model(), &machine(4), 1).is_ok());
    let old = Machine {
        bfloat16: false,
        ..machine(4)
    };
    assert!(refusal(&bfloat16, &old, 1).contains("weights 4.00 GiB"));
}

#[test]
fn the_fitting_number_of_tokens_does_fit() {
    let refused = refusal(&["--max-batch-total-tokens", "1000000"], &machine(8), 2);
    let fitting = refused.rsplit(' ').next().unwrap();
    assert!(
        sizes(
            &cli(&["--max-batch-total-tokens", fitting]),
            &model(),
            &machine(8),
            2
        )
        .is_ok()
    );
}

#[test]
fn shards_must_fit_the_heads() {
    for ranks in [1, 2, 4, 8] {
        assert!(
            sizes(&cli(&[]), &model(), &machine(64), ranks).is_ok(),
            "{ranks}"
        );
    }
    let text = refusal(&[], &machine(64), 3);
    assert!(
        text.contains("8 query heads") && text.contains("possible are 1, 2, 4, 8"),
        "{text}"
    );
    let six = Checkpoint {
        num_heads: 6,
        num_kv_heads: 2,
        ..model()
    };
    assert!(
        sizes(&cli(&[]), &six, &machine(64), 3).is_err(),
        "3 ranks over 2 KV heads"
    );
}

#[test]
fn contradictions_name_their_flags() {
    let roomy = machine(64);
    for (flags, words) in [
        (
            vec!["--max-input-tokens", "9", "--max-total-tokens", "9"],
            "--max-input-tokens 9 must be below --max-total-tokens 9",
        ),
        (
            vec!["--max-input-tokens", "2048"],
            "below the model's positions, 2048",
        ),
        (
            vec!["--max-total-tokens", "4096"],
            "between 2 and the model's 2048 positions",
        ),
        (
            vec![
                "--max-total-tokens",
                "100",
                "--max-batch-total-tokens",
                "99",
            ],
            "must be at least --max-total-tokens 100",
        ),
        (
            vec!["--max-input-tokens", "0"],
            "--max-input-tokens must be at least 1",
        ),
    ] {
        let text = refusal(&flags, &roomy, 1);
        assert!(text.contains(words), "{words} is not in: {text}");
    }
}

/// The largest values that flags and config.json may have.
#[test]
fn nothing_overflows() {
    let largest = u64::from(i32::MAX.unsigned_abs());
    let huge = Checkpoint {
        num_layers: largest,
        head_dim: largest,
        vocab_size: largest,
        max_positions: largest,
        ..model()
    };
    let flags = [
        "--max-concurrent-requests",
        "1000000",
        "--max-batch-size",
        "65536",
        "--max-batch-prefill-tokens",
        "1000000000",
        "--max-batch-total-tokens",
        "1000000000000",
    ];
    let mut machine = machine(64);
    assert!(sizes(&cli(&flags), &huge, &machine, 1).is_err());
    assert!(sizes(&cli(&flags[..2]), &huge, &machine, 1).is_err());
    machine.cuda = true;
    let sizes = sizes(&cli(&flags), &huge, &machine, 1).unwrap();
    assert_eq!((sizes.max_rows, sizes.num_penalty_lanes), (65_536, 8));
}
