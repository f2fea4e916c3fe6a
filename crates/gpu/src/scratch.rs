//! Working memory of kernels.

use crate::device::{Buffer, Device};

/// A buffer that grows as it is needed.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<Buffer>);

impl Scratch {
    /// A buffer of at least so many bytes. What it held is lost when it grows.
    pub(crate) fn at_least(&mut self, device: &Device, bytes: usize) -> &Buffer {
        if self.0.as_ref().is_none_or(|buffer| buffer.bytes() < bytes as u64) {
            self.0 = Some(device.buffer(bytes as u64));
        }
        self.0.as_ref().expect("it was just made")
    }
}

/// Words on the device, in a buffer that grows as it is needed.
pub(crate) fn write_words<'a>(device: &Device, to: &'a mut Scratch, words: &[u32]) -> &'a Buffer {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let buffer = to.at_least(device, bytes.len().next_power_of_two());
    device.write(buffer, 0, &bytes);
    buffer
}
