//! Weights on the device: matrices in a few large buffers.

use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::Format;
use compute::{AttentionSpec, DeltaNetSpec, Matrix};

use crate::attention;
use crate::delta_net;
use crate::device::{Buffer, Device};
use crate::formats::{Packed, decoder, pack, part_bytes};
use crate::rowwise::MOST_EXPERTS;

/// Bytes of a slab: few buffers, because every buffer of a pass costs time to track.
const SLAB_BYTES: u64 = 512 << 20;
/// Bytes that may wait in the driver's own memory on their way to the device.
const IN_FLIGHT_BYTES: u64 = 64 << 20;
/// Parts begin at multiples of this.
const ALIGNMENT: u64 = 256;

/// A matrix of the trunk on the device.
#[derive(Clone, Debug)]
pub struct Weights {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) buffer: Arc<Buffer>,
    /// Where codes, scales and biases begin, in words.
    pub(crate) parts: [u32; 3],
}

/// Why a matrix cannot be on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// No kernel knows the format.
    #[error(
        "the GPU has no kernels for {format}; it knows MLX affine, bf16, f16, f32, Q8_0, Q4_K, Q5_K, Q6_K, MXFP4: use `--device cpu`"
    )]
    Format {
        /// The format.
        format: Format,
    },
    /// The rows are not whole words.
    #[error(
        "the GPU needs matrices whose width is a multiple of 4, not {cols}: use `--device cpu`"
    )]
    Width {
        /// The width.
        cols: usize,
    },
    /// The matrix is larger than anything the device can reach at once.
    #[error("a matrix of {bytes} bytes is larger than the {limit} that this GPU can reach at once")]
    TooLarge {
        /// Bytes of the matrix.
        bytes: u64,
        /// Most bytes.
        limit: u64,
    },
}

/// Where parts of these sizes begin, and where the last ends, in bytes.
pub(crate) fn place(sizes: &[usize]) -> (Vec<u64>, u64) {
    let mut end = 0;
    let places = sizes.iter().map(|&size| {
        let begin = end;
        end = (end + size as u64).next_multiple_of(ALIGNMENT);
        begin
    });
    (places.collect(), end)
}

/// Whether kernels can use a matrix of this format and width.
pub(crate) fn check(format: Format, cols: usize) -> Result<(), WeightsError> {
    if decoder(format).is_none() {
        return Err(WeightsError::Format { format });
    }
    if !cols.is_multiple_of(4) {
        return Err(WeightsError::Width { cols });
    }
    Ok(())
}

/// What kernels must be able to compute for a model.
#[derive(Clone, Debug)]
pub struct ModelNeeds<'a> {
    /// Formats of matrices, with their widths.
    pub matrices: Vec<(Format, usize)>,
    /// Most experts of a layer.
    pub n_experts: usize,
    /// The attention layers, if there are some.
    pub attention: Option<&'a AttentionSpec>,
    /// The gated delta nets, if there are some.
    pub delta_net: Option<&'a DeltaNetSpec>,
}

impl ModelNeeds<'_> {
    /// Why the kernels cannot compute the model, if they cannot.
    pub fn problem(&self) -> Option<String> {
        let matrices = self.matrices.iter().find_map(|&(format, cols)| check(format, cols).err());
        let matrices = matrices.map(|error| error.to_string());
        let experts = (self.n_experts > MOST_EXPERTS).then(|| {
            format!("the GPU orders at most {MOST_EXPERTS} experts a layer, not {}", self.n_experts)
        });
        matrices
            .or(experts)
            .or_else(|| self.attention.and_then(attention::unsupported))
            .or_else(|| self.delta_net.and_then(delta_net::unsupported))
    }
}

/// Buffers that matrices are put into one after another.
#[derive(Debug, Default)]
pub(crate) struct Slabs {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<(Arc<Buffer>, u64)>,
    in_flight: u64,
}

impl Slabs {
    /// Moves a matrix to the device.
    pub(crate) fn put(&self, device: &Device, matrix: &Matrix) -> Result<Weights, WeightsError> {
        let Matrix { format, rows, cols, .. } = *matrix;
        check(format, cols)?;
        let (places, bytes) = place(&part_bytes(format, rows, cols));
        let limit = device.max_binding_bytes();
        if bytes > limit {
            return Err(WeightsError::TooLarge { bytes, limit });
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = state.last.as_ref().is_some_and(|(slab, used)| used + bytes <= slab.bytes());
        if !fits {
            // A large matrix has a slab of its own, so that no other is left half empty for it.
            let size = if bytes > SLAB_BYTES / 4 { bytes } else { SLAB_BYTES.min(limit) };
            let slab = Arc::new(device.buffer(size));
            if bytes > SLAB_BYTES / 4 && state.last.is_some() {
                return Ok(Self::fill(&mut state, device, matrix, &slab, 0, &places));
            }
            state.last = Some((slab, 0));
        }
        let (slab, used) = state.last.as_mut().expect("there is a slab with room");
        let (slab, begin) = (Arc::clone(slab), *used);
        *used += bytes;
        Ok(Self::fill(&mut state, device, matrix, &slab, begin, &places))
    }

    fn fill(
        state: &mut State,
        device: &Device,
        matrix: &Matrix,
        slab: &Arc<Buffer>,
        begin: u64,
        places: &[u64],
    ) -> Weights {
        let Packed { parts } = pack(matrix);
        for (part, place) in parts.iter().zip(places) {
            device.write(slab, begin + place, part);
            state.in_flight += part.len() as u64;
        }
        if state.in_flight > IN_FLIGHT_BYTES {
            device.finish_writes();
            state.in_flight = 0;
        }
        let word = |part: usize| ((begin + places[part]) / 4) as u32;
        Weights {
            format: matrix.format,
            rows: matrix.rows,
            cols: matrix.cols,
            buffer: Arc::clone(slab),
            parts: [word(0), word(1), word(2)],
        }
    }
}
