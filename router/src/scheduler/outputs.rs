//! How long answers have been: what a request is expected to generate, instead of what it may.

/// Answers of a kind that are needed before anything is concluded from them.
const MIN_ANSWERS: u32 = 8;
/// Of the answers, as long as this share or shorter. Half outgrow their estimate, as many others do not reach theirs.
const QUANTILE: f64 = 0.5;
/// No estimate is lower.
const FLOOR: u32 = 64;
/// An answer counts half after about this many others.
const MEMORY: u32 = 512;
/// Every preemption brings estimates this much closer to the worst case ...
const CAUTION: f64 = 0.05;
/// ... and every answer that ends takes this share of the caution away.
const RELIEF: f64 = 0.05;

/// Lengths of answers, in classes by powers of two and quarters in between.
#[derive(Clone, Debug)]
struct Lengths {
    counts: [u32; 128],
    total: u32,
}

/// Statistics of answers, by the largest length that was allowed (in powers of two).
#[derive(Debug)]
pub(super) struct Outputs {
    by_limit: Vec<Lengths>,
    /// From 0, trust the statistics, to 1, expect the worst.
    caution: f64,
    /// Tokens that every answer is expected to have still.
    floor: u32,
}

impl Outputs {
    pub(super) fn new() -> Self {
        let none = Lengths {
            counts: [0; 128],
            total: 0,
        };
        Self {
            by_limit: vec![none; 32],
            caution: 0.0,
            floor: FLOOR,
        }
    }

    /// Expects next to nothing of small answers, so that everybody is admitted and somebody has to be stopped.
    #[cfg(test)]
    pub(super) fn reckless() -> Self {
        let mut outputs = Self::new();
        outputs.floor = 1;
        for max_new_tokens in [1, 2, 4, 8] {
            (0..MIN_ANSWERS).for_each(|_| outputs.ended(max_new_tokens, 1));
        }
        outputs
    }

    /// An answer has ended by itself.
    pub(super) fn ended(&mut self, max_new_tokens: u32, length: u32) {
        self.caution *= 1.0 - RELIEF;
        let lengths = &mut self.by_limit[max_new_tokens.max(1).ilog2() as usize];
        lengths.counts[class_of(length)] += 1;
        lengths.total += 1;
        if lengths.total >= 2 * MEMORY {
            for count in &mut lengths.counts {
                *count /= 2;
            }
            lengths.total = lengths.counts.iter().sum();
        }
    }

    /// Somebody had to be stopped, because answers were longer than expected.
    pub(super) fn preempted(&mut self) {
        self.caution = (self.caution + CAUTION).min(1.0);
    }

    /// How many tokens an answer will have that may have `max_new_tokens` and has `generated` already.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the result is between the two numbers that it mixes"
    )]
    pub(super) fn expect(&self, max_new_tokens: u32, generated: u32) -> u32 {
        let lengths = &self.by_limit[max_new_tokens.max(1).ilog2() as usize];
        let longer = generated.saturating_add(self.floor);
        let usual = lengths.quantile(generated).unwrap_or(max_new_tokens);
        let usual = usual.max(longer).min(max_new_tokens);
        let rest = f64::from(max_new_tokens - usual);
        usual + (rest * self.caution) as u32
    }
}

impl Lengths {
    /// Of the answers that were longer than `generated`.
    fn quantile(&self, generated: u32) -> Option<u32> {
        let first = if generated == 0 {
            0
        } else {
            class_of(generated)
        };
        let longer: u32 = self.counts[first..].iter().sum();
        if longer < MIN_ANSWERS {
            return None;
        }
        let mut below = f64::from(longer) * QUANTILE;
        for (class, &count) in self.counts.iter().enumerate().skip(first) {
            below -= f64::from(count);
            if below <= 0.0 {
                return Some(top_of(class));
            }
        }
        None
    }
}

/// Four classes to a power of two.
fn class_of(length: u32) -> usize {
    let length = length.max(1);
    let power = length.ilog2();
    let quarter = ((u64::from(length) * 4) >> power) & 3;
    power as usize * 4 + usize::try_from(quarter).unwrap_or(0)
}

/// The longest length of a class.
fn top_of(class: usize) -> u32 {
    let (power, quarter) = (class / 4, class as u64 % 4);
    let next = ((4 + quarter + 1) << power).div_ceil(4);
    u32::try_from(next - 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_in_a_class_that_ends_at_or_above_it() {
        for length in (1..5000).chain([1 << 20, (1 << 31) + 5, u32::MAX]) {
            let class = class_of(length);
            assert!(top_of(class) >= length, "{length} is in class {class}");
            assert!(
                class == 0 || top_of(class - 1) < length || top_of(class - 1) == top_of(class),
                "{length}"
            );
        }
    }

    #[test]
    fn nothing_is_concluded_from_few_answers() {
        let mut outputs = Outputs::new();
        for _ in 0..7 {
            outputs.ended(1000, 100);
        }
        assert_eq!(outputs.expect(1000, 0), 1000);
        outputs.ended(1000, 100);
        assert!((100..128).contains(&outputs.expect(1000, 0)));
        assert_eq!(outputs.expect(400, 0), 400, "another kind of request");
    }

    #[test]
    fn half_of_the_answers_fit_the_estimate() {
        let mut outputs = Outputs::new();
        for length in 0..1000 {
            outputs.ended(2000, length);
        }
        let usual = outputs.expect(2000, 0);
        assert!((480..640).contains(&usual), "{usual}");
        // Of those that have 900 tokens already few end soon, and some room is always left.
        assert!(outputs.expect(2000, 900) >= 964);
    }

    #[test]
    fn preemptions_make_it_careful_and_endings_make_it_bold_again() {
        let mut outputs = Outputs::new();
        for _ in 0..8 {
            outputs.ended(4096, 64);
        }
        let bold = outputs.expect(4096, 0);
        (0..20).for_each(|_| outputs.preempted());
        assert_eq!(outputs.expect(4096, 0), 4096);
        (0..200).for_each(|_| outputs.ended(4096, 64));
        assert_eq!(outputs.expect(4096, 0), bold);
    }
}
