//! Forms of the product kernel: what they are of, how they are cut, and their texts.

use checkpoint::Format;
use compute::RouterSpec;

use crate::device::Device;
use crate::formats::{UNIT, decoder_of, part_bytes};
use crate::kernel::{KernelSource, unroll};
use crate::rowwise::CHOICE;

pub(crate) const WEIGHTS: &str = include_str!("../kernels/weights.wgsl");
pub(crate) const OPERAND: &str = include_str!("../kernels/operand.wgsl");
const ONE: &str =
    concat!(include_str!("../kernels/operand.wgsl"), include_str!("../kernels/matrix_one.wgsl"));
const EACH: &str = include_str!("../kernels/matrix_each.wgsl");
/// What is held of activations, and how it comes there.
pub(crate) const HELD: &str = include_str!("../kernels/held.wgsl");
pub(crate) const HOLD: &str =
    concat!(include_str!("../kernels/eight_bits.wgsl"), include_str!("../kernels/hold.wgsl"));
const UNITS: &str = include_str!("../kernels/units.wgsl");
const FORMAT_ONE: &str = include_str!("../kernels/format_one.wgsl");
const FORMAT_TWO: &str = include_str!("../kernels/format_two.wgsl");
pub(crate) const ALL_ROWS: &str = include_str!("../kernels/rows_all.wgsl");
pub(crate) const ROWS_OF_EXPERTS: &str = include_str!("../kernels/rows_of_experts.wgsl");
const ROWS_OF_CHOICE: &str = include_str!("../kernels/rows_of_choice.wgsl");
const PRODUCT: &str = include_str!("../kernels/product.wgsl");
const EMBED: &str = include_str!("../kernels/embed.wgsl");

/// What a lane reads at once, in quads, of weights that are floats: few matrices are, they are small, and their units
/// long.
const FLOAT_AHEAD: u32 = 16;

/// A form of the product kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub(crate) format: Format,
    /// Whether low-bit weights are multiplied with activations in 32-bit floats, not in eight bits.
    pub(crate) is_precise: bool,
    pub(crate) n_x: usize,
    pub(crate) is_fused: bool,
    pub(crate) of: Of,
    /// Rows of weights of a team of lanes.
    pub(crate) team_rows: u32,
    /// Units that a lane reads at once.
    pub(crate) ahead: u32,
    /// Units of all of its rows of activations that a workgroup holds.
    pub(crate) held: u32,
    /// Whether workgroups go on with further rows of weights.
    pub(crate) loops: bool,
}

/// What rows of activations are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Of {
    /// All with one matrix.
    One,
    /// All with each of several, the last of which may be of another format.
    Each(Option<Format>),
    /// Some with those of some experts.
    Experts,
    /// Each with those of the experts that the router chooses for it.
    Choice(RouterSpec),
}

/// How the products are cut; results are the same bits whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Lanes of a workgroup: 64, 128 or 256.
    pub workgroup: u32,
    /// Rows of weights of a team of eight lanes.
    pub rows: u32,
    /// The same where gate and up are computed together.
    pub fused_rows: u32,
    /// Most quads of weights in low-bit codes, of all of its rows and of gate and up, that a lane reads at once where a
    /// single row of activations is multiplied.
    pub ahead: u32,
    /// Most units of a single row of activations that a workgroup holds: a power of two, from 64. A row that is
    /// longer is read in parts, for each of which all wait.
    pub held: u32,
    /// Teams have one row where that makes more workgroups of less than so many: they leave a part of the device
    /// without work.
    pub few_workgroups: u32,
    /// Most workgroups where a single row of activations, which is held whole, is multiplied with one matrix: where the
    /// rows of weights need more, each of these has several shares, one after another.
    pub most_workgroups: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        // Two workgroups for each of the 132 processors of an H100, where cuts were measured; what is read ahead, by the
        // registers that it takes. `devices --tune` finds what is best on a device.
        Self {
            workgroup: 128,
            rows: 2,
            fused_rows: 1,
            ahead: 6,
            held: 128,
            few_workgroups: 264,
            most_workgroups: u32::MAX,
        }
    }
}

impl Tuning {
    /// What is usual on such a device.
    pub fn of(device: &Device) -> Self {
        if device.is_software() {
            // A CPU has few processors, reads ahead by itself, and takes long to compile what is written out.
            return Self { ahead: 1, held: 64, few_workgroups: 2, ..Self::default() };
        }
        Self { held: Self::most_held(device), ..Self::default() }
    }

    /// Most units of a row of activations for which a workgroup of a device has room: beside them there are an expert's
    /// choice and sums of lanes.
    pub(crate) fn most_held(device: &Device) -> u32 {
        if device.workgroup_bytes() >= 32 << 10 { 128 } else { 64 }
    }

    /// The form of products of so many rows of activations with weights of a format and so many units a row.
    pub(super) fn form(
        self,
        (format, is_precise): (Format, bool),
        (n_x, of): (usize, Of),
        (is_fused, team_rows): (bool, u32),
        units: u32,
    ) -> Form {
        let n_matrices = if is_fused { 2 } else { 1 };
        // Blocks of 256 values are the longest.
        let quads = (part_bytes(format, 1, 8 * UNIT).iter().sum::<usize>() as u32).div_ceil(8 * 16);
        let of_a_unit = n_matrices * team_rows * quads;
        let most_quads = if matches!(format, Format::Float(_)) { FLOAT_AHEAD } else { self.ahead };
        let most = if n_x == 1 { most_quads / of_a_unit } else { 1 };
        let is_of_use = |ahead: &u32| *ahead <= most && 8 * ahead <= units;
        let ahead = [4, 2].into_iter().find(is_of_use).unwrap_or(1);
        // A whole number for each team.
        let least = (8 * ahead).max(self.workgroup / 8);
        let held = if n_x == 1 { units.next_power_of_two().clamp(least, self.held) } else { 64 };
        Form { format, is_precise, n_x, is_fused, of, team_rows, ahead, held, loops: false }
    }

    /// Rows of weights of a team where so many rows are multiplied so many times, and the workgroups for
    /// each number of rows. With few workgroups a part of the device would do nothing.
    pub(super) fn cut(
        self,
        is_fused: bool,
        rows: impl Iterator<Item = u32> + Clone,
        times: u32,
    ) -> (u32, u32) {
        let groups = |team_rows: u32| -> u32 {
            let share = self.workgroup / 8 * team_rows;
            rows.clone().map(|rows| rows.div_ceil(share)).sum()
        };
        let most = if is_fused { self.fused_rows } else { self.rows };
        let team_rows = if groups(most) * times < self.few_workgroups { 1 } else { most };
        (team_rows, groups(team_rows))
    }
}

/// Calls `use_source` with the source of a form.
pub(crate) fn with_source<T>(
    form: Form,
    tuning: Tuning,
    use_source: impl FnOnce(&KernelSource<'_>) -> T,
) -> T {
    let decoder = decoder_of(form.format);
    let (items, matrix) = match form.of {
        Of::One => (ALL_ROWS, ONE),
        Of::Each(_) => (ALL_ROWS, EACH),
        Of::Experts => (ROWS_OF_EXPERTS, ONE),
        Of::Choice(_) => (ROWS_OF_CHOICE, ONE),
    };
    let (choice, spec) = match form.of {
        Of::Choice(spec) => (CHOICE, spec),
        _ => ("", RouterSpec { top_k: 0, normalise: false }),
    };
    let other = match form.of {
        Of::Each(other) => other.map(decoder_of),
        _ => None,
    };
    let stored = other.map_or(0, |other| other.stored_quads).max(decoder.stored_quads);
    let team_rows = if form.is_fused { 2 * form.team_rows } else { form.team_rows };
    let is_precise = form.is_precise;
    let [holds, order] = decoder.held(is_precise).constants();
    let [a, b, c, d] = decoder.constants;
    let constants = [
        a,
        b,
        c,
        d,
        ("STORED_QUADS", stored),
        holds,
        order,
        ("N_X", form.n_x as u32),
        ("N_ROWS", team_rows),
        ("AHEAD", form.ahead),
        ("HELD", form.held),
        ("LOOPS", form.loops.into()),
        ("TOP_K", spec.top_k as u32),
    ];
    let writes: &[bool] = match form.of {
        Of::One => &[false, false, false, true],
        Of::Each(_) => &[false, false, false, true, true, true, true],
        Of::Experts => &[false, false, false, true, false],
        Of::Choice(_) => &[false, false, false, true, false, true, true],
    };
    let counts =
        [("r", team_rows), ("a", form.ahead), ("s", 8 * form.held / tuning.workgroup), ("p", 2)];
    let units = unroll(UNITS, &counts);
    let (other, formats) = match other {
        Some(other) => (other.by_other_names(is_precise, &units), FORMAT_TWO),
        None => (String::new(), FORMAT_ONE),
    };
    let products = decoder.products(is_precise);
    let product = unroll(PRODUCT, &counts);
    let parts =
        [WEIGHTS, &products, HELD, HOLD, &units, &other, formats, choice, items, matrix, &product];
    use_source(&KernelSource {
        name: &crate::names::product(&form),
        parts: &parts,
        constants: &constants,
        flags: &[("FUSED", form.is_fused), ("NORMALISE", spec.normalise)],
        writes,
        teams: Some(tuning.workgroup),
    })
}

/// Applies a function to the kernel that reads rows of an embedding.
pub(crate) fn with_embed<T>(format: Format, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    let decoder = decoder_of(format);
    let [a, b, c, d] = decoder.constants;
    apply(&KernelSource {
        name: "embed",
        parts: &[WEIGHTS, &decoder.numbers(), EMBED],
        constants: &[a, b, c, d, decoder.quads()],
        flags: &[],
        writes: &[false, false, false, true],
        teams: None,
    })
}
