//! A checkpoint of the same model with fewer bits, whose routed experts can take the place of the model's own.

use std::path::{Path, PathBuf};

use checkpoint::{ExpertTable, MatrixLocation};
use experts::{DataFiles, IoMode};

use crate::error::Error;
use crate::inventory::{Inventory, TrunkLocation};
use crate::trunk::read_vector;

/// By how much the same weight of a norm may differ in two checkpoints: what rounding to bf16 makes of it.
const NORM_TOLERANCE: f32 = 1.0 / 128.0;

/// The routed experts of a twin.
#[derive(Debug)]
pub struct Twin {
    /// Where it is.
    pub path: PathBuf,
    /// Its data files.
    pub files: Vec<PathBuf>,
    /// Its experts of each layer, in those files when they come after the model's.
    pub experts: Vec<ExpertTable>,
}

impl Twin {
    /// Reads the headers of a twin, and refuses what is none of `main`: another model, other shapes, or experts
    /// that are not smaller.
    pub(crate) fn read(path: &Path, main: &Inventory) -> Result<Self, Error> {
        let refused = |reason: String| Error::Twin { path: path.to_owned(), reason };
        let twin = Inventory::read(path)?;
        if !twin.problems.is_empty() {
            let (path, problems) = (path.to_owned(), twin.problems);
            return Err(Error::Incomplete { path, problems });
        }
        let [ours, theirs] = [main, &twin].map(|it| it.checkpoint.config());
        if ours.family != theirs.family {
            let names = [ours, theirs].map(|config| config.family.name());
            return Err(refused(format!(
                "it is of the family {1}, the model of {0}",
                names[0], names[1]
            )));
        }
        let are_alike = ours.hidden_size == theirs.hidden_size
            && ours.mixers == theirs.mixers
            && ours.ffns == theirs.ffns
            && ours.moe == theirs.moe;
        if !are_alike {
            let of = |config: &checkpoint::ModelConfig| {
                let (moe, n_layers) = (&config.moe, config.ffns.len());
                format!(
                    "{n_layers} layers {} wide, with {} experts {} wide, {} a token",
                    config.hidden_size, moe.n_experts, moe.intermediate, moe.top_k
                )
            };
            return Err(refused(format!("it has {}, the model {}", of(theirs), of(ours))));
        }
        for (layer, (ours, theirs)) in main.experts.iter().zip(&twin.experts).enumerate() {
            for expert in 0..ours.len() {
                let [ours, theirs] = [ours, theirs].map(|table| table.get(expert));
                let shape = |matrix: &MatrixLocation| (matrix.rows, matrix.cols);
                if ours.matrices().map(shape) != theirs.matrices().map(shape) {
                    return Err(refused(format!(
                        "expert {expert} of layer {layer} has another shape"
                    )));
                }
                let [ours, theirs] = [ours.bytes(), theirs.bytes()];
                if theirs > ours {
                    let reason = format!(
                        "expert {expert} of layer {layer} takes {theirs} bytes, more than the model's {ours}"
                    );
                    return Err(refused(reason));
                }
            }
        }
        if let Some(norm) = other_norm(main, &twin)? {
            return Err(refused(format!(
                "its {norm} differs: it is of another model of the same shape"
            )));
        }
        let files = twin.checkpoint.files().iter().map(|file| file.path.clone()).collect();
        let n_files = main.checkpoint.files().len() as u32;
        let experts = twin.experts.into_iter().map(|table| table.after_files(n_files)).collect();
        Ok(Self { path: path.to_owned(), files, experts })
    }

    /// The model's experts of each layer with their twins behind them.
    pub(crate) fn behind(self, experts: Vec<ExpertTable>) -> Vec<ExpertTable> {
        let pairs = experts.into_iter().zip(self.experts);
        pairs.map(|(experts, twins)| experts.with_twins(twins)).collect()
    }
}

/// The name of a norm that is not the same in both: codes of matrices cannot be compared, and norms are kept as
/// they are by whoever quantises.
fn other_norm(main: &Inventory, twin: &Inventory) -> Result<Option<String>, Error> {
    let open = |inventory: &Inventory| {
        let files = inventory.checkpoint.files().iter().map(|file| file.path.clone());
        DataFiles::open(&files.collect::<Vec<_>>(), IoMode::Buffered)
    };
    let files = [open(main)?, open(twin)?];
    let is_norm =
        |name: &str| name == "norm.weight" || name.ends_with("post_attention_layernorm.weight");
    let norms = main.trunk.iter().zip(&twin.trunk).filter(|(ours, _)| is_norm(&ours.name));
    for (ours, theirs) in norms {
        let (TrunkLocation::Vector(a), TrunkLocation::Vector(b)) =
            (&ours.location, &theirs.location)
        else {
            continue;
        };
        let [a, b] = [read_vector(&files[0], a)?, read_vector(&files[1], b)?];
        let is_same =
            |(a, b): (&f32, &f32)| (a - b).abs() <= NORM_TOLERANCE * a.abs().max(b.abs()).max(1.0);
        if a.len() != b.len() || !a.iter().zip(&b).all(is_same) {
            return Ok(Some(ours.name.clone()));
        }
    }
    Ok(None)
}
