//! States as bytes, at the ends of blocks of a sequence.
//!
//! A sequence's state can be put aside and taken up again, by another session or another process, with
//! the same bits as if it had been computed there. That is only done at multiples of [`STATE_BLOCK`].

/// Tokens of a block: states are put aside at its multiples only.
///
/// 64 positions are a page of keys and values and two blocks of the delta rule, so a block is a whole
/// page, no rows of the delta rule are pending at its end, and no more than 63 tokens of a prompt that
/// was seen before are computed again.
pub const STATE_BLOCK: usize = 64;

/// Copies of a state at some positions, made as the positions are passed.
///
/// They are made inside a pass, because a pass of a whole prompt is far cheaper than two that meet at
/// the position.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    marks: Vec<usize>,
    kept: Vec<(usize, Vec<u8>)>,
}

impl Snapshots {
    /// Asks for a copy at a position that is still to come.
    pub(crate) fn mark(&mut self, position: usize) {
        assert!(position.is_multiple_of(STATE_BLOCK), "snapshots are made at the ends of blocks");
        if !self.marks.contains(&position) {
            self.marks.push(position);
        }
    }

    /// Makes the copy if one is wanted here.
    pub(crate) fn reached(&mut self, position: usize, parts: [&[f32]; 2]) {
        let Some(index) = self.marks.iter().position(|&mark| mark == position) else {
            return;
        };
        self.marks.swap_remove(index);
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| size_of_val(*part)).sum());
        parts.into_iter().for_each(|part| write_floats(part, &mut bytes));
        self.kept.push((position, bytes));
    }

    /// The copy made at a position, if one was.
    pub(crate) fn take(&mut self, position: usize) -> Option<Vec<u8>> {
        let index = self.kept.iter().position(|(kept, _)| *kept == position)?;
        Some(self.kept.swap_remove(index).1)
    }
}

/// Appends numbers as little-endian bytes.
pub(crate) fn write_floats(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// Reads as many numbers as there is room for, and gives the bytes that follow.
pub(crate) fn read_floats<'a>(bytes: &'a [u8], out: &mut [f32]) -> &'a [u8] {
    let (ours, rest) = bytes.split_at(size_of_val(out));
    for (value, bytes) in out.iter_mut().zip(ours.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
    rest
}
