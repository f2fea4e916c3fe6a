//! Perplexity of a checkpoint on documents of labelled segments, source by source:
//! `cargo run -p flash-moe-quantize --example perplexity MODEL DIRECTORY [MAX_DOCUMENTS]`.
//!
//! Counted are the tokens of class 1 and the end of each document.

use std::error::Error;
use std::path::Path;

use engine::{Engine, EngineOptions};
use serde_json::Value;

const SOURCES: [&str; 6] = ["story", "tale", "answer", "skill", "mixed", "tool"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(directory)) = (args.next(), args.next()) else {
        return Err("give a model and a directory".into());
    };
    let most = args.next().map_or(Ok(usize::MAX), |most| most.parse())?;
    let options =
        EngineOptions { memory: Some(2 << 30), precise: true, ..EngineOptions::default() };
    let mut engine = Engine::open(Path::new(&model), &options)?;
    let mut logs = Vec::new();
    let mut line = String::new();
    for source in SOURCES {
        let path = Path::new(&directory).join(format!("{source}.jsonl"));
        let (mut sum, mut counted) = (0.0, 0);
        for document in std::fs::read_to_string(path)?.lines().take(most) {
            let document: Value = serde_json::from_str(document)?;
            let tokenizer = engine.tokenizer()?;
            let (mut tokens, mut counts) = (Vec::new(), Vec::new());
            for segment in document["segments"].as_array().ok_or("no segments")? {
                let ids = tokenizer.encode_trusted(segment[0].as_str().ok_or("no text")?)?;
                counts.extend(ids.iter().map(|_| segment[1] == 1));
                tokens.extend(ids);
            }
            tokens.push(tokenizer.token_id("<|endoftext|>").ok_or("no end")?);
            counts.push(true);
            let mut session = engine.session()?;
            let inputs = &tokens[..tokens.len() - 1];
            engine.evaluate(
                &mut session,
                inputs,
                |index| counts[index + 1],
                |index, logits| {
                    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let total: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
                    sum += f64::from(max - logits[tokens[index + 1] as usize]) + total.ln();
                    counted += 1;
                },
            )?;
        }
        let log = sum / f64::from(counted);
        line += &format!("{source} {:.4}  ", log.exp());
        logs.push(log);
    }
    // As in the model's own evaluation: the mean over sources of their perplexities, and also of their logarithms.
    let mean = logs.iter().map(|log| log.exp()).sum::<f64>() / logs.len() as f64;
    let geometric = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
    println!("{line} mean {mean:.4} (geometric {geometric:.4})");
    Ok(())
}
