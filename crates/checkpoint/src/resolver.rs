//! Finding a model's weights among stored tensors, whatever layout they were saved in.
//!
//! Canonical names are those of the Hugging Face text model without prefix. The same weight is called
//! `model.language_model.layers.0...` by Hugging Face, `language_model.model.layers.0...` by MLX, and
//! `model.layers.0...` in text-only saves, `blk.0...` in GGUF files; quantised matrices have `.scales` and `.biases` beside them;
//! experts are stacked, stacked and fused, or apart.

use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::Error;
use crate::expert_table::{ExpertTable, StackedMatrix};
use crate::format::{Affine, FloatType, Format};
use crate::gguf_model::gguf_names;
use crate::location::{
    ExpertLocation, MatrixLocation, VectorKind, VectorLocation, VectorTransform,
};
use crate::safetensors::Dtype;

const PREFIXES: [&str; 5] =
    ["model.language_model.", "language_model.model.", "model.", "language_model.", ""];

/// How the names of tensors begin that only fill gaps, so that an expert begins at a multiple of the block
/// size: safetensors files have no gaps. They mean nothing and are never unknown.
pub const PADDING_PREFIX: &str = "flash_moe.padding.";

/// Tensors that nobody asked for, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Leftover {
    /// Of the vision part.
    pub vision: Vec<String>,
    /// Of the multi-token-prediction head.
    pub mtp: Vec<String>,
    /// Unknown ones.
    pub unknown: Vec<String>,
}

/// Finds weights by canonical name and remembers which tensors were used.
#[derive(Debug)]
pub struct Resolver<'a> {
    checkpoint: &'a Checkpoint,
    used: Vec<bool>,
    layout: Layout,
}

/// Whose conventions a checkpoint follows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    HuggingFace,
    /// Zero-centred norms are stored as `1 + w`.
    Mlx,
    /// The same, and decay rates as `-exp(A_log)`; names are others.
    Gguf,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint) -> Self {
        // A convolution of shape [C, K, 1] marks a file that MLX has converted; the original is
        // [C, 1, K].
        let is_mlx = checkpoint.tensors().iter().any(|tensor| {
            tensor.name.ends_with("conv1d.weight")
                && matches!(tensor.shape[..], [_, taps, 1] if taps > 1)
        });
        let layout = match is_mlx {
            _ if checkpoint.is_gguf() => Layout::Gguf,
            true => Layout::Mlx,
            false => Layout::HuggingFace,
        };
        Self { checkpoint, used: vec![false; checkpoint.tensors().len()], layout }
    }

    /// A matrix of shape (rows, cols), plain or quantised.
    pub fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<MatrixLocation, Error> {
        let tensor = self.find(name)?;
        let stored = self.stored_matrix(tensor, &[rows, cols])?;
        Ok(stored.location(0))
    }

    /// A vector of `len` values; a convolution's taps are the last dimension or the last but one.
    pub fn vector(
        &mut self,
        name: &str,
        len: usize,
        kind: VectorKind,
    ) -> Result<VectorLocation, Error> {
        let tensor = self.find(name)?;
        let dtype = self.float_type(tensor)?;
        let sizes: Vec<usize> = tensor.shape.iter().copied().filter(|&size| size != 1).collect();
        let fits = match sizes[..] {
            [] => len == 1,
            [size] => size == len,
            // Channels come first, and are more than taps.
            [channels, taps] => channels.checked_mul(taps) == Some(len) && channels >= taps,
            _ => false,
        };
        if !fits {
            return Err(self.wrong_shape(tensor, vec![len]));
        }
        let transform = match (kind, self.layout) {
            (VectorKind::ZeroCentredNorm, Layout::HuggingFace) => VectorTransform::AddOne,
            (VectorKind::Plain, Layout::Gguf) if name.ends_with(".A_log") => {
                VectorTransform::LogOfNegative
            }
            _ => VectorTransform::Identity,
        };
        Ok(VectorLocation { dtype, len, extent: tensor.extent, transform })
    }

    /// The routed experts of the block `prefix`, such as `layers.3.mlp`.
    pub fn experts(
        &mut self,
        prefix: &str,
        n_experts: usize,
        hidden: usize,
        intermediate: usize,
    ) -> Result<ExpertTable, Error> {
        let fused = format!("{prefix}.experts.gate_up_proj");
        let stacked = format!("{prefix}.switch_mlp.gate_proj.weight");
        if self.exists(&fused) {
            let gate_up = self.find(&fused)?;
            let gate_up = self.stored_matrix(gate_up, &[n_experts, 2 * intermediate, hidden])?;
            let down = self.find(&format!("{prefix}.experts.down_proj"))?;
            let down = self.stored_matrix(down, &[n_experts, hidden, intermediate])?;
            let [gate, up] = gate_up.split_rows();
            Ok(ExpertTable::stacked(n_experts, [gate, up, down]))
        } else if self.exists(&stacked) {
            let mut matrix = |name: &str, rows, cols| {
                let tensor = self.find(&format!("{prefix}.switch_mlp.{name}.weight"))?;
                self.stored_matrix(tensor, &[n_experts, rows, cols])
            };
            let gate = matrix("gate_proj", intermediate, hidden)?;
            let up = matrix("up_proj", intermediate, hidden)?;
            let down = matrix("down_proj", hidden, intermediate)?;
            Ok(ExpertTable::stacked(n_experts, [gate, up, down]))
        } else {
            let mut experts = Vec::with_capacity(n_experts);
            for expert in 0..n_experts {
                let mut matrix = |name: &str, rows, cols| {
                    self.matrix(&format!("{prefix}.experts.{expert}.{name}.weight"), rows, cols)
                };
                experts.push(ExpertLocation {
                    gate: matrix("gate_proj", intermediate, hidden)?,
                    up: matrix("up_proj", intermediate, hidden)?,
                    down: matrix("down_proj", hidden, intermediate)?,
                });
            }
            Ok(ExpertTable::separate(experts))
        }
    }

    /// The tensors that were not used.
    pub fn finish(self) -> Leftover {
        // In a GGUF file the prediction head is the block that follows the model's own layers.
        let n_layers = self.checkpoint.config().mixers.len();
        let is_extra_block = |name: &str| {
            let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            let number = block.and_then(|(number, _)| number.parse::<usize>().ok());
            self.layout == Layout::Gguf && number.is_some_and(|number| number >= n_layers)
        };
        let mut leftover = Leftover::default();
        for (tensor, used) in self.checkpoint.tensors().iter().zip(&self.used) {
            if *used || tensor.name.starts_with(PADDING_PREFIX) {
                continue;
            }
            let name = tensor.name.clone();
            let begins = |prefix: &str| name.starts_with(prefix);
            if begins("model.visual.") || begins("vision_tower.") || begins("visual.") {
                leftover.vision.push(name);
            } else if begins("mtp.") || name.contains(".mtp.") || is_extra_block(&name) {
                leftover.mtp.push(name);
            } else {
                leftover.unknown.push(name);
            }
        }
        leftover
    }

    fn exists(&self, name: &str) -> bool {
        self.spellings(name).iter().any(|name| self.checkpoint.tensor_index(name).is_some())
    }

    fn spellings(&self, name: &str) -> Vec<String> {
        match self.layout {
            Layout::Gguf => gguf_names(name),
            _ => PREFIXES.iter().map(|prefix| format!("{prefix}{name}")).collect(),
        }
    }

    /// The tensor with a canonical name, which counts as used.
    fn find(&mut self, name: &str) -> Result<&'a StoredTensor, Error> {
        let tried = self.spellings(name);
        let index = tried.iter().find_map(|name| self.checkpoint.tensor_index(name));
        match index {
            Some(index) => {
                self.used[index] = true;
                Ok(&self.checkpoint.tensors()[index])
            }
            None => Err(Error::Missing { name: name.to_owned(), tried }),
        }
    }

    /// A tensor with exactly this name, which counts as used.
    fn find_stored(&mut self, name: &str) -> Option<&'a StoredTensor> {
        let index = self.checkpoint.tensor_index(name)?;
        self.used[index] = true;
        Some(&self.checkpoint.tensors()[index])
    }

    /// A matrix, or a stack of equal matrices, of the logical shape `shape`.
    fn stored_matrix(
        &mut self,
        tensor: &'a StoredTensor,
        shape: &[usize],
    ) -> Result<StackedMatrix, Error> {
        let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
        let Some(scales) = self.find_stored(&format!("{module}.scales")) else {
            let format = match tensor.dtype {
                Dtype::Block(block) => Format::Block(block),
                _ => Format::Float(self.float_type(tensor)?),
            };
            self.check_shape(tensor, shape)?;
            return Ok(StackedMatrix::new(format, shape, tensor.extent, None));
        };
        let unsupported =
            |what: String| Err(Error::Quantisation { tensor: tensor.name.clone(), what });
        let Some(biases) = self.find_stored(&format!("{module}.biases")) else {
            return unsupported("scales but no biases".to_owned());
        };
        let Some(parameters) = self.checkpoint.quantization().of_module(module) else {
            return unsupported("no bits and group_size in config.json".to_owned());
        };
        if tensor.dtype != Dtype::U32 {
            return Err(self.wrong_type(tensor, "U32, as the codes of a quantised matrix are"));
        }
        let float = self.float_type(scales)?;
        if biases.dtype != scales.dtype {
            return Err(self.wrong_type(biases, "the type of the scales"));
        }
        let cols = shape[shape.len() - 1];
        let (bits, group) = (usize::from(parameters.bits), usize::from(parameters.group));
        if !cols.is_multiple_of(group) {
            return unsupported(format!("{cols} columns in groups of {group}"));
        }
        let with_cols = |cols: usize| [&shape[..shape.len() - 1], &[cols]].concat();
        self.check_shape(tensor, &with_cols(cols * bits / 32))?;
        self.check_shape(scales, &with_cols(cols / group))?;
        self.check_shape(biases, &with_cols(cols / group))?;
        let affine = Affine { bits: parameters.bits, group: parameters.group, scales: float };
        let scales = Some([scales.extent, biases.extent]);
        Ok(StackedMatrix::new(Format::Affine(affine), shape, tensor.extent, scales))
    }

    fn float_type(&self, tensor: &StoredTensor) -> Result<FloatType, Error> {
        match tensor.dtype {
            Dtype::Float(float) => Ok(float),
            _ => Err(self.wrong_type(tensor, "F32, F16 or BF16")),
        }
    }

    fn check_shape(&self, tensor: &StoredTensor, shape: &[usize]) -> Result<(), Error> {
        // A matrix of one row may be stored as a vector.
        let fits = tensor.shape == shape || (shape[0] == 1 && tensor.shape == shape[1..]);
        if fits { Ok(()) } else { Err(self.wrong_shape(tensor, shape.to_vec())) }
    }

    fn wrong_shape(&self, tensor: &StoredTensor, expected: Vec<usize>) -> Error {
        let (path, name) = (self.checkpoint.file_of(tensor), tensor.name.clone());
        Error::Shape { path, tensor: name, found: tensor.shape.clone(), expected }
    }

    fn wrong_type(&self, tensor: &StoredTensor, expected: &'static str) -> Error {
        let (path, name) = (self.checkpoint.file_of(tensor), tensor.name.clone());
        Error::Type { path, tensor: name, found: tensor.dtype.name().to_owned(), expected }
    }
}
