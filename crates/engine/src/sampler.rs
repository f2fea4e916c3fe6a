//! Choosing the next token from logits.
//!
//! The order is that of Hugging Face transformers: penalties, temperature, top-k, top-p, min-p. The
//! random number of a choice is a function of seed and position alone, so that the same tokens come out
//! whatever else the engine does.

use std::cmp::Ordering;

use checkpoint::GenerationConfig;
use compute::best;

use crate::error::Error;

/// How tokens are chosen. The default takes the best token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; zero takes the best token.
    pub temperature: f32,
    /// Keep the best so many tokens; zero keeps all.
    pub top_k: usize,
    /// Keep the smallest set of best tokens that has this probability.
    pub top_p: f32,
    /// Keep tokens that have at least this share of the best token's probability.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already in the context; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token generated before; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token as often as it was generated before; 0 is off.
    pub frequency_penalty: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// What the model's authors recommend, with transformers' defaults where they say nothing.
    pub fn from_generation_config(config: &GenerationConfig) -> Self {
        let off = Self::default();
        let temperature = match config.do_sample {
            Some(true) => config.temperature.unwrap_or(1.0),
            Some(false) | None => 0.0,
        };
        Self {
            temperature,
            top_k: config.top_k.unwrap_or(off.top_k),
            top_p: config.top_p.unwrap_or(off.top_p),
            min_p: config.min_p.unwrap_or(off.min_p),
            repetition_penalty: config.repetition_penalty.unwrap_or(off.repetition_penalty),
            ..off
        }
    }

    fn is_penalised(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Refuses values that have no meaning.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |field, value: f32, ok: bool, expected| {
            if ok && value.is_finite() {
                Ok(())
            } else {
                Err(Error::Sampling { field, value, expected })
            }
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        check("temperature", temperature, temperature >= 0.0, "a number from 0")?;
        check("top_p", top_p, top_p > 0.0 && top_p <= 1.0, "a number above 0 and up to 1")?;
        check("min_p", min_p, (0.0..=1.0).contains(&min_p), "a number from 0 to 1")?;
        check(
            "repetition_penalty",
            repetition_penalty,
            repetition_penalty > 0.0,
            "a number above 0",
        )?;
        check("presence_penalty", self.presence_penalty, true, "a number")?;
        check("frequency_penalty", self.frequency_penalty, true, "a number")
    }
}

/// A token with the logarithm of its probability under the model, before penalties and temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Chooses tokens; keeps its working memory between calls.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Ids from here on are padding of the vocabulary and are never chosen.
    n_tokens: usize,
    logits: Vec<f32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler over the first `n_tokens` ids of the vocabulary.
    pub fn new(sampling: Sampling, n_tokens: usize) -> Self {
        Self { sampling, n_tokens, logits: Vec::new(), candidates: Vec::new() }
    }

    /// How many tokens there are to choose from, if the choice is the best of them and nothing else.
    pub fn best_of(&self) -> Option<usize> {
        let is_plain = self.sampling.temperature == 0.0 && !self.sampling.is_penalised();
        is_plain.then_some(self.n_tokens)
    }

    /// Chooses the token at `position`. `context` holds all tokens before it, of which those from
    /// `generated_from` on were generated.
    pub fn choose(
        &mut self,
        logits: &[f32],
        context: &[u32],
        generated_from: usize,
        position: usize,
    ) -> u32 {
        let logits = &logits[..self.n_tokens.min(logits.len())];
        if self.best_of().is_some() {
            return best(logits);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        if self.sampling.is_penalised() {
            self.penalise(context, generated_from);
        }
        if self.sampling.temperature == 0.0 {
            return best(&self.logits);
        }
        self.draw(uniform(self.sampling.seed, position as u64))
    }

    /// Applies each penalty once a distinct token, or once an occurrence for the frequency penalty.
    fn penalise(&mut self, context: &[u32], generated_from: usize) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        let mut seen = context.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            if let Some(logit) = self.logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / repetition_penalty
                } else {
                    *logit * repetition_penalty
                };
            }
        }
        let mut generated = context[generated_from.min(context.len())..].to_vec();
        generated.sort_unstable();
        for run in generated.chunk_by(|a, b| a == b) {
            if let Some(logit) = self.logits.get_mut(run[0] as usize) {
                *logit -= presence_penalty + frequency_penalty * run.len() as f32;
            }
        }
    }

    /// Draws from the candidates that the filters leave, by `uniform` in [0, 1).
    fn draw(&mut self, uniform: f64) -> u32 {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(self.logits.iter().copied().zip(0..));
        // Falling logit, rising id: a total order, so that the choice never depends on the sort.
        let order = |a: &(f32, u32), b: &(f32, u32)| -> Ordering {
            b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
        };
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
        }
        candidates.sort_unstable_by(order);

        // Probabilities relative to the best token, in place of the logits.
        let best = candidates[0].0;
        for (value, _) in candidates.iter_mut() {
            *value = ((*value - best) / temperature).exp();
        }
        if top_p < 1.0 {
            let total: f64 = candidates.iter().map(|&(value, _)| f64::from(value)).sum();
            let mut before = 0.0;
            let kept = candidates.iter().take_while(|&&(value, _)| {
                let keep = before < f64::from(top_p) * total;
                before += f64::from(value);
                keep
            });
            let kept = kept.count();
            candidates.truncate(kept.max(1));
        }
        if min_p > 0.0 {
            let kept = candidates.partition_point(|&(value, _)| value >= min_p);
            candidates.truncate(kept.max(1));
        }

        let total: f64 = candidates.iter().map(|&(value, _)| f64::from(value)).sum();
        let mut left = uniform * total;
        // Should rounding leave a rest, the last token that is possible at all is taken.
        let mut last = candidates[0].1;
        for &(value, token) in candidates.iter().take_while(|&&(value, _)| value > 0.0) {
            left -= f64::from(value);
            last = token;
            if left < 0.0 {
                break;
            }
        }
        last
    }
}

/// The logarithm of a token's probability, and the `n` most probable tokens with theirs.
pub fn logprobs(logits: &[f32], token: u32, n: usize) -> (f32, Vec<TokenLogprob>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let log_sum = f64::from(max) + sum.ln();
    let logprob = |token: u32| (f64::from(logits[token as usize]) - log_sum) as f32;
    let mut top: Vec<u32> = (0..logits.len() as u32).collect();
    let order =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let n = n.min(top.len());
    if n > 0 && n < top.len() {
        top.select_nth_unstable_by(n - 1, order);
    }
    top.truncate(n);
    top.sort_unstable_by(order);
    let top = top.into_iter().map(|token| TokenLogprob { token, logprob: logprob(token) });
    (logprob(token), top.collect())
}

/// A number in [0, 1) that depends on seed and counter alone: two rounds of the SplitMix64 finaliser
/// (Steele, Lea, Flood 2014) over both.
fn uniform(seed: u64, counter: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let golden = 0x9e37_79b9_7f4a_7c15_u64;
    let key = mix(seed.wrapping_add(golden));
    let bits = mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(golden)));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(sampling: Sampling, logits: &[f32], draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut sampler = Sampler::new(sampling, logits.len());
        for position in 0..draws {
            counts[sampler.choose(logits, &[], 0, position) as usize] += 1;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_best_and_of_equals_the_first() {
        let mut sampler = Sampler::new(Sampling::default(), 4);
        assert_eq!(sampler.choose(&[0.0, 2.0, 2.0, 1.0], &[], 0, 0), 1);
    }

    #[test]
    fn padding_ids_are_never_chosen() {
        let mut sampler = Sampler::new(Sampling::default(), 2);
        assert_eq!(sampler.choose(&[0.0, 1.0, 9.0], &[], 0, 0), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let sampling = Sampling { temperature: 2.0, ..Sampling::default() };
        let counts = sample(sampling, &[0.0, 2.0 * 3.0_f32.ln()], 40_000);
        // Expected shares 1/4 and 3/4; four standard deviations are 346 draws.
        assert!((counts[1] as i64 - 30_000).abs() < 346, "{counts:?}");
    }

    #[test]
    fn filters_keep_what_they_promise() {
        let logits: Vec<f32> = [0.5_f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let kept =
            |sampling| sample(sampling, &logits, 2_000).iter().filter(|&&count| count > 0).count();
        assert_eq!(kept(base.clone()), 4);
        assert_eq!(kept(Sampling { top_k: 3, ..base.clone() }), 3);
        assert_eq!(kept(Sampling { top_p: 0.7, ..base.clone() }), 2);
        assert_eq!(kept(Sampling { top_p: 0.01, ..base.clone() }), 1);
        assert_eq!(kept(Sampling { min_p: 0.25, ..base.clone() }), 3);
        assert_eq!(kept(Sampling { min_p: 1.0, ..base }), 1);
    }

    #[test]
    fn penalties_change_the_choice() {
        let logits = [3.0, 2.9, -1.0];
        let choose = |sampling: Sampling, context: &[u32], generated_from| {
            Sampler::new(sampling, 3).choose(&logits, context, generated_from, 0)
        };
        let off = Sampling::default();
        assert_eq!(choose(off.clone(), &[0], 0), 0);
        assert_eq!(choose(Sampling { repetition_penalty: 1.1, ..off.clone() }, &[0], 1), 1);
        assert_eq!(choose(Sampling { presence_penalty: 0.2, ..off.clone() }, &[0], 0), 1);
        let prompt_only = Sampling { presence_penalty: 0.2, ..off.clone() };
        assert_eq!(choose(prompt_only, &[0], 1), 0, "the prompt is not penalised");
        let frequency = Sampling { frequency_penalty: 0.06, ..off };
        assert_eq!(choose(frequency.clone(), &[0], 0), 0);
        assert_eq!(choose(frequency, &[0, 0], 0), 1);
    }

    #[test]
    fn the_choice_is_a_function_of_seed_and_position() {
        let logits = [0.0; 16];
        let run = |seed| {
            let mut sampler =
                Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }, 16);
            (0..32).map(|position| sampler.choose(&logits, &[], 0, position)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn logprobs_are_normalised_and_ranked() {
        let (chosen, top) = logprobs(&[0.0, 1.0, 2.0], 0, 2);
        let sum: f64 = [0.0_f64, 1.0, 2.0].iter().map(|logit| logit.exp()).sum();
        assert!((f64::from(chosen) + sum.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|entry| entry.token).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let bad = Sampling { top_p: 0.0, ..Sampling::default() };
        let message = bad.validate().expect_err("top_p 0 keeps nothing").to_string();
        assert!(message.contains("top_p"), "{message}");
        let nan = Sampling { temperature: f32::NAN, ..Sampling::default() };
        assert!(nan.validate().is_err());
    }
}
