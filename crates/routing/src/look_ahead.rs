//! How often a guess at a layer's experts comes true.

/// Classes of margins, of half a power of two each, as the engine's look-ahead sorts them.
pub const CLASSES: usize = 8;

/// What guesses of one kind came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accuracy {
    /// Of each layer: guesses that came true, and all that were made; as many as a token has experts.
    pub layers: Vec<Count>,
    /// The same by margin: how much larger the weight of a guessed expert is than that of the last one.
    pub classes: [Count; CLASSES],
    /// How many of the experts that were used had that rank in the guess's order.
    pub ranks: Vec<u64>,
}

/// Guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that came true.
    pub right: u64,
    /// All.
    pub all: u64,
}

impl Count {
    /// The share that came true; `None` if there was none.
    pub fn share(self) -> Option<f64> {
        (self.all > 0).then(|| self.right as f64 / self.all as f64)
    }
}

/// An expert that is guessed, with the class of its margin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guess {
    /// The expert.
    pub expert: u32,
    /// The class: `n` for weights from `2^(n/2)` times that of the last guessed expert on.
    pub class: u8,
}

impl Accuracy {
    /// No guess yet, of so many layers.
    pub fn new(n_layers: usize) -> Self {
        Self { layers: vec![Count::default(); n_layers], ..Self::default() }
    }

    /// Counts a guess by logits at the experts of a token.
    pub fn add(&mut self, layer: usize, logits: &[f32], chosen: &[u32]) -> Vec<Guess> {
        self.ranks.resize(self.ranks.len().max(logits.len()), 0);
        for &expert in chosen {
            self.ranks[rank(logits, expert)] += 1;
        }
        let guesses = guess(logits, chosen.len());
        for guess in &guesses {
            let is_right = u64::from(chosen.contains(&guess.expert));
            for count in [&mut self.layers[layer], &mut self.classes[guess.class as usize]] {
                count.all += 1;
                count.right += is_right;
            }
        }
        guesses
    }

    /// Adds what was counted elsewhere, for the same layers.
    pub fn merge(&mut self, other: &Self) {
        let add = |sum: &mut Count, count: &Count| {
            sum.right += count.right;
            sum.all += count.all;
        };
        self.layers.iter_mut().zip(&other.layers).for_each(|(sum, count)| add(sum, count));
        self.classes.iter_mut().zip(&other.classes).for_each(|(sum, count)| add(sum, count));
        self.ranks.resize(self.ranks.len().max(other.ranks.len()), 0);
        self.ranks.iter_mut().zip(&other.ranks).for_each(|(sum, count)| *sum += count);
    }

    /// All layers together.
    pub fn total(&self) -> Count {
        self.layers.iter().fold(Count::default(), |sum, count| Count {
            right: sum.right + count.right,
            all: sum.all + count.all,
        })
    }

    /// The share of the used experts that are among the best `n` of the guess.
    pub fn found_among(&self, n: usize) -> f64 {
        let all: u64 = self.ranks.iter().sum();
        let found: u64 = self.ranks.iter().take(n).sum();
        found as f64 / all.max(1) as f64
    }
}

/// Experts with a larger logit, or an equal one and a lower number.
fn rank(logits: &[f32], expert: u32) -> usize {
    let own = logits[expert as usize];
    let before =
        |(index, &logit): (usize, &f32)| logit > own || (logit == own && index < expert as usize);
    logits.iter().enumerate().filter(|&pair| before(pair)).count()
}

/// The best experts in order, of equals the lower number first.
fn guess(logits: &[f32], top_k: usize) -> Vec<Guess> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    order.truncate(top_k);
    let last = order.last().map_or(0.0, |&expert| logits[expert as usize]);
    let class = |expert: u32| {
        let margin = f64::from(logits[expert as usize] - last) * std::f64::consts::LOG2_E;
        ((2.0 * margin) as usize).min(CLASSES - 1) as u8
    };
    order.iter().map(|&expert| Guess { expert, class: class(expert) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_counted_by_layer_margin_and_rank() {
        let mut accuracy = Accuracy::new(2);
        // Best: 2 (weight 5 times that of the last), then 0; used: 2 and 3.
        let guesses = accuracy.add(1, &[1.0, 0.5, 1.0 + 5_f32.ln(), 1.0], &[2, 3]);
        assert_eq!(guesses, [Guess { expert: 2, class: 4 }, Guess { expert: 0, class: 0 }]);
        assert_eq!(accuracy.layers, [Count { right: 0, all: 0 }, Count { right: 1, all: 2 }]);
        assert_eq!(accuracy.classes[4], Count { right: 1, all: 1 });
        assert_eq!(accuracy.classes[0], Count { right: 0, all: 1 });
        assert_eq!(accuracy.ranks, [1, 0, 1, 0]);
        assert_eq!([1, 2, 3].map(|n| accuracy.found_among(n)), [0.5, 0.5, 1.0]);
        assert_eq!(accuracy.total().share(), Some(0.5));
        assert_eq!(Count::default().share(), None);
    }
}
