//! The two commands: what is read, in which order things happen, and who does the work.

use std::path::Path;

use checkpoint::{ExpertLocation, ExpertTable, Format};
use engine::{Inventory, TrunkLocation};

use crate::allocate::choose_widths;
use crate::arrange::{self, Part, Tensor};
use crate::calibrate::{Calibration, Recording};
use crate::check::{check_recipe, check_shards};
use crate::config::{config_of_gguf, read_config, write_small_files};
use crate::error::Error;
use crate::expert::Method;
use crate::identity::identity;
use crate::loader::Loader;
use crate::options::{Options, Progress, Report, Stage, describe};
use crate::output::Partial;
use crate::plan::{ExpertForm, Placement, Plan, Unit, are_alike, expert_form, mlx_name};
use crate::recipe::Width;
use crate::source::Source;
use crate::text::{fingerprint, read_texts};
use crate::walk::Walk;
use crate::write::Writer;

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
        Some(_) => config_of_gguf(inventory.checkpoint.config()),
        None => read_config(inventory.checkpoint.path())?,
    };
    let texts = read_texts(&options.calibration)?;
    let partial = Partial::open(out, &identity(&inventory, &describe(options, &texts))?)?;
    let source = Source::open(&inventory.checkpoint)?;
    let calibration = match texts.as_slice() {
        [] => None,
        texts => {
            let n_tokens = options.calibration_tokens;
            let own = partial.calibration();
            let what = format!("{} {n_tokens}", fingerprint(texts));
            let recording = Recording {
                directory: options.calibration_directory.as_ref().unwrap_or(&own),
                identity: identity(&inventory, &what)?,
                model,
                config: inventory.checkpoint.config(),
                texts,
                n_tokens,
                engine: &options.engine,
            };
            let mut advance = |done, total| {
                progress(Progress { stage: Stage::Calibrate, done, total });
            };
            Some(Calibration::open(&recording, &mut advance)?)
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
    let mut report = Report {
        calibration_tokens: calibration.as_ref().map_or(0, Calibration::n_rows),
        ..Report::default()
    };
    for (layer, table) in inventory.experts.iter().enumerate() {
        let forms = (0..table.len()).map(|expert| {
            let location = table.get(expert);
            let bits = widths.as_ref().map(|widths| widths[layer][expert]);
            (location, expert_form(recipe, &location, bits))
        });
        let forms: Vec<_> = forms.collect();
        check_stackable(&inventory, options.placement, layer, &forms)?;
        for (_, form) in &forms {
            if let ExpertForm::Codes(affine) = form {
                count(&mut report.widths, affine.bits);
            }
        }
        let prefix = mlx_name(family, &format!("layers.{layer}.mlp"));
        plan.experts(options.placement, &prefix, layer, &forms);
    }
    let taps = model_config.delta_net.map_or(1, |delta_net| delta_net.conv_kernel);
    for Tensor { name, part } in arrange::trunk(&inventory) {
        let width = recipe.of_trunk(&name, model_config.tie_word_embeddings);
        let name = mlx_name(family, &name);
        match part {
            Part::Vector(vector, order) => plan.vector(name, vector, order, taps),
            Part::Matrix(matrix) => plan.trunk_matrix(&name, &matrix, (width, recipe.group)),
        }
    }
    report.left_out = inventory.leftover.vision.len() + inventory.leftover.mtp.len();
    report.expert_bytes_per_token = bytes_per_token(&plan, &inventory, calibration.as_ref())?;
    let mut writer = Writer::open(&partial, &plan, options.threads, &mut report)?;
    let work = |unit: &Unit| loader.make(&unit.name, &unit.work, options.method, None);
    let is_quantised = recipe.experts != Width::Keep || widths.is_some();
    if let Some(calibration) = &calibration
        && options.method == Method::Sequential
        && is_quantised
    {
        let mut walk = Walk::begin(model, &options.engine, calibration, partial.stream())?;
        walk_through(&mut walk, &mut writer, &loader, &plan, options, progress)?;
    }
    writer.write(0..plan.units.len(), &work, progress)?;
    writer.verify(progress)?;
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
    check_shards(&inventory, shard_bytes)?;
    let config = read_config(inventory.checkpoint.path())?;
    let what = format!("pack {placement:?} {shard_bytes}");
    let partial = Partial::open(out, &identity(&inventory, &what)?)?;
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
        check_stackable(&inventory, placement, layer, &forms)?;
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
    let work = |unit: &Unit| loader.make(&unit.name, &unit.work, Method::Round, None);
    let mut writer = Writer::open(&partial, &plan, threads, &mut report)?;
    writer.write(0..plan.units.len(), &work, progress)?;
    writer.verify(progress)?;
    write_small_files(&partial, &inventory, config, &plan.modules, placement)?;
    finish(partial, &plan, report)
}

/// Quantises layer after layer, each by what those before it give it as they are now.
fn walk_through(
    walk: &mut Walk,
    writer: &mut Writer<'_>,
    loader: &Loader<'_>,
    plan: &Plan,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Error> {
    let tables = &loader.inventory.experts;
    // Experts are the first units, layer by layer.
    let mut first: usize = tables[..walk.layer()].iter().map(ExpertTable::len).sum();
    for table in &tables[walk.layer()..] {
        let rows = walk.enter()?;
        let work = |unit: &Unit| loader.make(&unit.name, &unit.work, options.method, Some(&rows));
        writer.write(first..first + table.len(), &work, progress)?;
        let read = |expert: usize| {
            let unit = first + expert;
            loader.written(&plan.units[unit].work, &writer.read(unit)?)
        };
        walk.leave(&rows, table.len(), options.threads, &read)?;
        first += table.len();
    }
    Ok(())
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

/// Stacks hold experts of one form.
fn check_stackable(
    inventory: &Inventory,
    placement: Placement,
    layer: usize,
    experts: &[(ExpertLocation, ExpertForm)],
) -> Result<(), Error> {
    if placement == Placement::Stacked && !are_alike(experts) {
        let path = inventory.checkpoint.path().to_owned();
        let what = format!("experts of layer {layer} have different widths and cannot be stacked");
        return Err(Error::Source { path, what });
    }
    Ok(())
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
