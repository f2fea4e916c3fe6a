//! The two commands: what is read, in which order things happen, and who does the work.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use checkpoint::{
    ExpertTable, Format, MatrixLocation, VectorTransform, decode_vector, dequantize_row,
    encode_floats,
};
use engine::{EngineOptions, Inventory, TrunkLocation};

use crate::affine::Codes;
use crate::allocate::{Budget, choose_widths};
use crate::calibrate::{Calibration, CalibrationText};
use crate::config::{config_of_gguf, read_config, write_small_files};
use crate::error::Error;
use crate::expert::{Expert, Method};
use crate::layout::Stored;
use crate::output::{Output, Partial};
use crate::plan::{ExpertForm, Placement, Plan, Unit, Work, expert_form};
use crate::recipe::{Recipe, Width};
use crate::source::Source;

/// Choices of [`quantize`].
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Widths.
    pub recipe: Recipe,
    /// How the codes of routed experts are found.
    pub method: Method,
    /// How experts lie in the result.
    pub placement: Placement,
    /// What the model reads so that its experts' inputs are known; empty if they are not to be.
    pub calibration: Vec<CalibrationText>,
    /// How many tokens of that, as many of each text.
    pub calibration_tokens: usize,
    /// Where what was recorded is kept for other runs; `None` if it is not to be.
    pub calibration_directory: Option<PathBuf>,
    /// Bytes that experts may take, instead of one width for all.
    pub budget: Option<Budget>,
    /// About the largest size of a file.
    pub shard_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
    /// How the model is run for calibration.
    pub engine: EngineOptions,
}

impl Options {
    /// Plain rounding by a recipe.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            method: Method::Round,
            placement: Placement::Apart,
            calibration: Vec::new(),
            calibration_tokens: 32_768,
            calibration_directory: None,
            budget: None,
            shard_bytes: 4 << 30,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            engine: EngineOptions::default(),
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Text is sampled and read; counted in tokens.
    Calibrate,
    /// Widths of experts are tried; counted in experts.
    Allocate,
    /// Weights are quantised and written; counted in bytes of the result.
    Write,
    /// The result is read back; counted in bytes.
    Verify,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// How much of it is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Of those, bytes of routed experts.
    pub expert_bytes: u64,
    /// Bytes of the experts that a token uses, by how often experts are used where that is known.
    pub expert_bytes_per_token: u64,
    /// Files with tensors.
    pub files: usize,
    /// How many experts have which width, narrowest first; kept ones have none.
    pub widths: Vec<(u8, usize)>,
    /// Bytes that an earlier, killed run had already written.
    pub resumed_bytes: u64,
    /// Tensors of the source that have no place in the result: those of vision and multi-token-prediction.
    pub left_out: usize,
}

/// Writes a quantised copy of `model` to the new directory `out`.
pub fn quantize(
    model: &Path,
    out: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let inventory = read_inventory(model)?;
    check_recipe(&inventory, options)?;
    let config = match inventory.checkpoint.text() {
        Some(_) => config_of_gguf(model, inventory.checkpoint.config())?,
        None => read_config(inventory.checkpoint.path())?,
    };
    let partial = Partial::open(out, &identity(&inventory, &describe(options)))?;
    let source = Source::open(&inventory.checkpoint)?;
    let calibration = match options.calibration.as_slice() {
        [] => None,
        texts => {
            let n_tokens = options.calibration_tokens;
            Some(Calibration::record(
                &options.calibration_directory.clone().unwrap_or_else(|| partial.calibration()),
                &identity(&inventory, &format!("{texts:?} {n_tokens}")),
                model,
                (texts, n_tokens),
                &options.engine,
                &mut |done, total| progress(Progress { stage: Stage::Calibrate, done, total }),
            )?)
        }
    };
    let loader =
        Loader { source: &source, inventory: &inventory, calibration: calibration.as_ref() };
    let widths = match options.budget {
        Some(budget) => {
            let mut advance = |done, total| {
                progress(Progress { stage: Stage::Allocate, done, total });
            };
            Some(choose_widths(&loader, options, budget, &partial.widths(), &mut advance)?)
        }
        None => None,
    };

    let mut plan = Plan::new(options.shard_bytes);
    let model_config = inventory.checkpoint.config();
    let (family, recipe) = (model_config.family, &options.recipe);
    let mut report = Report::default();
    for (layer, table) in inventory.experts.iter().enumerate() {
        let forms = (0..table.len()).map(|expert| {
            let location = table.get(expert);
            let bits = widths.as_ref().map(|widths| widths[layer][expert]);
            (location, expert_form(recipe, &location, bits))
        });
        let forms: Vec<_> = forms.collect();
        for (_, form) in &forms {
            if let ExpertForm::Codes(affine) = form {
                count(&mut report.widths, affine.bits);
            }
        }
        let prefix = crate::plan::mlx_name(family, &format!("layers.{layer}.mlp"));
        plan.experts(options.placement, &prefix, layer, &forms);
    }
    let taps = model_config.delta_net.map_or(1, |delta_net| delta_net.conv_kernel);
    let mut seen = std::collections::HashSet::new();
    for (index, tensor) in inventory.trunk.iter().enumerate() {
        // A matrix whose parts are used apart is stored as one.
        if seen.insert(&tensor.name) {
            let width = recipe.of_trunk(&tensor.name, model_config.tie_word_embeddings);
            plan.trunk(index, tensor, family, (width, recipe.group), taps);
        }
    }
    report.left_out = inventory.leftover.vision.len() + inventory.leftover.mtp.len();
    report.expert_bytes_per_token = bytes_per_token(&plan, &inventory, calibration.as_ref())?;
    let work = |unit: &Unit| loader.make(&unit.name, &unit.work, options.method);
    write(&partial, &plan, options.threads, &work, &mut report, progress)?;
    write_small_files(&partial, &inventory, config, &plan.modules, options.placement)?;
    finish(partial, &plan, report)
}

/// Writes a copy of `model` to the new directory `out` in which experts lie as `placement` says. Every stored
/// value keeps its bits.
pub fn pack(
    model: &Path,
    out: &Path,
    placement: Placement,
    shard_bytes: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, Error> {
    let inventory = read_inventory(model)?;
    if inventory.checkpoint.text().is_some() {
        let what =
            "blocks of GGUF files have no form in safetensors\nhint: use quantize".to_owned();
        return Err(Error::Source { path: model.to_owned(), what });
    }
    let config = read_config(inventory.checkpoint.path())?;
    let what = format!("pack {placement:?} {shard_bytes}");
    let partial = Partial::open(out, &identity(&inventory, &what))?;
    let source = Source::open(&inventory.checkpoint)?;
    let loader = Loader { source: &source, inventory: &inventory, calibration: None };

    let mut plan = Plan::new(shard_bytes);
    let mut report = Report::default();
    let mut prefixes = vec![None; inventory.experts.len()];
    let mut others = Vec::new();
    for tensor in inventory.checkpoint.tensors() {
        match expert_block(&tensor.name) {
            Some((layer, prefix)) if layer < prefixes.len() => prefixes[layer] = Some(prefix),
            _ if tensor.name.starts_with(checkpoint::PADDING_PREFIX) => {}
            _ => others.push(tensor),
        }
    }
    for (layer, table) in inventory.experts.iter().enumerate() {
        let forms: Vec<_> =
            (0..table.len()).map(|expert| (table.get(expert), ExpertForm::Kept)).collect();
        let Some(prefix) = &prefixes[layer] else { continue };
        check_stackable(&inventory, placement, layer, table)?;
        for (location, _) in &forms {
            if let Format::Affine(affine) = location.gate.format {
                count(&mut report.widths, affine.bits);
            }
        }
        plan.experts(placement, prefix, layer, &forms);
    }
    // Codes of the trunk keep their names; what is said of them must stay, too.
    for tensor in &inventory.trunk {
        if let TrunkLocation::Matrix(matrix) = &tensor.location
            && let Format::Affine(affine) = matrix.format
            && let Some(stored) = others.iter().find(|stored| stored.extent == matrix.data)
        {
            let name = stored.name.strip_suffix(".weight").unwrap_or(&stored.name).to_owned();
            let (bits, group) = (affine.bits, affine.group);
            let module = crate::plan::Module { name, bits, group };
            if !plan.modules.contains(&module) {
                plan.modules.push(module);
            }
        }
    }
    for tensor in others {
        plan.copy(tensor);
    }
    report.expert_bytes_per_token = bytes_per_token(&plan, &inventory, None)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = |unit: &Unit| loader.make(&unit.name, &unit.work, Method::Round);
    write(&partial, &plan, threads, &work, &mut report, progress)?;
    write_small_files(&partial, &inventory, config, &plan.modules, placement)?;
    finish(partial, &plan, report)
}

fn count(widths: &mut Vec<(u8, usize)>, bits: u8) {
    match widths.iter_mut().find(|(width, _)| *width == bits) {
        Some((_, n)) => *n += 1,
        None => {
            widths.push((bits, 1));
            widths.sort_unstable();
        }
    }
}

/// The layer of a tensor of routed experts, and how the block is called in its file.
fn expert_block(name: &str) -> Option<(usize, String)> {
    let at = name.find(".mlp.experts.").or_else(|| name.find(".mlp.switch_mlp."))?;
    let block = &name[..at + ".mlp".len()];
    let at = block.find("layers.")?;
    if name.starts_with("mtp.") || name.contains(".mtp.") {
        return None;
    }
    let layer = block[at + "layers.".len()..].strip_suffix(".mlp")?;
    Some((layer.parse().ok()?, block.to_owned()))
}

fn read_inventory(model: &Path) -> Result<Inventory, Error> {
    let inventory = Inventory::read(model)?;
    if !inventory.problems.is_empty() {
        let what = inventory.problems.join("\n");
        return Err(Error::Source { path: model.to_owned(), what });
    }
    Ok(inventory)
}

fn check_recipe(inventory: &Inventory, options: &Options) -> Result<(), Error> {
    let config = inventory.checkpoint.config();
    let recipe = &options.recipe;
    let wrong = |field: &str, found: String, expected: &str| {
        Err(Error::Recipe { field: field.to_owned(), found, expected: expected.to_owned() })
    };
    let widths = [config.hidden_size, config.moe.intermediate];
    let group = usize::from(recipe.group);
    if recipe.experts != Width::Keep && widths.iter().any(|width| !width.is_multiple_of(group)) {
        let expected =
            format!("a divisor of {} and of {}, as wide as experts are", widths[0], widths[1]);
        return wrong("group", recipe.group.to_string(), &expected);
    }
    if options.budget.is_some() && options.calibration.is_empty() {
        return wrong(
            "a budget",
            "without calibration".to_owned(),
            "with it: widths hang on inputs",
        );
    }
    if options.budget.is_some() && options.placement == Placement::Stacked {
        let expected = "for experts that lie apart: a stack has one width";
        return wrong("a budget", "for stacks".to_owned(), expected);
    }
    let needs_inputs = matches!(options.method, Method::Feedback | Method::Refine);
    if needs_inputs && options.calibration.is_empty() && recipe.experts != Width::Keep {
        let found = "without calibration".to_owned();
        return wrong("the method", found, "round or search, or with text to calibrate by");
    }
    if !options.calibration.is_empty() && options.calibration_tokens == 0 {
        return wrong("calibration tokens", "0".to_owned(), "more than that");
    }
    Ok(())
}

/// Stacks hold experts of one format.
fn check_stackable(
    inventory: &Inventory,
    placement: Placement,
    layer: usize,
    table: &ExpertTable,
) -> Result<(), Error> {
    let formats = |expert: usize| table.get(expert).matrices().map(|matrix| matrix.format);
    let differ = (1..table.len()).any(|expert| formats(expert) != formats(0));
    if placement == Placement::Stacked && differ {
        let path = inventory.checkpoint.path().to_owned();
        let what = format!("experts of layer {layer} have different widths and cannot be stacked");
        return Err(Error::Source { path, what });
    }
    Ok(())
}

/// What a run is known by: it goes on only with the same source and the same choices.
fn identity(inventory: &Inventory, what: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for file in inventory.checkpoint.files() {
        let modified = std::fs::metadata(&file.path).and_then(|metadata| metadata.modified());
        let modified =
            modified.ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        hasher.update(format!("{} {} {modified:?}\n", file.path.display(), file.len).as_bytes());
    }
    hasher.update(what.as_bytes());
    format!("flash-moe {} {}\n", env!("CARGO_PKG_VERSION"), hasher.finalize())
}

/// All choices that the bytes of the result hang on.
fn describe(options: &Options) -> String {
    let Options { recipe, method, placement, calibration, .. } = options;
    let Options { calibration_tokens, budget, shard_bytes, .. } = options;
    format!(
        "{recipe:?} {method:?} {placement:?} {calibration:?} {calibration_tokens} {budget:?} \
         {shard_bytes}"
    )
}

/// The bytes of the experts that a token uses.
fn bytes_per_token(
    plan: &Plan,
    inventory: &Inventory,
    calibration: Option<&Calibration>,
) -> Result<u64, Error> {
    let moe = &inventory.checkpoint.config().moe;
    let Some(calibration) = calibration else {
        return Ok((plan.expert_bytes as f64 / moe.n_experts as f64 * moe.top_k as f64) as u64);
    };
    let mut bytes = 0.0;
    let mut units = plan.units.iter();
    for (layer, table) in inventory.experts.iter().enumerate().filter(|(_, t)| !t.is_empty()) {
        let uses = calibration.layer(layer)?.uses(table.len());
        let total = uses.iter().sum::<usize>().max(1) as f64;
        for (uses, unit) in uses.iter().zip(&mut units) {
            bytes += unit.bytes() as f64 * *uses as f64 / total * moe.top_k as f64;
        }
    }
    Ok(bytes.round() as u64)
}

/// Does all units that are not done yet, and reads everything back.
fn write(
    partial: &Partial,
    plan: &Plan,
    threads: usize,
    make: &(dyn Fn(&Unit) -> Result<Vec<u8>, Error> + Sync),
    report: &mut Report,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let mut output = Output::open(partial, &plan.layout)?;
    let total = plan.bytes();
    let left: Vec<usize> = (0..plan.units.len()).filter(|&unit| !output.has(unit)).collect();
    let missing: u64 = left.iter().map(|&unit| plan.units[unit].bytes()).sum();
    report.resumed_bytes = total - missing;
    report.bytes = total;
    report.expert_bytes = plan.expert_bytes;
    report.files = plan.layout.names().len();

    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = sync_channel(threads);
    let mut done = report.resumed_bytes;
    let mut result = Ok(());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (sender, left, next, stop) = (sender.clone(), &left, &next, &stop);
            scope.spawn(move || {
                while let Some(&unit) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let made = make(&plan.units[unit]);
                    if stop.load(Ordering::Relaxed) || sender.send((unit, made)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        // Ends when all workers have ended. After an error what still comes is dropped.
        for (unit, made) in receiver {
            if result.is_err() {
                continue;
            }
            result = made.and_then(|bytes| {
                output.write(unit, &plan.units[unit].pieces, &bytes)?;
                done += bytes.len() as u64;
                progress(Progress { stage: Stage::Write, done, total });
                Ok(())
            });
            stop.store(result.is_err(), Ordering::Relaxed);
        }
    });
    // What was made before an error need not be made again.
    output.flush()?;
    result?;

    output.forget_pages();
    let mut done = 0;
    for (index, unit) in plan.units.iter().enumerate() {
        output.verify(index, &unit.name, &unit.pieces)?;
        done += unit.bytes();
        progress(Progress { stage: Stage::Verify, done, total });
    }
    Ok(())
}

/// Checks that the result is a checkpoint, and names it.
fn finish(partial: Partial, plan: &Plan, report: Report) -> Result<Report, Error> {
    partial.add("model.safetensors.index.json", plan.layout.index().to_string().as_bytes())?;
    let inventory = Inventory::read(partial.path())?;
    let faults = inventory.problems.iter().chain(&inventory.leftover.unknown);
    let faults: Vec<String> = faults.cloned().collect();
    if !faults.is_empty() {
        return Err(Error::Source { path: partial.path().to_owned(), what: faults.join("\n") });
    }
    partial.finish()?;
    Ok(report)
}

/// Gives weights, and what is made of them.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a Source,
    pub(crate) inventory: &'a Inventory,
    pub(crate) calibration: Option<&'a Calibration>,
}

impl Loader<'_> {
    /// The bytes of a unit.
    fn make(&self, name: &str, work: &Work, method: Method) -> Result<Vec<u8>, Error> {
        match work {
            Work::Copy(extents) => {
                let parts = extents.iter().map(|&extent| self.source.read(extent));
                Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
            }
            Work::Vector(index) => {
                let tensor = &self.inventory.trunk[*index];
                let TrunkLocation::Vector(vector) = &tensor.location else {
                    panic!("{} was planned as a vector", tensor.name);
                };
                let stored = self.source.read(vector.extent)?;
                if vector.transform == VectorTransform::Identity {
                    return Ok(stored);
                }
                let mut bytes = Vec::with_capacity(stored.len());
                encode_floats(vector.dtype, &decode_vector(vector, &stored), &mut bytes);
                Ok(bytes)
            }
            Work::Rows(matrix, rows, stored) => {
                let values = self.source.rows(matrix, rows.clone())?;
                let mut bytes = Vec::new();
                match *stored {
                    Stored::Float(float) => encode_floats(float, &values, &mut bytes),
                    Stored::Affine(affine) => {
                        if values.iter().any(|value| !value.is_finite()) {
                            return Err(Error::NotFinite { tensor: name.to_owned() });
                        }
                        let codes = match method {
                            Method::Round => Codes::round(affine, matrix.cols, &values),
                            _ => {
                                Codes::search(affine, matrix.cols, &values, &vec![1.0; matrix.cols])
                            }
                        };
                        bytes = store(&codes)?;
                    }
                }
                Ok(bytes)
            }
            Work::Expert { layer, expert, affine } => {
                let weights = self.expert(*layer, *expert)?;
                let inputs = match self.calibration {
                    Some(calibration) if method != Method::Round => {
                        Some(calibration.layer(*layer)?.inputs(*expert))
                    }
                    _ => None,
                };
                let codes = weights.quantise(*affine, method, inputs.as_ref());
                let parts = codes.iter().map(store);
                Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
            }
            Work::ExpertRows { matrices, stored } => {
                let mut bytes = Vec::new();
                for matrix in matrices {
                    let values = self.source.rows(matrix, 0..matrix.rows)?;
                    let Stored::Float(float) = *stored else {
                        panic!("blocks are kept as floats");
                    };
                    encode_floats(float, &values, &mut bytes);
                }
                Ok(bytes)
            }
        }
    }

    /// The weights of a routed expert.
    pub(crate) fn expert(&self, layer: usize, expert: usize) -> Result<Expert, Error> {
        let location = self.inventory.experts[layer].get(expert);
        let values = |matrix: &MatrixLocation| self.source.rows(matrix, 0..matrix.rows);
        let weights = Expert {
            hidden: location.gate.cols,
            intermediate: location.gate.rows,
            gate: values(&location.gate)?,
            up: values(&location.up)?,
            down: values(&location.down)?,
        };
        if !weights.is_finite() {
            let tensor = format!("expert {expert} of layer {layer}");
            return Err(Error::NotFinite { tensor });
        }
        Ok(weights)
    }
}

/// The bytes of codes: data, scales, biases. They are decoded once as every reader does, and must be what
/// was meant.
fn store(codes: &Codes) -> Result<Vec<u8>, Error> {
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    codes.store(&mut parts);
    let format = Format::Affine(codes.affine);
    let (data, scales) = (format.row_bytes(codes.cols), format.scale_row_bytes(codes.cols));
    let mut row = vec![0.0; codes.cols];
    let rows = parts[0].chunks_exact(data).zip(parts[1].chunks_exact(scales));
    let rows = rows.zip(parts[2].chunks_exact(scales)).zip(codes.row_values());
    for (((data, scales), biases), meant) in rows {
        dequantize_row(format, data, scales, biases, &mut row);
        assert!(row == meant, "codes decode to what they stand for");
    }
    Ok(parts.concat())
}
