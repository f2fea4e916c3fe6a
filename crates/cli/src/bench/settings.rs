//! What is measured: the options as typed, checked and with their defaults.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use engine::EngineOptions;

use crate::args::BenchArgs;
use crate::demo;

/// How much memory a measurement gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of the whole process, as `--memory` bounds them.
    Process(u64),
    /// A share of the routed experts, between 0 and 1.
    Experts(f64),
    /// Shares of them that a device holds and that the host's memory holds, from 0 to 1.
    Tiers {
        /// In the memory of the device.
        device: f64,
        /// In the memory of the host.
        host: f64,
    },
    /// All that is free.
    All,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some((device, host)) = text.split_once('+') {
            let share = |text: &str| -> Option<f64> {
                let percent: f64 = text.trim().strip_suffix('%')?.trim().parse().ok()?;
                (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
            };
            return match (share(device), share(host)) {
                (Some(device), Some(host)) => Ok(Self::Tiers { device, host }),
                _ => Err(format!("{text:?} is not two shares of the experts, such as 25%+50%")),
            };
        }
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.trim().parse::<f64>() {
                Ok(percent) if percent > 0.0 && percent <= 100.0 => {
                    Ok(Self::Experts(percent / 100.0))
                }
                _ => Err(format!("{text:?} is not a share of the experts, such as 25%")),
            };
        }
        match engine::parse_size(text) {
            Ok(0) => Err("a budget of 0 bytes holds nothing".to_owned()),
            Ok(bytes) => Ok(Self::Process(bytes)),
            Err(_) => Err(format!("{text:?} is not a budget: give a size, a share, or all")),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(bytes) => f.write_str(&engine::format_bytes(*bytes)),
            Self::Experts(share) => write!(f, "{} % of experts", percent(*share)),
            Self::Tiers { device, host } => {
                write!(f, "{} % on the device + {} %", percent(*device), percent(*host))
            }
            Self::All => f.write_str("all free"),
        }
    }
}

fn percent(share: f64) -> f64 {
    (1e4 * share).round() / 100.0
}

/// What is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model as named on the command line.
    pub model: String,
    /// Tokens before the decoded ones, ascending.
    pub contexts: Vec<usize>,
    /// Lengths of prompts, ascending.
    pub prompts: Vec<usize>,
    /// Memory budgets, as given.
    pub budgets: Vec<Budget>,
    /// Tokens that are decoded and timed.
    pub tokens: usize,
    /// Tokens that are decoded before those.
    pub warmup: usize,
    /// Times that everything is measured.
    pub repeats: usize,
    /// Seed of the tokens and of the places that are read.
    pub seed: u64,
    /// Least time of each measurement of the machine's speeds.
    pub probe: Duration,
    /// The engine's options, without a budget.
    pub engine: EngineOptions,
}

impl Settings {
    /// Checks the options and fills in defaults.
    pub fn new(args: &BenchArgs) -> anyhow::Result<Self> {
        if args.engine.memory.is_some() || args.engine.expert_cache.is_some() {
            bail!(
                "a benchmark has one or several budgets instead of --memory and --expert-cache\n\
                 hint: --budgets 8G, or --budgets 4G,8G,25%,all"
            );
        }
        if args.engine.expert_vram.is_some() {
            bail!(
                "a benchmark has its own form of --expert-vram\n\
                 hint: --budgets 25%+50% keeps a quarter of the experts on the device, and half beside it"
            );
        }
        let or = |quick: usize, full: usize| if args.quick { quick } else { full };
        let list = |given: &Option<Vec<usize>>, quick: &[usize], full: &[usize]| {
            let default = if args.quick { quick } else { full };
            let mut list = given.clone().unwrap_or_else(|| default.to_vec());
            list.sort_unstable();
            list.dedup();
            list
        };
        let default_budgets: &[Budget] =
            if args.quick { &[Budget::All] } else { &[Budget::Experts(0.25), Budget::All] };
        let mut budgets = Vec::new();
        for &budget in args.budgets.as_deref().unwrap_or(default_budgets) {
            if !budgets.contains(&budget) {
                budgets.push(budget);
            }
        }
        let mut settings = Self {
            model: args.model.clone().unwrap_or_else(|| demo::NAME.to_owned()),
            contexts: list(&args.contexts, &[0], &[0, 512]),
            prompts: list(&args.prompts, &[64], &[128]),
            budgets,
            tokens: args.tokens.unwrap_or(or(8, 32)),
            warmup: args.warmup.unwrap_or(or(4, 16)),
            repeats: args.repeats.unwrap_or(or(1, 3)),
            seed: args.seed,
            probe: Duration::from_millis(or(150, 500) as u64),
            engine: args.engine.options(),
        };
        settings.prompts.retain(|&length| length > 0);
        let needed = settings.needed_context();
        match settings.engine.context {
            Some(context) if context < needed => bail!(
                "--context {context} is too short: the longest context or prompt with its decoded \
                 tokens takes {needed}\n\
                 hint: leave --context out, or give shorter --contexts and --prompts"
            ),
            Some(_) => {}
            None => settings.engine.context = Some(needed),
        }
        Ok(settings)
    }

    /// Lengths of prompts that are computed: the contexts must be filled, too.
    pub fn lengths(&self) -> Vec<usize> {
        let mut lengths = [&self.contexts[..], &self.prompts].concat();
        lengths.retain(|&length| length > 0);
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    /// Tokens of the longest session.
    fn needed_context(&self) -> usize {
        let longest_context = self.contexts.iter().max().copied().unwrap_or(0);
        let decoded = self.tokens.saturating_add(self.warmup);
        let longest_prompt = self.prompts.iter().max().copied().unwrap_or(0);
        longest_context.saturating_add(decoded).max(longest_prompt)
    }

    /// The engine's options with a budget; `all_experts` is what slots for all of them take.
    pub fn options(&self, budget: Budget, all_experts: u64) -> EngineOptions {
        let mut options = self.engine.clone();
        let bytes = |share: f64| (share * all_experts as f64).ceil() as u64;
        match budget {
            Budget::Process(bytes) => options.memory = Some(bytes),
            Budget::Experts(share) => options.expert_cache = Some(bytes(share)),
            Budget::Tiers { device, host } => {
                options.expert_vram = Some(bytes(device));
                options.expert_cache = Some(bytes(host));
            }
            Budget::All => {}
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_sizes_shares_or_all() {
        for (text, budget) in [
            ("8G", Budget::Process(8 << 30)),
            ("25%", Budget::Experts(0.25)),
            ("12.5 %", Budget::Experts(0.125)),
            ("25%+50 %", Budget::Tiers { device: 0.25, host: 0.5 }),
            ("0%+100%", Budget::Tiers { device: 0.0, host: 1.0 }),
            ("all", Budget::All),
        ] {
            assert_eq!(text.parse(), Ok(budget), "{text}");
        }
        for text in ["", "0", "0%", "101%", "-5%", "nan%", "everything", "8X", "25%+", "1G+2G"] {
            assert!(text.parse::<Budget>().is_err(), "{text}");
        }
        assert_eq!(Budget::Experts(0.07).to_string(), "7 % of experts");
        let tiers = Budget::Tiers { device: 0.25, host: 0.5 };
        assert_eq!(tiers.to_string(), "25 % on the device + 50 %");
    }
}
