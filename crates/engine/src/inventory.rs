//! What a checkpoint holds for its model: every trunk tensor, every expert, and what is wrong.
//!
//! An [`Inventory`] is made from headers alone. `inspect` prints it, and [`crate::Engine`] loads by it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;
use std::path::Path;

use checkpoint::{
    Checkpoint, ExpertTable, Extent, FfnKind, Leftover, MatrixLocation, Resolver, VectorKind,
    VectorLocation,
};
use experts::ExpertStore;
use model::{Decoder, WeightSource};

use crate::error::Error;
use crate::options::EngineOptions;
use crate::twin::Twin;

/// Where a trunk tensor lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TrunkLocation {
    /// A matrix, kept as it is stored.
    Matrix(MatrixLocation),
    /// A vector, decoded when loaded.
    Vector(VectorLocation),
}

/// A tensor of the trunk.
#[derive(Clone, Debug, PartialEq)]
pub struct TrunkTensor {
    /// Canonical name.
    pub name: String,
    /// Where it lies.
    pub location: TrunkLocation,
    /// The rows of the stored matrix that are used, in order, when not all are as stored.
    pub rows: Option<Vec<Range<usize>>>,
}

impl TrunkTensor {
    /// Its byte ranges.
    pub fn extents(&self) -> Vec<Extent> {
        match &self.location {
            TrunkLocation::Matrix(matrix) => matrix.extents().collect(),
            TrunkLocation::Vector(vector) => vec![vector.extent],
        }
    }

    /// Stored bytes that are used.
    pub fn bytes(&self) -> u64 {
        let all = self.extents().iter().map(|extent| extent.len).sum::<u64>();
        match (&self.location, &self.rows) {
            (TrunkLocation::Matrix(matrix), Some(rows)) => {
                let used = rows.iter().map(ExactSizeIterator::len).sum::<usize>();
                all / matrix.rows as u64 * used as u64
            }
            _ => all,
        }
    }

    /// How its values are stored, for people.
    pub fn format(&self) -> String {
        match &self.location {
            TrunkLocation::Matrix(matrix) => matrix.format.to_string(),
            TrunkLocation::Vector(vector) => checkpoint::Format::Float(vector.dtype).to_string(),
        }
    }
}

/// A class of tensors in a summary.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorClass {
    /// Stored bytes.
    pub bytes: u64,
    /// How many tensors have each format.
    pub formats: BTreeMap<String, usize>,
}

/// What a checkpoint holds for its model.
#[derive(Debug)]
pub struct Inventory {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The trunk's tensors in the order in which the model asks for them.
    pub trunk: Vec<TrunkTensor>,
    /// The routed experts of each layer.
    pub experts: Vec<ExpertTable>,
    /// Those of a checkpoint with fewer bits, for use in their place.
    pub twin: Option<Twin>,
    /// Tensors that the model does not need.
    pub leftover: Leftover,
    /// What is missing or wrong, a line each; a model with problems cannot run.
    pub problems: Vec<String>,
    /// The model without weights: knows the sizes of its states.
    pub(crate) outline: Decoder<(), ()>,
}

impl Inventory {
    /// Reads the headers of a checkpoint and looks for everything that its model needs.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let config = checkpoint.config().clone();
        let mut source =
            ListSource { resolver: checkpoint.resolver(), trunk: Vec::new(), problems: Vec::new() };
        let Ok(outline) = model::load(&config, &mut source);
        let ListSource { mut resolver, trunk, mut problems } = source;
        let mut experts = Vec::with_capacity(config.mixers.len());
        for (layer, ffn) in config.ffns.iter().enumerate() {
            if let FfnKind::Dense(_) = ffn {
                experts.push(ExpertTable::separate(Vec::new()));
                continue;
            }
            let name = model::expert_block_name(layer);
            let moe = &config.moe;
            match resolver.experts(&name, moe.n_experts, config.hidden_size, moe.intermediate) {
                Ok(table) => experts.push(table),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let leftover = resolver.finish();
        Ok(Self { checkpoint, trunk, experts, twin: None, leftover, problems, outline })
    }

    /// Reads the headers of a twin where the options name one. It is refused if it is none of this
    /// checkpoint, which is complete.
    pub fn add_twin(&mut self, options: &EngineOptions) -> Result<(), Error> {
        if let Some(path) = &options.twin {
            self.twin = Some(Twin::read(path, self)?);
        }
        Ok(())
    }

    /// Bytes of a slot that holds any of the experts, or of their twins.
    pub fn slot_bytes(&self) -> u64 {
        let twins = self.twin.as_ref().map_or(0, |twin| ExpertStore::slot_bytes(&twin.experts));
        ExpertStore::slot_bytes(&self.experts).max(twins)
    }

    /// Stored bytes of the trunk.
    pub fn trunk_bytes(&self) -> u64 {
        self.trunk.iter().map(TrunkTensor::bytes).sum()
    }

    /// Stored bytes of all routed experts.
    pub fn expert_bytes(&self) -> u64 {
        let layers = self.experts.iter();
        layers.map(|table| (0..table.len()).map(|e| table.get(e).bytes()).sum::<u64>()).sum()
    }

    /// Bytes of the largest routed expert.
    pub fn largest_expert_bytes(&self) -> u64 {
        let layers = self.experts.iter();
        let experts = layers.flat_map(|table| (0..table.len()).map(|e| table.get(e).bytes()));
        experts.max().unwrap_or(0)
    }

    /// Expert bytes that a token reads when nothing is in memory, on average over the experts.
    pub fn expert_bytes_per_token(&self) -> u64 {
        let moe = &self.checkpoint.config().moe;
        self.expert_bytes() / moe.n_experts as u64 * moe.top_k as u64
    }

    /// Bytes and formats by class of tensor.
    pub fn classes(&self) -> BTreeMap<&'static str, TensorClass> {
        let mut classes: BTreeMap<&'static str, TensorClass> = BTreeMap::new();
        let mut add = |class, bytes, format| {
            let class = classes.entry(class).or_default();
            class.bytes += bytes;
            *class.formats.entry(format).or_insert(0) += 1;
        };
        for tensor in &self.trunk {
            add(class_of(&tensor.name), tensor.bytes(), tensor.format());
        }
        for table in &self.experts {
            for expert in (0..table.len()).map(|expert| table.get(expert)) {
                for matrix in expert.matrices() {
                    add("routed experts", matrix.bytes(), matrix.format.to_string());
                }
            }
        }
        classes
    }
}

/// The class of a trunk tensor, for summaries.
fn class_of(name: &str) -> &'static str {
    const CLASSES: [(&str, &str); 9] = [
        ("embed_tokens.", "embedding"),
        ("lm_head.", "head"),
        (".self_attn.", "attention"),
        (".linear_attn.", "delta net"),
        (".mlp.gate.", "routers"),
        (".mlp.shared_expert", "shared experts"),
        (".mlp.", "dense blocks"),
        ("norm", "norms"),
        ("", "other"),
    ];
    let class = CLASSES.iter().find(|(part, _)| name.contains(part));
    class.map_or("other", |(_, class)| class)
}

/// Lists what a model asks for, and keeps going when something is wrong.
struct ListSource<'a> {
    resolver: Resolver<'a>,
    trunk: Vec<TrunkTensor>,
    problems: Vec<String>,
}

impl ListSource<'_> {
    fn add(
        &mut self,
        name: &str,
        location: Result<TrunkLocation, checkpoint::Error>,
        rows: Option<Vec<Range<usize>>>,
    ) {
        match location {
            Ok(location) => self.trunk.push(TrunkTensor { name: name.to_owned(), location, rows }),
            Err(error) => self.problems.push(error.to_string()),
        }
    }
}

impl WeightSource for ListSource<'_> {
    type Matrix = ();
    type Vector = ();
    type Error = Infallible;

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<(), Infallible> {
        let location = self.resolver.matrix(name, rows, cols).map(TrunkLocation::Matrix);
        self.add(name, location, None);
        Ok(())
    }

    fn matrix_of_rows(
        &mut self,
        name: &str,
        (stored_rows, cols): (usize, usize),
        rows: Vec<Range<usize>>,
    ) -> Result<(), Infallible> {
        let location = self.resolver.matrix(name, stored_rows, cols).map(TrunkLocation::Matrix);
        self.add(name, location, Some(rows));
        Ok(())
    }

    fn vector(&mut self, name: &str, len: usize, kind: VectorKind) -> Result<(), Infallible> {
        let location = self.resolver.vector(name, len, kind).map(TrunkLocation::Vector);
        self.add(name, location, None);
        Ok(())
    }
}
