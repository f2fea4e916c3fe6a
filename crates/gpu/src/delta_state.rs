//! The state of a gated delta net of a sequence, on the device.

use compute::{DeltaNetSpec, DeltaStateValues, STATE_BLOCK};

use crate::device::{Buffer, Device};

/// State of a layer of a sequence, on the device.
#[derive(Debug)]
pub struct DeltaState {
    /// Tokens seen.
    pub(crate) len: usize,
    /// Two times (conv_kernel - 1, channels): the last inputs of the convolution, newest last.
    pub(crate) history: Buffer,
    /// Which of the two holds: a single row reads one and writes the other.
    pub(crate) second_history: bool,
    /// (n_value_heads, value_dim, key_dim).
    pub(crate) recurrent: Buffer,
    sizes: Sizes,
    /// Positions at which a snapshot is wanted.
    marks: Vec<usize>,
    /// Snapshots by position: the history, then the recurrent state.
    kept: Vec<(usize, Buffer)>,
}

/// Bytes of the parts of a state.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    history: u64,
    recurrent: u64,
}

impl Sizes {
    fn of(spec: &DeltaNetSpec) -> Self {
        let history = (spec.conv_kernel - 1) * spec.channels();
        let recurrent = spec.n_value_heads * spec.key_dim * spec.value_dim;
        let [history, recurrent] = [history, recurrent].map(|len| (size_of::<f32>() * len) as u64);
        Self { history, recurrent }
    }
}

impl DeltaState {
    /// A zero state.
    pub(crate) fn new(device: &Device, spec: &DeltaNetSpec) -> Self {
        let sizes = Sizes::of(spec);
        Self {
            len: 0,
            history: device.buffer(2 * sizes.history),
            second_history: false,
            recurrent: device.buffer(sizes.recurrent),
            sizes,
            marks: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Bytes of a state.
    pub(crate) fn bytes(spec: &DeltaNetSpec) -> u64 {
        let Sizes { history, recurrent } = Sizes::of(spec);
        2 * history + recurrent
    }

    /// Bytes of a snapshot.
    pub(crate) fn snapshot_bytes(spec: &DeltaNetSpec) -> usize {
        let Sizes { history, recurrent } = Sizes::of(spec);
        (history + recurrent) as usize
    }

    /// Bytes before the history that holds.
    pub(crate) fn history_at(&self) -> u64 {
        if self.second_history { self.sizes.history } else { 0 }
    }

    /// See [`compute::Backend::mark_snapshot`].
    pub(crate) fn mark_snapshot(&mut self, position: usize) {
        assert!(position.is_multiple_of(STATE_BLOCK), "snapshots are made at the ends of blocks");
        if !self.marks.contains(&position) {
            self.marks.push(position);
        }
    }

    /// See [`compute::Backend::take_snapshot`]. Waits for the device.
    pub(crate) fn take_snapshot(&mut self, device: &Device, position: usize) -> Option<Vec<u8>> {
        let index = self.kept.iter().position(|(kept, _)| *kept == position)?;
        let (_, snapshot) = self.kept.swap_remove(index);
        let mut bytes = Vec::new();
        device.read(&snapshot, 0, self.sizes.history + self.sizes.recurrent, &mut bytes);
        Some(bytes)
    }

    /// See [`compute::Backend::load_snapshot`].
    pub(crate) fn load_snapshot(&mut self, device: &Device, position: usize, bytes: &[u8]) {
        let (history, recurrent) = bytes.split_at(self.sizes.history as usize);
        assert_eq!(recurrent.len() as u64, self.sizes.recurrent, "the bytes are a snapshot");
        device.write(&self.history, self.history_at(), history);
        device.write(&self.recurrent, 0, recurrent);
        self.len = position;
    }

    /// See [`compute::Backend::delta_values`]. Waits for the device.
    pub(crate) fn values(&self, device: &Device, spec: &DeltaNetSpec) -> DeltaStateValues {
        let mut bytes = Vec::new();
        let mut read = |buffer: &Buffer, at: u64, len: u64| -> Vec<f32> {
            device.read(buffer, at, len, &mut bytes);
            bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let conv = read(&self.history, self.history_at(), self.sizes.history);
        let by_column = read(&self.recurrent, 0, self.sizes.recurrent);
        let DeltaNetSpec { key_dim, value_dim, .. } = *spec;
        let heads = by_column.chunks_exact(key_dim * value_dim).flat_map(|head| {
            (0..key_dim * value_dim).map(move |at| head[at % value_dim * key_dim + at / value_dim])
        });
        DeltaStateValues { recurrent: heads.collect(), conv }
    }

    /// Rows until the next position at which a snapshot is wanted.
    pub(crate) fn until_mark(&self) -> usize {
        let to_come = self.marks.iter().filter_map(|mark| mark.checked_sub(self.len));
        to_come.filter(|rows| *rows > 0).min().unwrap_or(usize::MAX)
    }

    /// Counts rows, and keeps a snapshot if one is wanted after them.
    pub(crate) fn advance(&mut self, device: &Device, rows: usize) {
        self.len += rows;
        let Some(index) = self.marks.iter().position(|mark| *mark == self.len) else {
            return;
        };
        self.marks.swap_remove(index);
        let Sizes { history, recurrent } = self.sizes;
        let snapshot = device.buffer(history + recurrent);
        if history > 0 {
            device.copy((&self.history, self.history_at()), (&snapshot, 0), history);
        }
        device.copy((&self.recurrent, 0), (&snapshot, history), recurrent);
        self.kept.push((self.len, snapshot));
    }
}
