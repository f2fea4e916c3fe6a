//! What is computed together of one input: projections, the first product of a shared expert with what stands beside
//! it, and that of experts with their choice.

use compute::{ExpertWeights, RouterSpec};

use crate::buffers::Activations;
use crate::expert_kernels::sized;
use crate::gpu::Gpu;
use crate::gpu::choice::room_for_choices;
use crate::gpu::routed::slots_of;
use crate::product::{Items, Operand};
use crate::weights::Weights;

/// Rows up to which every workgroup of the experts' first product chooses for itself: each of them compares all
/// experts with each other, and there are as many as uses times the parts of an expert. With more rows that costs
/// more than a kernel that chooses once.
const MOST_SELF_CHOSEN_ROWS: usize = 2;
/// The same of experts, whose comparisons grow with their square.
const MOST_SELF_CHOSEN_EXPERTS: usize = 512;

impl Gpu {
    /// Products of one input with several matrices.
    pub(crate) fn multiply_each(
        &mut self,
        x: &Activations,
        weights: &[&Weights],
        outs: &mut [&mut Activations],
    ) {
        let products = weights.iter().zip(outs);
        let mut products: Vec<_> =
            products.map(|(weights, out)| (Operand::of(weights), &mut **out)).collect();
        self.products.multiply(&self.device, x, &mut products);
    }

    /// The shared expert, or a dense block.
    pub(crate) fn gated_block(
        &mut self,
        x: &Activations,
        weights: &ExpertWeights<Weights>,
        out: &mut Activations,
    ) {
        self.gated_inner(x, weights, Vec::new());
        self.gated_down(weights, out);
    }

    /// The first part of that: the inner activations. Other products of the same input go with it.
    pub(super) fn gated_inner(
        &mut self,
        x: &Activations,
        weights: &ExpertWeights<Weights>,
        others: Vec<(Operand<'_>, &mut Activations)>,
    ) {
        let mut products = others;
        let Self { device, expert_kernels, shared_inner: [inner, other], .. } = self;
        let ExpertWeights { gate, up, .. } = weights;
        let (rows, width) = (x.rows(), gate.rows);
        let inner = sized(inner, device, rows, width);
        let is_fused = gate.format == up.format && std::sync::Arc::ptr_eq(&gate.buffer, &up.buffer);
        if is_fused {
            let both = Operand { up: Some(up.parts), ..Operand::of(gate) };
            products.push((both, inner));
            self.products.multiply(device, x, &mut products);
        } else {
            let other = sized(other, device, rows, width);
            products.push((Operand::of(gate), &mut *inner));
            products.push((Operand::of(up), &mut *other));
            self.products.multiply(device, x, &mut products);
            drop(products);
            expert_kernels.gate(device, inner, other);
        }
    }

    /// The second part.
    pub(super) fn gated_down(&mut self, weights: &ExpertWeights<Weights>, out: &mut Activations) {
        let inner = self.shared_inner[0].as_ref().expect("the first part was computed");
        let mut products = [(Operand::of(&weights.down), out)];
        self.products.multiply(&self.device, inner, &mut products);
    }

    /// Chooses experts and computes their inner activations at once, if rows and experts are few, all of the layer
    /// are in one buffer, and gate and up can be computed together.
    pub(super) fn choose_and_begin(
        &mut self,
        layer: usize,
        (logits, spec): (&Activations, RouterSpec),
        x: &Activations,
    ) -> bool {
        let Self { device, layers, products, expert_kernels, chosen, .. } = self;
        let Some(slots) = slots_of(layers, layer).filter(|slots| slots.is_plain()) else {
            return false;
        };
        let layout = &slots.layout;
        let is_cheap =
            x.rows() <= MOST_SELF_CHOSEN_ROWS && slots.n_experts() <= MOST_SELF_CHOSEN_EXPERTS;
        if !(is_cheap && layout.is_fused()) {
            return false;
        }
        let uses = x.rows() * spec.top_k;
        let inner = sized(&mut expert_kernels.inner[0], device, uses, layout.intermediate());
        inner.set_rows(uses);
        let choice = (logits, spec, room_for_choices(device, chosen, uses));
        let operand = layout.gate_up(&slots.buffers()[0]);
        products.multiply_chosen(device, &operand, choice, x, inner);
        self.forget_routed();
        true
    }

    /// The outputs of experts whose inner activations [`Gpu::choose_and_begin`] has computed.
    pub(super) fn end_chosen(&mut self, layer: usize, uses: usize, out: &Activations) {
        let Self { device, layers, products, expert_kernels, chosen, .. } = self;
        let slots = slots_of(layers, layer).expect("the first part found them");
        let inner = expert_kernels.inner[0].as_ref().expect("the first part was computed");
        let (chosen, _) = chosen.as_ref().expect("experts were chosen before");
        let items = Items { table: &chosen.items, begin: 0, len: uses as u32, n_x: 1 };
        let down = slots.layout.down(&slots.buffers()[0]);
        products.multiply_experts(device, [(down, items, out)], 1, inner);
    }
}
