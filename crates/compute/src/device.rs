//! What a device says about itself: where its memory is, and why it could not do something.

/// Where a backend keeps the trunk, states and buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// In the memory of the host.
    Host,
    /// In memory of its own, of so many bytes if that is known.
    Own(Option<u64>),
}

/// Why a device could not do something: a format that it has no kernel for, too little memory, or that
/// it is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);
