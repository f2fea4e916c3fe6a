//! Products of activations with stored weights, of one matrix or of the experts of a layer.

mod form;

use std::collections::HashMap;

use checkpoint::Format;
use compute::RouterSpec;

use crate::buffers::Activations;
use crate::device::{Buffer, Device, Kernel};
use crate::formats::{Held, UNIT, decoder_of};
use crate::gemm::{Gemm, Tile};
use crate::rowwise::Chosen;
use crate::weights::Weights;

pub use form::Tuning;
pub(crate) use form::{
    ALL_ROWS, Form, HELD, HOLD, OPERAND, Of, ROWS_OF_EXPERTS, WEIGHTS, with_embed, with_source,
};

/// Most workgroups in one dimension of a dispatch, in every API.
pub(crate) const MOST_WORKGROUPS: u32 = 65_535;
/// Rows of activations that can share the decoding of weights. More of them are [`crate::gemm`]'s.
const SHARES: [usize; 3] = [1, 4, 8];
/// Most rows of activations whose products with several matrices are one dispatch: with more of them it is
/// what is computed that counts.
const MOST_ROWS_OF_EACH: usize = 4;
/// Most matrices of such a dispatch.
const MOST_MATRICES: usize = 4;
/// In the place of the number of a matrix.
const NONE: u32 = u32::MAX;

/// Compiled products, made when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct Products {
    tuning: Tuning,
    /// Whether low-bit weights are multiplied with activations in 32-bit floats, not in eight bits.
    is_precise: bool,
    pub(crate) kernels: HashMap<Form, Kernel>,
    embed: HashMap<Format, Kernel>,
    gemm: Gemm,
}

/// Which rows use which experts, on the device: see `rows_of_experts.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Items<'a> {
    /// The table.
    pub(crate) table: &'a Buffer,
    /// Where its items begin, in words.
    pub(crate) begin: u32,
    /// How many there are.
    pub(crate) len: u32,
    /// Uses of an item: as [`Products::share`] says.
    pub(crate) n_x: usize,
}

/// The matrices of a product: one, or gate and up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub(crate) buffer: &'a Buffer,
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Where codes, scales and biases begin, in words.
    pub(crate) parts: [u32; 3],
    /// The same of the matrix that is multiplied with the outcome's SiLU.
    pub(crate) up: Option<[u32; 3]>,
    /// Words from an expert to the next.
    pub(crate) stride: u32,
}

impl<'a> Operand<'a> {
    pub(crate) fn of(weights: &'a Weights) -> Self {
        Self {
            buffer: &weights.buffer,
            format: weights.format,
            rows: weights.rows,
            cols: weights.cols,
            parts: weights.parts,
            up: None,
            stride: 0,
        }
    }

    /// What `operand.wgsl` reads of it, with numbers whose meaning is told there.
    pub(crate) fn words(&self, n_x_or_begin: u32, x_div: u32, n_groups: u32) -> [u32; 14] {
        let [codes, scales, biases] = self.parts;
        let [up_codes, up_scales, up_biases] = self.up.unwrap_or_default();
        let (rows, units) = (self.rows as u32, self.cols.div_ceil(UNIT) as u32);
        let (quads, zero) = ((self.cols / 4) as u32, 0);
        [
            codes,
            scales,
            biases,
            up_codes,
            up_scales,
            up_biases,
            self.stride,
            rows,
            units,
            n_x_or_begin,
            x_div,
            quads,
            n_groups,
            zero,
        ]
    }
}

/// Matrices in one buffer that share their input, with where their products go: of one format, and after them of
/// another.
#[derive(Default)]
struct Group<'a> {
    products: Vec<(Operand<'a>, &'a Activations)>,
    /// The first of another format, and the format.
    other: Option<(u32, Format)>,
    /// The one that has an [`Operand::up`], and where that is.
    pair: Option<(u32, [u32; 3])>,
}

impl<'a> Group<'a> {
    /// Takes a matrix if it can stand after the others.
    fn take(&mut self, operand: &Operand<'a>, y: &'a Activations, is_precise: bool) -> bool {
        let place = self.products.len();
        let is_second_pair = operand.up.is_some() && self.pair.is_some();
        if place == MOST_MATRICES || is_second_pair {
            return false;
        }
        if let [(first, _), ..] = &self.products[..] {
            let last = self.other.map_or(first.format, |(_, format)| format);
            if !std::ptr::eq(first.buffer, operand.buffer) {
                return false;
            }
            if operand.format != last {
                let held = |format| decoder_of(format).held(is_precise);
                if self.other.is_some() || held(last) != held(operand.format) {
                    return false;
                }
                self.other = Some((place as u32, operand.format));
            }
        }
        self.pair = operand.up.map(|up| (place as u32, up)).or(self.pair);
        self.products.push((*operand, y));
        true
    }
}

/// How many rows share the decoding of weights when there are so many, `most` of which can.
pub(crate) fn share(n_rows: usize, most: usize) -> usize {
    SHARES.into_iter().find(|&n_x| n_x >= n_rows).unwrap_or(most)
}

impl Products {
    /// No kernels yet, of this tuning.
    pub(crate) fn new(tuning: Tuning) -> Self {
        assert!([64, 128, 256].contains(&tuning.workgroup), "{tuning:?}");
        assert!(tuning.held >= 64 && tuning.held.is_power_of_two(), "{tuning:?}");
        Self { tuning, ..Self::default() }
    }

    /// The same for products of many rows.
    pub(crate) fn with_tile(self, tile: Tile) -> Self {
        Self { gemm: Gemm::new(Some(tile)), ..self }
    }

    /// The same in 32-bit floats, or in eight bits where weights have so few.
    pub(crate) fn with_precision(self, is_precise: bool) -> Self {
        Self { is_precise, ..self }
    }

    /// The same, cut in another way.
    pub(crate) fn with_tuning(self, tuning: Tuning) -> Self {
        Self::new(tuning).with_precision(self.is_precise)
    }

    /// Whether all are in 32-bit floats.
    pub(crate) fn is_precise(&self) -> bool {
        self.is_precise
    }

    /// How they are cut.
    pub(crate) fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Most rows that can share the decoding of weights.
    pub(crate) fn most_shared(&self, device: &Device) -> usize {
        self.gemm.tile(device).map_or(SHARES[SHARES.len() - 1], |tile| tile.columns as usize)
    }

    /// `y = x W^T` for all rows of `x` and for each of some matrices, or what [`Operand::up`] says, of as many
    /// matrices a dispatch as can be. It is the same bits however they are cut.
    pub(crate) fn multiply(
        &mut self,
        device: &Device,
        x: &Activations,
        products: &mut [(Operand<'_>, &mut Activations)],
    ) {
        let rows = x.rows();
        for (operand, y) in &mut *products {
            assert_eq!((operand.cols, operand.rows), (x.width(), y.width()), "shapes agree");
            y.set_rows(rows);
        }
        let n_x = share(rows, self.most_shared(device));
        let items = rows.div_ceil(n_x) as u32;
        if rows > MOST_ROWS_OF_EACH {
            let mut quantized = None;
            for (operand, y) in products {
                self.quantize(device, operand.format, n_x, x, &mut quantized);
                self.start(device, operand, (n_x, Of::One), &[], [rows as u32, 1, items], x, y);
            }
            return;
        }
        // Those of a format stand together.
        let mut order: Vec<_> = products.iter().map(|(operand, y)| (operand, &**y)).collect();
        let formats: Vec<Format> = order.iter().map(|(operand, _)| operand.format).collect();
        order.sort_by_key(|(operand, _)| formats.iter().position(|f| *f == operand.format));
        let mut group = Group::default();
        for (operand, y) in order {
            if !group.take(operand, y, self.is_precise) {
                self.start_each(device, &group, n_x, items, x);
                group = Group::default();
                group.take(operand, y, self.is_precise);
            }
        }
        self.start_each(device, &group, n_x, items, x);
    }

    /// The same for the experts that items tell, of each of some products; `top_k` uses of a row of `x` each, or one.
    pub(crate) fn multiply_experts<'a>(
        &mut self,
        device: &Device,
        products: impl IntoIterator<Item = (Operand<'a>, Items<'a>, &'a Activations)>,
        top_k: usize,
        x: &Activations,
    ) {
        let mut quantized = None;
        for (operand, items, y) in products {
            assert_eq!((operand.cols, operand.rows), (x.width(), y.width()), "shapes agree");
            let numbers = [items.begin, top_k as u32, items.len];
            let tables = [items.table];
            self.quantize(device, operand.format, items.n_x, x, &mut quantized);
            self.start(device, &operand, (items.n_x, Of::Experts), &tables, numbers, x, y);
        }
    }

    /// The same for the experts that the router chooses by its logits, each in the slot of its index; `chosen`
    /// tells which those are.
    pub(crate) fn multiply_chosen(
        &mut self,
        device: &Device,
        operand: &Operand<'_>,
        (logits, spec, chosen): (&Activations, RouterSpec, &Chosen),
        x: &Activations,
        y: &Activations,
    ) {
        assert_eq!((operand.cols, operand.rows), (x.width(), y.width()), "shapes agree");
        let uses = (x.rows() * spec.top_k) as u32;
        let numbers = [logits.width() as u32, uses, uses];
        let tables = [&logits.buffer, &chosen.choices, &chosen.items];
        self.start(device, operand, (1, Of::Choice(spec)), &tables, numbers, x, y);
    }

    /// Quantises rows for products with a format that so many of them share, if those are many and the rows are not as
    /// `last` tells: neighbours of one input share what is quantised.
    fn quantize(
        &mut self,
        device: &Device,
        format: Format,
        n_x: usize,
        x: &Activations,
        last: &mut Option<Held>,
    ) {
        let held = decoder_of(format).held(self.is_precise);
        if let Held::Bytes { order } = held
            && n_x > SHARES[SHARES.len() - 1]
            && *last != Some(held)
        {
            self.gemm.quantize(device, order, x);
            *last = Some(held);
        }
    }

    fn kernel(&mut self, device: &Device, form: Form) -> &Kernel {
        let tuning = self.tuning;
        self.kernels
            .entry(form)
            .or_insert_with(|| with_source(form, tuning, |source| device.kernel(source)))
    }

    #[expect(clippy::too_many_arguments, reason = "both products have all of them")]
    fn start(
        &mut self,
        device: &Device,
        operand: &Operand<'_>,
        (n_x, of): (usize, Of),
        tables: &[&Buffer],
        [n_x_or_begin, x_div, items]: [u32; 3],
        x: &Activations,
        y: &Activations,
    ) {
        if n_x > SHARES[SHARES.len() - 1] {
            let table = tables.first().copied();
            let operand = (operand, self.is_precise);
            return self.gemm.start(device, operand, table, [n_x_or_begin, x_div, items], [x, y]);
        }
        let Operand { buffer, format, rows, cols, up, .. } = *operand;
        let (is_fused, tuning) = (up.is_some(), self.tuning);
        let (team_rows, groups) = tuning.cut(is_fused, std::iter::once(rows as u32), items);
        let units = cols.div_ceil(UNIT) as u32;
        let mut form =
            tuning.form((format, self.is_precise), (n_x, of), (is_fused, team_rows), units);
        let most = (tuning.most_workgroups / items).max(1);
        // What is held has to be a whole row.
        form.loops = of == Of::One && n_x == 1 && units <= form.held && groups > most;
        let groups = if form.loops { most } else { groups };
        let kernel = self.kernel(device, form);
        let words = operand.words(n_x_or_begin, x_div, groups);
        let mut buffers = [buffer, buffer, &x.buffer, &y.buffer, buffer, buffer, buffer];
        buffers[4..4 + tables.len()].copy_from_slice(tables);
        // One more tells what was chosen.
        let groups = groups + u32::from(matches!(of, Of::Choice(_)));
        assert!(groups.max(items) <= MOST_WORKGROUPS, "the product fits one dispatch");
        device.dispatch(kernel, &buffers[..4 + tables.len()], &words, [groups, items, 1]);
    }

    /// Starts the products of all rows with a group of matrices.
    fn start_each(
        &mut self,
        device: &Device,
        group: &Group<'_>,
        n_x: usize,
        items: u32,
        x: &Activations,
    ) {
        let n_rows = x.rows() as u32;
        if let [(operand, y)] = &group.products[..] {
            return self.start(device, operand, (n_x, Of::One), &[], [n_rows, 1, items], x, y);
        }
        let [(first, first_y), ..] = group.products[..] else { return };
        let first_y = &first_y.buffer;
        let (other, other_format) = group.other.unzip();
        let (is_fused, tuning) = (group.pair.is_some(), self.tuning);
        let rows = group.products.iter().map(|(operand, _)| operand.rows as u32);
        let (team_rows, groups) = tuning.cut(is_fused, rows, items);
        let of = Of::Each(other_format);
        let (units, quads) = (first.cols.div_ceil(UNIT) as u32, (first.cols / 4) as u32);
        let cut = (is_fused, team_rows);
        let form = tuning.form((first.format, self.is_precise), (n_x, of), cut, units);
        let kernel = self.kernel(device, form);
        let mut words = [0; 4 * MOST_MATRICES + 10];
        // Nothing goes to outputs without a matrix.
        let mut buffers =
            [first.buffer, first.buffer, &x.buffer, first_y, first_y, first_y, first_y];
        for (index, (operand, y)) in group.products.iter().enumerate() {
            words[4 * index..4 * index + 3].copy_from_slice(&operand.parts);
            words[4 * index + 3] = operand.rows as u32;
            buffers[3 + index] = &y.buffer;
        }
        let (pair, [up, up_scales, up_biases]) = group.pair.unwrap_or((NONE, [0; 3]));
        let other = other.unwrap_or(NONE);
        let rest = [up, up_scales, up_biases, pair, units, n_rows, quads, other, groups];
        words[4 * MOST_MATRICES..][..rest.len()].copy_from_slice(&rest);
        assert!(groups.max(items) <= MOST_WORKGROUPS, "the product fits one dispatch");
        device.dispatch(kernel, &buffers, &words, [groups, items, 1]);
    }

    /// `out[i] = table[tokens[i]]`.
    pub(crate) fn embed(
        &mut self,
        device: &Device,
        table: &Weights,
        tokens: &Buffer,
        n_tokens: usize,
        out: &mut Activations,
    ) {
        assert_eq!(table.cols, out.width(), "shapes agree");
        out.set_rows(n_tokens);
        let kernel = self
            .embed
            .entry(table.format)
            .or_insert_with(|| with_embed(table.format, |source| device.kernel(source)));
        let units = table.cols.div_ceil(UNIT) as u32;
        let [codes, scales, biases] = table.parts;
        let words = [codes, scales, biases, units, table.cols as u32, n_tokens as u32];
        let buffers = [&*table.buffer, &table.buffer, tokens, &out.buffer];
        device.dispatch(kernel, &buffers, &words, [units.div_ceil(64), n_tokens as u32, 1]);
    }
}
