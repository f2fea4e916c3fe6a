//! How the memory budget is spent, decided before any of it is.

use std::fmt::Write;

use checkpoint::ExpertTable;
use compute::memory::BLOCK_ALIGNMENT;
use compute::{Backend, Memory, ScratchNeeds};
use experts::{ExpertStore, MemoryLimits};
use model::Workspace;
use trace::Recorder;

use crate::error::Error;
use crate::held;
use crate::inventory::Inventory;
use crate::options::EngineOptions;
use crate::prefix_cache::Shapes;

/// Kept for what is not counted one by one: thread stacks, queues, the allocator's slack, text.
const RESERVE_BYTES: u64 = 24 << 20;
/// Prompt rows of a forward pass when the budget is large: with so many rows reading a layer's experts
/// takes less time than computing with them, on drives from about 1 GB/s for two cores.
const LARGEST_CHUNK: usize = 2048;
/// Context when nothing is asked for and the budget is large.
const LARGEST_DEFAULT_CONTEXT: usize = 32_768;
/// Context when nothing is asked for, however small the budget.
const SMALLEST_DEFAULT_CONTEXT: usize = 2_048;
/// Bytes that logits of one pass may take.
const LOGIT_BYTES: u64 = 16 << 20;

/// Bytes for each token of the vocabulary that a generation chooses from: logits as they are, as a
/// constraint leaves them and as penalties do, and candidates with their ids.
const SAMPLING_TOKEN_BYTES: u64 = 3 * size_of::<f32>() as u64 + size_of::<(f32, u32)>() as u64;

/// The budget and its parts, in bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// The whole budget.
    pub total: u64,
    /// Resident before loading: program, tokenizer, directory of tensors.
    pub process: u64,
    /// Kept for what is not counted one by one.
    pub reserve: u64,
    /// What the caller needs beside the engine.
    pub beside: u64,
    /// The trunk, unless the device has memory of its own.
    pub trunk: u64,
    /// States of all sessions at their full context, unless the device has memory of its own.
    pub states: u64,
    /// Buffers of a forward pass, as far as they are not on such a device.
    pub workspace: u64,
    /// What generations choose tokens with.
    pub sampling: u64,
    /// The prefix cache.
    pub prefix_cache: u64,
    /// Slots of routed experts.
    pub experts: u64,
    /// What all routed experts would take.
    pub all_experts: u64,
    /// Tokens of a session, at most.
    pub context: usize,
    /// Prompt rows of a forward pass, at most.
    pub chunk: usize,
    /// Rows with logits of a forward pass, at most.
    pub logit_rows: usize,
    /// How the device's own memory is spent, if it has some.
    pub device: Option<DevicePlan>,
}

/// How the memory of a device is spent, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePlan {
    /// The whole budget.
    pub total: u64,
    /// The trunk.
    pub trunk: u64,
    /// States of all sessions at their full context.
    pub states: u64,
    /// Buffers of a forward pass.
    pub workspace: u64,
    /// Left for routed experts.
    pub experts: u64,
    /// Whether all of it is memory of the host, and a part of its budget.
    pub is_shared: bool,
    /// Whether the device reads experts in the host's slots, so that it needs none for itself.
    pub reads_slots: bool,
}

impl DevicePlan {
    /// The plan of a device that has to hold the trunk, in memory of its own or in its part of the host's budget.
    fn new(
        memory: Memory,
        vram: Option<u64>,
        budget: u64,
        trunk: u64,
    ) -> Result<Option<Self>, Error> {
        let total = match (memory, vram) {
            (Memory::Host, _) => return Ok(None),
            (Memory::Own(Some(bytes)), Some(asked)) => asked.min(bytes),
            (Memory::Own(Some(bytes)), None) => bytes - bytes / 10,
            (Memory::Own(None), Some(asked)) => asked,
            (Memory::Own(None), None) => return Err(Error::UnknownDeviceMemory),
            (Memory::Shared(bytes), asked) => {
                budget.min(bytes.unwrap_or(u64::MAX)).min(asked.unwrap_or(u64::MAX))
            }
        };
        let is_shared = matches!(memory, Memory::Shared(_));
        Ok(Some(Self { total, trunk, is_shared, ..Self::default() }))
    }

    /// What it takes of the host's budget.
    fn of_host(&self) -> u64 {
        if self.is_shared { self.fixed().saturating_add(self.experts) } else { 0 }
    }

    /// What is taken whatever the experts get.
    pub fn fixed(&self) -> u64 {
        self.trunk.saturating_add(self.states).saturating_add(self.workspace)
    }

    fn left(&self) -> u64 {
        self.total.saturating_sub(self.fixed())
    }
}

impl MemoryPlan {
    /// Spends the budget: what must be in memory first, the rest on experts.
    pub fn new<B: Backend>(
        inventory: &Inventory,
        backend: &B,
        options: &EngineOptions,
        trunk: u64,
    ) -> Result<Self, Error> {
        let process = experts::process_resident_bytes().unwrap_or(0);
        let total = match options.memory {
            Some(bytes) => bytes,
            None => default_budget(process)?,
        };
        let slot = inventory.slot_bytes();
        let n_experts: usize = inventory.experts.iter().map(ExpertTable::len).sum();
        let all_experts = slot * n_experts as u64;
        let least_experts = slot * ExpertStore::MIN_SLOTS as u64;
        let device = DevicePlan::new(backend.memory(), options.vram, total, trunk)?;
        // Slots are first used when the trunk has been copied, so both do not add up.
        let least_left = match device {
            Some(_) => least_experts.max(crate::trunk::upload_bytes(inventory)),
            None => least_experts,
        };
        // Where states and buffers are.
        let left_of = |plan: &Self| match &plan.device {
            Some(device) if !device.is_shared => device.left(),
            Some(device) => device.left().min(plan.total.saturating_sub(plan.fixed())),
            None => plan.total.saturating_sub(plan.fixed()),
        };
        let mut plan = Self {
            total,
            process,
            reserve: RESERVE_BYTES + options.recorder.as_ref().map_or(0, Recorder::bytes),
            beside: beside_bytes(inventory, options),
            trunk: if device.is_some() { 0 } else { trunk },
            states: 0,
            workspace: 0,
            sampling: sampling_bytes(inventory, options),
            prefix_cache: prefix_cache_bytes(inventory, backend, options)?,
            experts: least_experts,
            all_experts,
            context: 0,
            chunk: 0,
            logit_rows: 0,
            device,
        };

        let free = left_of(&plan);
        plan.set_context(inventory, backend, options, free / 8)?;
        let free = left_of(&plan);
        plan.set_chunk(inventory, backend, options, free / 4);
        if let Some(device) = &mut plan.device {
            // Where the memory is the host's and nothing else was said, its budget is what is too small.
            if device.fixed() > device.total && (!device.is_shared || options.vram.is_some()) {
                return Err(Error::DeviceBudget { plan: *device });
            }
            device.experts = device.left().min(options.expert_vram.unwrap_or(u64::MAX));
        }
        plan.share_experts(inventory, backend, options, least_left);
        let needed = plan.fixed().saturating_add(least_left);
        if needed > total {
            return Err(Error::Budget { needed, plan: Box::new(plan) });
        }
        let room = total - plan.fixed();
        let wanted = options.expert_cache.unwrap_or(u64::MAX).min(all_experts).max(least_experts);
        plan.experts = room.min(wanted);
        Ok(plan)
    }

    /// What is taken whatever the experts get.
    fn fixed(&self) -> u64 {
        let parts = [
            self.process,
            self.reserve,
            self.beside,
            self.trunk,
            self.states,
            self.workspace,
            self.sampling,
            self.prefix_cache,
            self.device.map_or(0, |device| device.of_host()),
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Shares memory that is the device's as well as the host's between slots of both, which hold different
    /// experts. All go to the device if all fit there: then nobody has to know who is chosen. Otherwise the host
    /// has all slots, and the device reads them where they are. If it cannot, it has most of them.
    fn share_experts<B: Backend>(
        &mut self,
        inventory: &Inventory,
        backend: &B,
        options: &EngineOptions,
        least_left: u64,
    ) {
        let Some(mut device) = self.device.filter(|device| device.is_shared) else { return };
        let slot = inventory.slot_bytes();
        device.experts = 0;
        self.device = Some(device);
        let room = self.total.saturating_sub(self.fixed());
        let passing = least_left.max(held::PASSING_SLOTS * slot);
        let n_experts: usize = inventory.experts.iter().map(ExpertTable::len).sum();
        // Parts of experts begin at rounder places in slots of a device.
        let all = self.all_experts + n_experts as u64 * BLOCK_ALIGNMENT as u64;
        let most = device.left().min(options.expert_vram.unwrap_or(u64::MAX));
        device.reads_slots = held::are_read_in_place(backend, &inventory.experts);
        device.experts = if options.expert_vram.is_some() {
            most.min(room.saturating_sub(least_left))
        } else if most >= all && room >= all.saturating_add(passing) {
            all
        } else if device.reads_slots {
            0
        } else {
            most.min(room.saturating_sub(passing.min(room / 4).max(least_left)))
        };
        self.device = Some(device);
    }

    /// Takes the context that is asked for, or the longest whose states fit into `share`.
    fn set_context<B: Backend>(
        &mut self,
        inventory: &Inventory,
        backend: &B,
        options: &EngineOptions,
        share: u64,
    ) -> Result<(), Error> {
        let limit = inventory.checkpoint.config().max_context;
        let states = |context| {
            let bytes = inventory.outline.sequence_state_bytes(backend, context);
            bytes.saturating_mul(options.sessions as u64)
        };
        self.context = match options.context {
            Some(asked) if asked > limit => return Err(Error::ContextLimit { asked, limit }),
            Some(asked) => asked.max(1),
            None => {
                let mut context = LARGEST_DEFAULT_CONTEXT;
                while context > SMALLEST_DEFAULT_CONTEXT && states(context) > share {
                    context /= 2;
                }
                context.min(limit)
            }
        };
        let states = states(self.context);
        match &mut self.device {
            Some(device) => device.states = states,
            None => self.states = states,
        }
        Ok(())
    }

    /// Takes the prompt chunk that is asked for, or the longest whose buffers fit into `share`.
    fn set_chunk<B: Backend>(
        &mut self,
        inventory: &Inventory,
        backend: &B,
        options: &EngineOptions,
        share: u64,
    ) {
        let config = inventory.checkpoint.config();
        let attention = inventory.outline.attention_spec();
        let heads = attention.map_or(0, |spec| spec.n_heads * spec.head_dim);
        let values = config.delta_net.map_or(0, |net| net.n_value_heads * net.value_dim);
        let context = self.context;
        let scratch = |rows| {
            backend.scratch_bytes(&ScratchNeeds {
                rows,
                context,
                widest: config.hidden_size.max(heads).max(values),
                hidden: config.hidden_size,
                intermediate: config.moe.intermediate,
                attention,
            })
        };
        let logit_row_bytes = 2 * size_of::<f32>() as u64 * config.vocab_size as u64;
        let logit_rows = |chunk: usize| ((LOGIT_BYTES / logit_row_bytes) as usize).clamp(1, chunk);
        let workspace =
            |chunk| Workspace::<B>::bytes(config, chunk, logit_rows(chunk)) + scratch(chunk);
        self.chunk = match options.prompt_chunk {
            Some(asked) => asked.clamp(1, self.context),
            None => {
                let mut chunk = LARGEST_CHUNK;
                while chunk > 1 && workspace(chunk) > share {
                    chunk /= 2;
                }
                chunk.min(self.context)
            }
        };
        // A batch holds at least a token of every session.
        self.chunk = self.chunk.max(options.sessions);
        self.logit_rows = logit_rows(self.chunk).max(options.sessions);
        let bytes =
            Workspace::<B>::bytes(config, self.chunk, self.logit_rows) + scratch(self.chunk);
        match &mut self.device {
            // The host has its copy of the logits.
            Some(device) => {
                let logits = logit_row_bytes / 2 * self.logit_rows as u64;
                (device.workspace, self.workspace) = (bytes - logits, logits);
            }
            None => self.workspace = bytes,
        }
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        let mut line = |bytes: u64, what: String| {
            writeln!(text, "  {:>10}  {what}", format_bytes(bytes)).expect("a String takes all");
        };
        line(self.process, "program, tokenizer, tensor directory".to_owned());
        line(self.reserve, "reserve for stacks and small allocations".to_owned());
        if self.beside > 0 {
            line(self.beside, "grammars and other needs of the program".to_owned());
        }
        if self.device.is_none() {
            line(self.trunk, "trunk".to_owned());
            line(self.states, format!("states of a context of {} tokens", self.context));
        }
        line(self.workspace, format!("buffers of {} prompt rows", self.chunk));
        line(self.sampling, "logits that tokens are chosen from".to_owned());
        if self.prefix_cache > 0 {
            line(self.prefix_cache, "prefix cache".to_owned());
        }
        let all = format_bytes(self.all_experts);
        line(self.experts, format!("routed experts, of {all} for all of them"));
        if let Some(device) = &self.device {
            let whose = if device.is_shared { ", which is the host's" } else { "" };
            write!(text, "the device's memory{whose}\n{device}").expect("a String takes all");
        }
        f.write_str(text.trim_end())
    }
}

impl std::fmt::Display for DevicePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            (self.total, "budget of the device"),
            (self.trunk, "trunk"),
            (self.states, "states of all sessions"),
            (self.workspace, "buffers"),
            (self.experts, "routed experts"),
        ];
        let lines = parts.map(|(bytes, what)| format!("  {:>10}  {what}", format_bytes(bytes)));
        f.write_str(&lines.join("\n"))
    }
}

/// What the caller needs beside the engine.
fn beside_bytes(inventory: &Inventory, options: &EngineOptions) -> u64 {
    let vocab_size = inventory.checkpoint.config().vocab_size as u64;
    vocab_size.saturating_mul(options.beside.bytes_per_token).saturating_add(options.beside.bytes)
}

/// What generations of all sessions choose tokens with.
fn sampling_bytes(inventory: &Inventory, options: &EngineOptions) -> u64 {
    let vocab_size = inventory.checkpoint.config().vocab_size as u64;
    let per_session = vocab_size.saturating_mul(SAMPLING_TOKEN_BYTES);
    per_session.saturating_mul(options.sessions as u64)
}

/// What the prefix cache takes, if there is to be one.
fn prefix_cache_bytes<B: Backend>(
    inventory: &Inventory,
    backend: &B,
    options: &EngineOptions,
) -> Result<u64, Error> {
    let Some(options) = &options.prefix_cache else { return Ok(0) };
    let least = Shapes::new(&inventory.outline, backend).least_memory();
    match options.memory_bytes {
        asked if asked < least => Err(Error::PrefixCacheTooSmall { asked, least }),
        asked => Ok(asked),
    }
}

/// What may be used when nothing is said: what is free, less a tenth for everything else that runs.
fn default_budget(process: u64) -> Result<u64, Error> {
    let limits = MemoryLimits::detect().map_err(|error| Error::UnknownMemory(error.to_string()))?;
    let free = limits.available_bytes() + process;
    Ok(free - free / 10)
}

/// A number of bytes for people: `7.1 MiB`.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
