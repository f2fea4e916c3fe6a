//! In which tokens the model said what clients send back. A model may say a text in other tokens than an
//! encoder makes of it; with the same tokens, what was computed for them is used again.
//!
//! They are kept in this process alone, for each client apart, and are lost when it ends: a reply that is not
//! known is encoded like any text.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};

use chat::Message;

use crate::engine_thread::Client;

/// Tokens that are kept, four bytes each.
const MAX_TOKENS: usize = 1 << 20;

/// The last replies.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<Replies>);

#[derive(Debug, Default)]
struct Replies {
    tokens: HashMap<u64, Vec<u32>>,
    /// The oldest first.
    order: VecDeque<u64>,
    n_tokens: usize,
}

impl Said {
    /// Keeps a reply to a client, by the name of its first call or else by its text. A prompt is made of these tokens only
    /// where it has their very text, so that a reply of the same name does no harm.
    pub(crate) fn keep(&self, client: Client, call: Option<&str>, text: &str, tokens: Vec<u32>) {
        let Some(key) = key(client, call, text).filter(|_| tokens.len() <= MAX_TOKENS) else {
            return;
        };
        let mut replies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let replies = &mut *replies;
        replies.n_tokens += tokens.len();
        match replies.tokens.insert(key, tokens) {
            Some(before) => replies.n_tokens -= before.len(),
            None => replies.order.push_back(key),
        }
        while replies.n_tokens > MAX_TOKENS {
            let Some(oldest) = replies.order.pop_front() else { break };
            let gone = replies.tokens.remove(&oldest);
            replies.n_tokens -= gone.map_or(0, |gone| gone.len());
        }
    }

    /// The tokens of the replies in a client's conversation that are known.
    pub(crate) fn of(&self, client: Client, messages: &[Message]) -> Vec<Vec<u32>> {
        let replies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = messages.iter().filter(|message| message.role == "assistant");
        let known = known.filter_map(|message| {
            let call = message.other.get("tool_calls").and_then(|calls| calls[0]["id"].as_str());
            let text = message.content.as_str().unwrap_or_default();
            replies.tokens.get(&key(client, call, text)?).cloned()
        });
        known.collect()
    }
}

fn key(client: Client, call: Option<&str>, text: &str) -> Option<u64> {
    let call = call.filter(|call| !call.is_empty());
    let mut hasher = DefaultHasher::new();
    (client, call.is_some(), call.unwrap_or(text.trim())).hash(&mut hasher);
    (call.is_some() || !text.trim().is_empty()).then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn client(key: usize) -> Client {
        Client { key, address: [127, 0, 0, 1].into() }
    }

    fn reply(text: &str, call: Option<&str>) -> Message {
        let mut message = Message::new("assistant", text);
        if let Some(call) = call {
            message.other.insert("tool_calls".to_owned(), json!([{ "id": call }]));
        }
        message
    }

    #[test]
    fn replies_are_known_by_their_call_or_their_text() {
        let said = Said::default();
        said.keep(client(0), None, "Hello.\n", vec![1, 2]);
        said.keep(client(0), Some("call_a"), "", vec![3]);
        said.keep(client(0), None, " ", vec![4]);
        let messages = [
            Message::user("Hello."),
            reply("Hello.", None),
            reply("other", None),
            reply("", Some("call_a")),
            reply("", Some("call_b")),
            reply("", None),
        ];
        assert_eq!(said.of(client(0), &messages), [vec![1, 2], vec![3]]);
        assert_eq!(said.of(client(1), &messages), [[0_u32; 0]; 0], "they are another's");
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let said = Said::default();
        let half = MAX_TOKENS / 2;
        for (text, token) in [("a", 1), ("b", 2), ("a", 3), ("c", 4)] {
            said.keep(client(0), None, text, vec![token; half]);
        }
        let known = |text| said.of(client(0), &[reply(text, None)]).first().map(|tokens| tokens[0]);
        assert_eq!(["a", "b", "c"].map(known), [None, Some(2), Some(4)]);
    }
}
