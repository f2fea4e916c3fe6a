//! Text that the model itself writes: for calibration where no other is at hand.

use engine::{Engine, Part};

use crate::error::Error;

/// Texts that are written side by side.
pub(crate) const SESSIONS: usize = 16;
/// Longest text.
const MAX_TOKENS: usize = 384;

/// Samples about so many tokens of text at temperature 1, always the same; `progress` hears how many there
/// are. Texts begin as conversations and as plain text do and end where the model ends them.
pub(crate) fn sample_documents(
    engine: &mut Engine,
    n_tokens: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, Error> {
    let tokenizer = engine.tokenizer()?;
    let end = tokenizer.token_id("<|endoftext|>");
    let ends: Vec<u32> = end.map_or_else(|| engine.stop_tokens().to_vec(), |end| vec![end]);
    let mut starts: Vec<Vec<u32>> = Vec::new();
    if tokenizer.token_id("<|im_start|>").is_some() {
        for opening in ["<|im_start|>user\n", "<|im_start|>user\n", "<|im_start|>system\n"] {
            starts.extend(tokenizer.encode_trusted(opening).ok());
        }
    }
    starts.push(vec![ends.first().copied().unwrap_or(0)]);

    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut documents = Vec::new();
    let (mut written, mut begun) = (0, 0);
    while written < n_tokens {
        let mut live: Vec<(engine::Session, Vec<u32>, usize)> = Vec::new();
        for _ in 0..SESSIONS {
            live.push((engine.session()?, starts[begun % starts.len()].clone(), 0));
            begun += 1;
        }
        while !live.is_empty() {
            let mut parts: Vec<Part<'_>> = live
                .iter_mut()
                .map(|(session, tokens, seen)| {
                    let wants_logits = &|_| true;
                    let part = Part { session, tokens: &tokens[*seen..*seen + 1], wants_logits };
                    *seen += 1;
                    part
                })
                .collect();
            engine.forward(&mut parts)?;
            drop(parts);
            let logits = engine.logits().chunks_exact(engine.config().vocab_size);
            for ((_, tokens, seen), logits) in live.iter_mut().zip(logits) {
                if *seen == tokens.len() {
                    tokens.push(choose(logits, &mut random));
                    written += 1;
                }
            }
            live.retain_mut(|(_, tokens, seen)| {
                let last = tokens[tokens.len() - 1];
                let ended = *seen + 1 == tokens.len() && *seen > 0 && ends.contains(&last);
                let ended = ended || tokens.len() >= MAX_TOKENS;
                if ended {
                    documents.push(std::mem::take(tokens));
                }
                !ended
            });
            progress(written);
        }
    }
    Ok(documents)
}

/// A token by its probability.
fn choose(logits: &[f32], random: &mut u64) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    let mut left = (linear::next_random(random) >> 11) as f64 / (1_u64 << 53) as f64 * total;
    for (token, &logit) in logits.iter().enumerate() {
        left -= f64::from(logit - max).exp();
        if left <= 0.0 {
            return token as u32;
        }
    }
    engine::best(logits)
}
