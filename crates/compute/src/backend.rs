//! The operations that a model is made of.
//!
//! A model's forward pass is written once against [`Backend`]. Operations are fused and take opaque
//! buffers, so a CPU executes each at once while a GPU records it; the only values that come back to
//! the host inside a pass are the router's choices ([`Backend::route`]), because an expert may have to
//! be fetched from the drive. There is no access to single elements.
//!
//! **Batch invariance.** The result of a row never depends on which other rows are in the call, on
//! how rows are split over calls, or on the number of threads. This is what makes the output the same
//! at any prompt chunk size, and it is a requirement on every implementation: fixed reduction orders
//! per output element, attention over keys in order of position, delta-rule blocks aligned to absolute
//! positions.

use crate::device::{DeviceError, ExpertShape, Handoffs, MatrixShape, Memory};
use crate::host::best;
use crate::matrix::{ExpertWeights, LoadedExpert, Matrix};
use crate::uses::ExpertUses;

/// Consecutive rows of a batch that belong to one sequence, in order of position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First row in the batch.
    pub row: usize,
    /// Number of rows.
    pub len: usize,
    /// Position in its sequence of the first row.
    pub position: usize,
}

/// Dimensions of full attention with normed heads and partial rotary embedding, gated or not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`. Query head `h` reads `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Leading dimensions that rotary embedding turns; pairs are `(j, j + rotary_dim / 2)`.
    pub rotary_dim: usize,
    /// Base of the rotary frequencies: `theta^(-2j / rotary_dim)`.
    pub rope_theta: f64,
    /// Epsilon of the norms of query and key heads.
    pub eps: f32,
    /// Whether the query heads carry gates of the output.
    pub gated: bool,
}

impl AttentionSpec {
    /// Values of a query head as projected: the query, and its gate if there is one.
    pub const fn query_width(&self) -> usize {
        if self.gated { 2 * self.head_dim } else { self.head_dim }
    }
}

/// What [`Backend::attention`] reads besides the cache.
#[derive(Debug)]
pub struct AttentionInputs<'a, B: Backend + ?Sized> {
    /// (rows, n_heads * query_width): per head, `head_dim` query values and then as many gate values
    /// if there are gates.
    pub query: &'a B::Buffer,
    /// (rows, n_kv_heads * head_dim).
    pub key: &'a B::Buffer,
    /// (rows, n_kv_heads * head_dim).
    pub value: &'a B::Buffer,
    /// Effective weight of the query-head norm, (head_dim).
    pub query_norm: &'a B::Vector,
    /// Effective weight of the key-head norm, (head_dim).
    pub key_norm: &'a B::Vector,
}

/// Dimensions of a gated delta net.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaNetSpec {
    /// Key and query heads.
    pub n_key_heads: usize,
    /// Value heads; [`DeltaNetSpec::key_head`] tells which key head each uses.
    pub n_value_heads: usize,
    /// Whether value heads that share a key head lie apart instead of together.
    pub tiled_values: bool,
    /// Width of a key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
    /// Epsilon of the gated output norm.
    pub eps: f32,
}

impl DeltaNetSpec {
    /// The key head that a value head uses.
    pub const fn key_head(&self, value_head: usize) -> usize {
        if self.tiled_values {
            value_head % self.n_key_heads
        } else {
            value_head / (self.n_value_heads / self.n_key_heads)
        }
    }

    /// Channels of the convolution: all query heads, all key heads, all value heads.
    pub const fn channels(&self) -> usize {
        2 * self.n_key_heads * self.key_dim + self.n_value_heads * self.value_dim
    }
}

/// What [`Backend::gated_delta_net`] reads besides the state.
#[derive(Debug)]
pub struct DeltaNetInputs<'a, B: Backend + ?Sized> {
    /// (rows, channels): inputs of the convolution, queries, keys, values.
    pub qkv: &'a B::Buffer,
    /// (rows, n_value_heads * value_dim): the output gate.
    pub z: &'a B::Buffer,
    /// (rows, n_value_heads): writing strength before its sigmoid.
    pub b: &'a B::Buffer,
    /// (rows, n_value_heads): decay before its softplus.
    pub a: &'a B::Buffer,
    /// (channels, conv_kernel): the last tap multiplies the current row.
    pub conv: &'a B::Vector,
    /// (n_value_heads).
    pub a_log: &'a B::Vector,
    /// (n_value_heads).
    pub dt_bias: &'a B::Vector,
    /// (value_dim): weight of the output norm, used as it is.
    pub norm: &'a B::Vector,
}

/// How experts are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouterSpec {
    /// Experts of a row.
    pub top_k: usize,
    /// Whether the weights of the chosen experts are renormalised to sum to one.
    pub normalise: bool,
}

/// The router's choices for the rows of a batch, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Experts of a row.
    pub top_k: usize,
    /// (rows, top_k) expert indices in order of falling weight; of equals, the lower index first. Only a
    /// lossy choice leaves experts out; then [`Routing::LEFT_OUT`] fills the end of a row.
    pub experts: Vec<u32>,
    /// (rows, top_k) their weights.
    pub weights: Vec<f32>,
}

impl Routing {
    /// In the place of an expert that was left out; its weight is zero.
    pub const LEFT_OUT: u32 = u32::MAX;

    /// How many experts a row uses: all but those left out.
    pub fn n_used(&self, row: usize) -> usize {
        let experts = &self.experts[row * self.top_k..(row + 1) * self.top_k];
        experts.iter().rposition(|&expert| expert != Self::LEFT_OUT).map_or(0, |last| last + 1)
    }
}

/// What [`Backend::combine`] adds to the residual stream.
#[derive(Debug)]
pub struct MoeOutputs<'a, B: Backend + ?Sized> {
    /// Weights of the routed experts.
    pub routing: &'a Routing,
    /// (rows * top_k, hidden): row `row * top_k + rank` holds the output of that use.
    pub routed: &'a B::Buffer,
    /// If there is a shared expert: its output, (rows, hidden), and its gate before the sigmoid,
    /// (rows, 1).
    pub shared: Option<[&'a B::Buffer; 2]>,
}

/// The norm that follows a sum: the weight, the epsilon, and where its rows go.
#[derive(Debug)]
pub struct NextNorm<'a, B: Backend + ?Sized> {
    /// (width).
    pub weight: &'a B::Vector,
    /// As in [`Backend::rms_norm`].
    pub eps: f32,
    /// (rows, width).
    pub out: &'a mut B::Buffer,
}

/// The shared expert of a layer: what it is made of, and where its results go.
pub struct SharedExpert<'a, B: Backend + ?Sized> {
    /// The expert.
    pub weights: &'a ExpertWeights<B::Matrix>,
    /// (1, hidden): how much it is used.
    pub gate: &'a B::Matrix,
    /// For its output, (rows, hidden), and for its gate before the sigmoid, (rows, 1).
    pub outs: [&'a mut B::Buffer; 2],
}

/// What [`Backend::route_ahead`] works with.
#[derive(Debug)]
pub struct RouteAhead<'a, B: Backend + ?Sized> {
    /// The layer whose experts are chosen.
    pub layer: usize,
    /// (rows, n_experts): its router's logits, and how experts are chosen.
    pub logits: (&'a B::Buffer, RouterSpec),
    /// The same of a layer to come, if its choices are to be predicted.
    pub next: Option<(&'a B::Buffer, RouterSpec)>,
    /// (rows, hidden): what the experts will be applied to.
    pub x: &'a B::Buffer,
    /// (rows * top_k, hidden): for the outputs of experts that the device holds.
    pub routed: &'a mut B::Buffer,
}

/// What [`Backend::held_moe`] works with.
pub struct HeldMoe<'a, B: Backend + ?Sized> {
    /// How experts are chosen.
    pub spec: RouterSpec,
    /// (n_experts, hidden).
    pub router: &'a B::Matrix,
    /// Room for the router's logits, (rows, n_experts).
    pub logits: &'a mut B::Buffer,
    /// The shared expert, if there is one.
    pub shared: Option<SharedExpert<'a, B>>,
    /// Room for (rows * top_k, hidden), for the outputs of the routed experts.
    pub routed: &'a mut B::Buffer,
    /// The norm that follows. `out` holds the input of the experts before.
    pub norm: NextNorm<'a, B>,
}

/// The recurrent state of one gated-delta-net layer of one sequence, as plain values.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaStateValues {
    /// (conv_kernel - 1, channels): the last inputs of the convolution, newest last.
    pub conv: Vec<f32>,
    /// (n_value_heads, key_dim, value_dim): the delta-rule state after the last token.
    pub recurrent: Vec<f32>,
}

/// The keys and values of one attention layer of one sequence, as plain values.
#[derive(Clone, Debug, PartialEq)]
pub struct KvValues {
    /// (n_kv_heads, positions, head_dim): normed and turned keys.
    pub keys: Vec<f32>,
    /// (n_kv_heads, positions, head_dim).
    pub values: Vec<f32>,
}

/// What the working memory of a backend depends on.
#[derive(Clone, Copy, Debug)]
pub struct ScratchNeeds<'a> {
    /// Most rows of a batch.
    pub rows: usize,
    /// Longest sequence.
    pub context: usize,
    /// Width of the widest input of a projection.
    pub widest: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Inner width of an expert.
    pub intermediate: usize,
    /// The attention layers, if there are some.
    pub attention: Option<&'a AttentionSpec>,
}

/// A device that can run a model.
///
/// A `Buffer` is a matrix of `f32` activations with a fixed width and a number of rows that may change
/// up to its capacity. Each operation sets the row count of its outputs. Shapes are the caller's
/// duty: a mismatch is a bug in the model and panics.
pub trait Backend {
    /// Activations on the device, (rows, width).
    type Buffer: Send;
    /// A matrix of the trunk on the device.
    type Matrix: Send + Sync;
    /// A small constant on the device, such as the weight of a norm.
    type Vector: Send + Sync;
    /// Keys and values of one attention layer of one sequence.
    type KvCache: Send;
    /// State of one gated-delta-net layer of one sequence.
    type DeltaState: Send;

    /// A name for people, such as `cpu avx2`.
    fn name(&self) -> String;

    /// Where matrices, constants, states and buffers are kept.
    fn memory(&self) -> Memory {
        Memory::Host
    }

    /// An empty buffer that can hold `max_rows` rows of `width` values.
    fn buffer(&self, max_rows: usize, width: usize) -> Self::Buffer;
    /// Moves a matrix to the device. One that copies it keeps nothing of the stored one, so its memory is
    /// free again when the caller drops it.
    fn matrix(&self, stored: &Matrix) -> Result<Self::Matrix, DeviceError>;
    /// Moves a constant to the device.
    fn vector(&self, values: &[f32]) -> Self::Vector;
    /// An empty cache that can grow to `max_positions`.
    fn kv_cache(&self, spec: &AttentionSpec, max_positions: usize) -> Self::KvCache;
    /// A zero state.
    fn delta_state(&self, spec: &DeltaNetSpec) -> Self::DeltaState;
    /// Bytes of a key-value cache that is full.
    fn kv_cache_bytes(&self, spec: &AttentionSpec, max_positions: usize) -> u64;
    /// Bytes of working memory that operations keep besides their buffers.
    fn scratch_bytes(&self, needs: &ScratchNeeds<'_>) -> u64;
    /// Bytes of a delta state.
    fn delta_state_bytes(&self, spec: &DeltaNetSpec) -> u64;

    /// `out[i] = table[tokens[i]]`.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Buffer);

    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    fn rms_norm(
        &mut self,
        x: &Self::Buffer,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    );

    /// `outs[i] = x weights[i]^T` for matrices that share their input.
    fn project(
        &mut self,
        x: &Self::Buffer,
        weights: &[&Self::Matrix],
        outs: &mut [&mut Self::Buffer],
    );

    /// `x += y`.
    fn add(&mut self, x: &mut Self::Buffer, y: &Self::Buffer);

    /// `x += y`, and the norm of that.
    fn add_norm(&mut self, x: &mut Self::Buffer, y: &Self::Buffer, norm: NextNorm<'_, Self>) {
        self.add(x, y);
        self.rms_norm(x, norm.weight, norm.eps, norm.out);
    }

    /// Causal attention: norms and turns query and key heads, appends keys and values to the
    /// caches, and writes `softmax(q k^T / sqrt(head_dim)) v`, times `sigmoid(gate)` if there are gates, (rows, n_heads *
    /// head_dim). `caches[i]` belongs to `spans[i]` and holds exactly `spans[i].position` positions.
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        inputs: AttentionInputs<'_, Self>,
        spans: &[Span],
        caches: &mut [&mut Self::KvCache],
        out: &mut Self::Buffer,
    );

    /// Gated delta net between its projections: causal convolution with SiLU, normalised queries and
    /// keys, the gated delta rule (arXiv 2412.06464), and the gated output norm; writes (rows,
    /// n_value_heads * value_dim). `states[i]` belongs to `spans[i]` and has seen exactly
    /// `spans[i].position` tokens.
    fn gated_delta_net(
        &mut self,
        spec: &DeltaNetSpec,
        inputs: DeltaNetInputs<'_, Self>,
        spans: &[Span],
        states: &mut [&mut Self::DeltaState],
        out: &mut Self::Buffer,
    );

    /// The largest of each row's router logits, weighted by their softmax, which is renormalised over
    /// the chosen ones if the model says so. Waits for the device: the host needs the ids.
    fn route(&mut self, logits: &Self::Buffer, spec: RouterSpec, routing: &mut Routing);

    /// Chooses the experts of few rows and predicts those of a layer to come, with one wait for both. The
    /// device does `meanwhile` while the choices come to the host, and may apply experts that it holds:
    /// [`Backend::take_held`] follows.
    fn route_ahead(
        &mut self,
        route: RouteAhead<'_, Self>,
        meanwhile: &mut dyn FnMut(&mut Self),
        [routing, predicted]: [&mut Routing; 2],
    ) {
        if let Some((logits, spec)) = route.next {
            self.route(logits, spec, predicted);
        }
        let (logits, spec) = route.logits;
        self.route(logits, spec, routing);
        meanwhile(self);
    }

    /// Applies routed experts to the rows that use them:
    /// `out[row * top_k + rank] = (silu(x gate^T) * (x up^T)) down^T`. Leaves other rows of `out`
    /// alone; the caller has set its row count with [`Backend::set_rows`].
    ///
    /// A device with room for experts may keep those that it is given here, by a policy of its own.
    fn experts(
        &mut self,
        layer: usize,
        x: &Self::Buffer,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &mut Self::Buffer,
    );

    /// `out = (silu(x gate^T) * (x up^T)) down^T` for all rows: the shared expert.
    fn swiglu(
        &mut self,
        x: &Self::Buffer,
        weights: &ExpertWeights<Self::Matrix>,
        out: &mut Self::Buffer,
    );

    /// `x += sum over rank of weight * routed + sigmoid(gate) * shared`, in order of rank.
    fn combine(&mut self, x: &mut Self::Buffer, outputs: MoeOutputs<'_, Self>);

    /// [`Backend::combine`], and the norm of that.
    fn combine_norm(
        &mut self,
        x: &mut Self::Buffer,
        outputs: MoeOutputs<'_, Self>,
        norm: NextNorm<'_, Self>,
    ) {
        self.combine(x, outputs);
        self.rms_norm(x, norm.weight, norm.eps, norm.out);
    }

    /// `out[i] = x[rows[i]]`.
    fn gather(&mut self, x: &Self::Buffer, rows: &[u32], out: &mut Self::Buffer);

    /// Sets the number of rows of a buffer; what they hold is unspecified.
    fn set_rows(&self, buffer: &mut Self::Buffer, rows: usize);

    /// Copies a buffer's rows to the host, replacing what `out` held. Waits for the device.
    fn download(&mut self, buffer: &Self::Buffer, out: &mut Vec<f32>);

    /// The column of the largest of the first `n` values of each of so many rows, of equals the first; `None`
    /// for a row whose values, all of them, are not finite. Waits for the device. `scratch` is memory to use.
    fn best(
        &mut self,
        x: &Self::Buffer,
        (rows, n): (usize, usize),
        scratch: &mut Vec<f32>,
        out: &mut Vec<Option<u32>>,
    ) {
        self.download(x, scratch);
        out.clear();
        let width = (scratch.len() / rows.max(1)).max(1);
        out.extend(
            scratch
                .chunks_exact(width)
                .map(|row| row.iter().all(|value| value.is_finite()).then(|| best(&row[..n]))),
        );
    }

    /// Whether all that was computed so far is sound. Operations do not fail by themselves: after a
    /// failure of the device what they give is worthless, and this tells why. It is asked whenever results
    /// came to the host.
    fn check(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// How the device decides who computes experts that are in the host's memory, with what it measured, for
    /// people; `None` where it always does so itself.
    fn placement(&self) -> Option<String> {
        None
    }

    /// What was said between program and device since the backend was made.
    fn handoffs(&self) -> Handoffs {
        Handoffs::default()
    }

    /// Sets memory of the device apart for routed experts, at most so many bytes, and tells for how many
    /// experts of each layer there is room. `layers` has `None` for a layer that has none or whose
    /// experts are not all alike. Called once, after the trunk was moved and buffers were made.
    fn reserve_experts(
        &mut self,
        layers: &[Option<ExpertShape>],
        bytes: u64,
    ) -> Result<Vec<usize>, DeviceError> {
        let _ = bytes;
        Ok(vec![0; layers.len()])
    }

    /// Whether the device reads matrices of experts in the host's memory, where their codes, scales and biases
    /// begin at such bytes of a page.
    fn reads_in_place(&self, matrix: MatrixShape, places: [u64; 3]) -> bool {
        let _ = (matrix, places);
        false
    }

    /// Tells for how many experts the host has memory. A device that copies them from there after an operation
    /// returned keeps a fourth of them at most, so that others can be read meanwhile.
    fn set_host_slots(&mut self, n_slots: usize) {
        let _ = n_slots;
    }

    /// Copies an expert into the room that was set apart for its layer, which has a place left.
    fn hold_expert(&mut self, layer: usize, expert: &LoadedExpert) -> Result<(), DeviceError> {
        let _ = (layer, expert);
        Ok(())
    }

    /// Whether the device holds all experts of a layer, so that the host need not know who is chosen.
    fn holds_all(&self, layer: usize) -> bool {
        let _ = layer;
        false
    }

    /// Whether the device holds an expert of a layer, so that it need not be fetched.
    fn holds(&self, layer: usize, expert: u32) -> bool {
        let _ = (layer, expert);
        false
    }

    /// Chooses the experts of each row, applies them and the shared expert, adds their weighted outputs to
    /// the residual stream `x`, and norms it: [`Backend::route`], [`Backend::experts`] and
    /// [`Backend::combine_norm`] without the host. Only for layers of which [`Backend::holds_all`] is true.
    fn held_moe(&mut self, layer: usize, moe: HeldMoe<'_, Self>, x: &mut Self::Buffer) {
        let _ = (moe, x);
        panic!("no expert of layer {layer} is on the device");
    }

    /// Applies those experts that the device holds to the rows that use them, as [`Backend::experts`]
    /// does, takes them out of `uses`, and tells how many uses that were. What is left is asked of the
    /// drive meanwhile.
    fn take_held(
        &mut self,
        layer: usize,
        x: &Self::Buffer,
        uses: &mut ExpertUses,
        out: &mut Self::Buffer,
    ) -> usize {
        let _ = (layer, x, uses, out);
        0
    }

    /// What the bits of results depend on besides the inputs, such as the instruction set. States are
    /// only taken up by a backend of which this is the same.
    fn numerics(&self) -> String;

    /// Bytes of [`Backend::save_kv_block`].
    fn kv_block_bytes(&self, spec: &AttentionSpec) -> usize;

    /// Keys and values of the [`STATE_BLOCK`] positions of a block, as they are stored, little-endian. The
    /// cache holds all of them.
    ///
    /// [`STATE_BLOCK`]: crate::STATE_BLOCK
    fn save_kv_block(&self, spec: &AttentionSpec, cache: &Self::KvCache, block: usize) -> Vec<u8>;

    /// Appends a block that was saved to a cache that holds whole blocks. The bytes have the right
    /// number.
    fn load_kv_block(&self, spec: &AttentionSpec, cache: &mut Self::KvCache, bytes: &[u8]);

    /// Bytes of [`Backend::take_snapshot`].
    fn snapshot_bytes(&self, spec: &DeltaNetSpec) -> usize;

    /// Has a state keep a snapshot of itself when it has seen `position` tokens, a multiple of
    /// [`STATE_BLOCK`] that is still to come.
    ///
    /// [`STATE_BLOCK`]: crate::STATE_BLOCK
    fn mark_snapshot(&self, state: &mut Self::DeltaState, position: usize);

    /// Takes the snapshot that was kept at a position, little-endian; `None` if none was.
    fn take_snapshot(&self, state: &mut Self::DeltaState, position: usize) -> Option<Vec<u8>>;

    /// Makes a state what it was when a snapshot was taken at `position`. The bytes have the right
    /// number.
    fn load_snapshot(
        &self,
        spec: &DeltaNetSpec,
        state: &mut Self::DeltaState,
        position: usize,
        bytes: &[u8],
    );

    /// A cache's contents, for tests and verification.
    fn kv_values(&self, spec: &AttentionSpec, cache: &Self::KvCache) -> KvValues;

    /// A delta state's contents, for tests and verification.
    fn delta_values(&self, spec: &DeltaNetSpec, state: &Self::DeltaState) -> DeltaStateValues;
}
