//! Text that the model itself writes: for calibration where no other is at hand.

use engine::{Engine, Part};

use crate::error::Error;

/// Texts that are written side by side.
pub(crate) const SESSIONS: usize = 16;
/// Longest text.
const MAX_TOKENS: usize = 384;

/// A text that is being written.
struct Writing {
    session: engine::Session,
    tokens: Vec<u32>,
    /// How many of them the model has read.
    seen: usize,
    /// Whose turn comes next, in a conversation.
    turn: Option<usize>,
}

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
    // Models are not taught to say whose turn it is, so that is said for them.
    let end_of_turn = tokenizer.token_id("<|im_end|>");
    let turns = [
        "\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "\n<|im_start|>user\n",
        "\n<|im_start|>assistant\n<think>\n",
        "\n<|im_start|>user\n",
    ];
    let turns: Vec<Vec<u32>> =
        turns.iter().filter_map(|turn| tokenizer.encode_trusted(turn).ok()).collect();
    if tokenizer.token_id("<|im_start|>").is_some() && end_of_turn.is_some() && turns.len() == 4 {
        let opening = tokenizer.encode_trusted("<|im_start|>user\n").unwrap_or_default();
        starts.extend([opening.clone(), opening]);
    }
    starts.push(vec![ends.first().copied().unwrap_or(0)]);

    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut documents = Vec::new();
    let (mut written, mut begun) = (0, 0);
    while written < n_tokens {
        let mut live: Vec<Writing> = Vec::new();
        for _ in 0..SESSIONS {
            let is_plain = begun % starts.len() == starts.len() - 1;
            let turn = if is_plain { None } else { Some(begun % 2 * 2) };
            let tokens = starts[begun % starts.len()].clone();
            live.push(Writing { session: engine.session()?, tokens, seen: 0, turn });
            begun += 1;
        }
        while !live.is_empty() {
            let mut parts: Vec<Part<'_>> = live
                .iter_mut()
                .map(|Writing { session, tokens, seen, .. }| {
                    let wants_logits = &|_| true;
                    let part = Part { session, tokens: &tokens[*seen..*seen + 1], wants_logits };
                    *seen += 1;
                    part
                })
                .collect();
            engine.forward(&mut parts)?;
            drop(parts);
            let logits = engine.logits().chunks_exact(engine.config().vocab_size);
            for (writing, logits) in live.iter_mut().zip(logits) {
                let Writing { tokens, seen, turn, .. } = writing;
                if *seen == tokens.len() {
                    let token = choose(logits, &mut random);
                    tokens.push(token);
                    written += 1;
                    if Some(token) == end_of_turn
                        && let Some(turn) = turn
                    {
                        tokens.extend_from_slice(&turns[*turn % turns.len()]);
                        *turn += 1;
                    }
                }
            }
            live.retain_mut(|Writing { tokens, seen, .. }| {
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
