//! What computing something cost.

use std::ops::AddAssign;

use engine::Usage;
use serde::{Deserialize, Serialize};

/// The cost of some forward passes. All but the time and the reads is the same in every run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Tokens computed.
    pub tokens: u64,
    /// Time that it took.
    pub seconds: f64,
    /// Bytes of the routed experts that tokens used, each token's counted.
    pub used_bytes: u64,
    /// How often tokens used the twin of an expert in its place.
    #[serde(default)]
    pub twin_uses: u64,
    /// Bytes that those uses had less than the experts would have.
    #[serde(default)]
    pub twin_saved_bytes: u64,
    /// Bytes read from the drive: depends on memory, and on how many tokens a pass holds.
    pub read_bytes: u64,
}

impl Cost {
    /// Of passes.
    pub fn of(usage: &Usage) -> Self {
        Self {
            tokens: usage.tokens as u64,
            seconds: usage.wall.as_secs_f64(),
            used_bytes: usage.used_bytes,
            twin_uses: usage.twin_uses,
            twin_saved_bytes: usage.twin_saved_bytes,
            read_bytes: usage.bytes_read,
        }
    }

    /// Bytes of routed experts that a token used; zero when there was none.
    pub fn used_bytes_per_token(&self) -> f64 {
        self.used_bytes as f64 / self.tokens.max(1) as f64
    }

    /// Bytes read for a token; zero when there was none.
    pub fn read_bytes_per_token(&self) -> f64 {
        self.read_bytes as f64 / self.tokens.max(1) as f64
    }

    /// Tokens a second; zero when nothing was measured.
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 }
    }
}

impl AddAssign<&Self> for Cost {
    fn add_assign(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.seconds += other.seconds;
        self.used_bytes += other.used_bytes;
        self.twin_uses += other.twin_uses;
        self.twin_saved_bytes += other.twin_saved_bytes;
        self.read_bytes += other.read_bytes;
    }
}
