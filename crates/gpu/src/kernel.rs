//! Kernels: WGSL texts put together from a file of the topic, what formats mean, and constants.

use std::fmt::Write;

/// What is common to all kernels.
const COMMON: &str = include_str!("kernels/common.wgsl");
/// Sums of eight lanes by subgroup operations.
const LANES_SUBGROUP: &str = include_str!("kernels/lanes_subgroup.wgsl");
/// The same through memory of the workgroup.
const LANES_SHARED: &str = include_str!("kernels/lanes_shared.wgsl");

/// A kernel before it is compiled.
#[derive(Clone, Debug)]
pub(crate) struct KernelSource<'a> {
    /// A name for people.
    pub(crate) name: &'a str,
    /// Its parts, in order.
    pub(crate) parts: &'a [&'a str],
    /// Constants that its parts are templates of.
    pub(crate) constants: &'a [(&'a str, u32)],
    /// Choices that its parts are templates of.
    pub(crate) flags: &'a [(&'a str, bool)],
    /// For each binding whether it is written.
    pub(crate) writes: &'a [bool],
    /// Whether it adds over teams of eight lanes, in workgroups of so many lanes.
    pub(crate) teams: Option<u32>,
}

impl KernelSource<'_> {
    /// The whole text.
    pub(crate) fn text(&self, subgroups: bool) -> String {
        let mut text = String::new();
        let mut constant = |name: &str, value: u32| {
            writeln!(text, "const {name}: u32 = {value}u;").expect("a String takes all");
        };
        for &(name, value) in self.constants {
            constant(name, value);
        }
        if let Some(lanes) = self.teams {
            constant("WORKGROUP", lanes);
        }
        for (name, value) in self.flags {
            writeln!(text, "const {name}: bool = {value};").expect("a String takes all");
        }
        text.push_str(COMMON);
        if self.teams.is_some() {
            text.push_str(if subgroups { LANES_SUBGROUP } else { LANES_SHARED });
        }
        for part in self.parts {
            text.push_str(part);
        }
        text
    }
}
