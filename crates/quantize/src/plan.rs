//! What is to be made, tensor by tensor: units of work, each with its places in the shards.

use std::ops::Range;
use std::sync::Arc;

use checkpoint::{
    Affine, ExpertLocation, Extent, Family, FloatType, Format, MatrixLocation, StoredTensor,
    VectorLocation,
};

use crate::arrange::{Arranged, Order};
use crate::layout::{Layout, Piece, Stored, float_name};
use crate::recipe::{Recipe, Width};
use crate::source::{part, row_bytes};

/// Numbers of a matrix that are decoded at a time.
const CHUNK_VALUES: usize = 4 << 20;
/// Bytes that are copied at a time.
const CHUNK_BYTES: u64 = 16 << 20;

/// How the experts of a layer lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Each by itself, in one aligned range: one expert is one read.
    Apart,
    /// In nine stacks, as mlx-lm writes them: one expert is nine reads.
    Stacked,
}

/// A piece of work: what one thread does at a time, and what a killed run does not do again.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// For messages.
    pub(crate) name: String,
    pub(crate) work: Work,
    pub(crate) pieces: Vec<Piece>,
}

impl Unit {
    pub(crate) fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

/// What is done.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    /// The bytes of the source.
    Copy(Vec<Extent>),
    /// A vector of the trunk, with the values that MLX stores.
    Vector(VectorLocation, Order),
    /// Rows of a matrix of the trunk.
    Rows(Arc<Arranged>, Range<usize>, Stored),
    /// A routed expert of a layer.
    Expert { layer: usize, expert: usize, affine: Affine },
    /// A routed expert as floats.
    ExpertRows(Box<[MatrixLocation; 3]>),
}

/// A module that is in codes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bits: u8,
    pub(crate) group: u16,
}

/// All that is to be written.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) units: Vec<Unit>,
    pub(crate) modules: Vec<Module>,
    /// Of routed experts.
    pub(crate) expert_bytes: u64,
}

const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// The codes of one expert are stored so.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ExpertForm {
    /// In codes of its own width.
    Codes(Affine),
    /// As the source has it.
    Kept,
}

impl ExpertForm {
    /// How a matrix of the expert is stored.
    pub(crate) fn stored(self, matrix: &MatrixLocation) -> Stored {
        match self {
            Self::Codes(affine) => Stored::Affine(affine),
            Self::Kept => Stored::of_kept(matrix.format),
        }
    }
}

/// Whether experts have one form, as a stack of them must.
pub(crate) fn are_alike(experts: &[(ExpertLocation, ExpertForm)]) -> bool {
    let stored = |(location, form): &(ExpertLocation, ExpertForm)| {
        location.matrices().map(|matrix| form.stored(matrix))
    };
    experts.windows(2).all(|pair| stored(&pair[0]) == stored(&pair[1]))
}

/// Types of scales: that of the source, or bf16.
pub(crate) fn scales_of(format: Format) -> FloatType {
    match format {
        Format::Float(FloatType::F16) => FloatType::F16,
        Format::Affine(affine) => affine.scales,
        Format::Float(_) | Format::Block(_) => FloatType::Bf16,
    }
}

impl Plan {
    /// Nothing yet; what belongs together lies in one shard, whatever its size.
    pub(crate) fn new(shard_bytes: u64) -> Self {
        let layout = Layout::new(shard_bytes.max(1));
        Self { layout, units: Vec::new(), modules: Vec::new(), expert_bytes: 0 }
    }

    /// Adds the experts of a layer; `form` tells how each is stored.
    pub(crate) fn experts(
        &mut self,
        placement: Placement,
        prefix: &str,
        layer: usize,
        experts: &[(ExpertLocation, ExpertForm)],
    ) {
        let bytes_of = |(location, form): &(ExpertLocation, ExpertForm)| -> u64 {
            let matrices = location.matrices().into_iter();
            matrices.map(|m| form.stored(m).bytes(m.rows, m.cols)).sum()
        };
        self.expert_bytes += experts.iter().map(bytes_of).sum::<u64>();
        let mut stacks = Vec::new();
        if placement == Placement::Stacked
            && let Some((first, form)) = experts.first()
        {
            self.layout.keep_together(experts.iter().map(bytes_of).sum());
            for (name, matrix) in PARTS.iter().zip(first.matrices()) {
                let module = format!("{prefix}.switch_mlp.{name}");
                let stored = form.stored(matrix);
                self.module(&module, stored);
                let lead = [experts.len(), matrix.rows];
                stacks.push(self.layout.module(&module, stored, &lead, matrix.cols));
            }
        }
        for (expert, (location, form)) in experts.iter().enumerate() {
            let mut pieces = Vec::new();
            if placement == Placement::Apart {
                self.layout.keep_together(bytes_of(&experts[expert]) + 4096);
                self.layout.align();
            }
            for (index, matrix) in location.matrices().into_iter().enumerate() {
                let stored = form.stored(matrix);
                match placement {
                    Placement::Apart => {
                        let module = format!("{prefix}.experts.{expert}.{}", PARTS[index]);
                        self.module(&module, stored);
                        pieces.extend(self.layout.module(
                            &module,
                            stored,
                            &[matrix.rows],
                            matrix.cols,
                        ));
                    }
                    Placement::Stacked => pieces.extend(stacks[index].iter().map(|stack| {
                        let len = stack.len / experts.len() as u64;
                        stack.part(len * expert as u64, len)
                    })),
                }
            }
            let work = match *form {
                ExpertForm::Codes(affine) => Work::Expert { layer, expert, affine },
                // GGUF files mix blocks and floats within an expert.
                ExpertForm::Kept
                    if location.matrices().iter().any(|m| matches!(m.format, Format::Block(_))) =>
                {
                    Work::ExpertRows(Box::new(location.matrices().map(|matrix| *matrix)))
                }
                ExpertForm::Kept => Work::Copy(
                    location.matrices().into_iter().flat_map(MatrixLocation::extents).collect(),
                ),
            };
            let name = format!("expert {expert} of layer {layer}");
            self.units.push(Unit { name, work, pieces });
        }
    }

    /// Adds a vector of the trunk under the name that MLX gives it. A convolution has so many taps.
    pub(crate) fn vector(
        &mut self,
        name: String,
        vector: VectorLocation,
        order: Order,
        taps: usize,
    ) {
        let is_conv = name.ends_with("conv1d.weight");
        let shape = if is_conv { vec![vector.len / taps, taps, 1] } else { vec![vector.len] };
        let bytes = (vector.len * vector.dtype.size()) as u64;
        self.layout.keep_together(bytes);
        let dtype = float_name(vector.dtype);
        let pieces = vec![self.layout.tensor(name.clone(), dtype, &shape, bytes)];
        self.units.push(Unit { name, work: Work::Vector(vector, order), pieces });
    }

    /// Adds a matrix of the trunk under the name that MLX gives it.
    pub(crate) fn trunk_matrix(
        &mut self,
        name: &str,
        matrix: &Arc<Arranged>,
        (width, group): (Width, u16),
    ) {
        let MatrixLocation { format, cols, .. } = *matrix.stored();
        let stored = match width {
            // As in MLX, a matrix that is not a whole number of groups wide stays in floats.
            Width::Bits(bits) if cols.is_multiple_of(usize::from(group)) => {
                Stored::Affine(Affine { bits, group, scales: scales_of(format) })
            }
            _ => Stored::of_kept(format),
        };
        self.matrix(name.strip_suffix(".weight").unwrap_or(name), matrix, stored);
    }

    fn matrix(&mut self, module: &str, matrix: &Arc<Arranged>, stored: Stored) {
        let (n_rows, cols) = (matrix.n_rows(), matrix.stored().cols);
        self.module(module, stored);
        self.layout.keep_together(stored.bytes(n_rows, cols));
        let places = self.layout.module(module, stored, &[n_rows], cols);
        let is_kept = |theirs: Format| match (stored, theirs) {
            (Stored::Float(ours), Format::Float(theirs)) => ours == theirs,
            (Stored::Affine(ours), Format::Affine(theirs)) => ours == theirs,
            _ => false,
        };
        let kept = matrix.whole().filter(|whole| is_kept(whole.format));
        let step = (CHUNK_VALUES / cols).max(1);
        for begin in (0..n_rows).step_by(step) {
            let rows = begin..n_rows.min(begin + step);
            let pieces = places.iter().map(|place| {
                let row = place.len / n_rows as u64;
                place.part(row * rows.start as u64, row * rows.len() as u64)
            });
            let pieces = pieces.collect();
            let work = match kept {
                Some(whole) => {
                    let [data_bytes, scale_bytes] = row_bytes(whole);
                    let parts = whole.extents().zip([data_bytes, scale_bytes, scale_bytes]);
                    Work::Copy(parts.map(|(extent, bytes)| part(extent, bytes, &rows)).collect())
                }
                None => Work::Rows(Arc::clone(matrix), rows, stored),
            };
            self.units.push(Unit { name: module.to_owned(), work, pieces });
        }
    }

    /// Adds a tensor of the source as it is.
    pub(crate) fn copy(&mut self, tensor: &StoredTensor) {
        let Extent { file, offset, len } = tensor.extent;
        self.layout.keep_together(len);
        let name = tensor.name.clone();
        let place = self.layout.tensor(name.clone(), tensor.dtype.name(), &tensor.shape, len);
        for begin in (0..len).step_by(CHUNK_BYTES as usize) {
            let len = CHUNK_BYTES.min(len - begin);
            let work = Work::Copy(vec![Extent { file, offset: offset + begin, len }]);
            let pieces = vec![place.part(begin, len)];
            self.units.push(Unit { name: name.clone(), work, pieces });
        }
    }

    fn module(&mut self, name: &str, stored: Stored) {
        if let Stored::Affine(Affine { bits, group, .. }) = stored {
            self.modules.push(Module { name: name.to_owned(), bits, group });
        }
    }

    /// Bytes of all units.
    pub(crate) fn bytes(&self) -> u64 {
        self.units.iter().map(Unit::bytes).sum()
    }
}

/// The name that MLX gives a tensor.
pub(crate) fn mlx_name(family: Family, canonical: &str) -> String {
    let prefix = match family {
        Family::Qwen35Moe => "language_model.",
        Family::Qwen3Next | Family::Qwen3Moe => "",
    };
    match canonical.starts_with("lm_head.") {
        true => format!("{prefix}{canonical}"),
        false => format!("{prefix}model.{canonical}"),
    }
}

/// How the experts are stored by a recipe and, where they were chosen, widths of their own.
pub(crate) fn expert_form(
    recipe: &Recipe,
    location: &ExpertLocation,
    bits: Option<u8>,
) -> ExpertForm {
    let bits = match (bits, recipe.experts) {
        (Some(bits), _) | (None, Width::Bits(bits)) => bits,
        (None, Width::Keep) => return ExpertForm::Kept,
    };
    let scales = scales_of(location.gate.format);
    ExpertForm::Codes(Affine { bits, group: recipe.group, scales })
}
