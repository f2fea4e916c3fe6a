//! A sequence's state in parts that can be put aside: keys and values by blocks, recurrent states by
//! snapshots at the ends of blocks.

use compute::Backend;

use crate::decoder::{Decoder, LayerState, Mixer, SequenceState};

/// The layers' parts of a saved block or snapshot, in order of the layers that have one.
pub type SavedParts = Vec<Vec<u8>>;

/// How many parts there are, and how long each is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedShape {
    /// Layers that have a part.
    pub n_parts: usize,
    /// Bytes of each.
    pub part_bytes: usize,
}

impl SavedShape {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.n_parts as u64 * self.part_bytes as u64
    }
}

impl<M, V> Decoder<M, V> {
    /// What a block of keys and values takes.
    pub fn kv_block_shape<B: Backend>(&self, backend: &B) -> SavedShape {
        let is_attention = |mixer: &Mixer<M, V>| matches!(mixer, Mixer::Attention(_));
        let n_parts = self.layers.iter().filter(|layer| is_attention(&layer.mixer)).count();
        let part_bytes = self.attention_spec().map_or(0, |spec| backend.kv_block_bytes(spec));
        SavedShape { n_parts, part_bytes }
    }

    /// What a snapshot of all recurrent states takes.
    pub fn snapshot_shape<B: Backend>(&self, backend: &B) -> SavedShape {
        let is_delta_net = |mixer: &Mixer<M, V>| matches!(mixer, Mixer::DeltaNet(_));
        let n_parts = self.layers.iter().filter(|layer| is_delta_net(&layer.mixer)).count();
        let part_bytes = self.delta_net_spec().map_or(0, |spec| backend.snapshot_bytes(spec));
        SavedShape { n_parts, part_bytes }
    }

    /// Keys and values of a block of which the state holds all positions.
    pub fn save_kv_block<B: Backend>(
        &self,
        backend: &B,
        state: &SequenceState<B>,
        block: usize,
    ) -> SavedParts {
        let layers = state.layers.iter().filter_map(|layer| match layer {
            LayerState::Attention(cache) => {
                let spec = self.attention_spec().expect("the layer has one");
                Some(backend.save_kv_block(spec, cache, block))
            }
            LayerState::DeltaNet(_) => None,
        });
        layers.collect()
    }

    /// Appends a saved block of keys and values to a state that is being put together again; the
    /// snapshot at its end makes it whole. The parts have the right shape.
    pub fn load_kv_block<B: Backend>(
        &self,
        backend: &B,
        state: &mut SequenceState<B>,
        parts: &[Vec<u8>],
    ) {
        let mut parts = parts.iter();
        for layer in &mut state.layers {
            if let LayerState::Attention(cache) = layer {
                let spec = self.attention_spec().expect("the layer has one");
                backend.load_kv_block(spec, cache, parts.next().expect("a part for each layer"));
            }
        }
    }

    /// Has a state keep a snapshot of itself at a position that is still to come.
    pub fn mark_snapshot<B: Backend>(
        &self,
        backend: &B,
        state: &mut SequenceState<B>,
        position: usize,
    ) {
        for layer in &mut state.layers {
            if let LayerState::DeltaNet(delta) = layer {
                backend.mark_snapshot(delta, position);
            }
        }
    }

    /// Takes the snapshot kept at a position; `None` if none was.
    pub fn take_snapshot<B: Backend>(
        &self,
        backend: &B,
        state: &mut SequenceState<B>,
        position: usize,
    ) -> Option<SavedParts> {
        let layers = state.layers.iter_mut().filter_map(|layer| match layer {
            LayerState::Attention(_) => None,
            LayerState::DeltaNet(delta) => Some(backend.take_snapshot(delta, position)),
        });
        layers.collect()
    }

    /// Makes a state whole that holds the keys and values of `position` tokens. The parts have the right
    /// shape.
    pub fn load_snapshot<B: Backend>(
        &self,
        backend: &B,
        state: &mut SequenceState<B>,
        position: usize,
        parts: &[Vec<u8>],
    ) {
        let mut parts = parts.iter();
        for layer in &mut state.layers {
            if let LayerState::DeltaNet(delta) = layer {
                let spec = self.delta_net_spec().expect("the layer has one");
                let part = parts.next().expect("a part for each layer");
                backend.load_snapshot(spec, delta, position, part);
            }
        }
        state.position = position;
    }
}
