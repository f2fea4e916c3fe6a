//! Numbers about the talk, for the line under a reply and for `/stats`.

use engine::format_bytes;

use crate::partner::{Cost, Reading};

/// What replies cost so far.
#[derive(Debug, Default)]
pub struct Numbers {
    last: Option<Cost>,
    turns: usize,
    prompt_tokens: usize,
    reused_tokens: usize,
    tokens: usize,
    /// Prompt tokens a second, of the last prompt that took time.
    prompt_speed: Option<f64>,
}

impl Numbers {
    /// Takes what a reply cost.
    pub fn add(&mut self, cost: Cost) {
        self.turns += 1;
        self.prompt_tokens += cost.prompt_tokens;
        self.reused_tokens += cost.reused_tokens;
        self.tokens += cost.tokens;
        let read = cost.prompt_tokens.saturating_sub(cost.reused_tokens);
        let seconds = cost.prompt_time.as_secs_f64();
        if read > 0 && seconds > 0.0 {
            self.prompt_speed = Some(read as f64 / seconds);
        }
        self.last = Some(cost);
    }

    /// How reading a prompt goes.
    pub fn progress(&self, reading: &Reading, waited: f64) -> String {
        let Reading { done, total, reused, bytes_read, time } = *reading;
        if total == 0 {
            return format!("waiting for the server, {waited:.0} s");
        }
        let read = done - reused;
        let mut text = if read == 0 {
            format!("reading {} tokens", grouped(total - reused))
        } else {
            format!("reading {} of {} tokens", grouped(done), grouped(total))
        };
        let speed = match time.as_secs_f64() {
            seconds if read > 0 && seconds > 0.0 => Some(read as f64 / seconds),
            _ => self.prompt_speed,
        };
        // What matters most comes first: a narrow terminal shows no more.
        match speed {
            Some(speed) => {
                let left = (total - reused) as f64 / speed - waited;
                text += &format!(", {:.0} s left", left.max(1.0));
            }
            None => text += &format!(", {waited:.0} s"),
        }
        if bytes_read > 0 {
            text += &format!(", {:.0} MB", bytes_read as f64 / 1e6);
        }
        if reused > 0 {
            text += &format!(", {} known", grouped(reused));
        }
        text
    }

    /// The line under a reply.
    pub fn footer(cost: &Cost) -> String {
        let mut parts = Vec::new();
        parts.extend(cost.tokens_per_second().map(|speed| format!("{speed:.1} tokens/s")));
        parts.extend(cost.hit_rate.map(|rate| format!("{:.0} % hits", 100.0 * rate)));
        parts.extend(cost.bytes_per_token.map(|bytes| format!("{:.1} MB/token", bytes / 1e6)));
        let used = grouped(cost.context_tokens());
        parts.push(match cost.context {
            Some(context) => format!("{used} of {} tokens", grouped(context)),
            None => format!("{used} tokens"),
        });
        // A line ends between two numbers, not inside one.
        let parts: Vec<String> = parts.iter().map(|part| part.replace(' ', "\u{a0}")).collect();
        parts.join(" \u{b7} ")
    }

    /// All numbers, in lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "replies: {}, {} tokens said; {} prompt tokens, {} of them known before",
            self.turns,
            grouped(self.tokens),
            grouped(self.prompt_tokens),
            grouped(self.reused_tokens),
        )];
        let Some(cost) = &self.last else { return lines };
        let read = cost.prompt_tokens.saturating_sub(cost.reused_tokens);
        lines.push(format!(
            "last prompt: {} tokens, {} known, {} read in {:.2} s",
            grouped(cost.prompt_tokens),
            grouped(cost.reused_tokens),
            grouped(read),
            cost.prompt_time.as_secs_f64(),
        ));
        lines.push(format!("last reply: {}", Self::footer(cost).replace('\u{a0}', " ")));
        if let Some(bytes) = cost.bytes_per_token {
            let all = bytes * cost.tokens as f64;
            lines.push(format!("last reply read {} from the drive", format_bytes(all as u64)));
        }
        lines
    }
}

/// A number with its thousands set apart.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
