//! What one forward pass computes: rows of one or many sequences.

use compute::Span;

/// Tokens of one or many sequences, and which of them need logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token of each row.
    pub tokens: Vec<u32>,
    /// The rows of each sequence; they cover all rows in order.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, in the order in which they come out.
    pub logit_rows: Vec<u32>,
    /// Where no more than the best token of those rows is wanted: how many there are to choose from.
    pub best_of: Option<usize>,
}

impl Batch {
    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.spans.clear();
        self.logit_rows.clear();
        self.best_of = None;
    }

    /// Adds the next tokens of a sequence that has seen `position` tokens. `wants_logits` tells for
    /// each of them whether its logits are wanted.
    pub fn push(&mut self, tokens: &[u32], position: usize, wants_logits: impl Fn(usize) -> bool) {
        let row = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.spans.push(Span { row, len: tokens.len(), position });
        let wanted = (0..tokens.len()).filter(|&index| wants_logits(index));
        self.logit_rows.extend(wanted.map(|index| (row + index) as u32));
    }
}
