//! What constraints cost: `cargo run --release -p flash-moe-chat --example mask_cost -- DIRECTORY`, with a
//! directory that holds a checkpoint's tokenizer and chat template.

use std::path::Path;
use std::time::{Duration, Instant};

use chat::{ChatModel, ChatRequest, Message, ResponseFormat};
use serde_json::json;
use tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("which directory?")?;
    let directory = Path::new(&directory);
    let tokenizer = Tokenizer::open(directory)?;
    let model = ChatModel::open(directory, None, &tokenizer)?;
    println!("{} tokens", tokenizer.vocab_size());
    let tools = json!([{ "type": "function", "function": { "name": "search", "parameters": {
        "type": "object", "required": ["query", "limit"], "properties": {
            "query": { "type": "string" }, "limit": { "type": "integer", "minimum": 1, "maximum": 100 },
            "filters": { "type": "array", "items": { "type": "object", "properties": {
                "field": { "type": "string" }, "value": { "type": ["string", "number"] },
            } } },
        },
    } } }]);
    let called = ChatRequest {
        messages: vec![Message::user("Search.")],
        tools: tools.as_array().cloned().unwrap_or_default(),
        enable_thinking: Some(false),
        ..ChatRequest::default()
    };
    let call = "I will look it up.<tool_call>\n<function=search>\n<parameter=query>\nhow large the mixture \
                of experts is, and why\nit is so\n</parameter>\n<parameter=limit>\n42\n</parameter>\n\
                <parameter=filters>\n[{\"field\": \"name of the field\", \"value\": 12.5}]\n</parameter>\n\
                </function>\n</tool_call>";
    // The same tool under fifty names: what an agent may offer.
    let renamed = |index: usize| {
        let mut tool = tools[0].clone();
        if index > 0 {
            tool["function"]["name"] = format!("search_{index}").into();
        }
        tool
    };
    let many = ChatRequest { tools: (0..50).map(renamed).collect(), ..called.clone() };
    let formed =
        ChatRequest { tools: Vec::new(), format: ResponseFormat::JsonObject, ..called.clone() };
    let object = "{\"title\": \"A longer text, as in an answer\", \"list\": [1, 2.5, true, null, {\"a\": \
                  \"\u{e9}\"}], \"end\": {}}";
    for (name, request, text) in [
        ("a call", &called, call),
        ("of 50 tools", &many, call),
        ("a JSON object", &formed, object),
    ] {
        for round in ["first", "second"] {
            let begin = Instant::now();
            let mut prompt = model.prompt(&tokenizer, request)?;
            let compiling = begin.elapsed();
            let constraint = prompt.constraint.as_mut().ok_or("there is a constraint")?;
            let mut times = say(&tokenizer, constraint.as_mut(), text)?;
            times.sort_unstable();
            let sum: Duration = times.iter().sum();
            println!(
                "{name}, {round} time: prompt and grammar {compiling:?}; {} choices, each {:?} on average, \
                 {:?} in the middle, {:?} at most",
                times.len(),
                sum / times.len().max(1) as u32,
                times[times.len() / 2],
                times[times.len() - 1],
            );
        }
    }
    Ok(())
}

/// Says a text; gives the time of each choice: forced tokens, mask, commit.
fn say(
    tokenizer: &Tokenizer,
    constraint: &mut dyn engine::Constraint,
    text: &str,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let (mut said, mut times) = (0, Vec::new());
    let mut logits = vec![0.0_f32; tokenizer.vocab_size()];
    loop {
        let begin = Instant::now();
        let mut forced = Vec::new();
        constraint.forced(&mut forced)?;
        said += forced.iter().map(|&token| tokenizer.token_bytes(token).len()).sum::<usize>();
        if said >= text.len() || constraint.is_finished() {
            return Ok(times);
        }
        let forcing = begin.elapsed();
        logits.fill(0.0);
        let begin = Instant::now();
        constraint.mask(&mut logits)?;
        let masking = begin.elapsed();
        let rest = &text[said..];
        let fits = |&token: &u32| {
            let bytes = tokenizer.token_bytes(token);
            logits[token as usize] == 0.0 && !bytes.is_empty() && rest.as_bytes().starts_with(bytes)
        };
        let canonical = tokenizer.encode(rest)?.first().copied();
        let other = || (0..logits.len() as u32).find(fits);
        let token = canonical.filter(fits).or_else(other);
        let token = token.ok_or_else(|| format!("nothing can be said at {rest:?}"))?;
        let begin = Instant::now();
        constraint.commit(token)?;
        times.push(forcing + masking + begin.elapsed());
        said += tokenizer.token_bytes(token).len();
    }
}
