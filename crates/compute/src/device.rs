//! What is said between an engine and a device besides operations: where memory is, which experts could
//! be held, what it cost to talk, and why something could not be done.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

use checkpoint::Format;

/// Where a backend keeps the trunk, states and buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In the memory of the host.
    Host,
    /// In memory of its own, of so many bytes if that is known.
    Own(Option<u64>),
    /// In the memory of the host, of which it reaches so many bytes if that is known; but what the program has
    /// there must be given to it, as if the memory were its own.
    Shared(Option<u64>),
}

/// Why a device could not do something: a format that it has no kernel for, too little memory, or that
/// it is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

/// What a stored matrix is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MatrixShape {
    /// How the values are stored.
    pub format: Format,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
}

/// What the routed experts of a layer are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// How many there are.
    pub n_experts: usize,
    /// Gate, up and down of each of them.
    pub matrices: [MatrixShape; 3],
}

/// What a program and a device had to say to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handoffs {
    /// Kernels started.
    pub dispatches: u64,
    /// Times that work was handed over.
    pub submissions: u64,
    /// Times that the program waited for the device.
    pub waits: u64,
    /// Bytes of routed experts that were moved to the device.
    pub expert_bytes: u64,
    /// Bytes of routed experts that the device read in the host's memory, instead of having them moved.
    pub in_place_bytes: u64,
    /// Time that the program spent on moving them: until they were taken, not until they were there.
    pub expert_time: Duration,
    /// Uses of routed experts that the host computed for the device.
    pub host_uses: u64,
}

impl Sub for Handoffs {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            dispatches: self.dispatches - before.dispatches,
            submissions: self.submissions - before.submissions,
            waits: self.waits - before.waits,
            expert_bytes: self.expert_bytes - before.expert_bytes,
            in_place_bytes: self.in_place_bytes - before.in_place_bytes,
            expert_time: self.expert_time - before.expert_time,
            host_uses: self.host_uses - before.host_uses,
        }
    }
}

impl AddAssign for Handoffs {
    fn add_assign(&mut self, other: Self) {
        self.dispatches += other.dispatches;
        self.submissions += other.submissions;
        self.waits += other.waits;
        self.expert_bytes += other.expert_bytes;
        self.in_place_bytes += other.in_place_bytes;
        self.expert_time += other.expert_time;
        self.host_uses += other.host_uses;
    }
}
