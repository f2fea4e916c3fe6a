//! What a generation may say next, as far as somebody else decides it: the engine's side of grammars.

/// Says which tokens may come next. It is told of every token that is chosen, in turn, and is asked for
/// the tokens that are the only way on before each choice.
pub trait Constraint: Send {
    /// Appends the tokens that are the only way on, which are not chosen but follow by themselves. They
    /// are committed when this returns.
    fn forced(&mut self, out: &mut Vec<u32>) -> Result<(), ConstraintError>;

    /// Sets the logits of tokens that may not come next to negative infinity. Tokens that end the
    /// model's turn may come where everything said so far is whole.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError>;

    /// Whether `token`, which was chosen from masked `logits`, may be said when `room` more may follow it
    /// before the limit of tokens or the end of the context. Where it may not, because what is being said
    /// could not be brought to its end any more, the token and whatever else may not come is taken out of
    /// `logits`, and the choice is made again.
    fn accept(
        &mut self,
        _token: u32,
        _room: usize,
        _logits: &mut [f32],
    ) -> Result<bool, ConstraintError> {
        Ok(true)
    }

    /// Tells which token was chosen, unless it ends the model's turn.
    fn commit(&mut self, token: u32) -> Result<(), ConstraintError>;

    /// Whether nothing may follow.
    fn is_finished(&self) -> bool;
}

/// Why a constraint cannot tell what may come next; the generation ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the constraint on the output failed: {0}")]
pub struct ConstraintError(pub String);
