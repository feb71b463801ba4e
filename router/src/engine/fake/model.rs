//! The integer model: its keys and values are a token's id and position, its attention an order-sensitive hash over what
//! the block table leads to, its logits a function of that hash. So a wrong block, position or order shows as a wrong
//! token, exactly.

const P: u64 = (1 << 31) - 1;

/// What one position of the KV cache holds: token id and position, or a NaN.
pub type Slot = Option<(u32, u32)>;

/// The model's shape, and its weights as far as they were needed.
#[derive(Clone, Debug)]
pub struct IntegerModel {
    vocab_size: u32,
    /// `B_i^(p+1)` of every layer and head, for the next position without a weight.
    powers: Vec<u64>,
    bases: Vec<u64>,
    /// Sum of `W_i(p)` over layers and heads: all of them store the same.
    weights: Vec<u64>,
}

impl IntegerModel {
    pub fn new(vocab_size: u32, num_layers: u32, num_kv_heads: u32) -> Self {
        let bases: Vec<u64> = (0..u64::from(num_layers) * u64::from(num_kv_heads))
            .map(|index| (1_000_003 + 7919 * index) % P)
            .collect();
        Self {
            vocab_size,
            powers: bases.clone(),
            bases,
            weights: Vec::new(),
        }
    }

    pub fn vocab_size(&self) -> u32 {
        self.vocab_size
    }

    /// The token that stores a NaN.
    pub fn nan_token(&self) -> u32 {
        self.vocab_size - 1
    }

    /// What the cache keeps of a token.
    pub fn store(&self, token: u32, position: u32) -> Slot {
        (token != self.nan_token()).then_some((token, position))
    }

    /// The most likely token after these; `None` if one of them is a NaN.
    pub fn next_token(&mut self, slots: impl Iterator<Item = Slot>) -> Option<u32> {
        let mut sum = 0;
        for (index, slot) in slots.enumerate() {
            let (token, position) = slot?;
            sum = (sum + mix(token, position) * self.weight(index)) % P;
        }
        let next = sum % u64::from(self.vocab_size - 1);
        Some(u32::try_from(next).expect("it is below the vocabulary's size"))
    }

    /// How far a token is from the most likely one: its logit is minus this.
    pub fn distance(&self, next: u32, token: u32) -> u32 {
        (token + self.vocab_size - next) % self.vocab_size
    }

    /// Of the raw logits.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a log-probability travels as f32"
    )]
    pub fn logprob(&self, next: u32, token: u32) -> f32 {
        // The terms past 40 are below one part in 10^17.
        let partition: f64 = (0..self.vocab_size.min(40))
            .map(|distance| (-f64::from(distance)).exp())
            .sum();
        (-f64::from(self.distance(next, token)) - partition.ln()) as f32
    }

    /// The first `count` tokens after a prompt: the function that every engine must reproduce.
    pub fn generate(&mut self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut ids = prompt.to_vec();
        while ids.len() < prompt.len() + count {
            let slots: Vec<Slot> = ids
                .iter()
                .zip(0..)
                .map(|(&id, position)| self.store(id, position))
                .collect();
            let Some(next) = self.next_token(slots.into_iter()) else {
                break;
            };
            ids.push(next);
        }
        ids.split_off(prompt.len())
    }

    fn weight(&mut self, index: usize) -> u64 {
        while self.weights.len() <= index {
            self.weights.push(self.powers.iter().sum::<u64>() % P);
            for (power, base) in self.powers.iter_mut().zip(&self.bases) {
                *power = *power * base % P;
            }
        }
        self.weights[index]
    }
}

fn mix(token: u32, position: u32) -> u64 {
    (u64::from(token) * 48271 + u64::from(position) * 69621 + 12345) % P
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_layers_heads_and_positions() {
        // Written out for two layers of one head and the tokens 7, 9.
        let (first, second) = (1_000_003u64, 1_007_922u64);
        let expected = [(7, 0), (9, 1)]
            .into_iter()
            .map(|(token, position)| {
                let power = position + 1;
                let weights = first.pow(power) % P + second.pow(power) % P;
                mix(token, position) * (weights % P) % P
            })
            .sum::<u64>()
            % P
            % 99;
        let mut model = IntegerModel::new(100, 2, 1);
        assert_eq!(u64::from(model.generate(&[7, 9], 1)[0]), expected);
    }

    #[test]
    fn order_matters_and_nan_spreads() {
        let mut model = IntegerModel::new(1000, 2, 2);
        assert_ne!(model.generate(&[1, 2, 3], 4), model.generate(&[2, 1, 3], 4));
        assert_eq!(model.generate(&[1, 999, 3], 4), [] as [u32; 0]);
    }

    #[test]
    fn probabilities_add_up() {
        let model = IntegerModel::new(50, 1, 1);
        let sum: f32 = (0..50).map(|token| model.logprob(7, token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(model.logprob(7, 7) > model.logprob(7, 8));
    }
}
