//! How much of a prompt is read in a pass in which others decode.

use std::time::Duration;

use model::Phase;

use crate::usage::Usage;

/// What computing a piece of a prompt may take while others wait for their next token: a pause that a
/// reader of streamed text hardly notices.
const PAUSE: Duration = Duration::from_millis(250);
/// The least rows of a piece: a block of the prefix cache.
const LEAST_ROWS: usize = 64;
/// Rows of a piece before anything was measured.
const FIRST_ROWS: usize = 256;

/// The size of pieces.
///
/// Those who decode wait for the drive, which reads nearly all experts of a layer whether a piece has
/// 64 rows or 500, and for the arithmetic, which grows with the rows. So a piece has as many rows as are
/// computed in [`PAUSE`], or in the time that the pass waits for the drive, if that is longer: smaller
/// pieces would delay the prompt much more than they would hurry the others.
#[derive(Debug)]
pub(crate) struct Pace {
    rows: usize,
    most: usize,
}

impl Pace {
    /// For passes of at most so many rows.
    pub(crate) fn new(most: usize) -> Self {
        Self { rows: FIRST_ROWS.min(most), most }
    }

    /// Rows of the next piece.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Learns from a pass, unless it is too small to tell.
    pub(crate) fn observe(&mut self, rows: usize, usage: &Usage) {
        if rows < LEAST_ROWS {
            return;
        }
        let waiting = usage.phase(Phase::ExpertWait);
        let computing = usage.wall.saturating_sub(waiting);
        let per_row = computing.as_secs_f64() / rows as f64;
        if per_row > 0.0 {
            // The cast saturates.
            let fitting = (PAUSE.max(waiting).as_secs_f64() / per_row) as usize;
            self.rows = fitting.max(LEAST_ROWS).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass that computes and waits for so many milliseconds.
    fn pass(computing: u64, waiting: u64) -> Usage {
        let mut usage =
            Usage { wall: Duration::from_millis(computing + waiting), ..Usage::default() };
        usage.phases[Phase::ExpertWait as usize] = Duration::from_millis(waiting);
        usage
    }

    #[test]
    fn pieces_take_a_pause_or_as_long_as_the_drive() {
        let mut pace = Pace::new(2048);
        assert_eq!(pace.rows(), 256);
        pace.observe(200, &pass(100, 0));
        assert_eq!(pace.rows(), 500, "2 rows a millisecond, and no waiting");
        pace.observe(200, &pass(100, 600));
        assert_eq!(pace.rows(), 1200, "as long as the drive reads");
        pace.observe(63, &pass(1000, 0));
        assert_eq!(pace.rows(), 1200, "few rows tell nothing");
        pace.observe(100, &pass(5000, 0));
        assert_eq!(pace.rows(), 64, "never less than a block");
        pace.observe(100, &pass(1, 0));
        assert_eq!(pace.rows(), 2048, "never more than a pass holds");
        assert_eq!(Pace::new(16).rows(), 16);
    }
}
