//! A bound on how long a model thinks: when it is reached, thinking ends as the model itself ends it.

use engine::{Constraint, ConstraintError};
use tokenizer::Tokenizer;

/// Ends thinking after so many tokens, and leaves all else to the constraint within.
pub(crate) struct ThinkingBudget {
    left: usize,
    marks: Marks,
    is_thinking: bool,
    inner: Option<Box<dyn Constraint>>,
}

/// How a model writes thoughts.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    /// The token that begins them.
    begin: u32,
    /// The token that ends them.
    end: u32,
    /// What is said to end them, that token included.
    ending: Vec<u32>,
}

impl Marks {
    /// The marks of a model that has them.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let ending = tokenizer.encode_trusted("\n</think>").ok()?;
        let (begin, end) = (tokenizer.token_id("<think>")?, tokenizer.token_id("</think>")?);
        ending.contains(&end).then_some(Self { begin, end, ending })
    }

    /// Whether a prompt ends within a thought.
    fn is_open(&self, prompt: &[u32]) -> bool {
        let last = prompt.iter().rev().find(|&&token| token == self.begin || token == self.end);
        last == Some(&self.begin)
    }
}

impl ThinkingBudget {
    pub(crate) fn new(
        budget: usize,
        marks: Marks,
        prompt: &[u32],
        inner: Option<Box<dyn Constraint>>,
    ) -> Self {
        Self { left: budget, is_thinking: marks.is_open(prompt), marks, inner }
    }
}

impl Constraint for ThinkingBudget {
    fn forced(&mut self, out: &mut Vec<u32>) -> Result<(), ConstraintError> {
        if self.is_thinking && self.left == 0 {
            self.is_thinking = false;
            for &token in &self.marks.ending {
                if let Some(inner) = &mut self.inner {
                    inner.commit(token)?;
                }
                out.push(token);
            }
        }
        match &mut self.inner {
            Some(inner) => inner.forced(out),
            None => Ok(()),
        }
    }

    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        match &mut self.inner {
            Some(inner) => inner.mask(logits),
            None => Ok(()),
        }
    }

    fn accept(
        &mut self,
        token: u32,
        room: usize,
        logits: &mut [f32],
    ) -> Result<bool, ConstraintError> {
        match &mut self.inner {
            Some(inner) => inner.accept(token, room, logits),
            None => Ok(true),
        }
    }

    fn commit(&mut self, token: u32) -> Result<(), ConstraintError> {
        if token == self.marks.end {
            self.is_thinking = false;
        } else if self.is_thinking {
            self.left = self.left.saturating_sub(1);
        } else if token == self.marks.begin {
            self.is_thinking = true;
        }
        match &mut self.inner {
            Some(inner) => inner.commit(token),
            None => Ok(()),
        }
    }

    fn is_finished(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_finished())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forced(budget: &mut ThinkingBudget) -> Vec<u32> {
        let mut out = Vec::new();
        budget.forced(&mut out).expect("nothing is within that fails");
        out
    }

    fn marks() -> Marks {
        Marks { begin: 8, end: 9, ending: vec![1, 9] }
    }

    #[test]
    fn thinking_ends_when_nothing_is_left_and_only_once() {
        let mut budget = ThinkingBudget::new(2, marks(), &[3, 8, 9, 8, 1], None);
        for token in [5, 6] {
            assert!(forced(&mut budget).is_empty());
            budget.commit(token).expect("nothing is within that fails");
        }
        assert_eq!(forced(&mut budget), [1, 9]);
        assert!(forced(&mut budget).is_empty());
    }

    #[test]
    fn a_model_that_ends_by_itself_is_left_alone() {
        let mut budget = ThinkingBudget::new(2, marks(), &[8], None);
        for token in [5, 9, 6, 7] {
            budget.commit(token).expect("nothing is within that fails");
            assert!(forced(&mut budget).is_empty());
        }
    }

    #[test]
    fn what_is_no_thought_is_not_counted() {
        let mut budget = ThinkingBudget::new(1, marks(), &[8, 9, 2], None);
        for token in [5, 6, 7, 8] {
            budget.commit(token).expect("nothing is within that fails");
            assert!(forced(&mut budget).is_empty());
        }
        budget.commit(5).expect("nothing is within that fails");
        assert_eq!(forced(&mut budget), [1, 9]);
    }
}
