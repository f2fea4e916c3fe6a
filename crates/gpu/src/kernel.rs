//! Kernels: WGSL texts put together from a file of the topic, what formats mean, and constants.

use std::fmt::Write;

/// What is common to all kernels.
const COMMON: &str = include_str!("kernels/common.wgsl");
/// Sums of eight lanes by subgroup operations.
const LANES_SUBGROUP: &str = include_str!("kernels/lanes_subgroup.wgsl");
/// The same through memory of the workgroup.
const LANES_SHARED: &str = include_str!("kernels/lanes_shared.wgsl");

/// Repeats what stands between lines `//: each NAME` and `//: end` as often as `counts` says, with the number in
/// place of `$NAME`.
pub(crate) fn unroll(text: &str, counts: &[(&str, u32)]) -> String {
    const EACH: &str = "//: each ";
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.trim_start().strip_prefix(EACH) else {
            out.extend([line, "\n"]);
            continue;
        };
        let mut body = String::new();
        let mut depth = 1;
        for line in lines.by_ref() {
            let mark = line.trim_start();
            depth += u32::from(mark.starts_with(EACH));
            depth -= u32::from(mark == "//: end");
            if depth == 0 {
                break;
            }
            body.extend([line, "\n"]);
        }
        let body = unroll(&body, counts);
        let count = counts.iter().find(|(known, _)| *known == name);
        for number in 0..count.map_or(0, |(_, count)| *count) {
            out.push_str(&body.replace(&format!("${name}"), &number.to_string()));
        }
    }
    out
}

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
        // What a part begins with that asks for more of the language has to stand before all else.
        let asks = |line: &&str| line.starts_with("enable ");
        for line in self.parts.iter().flat_map(|part| part.lines().take_while(asks)) {
            text.extend([line, "\n"]);
        }
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
            text.extend(part.lines().skip_while(asks).flat_map(|line| [line, "\n"]));
        }
        text
    }
}
