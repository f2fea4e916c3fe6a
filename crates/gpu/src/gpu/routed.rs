//! Routed experts, wherever they are: held on the device, read in the host's memory, or passing through.

use std::borrow::Cow;
use std::time::Instant;

use compute::{ExpertUses, LoadedExpert, RouterSpec, Routing, SharedExpert};

use crate::buffers::Activations;
use crate::device::Upload;
use crate::experts::{ExpertLayout, LayerSlots, TRANSIT_SLOTS, shapes};
use crate::gpu::Gpu;
use crate::in_place::Group;
use crate::product::{Operand, share};
use crate::weights::Weights;

/// Rows up to which the routing of a layer that is held stays on the device.
const MOST_DEVICE_ROUTED_ROWS: usize = 8;

impl Gpu {
    /// Chooses and computes the experts of a layer that is held as a whole, and the shared expert. What does not
    /// wait for each other is side by side. The choices stay on the device; where rows are many, it groups them by
    /// expert, or the host if the experts are in several buffers.
    pub(crate) fn held_layer(
        &mut self,
        layer: usize,
        (router, logits, spec): (&Weights, &mut Activations, RouterSpec),
        shared: Option<&mut SharedExpert<'_, Self>>,
        x: &Activations,
        out: &Activations,
    ) {
        let mut down = None;
        let mut products = vec![(Operand::of(router), &mut *logits)];
        match shared {
            Some(SharedExpert { weights, gate, outs: [out, gate_out] }) => {
                products.push((Operand::of(gate), gate_out));
                self.gated_inner(x, weights, products);
                down = Some((weights, out));
            }
            None => self.products.multiply(&self.device, x, &mut products),
        }
        if x.rows() <= MOST_DEVICE_ROUTED_ROWS {
            let is_begun = self.choose_and_begin(layer, (logits, spec), x);
            if !is_begun {
                self.choose(logits, spec, None);
            }
            if let Some((weights, out)) = down {
                self.gated_down(weights, out);
            }
            match is_begun {
                true => self.end_chosen(layer, x.rows() * spec.top_k, out),
                false => self.chosen_experts(layer, x, spec.top_k, out),
            }
            return;
        }
        if let Some((weights, out)) = down {
            self.gated_down(weights, out);
        }
        if slots_of(&self.layers, layer).is_some_and(|slots| slots.buffers().len() == 1) {
            self.choose(logits, spec, None);
            self.grouped_experts(layer, x, spec.top_k, out);
            return;
        }
        let mut routing = Routing::default();
        self.choose(logits, spec, Some(&mut routing));
        let n_experts = slots_of(&self.layers, layer).map_or(0, LayerSlots::n_experts);
        let mut uses = std::mem::replace(&mut self.uses, ExpertUses::new(0));
        if uses.n_experts() != n_experts {
            uses = ExpertUses::new(n_experts);
        }
        uses.group(&routing);
        self.held_experts(layer, x, &uses, out);
        self.uses = uses;
    }

    /// Computes those of the experts that were chosen last that are held; the host need not know them.
    pub(crate) fn chosen_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        top_k: usize,
        out: &Activations,
    ) {
        let Self { device, layers, products, expert_kernels, chosen, .. } = self;
        let slots = layers[layer].as_mut().expect("the caller asked");
        let (chosen, _) = chosen.as_ref().expect("experts were chosen before");
        expert_kernels.apply_chosen((device, products), slots, (chosen, top_k), x, out);
    }

    /// Computes the experts that were chosen last, all of which are held in one buffer, grouped on the device.
    fn grouped_experts(&mut self, layer: usize, x: &Activations, top_k: usize, out: &Activations) {
        let Self { device, layers, products, groups, expert_kernels, chosen, .. } = self;
        let slots = layers[layer].as_ref().expect("the caller asked");
        let (chosen, _) = chosen.as_ref().expect("experts were chosen before");
        let (n_uses, n_experts) = (x.rows() * top_k, slots.n_experts());
        // Twice as many as the average expert has: most have no more.
        let n_x = share((2 * n_uses).div_ceil(n_experts), products.most_shared(device));
        let items = groups.group(device, &chosen.choices, [n_uses, n_experts], n_x);
        let part = (&slots.buffers()[0], items);
        expert_kernels.apply_items((device, products), &slots.layout, part, top_k, x, out);
    }

    /// The same where only some experts of the layer may be held; [`Gpu::take_held_experts`] will know that it
    /// was done.
    pub(crate) fn chosen_held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        top_k: usize,
        out: &Activations,
    ) {
        if slots_of(&self.layers, layer).is_some_and(|slots| slots.n_held() > 0) {
            self.chosen_experts(layer, x, top_k, out);
            self.computed = Some(layer);
        }
    }

    /// Counts the uses of a layer, computes those of experts that are held unless that was done, and takes
    /// them out; gives their number.
    pub(crate) fn take_held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &mut ExpertUses,
        out: &Activations,
    ) -> usize {
        let is_computed = self.computed.take() == Some(layer);
        let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return 0 };
        slots.count(uses);
        if !is_computed {
            self.held_experts(layer, x, uses, out);
            // They are computed while the host fetches the others.
            self.device.submit();
        }
        let until = self.device.moment();
        let Some(slots) = self.layers.get_mut(layer).and_then(Option::as_mut) else { return 0 };
        slots.read(uses.distinct().iter().copied(), until);
        let mut n_uses = 0;
        uses.take(|expert, uses| {
            let is_held = slots.place(expert).is_some();
            n_uses += if is_held { uses.len() } else { 0 };
            is_held
        });
        n_uses
    }

    /// Computes the uses of those of the experts that are held.
    fn held_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let all = uses.distinct().iter().copied();
        self.experts_in_slots(layer, x, uses, all, out);
    }

    /// Computes the uses of those experts among `wanted` that are held.
    fn experts_in_slots(
        &mut self,
        layer: usize,
        x: &Activations,
        uses: &ExpertUses,
        wanted: impl Iterator<Item = u32> + Clone,
        out: &Activations,
    ) {
        let Self { device, layers, products, expert_kernels, .. } = self;
        let Some(slots) = slots_of(layers, layer) else { return };
        let held = slots.buffers().iter().enumerate().map(|(index, buffer)| {
            let here = wanted.clone().filter_map(move |expert| {
                let (buffer, slot) = slots.place(expert)?;
                (buffer == index).then_some((expert, slot))
            });
            (buffer, here)
        });
        expert_kernels.apply((device, products), &slots.layout, held, uses, x, out);
    }

    /// Computes the uses of experts that are in the host's memory. Those that are used more than what is
    /// held stay on the device.
    pub(crate) fn host_experts(
        &mut self,
        layer: usize,
        x: &Activations,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let (experts, of_host) = self.split(layer, experts);
        let indices = || experts.iter().map(|expert| expert.index);
        self.hold(layer, &experts);
        // Only now is it known who stays: a later one may have taken an earlier one's slot.
        self.experts_in_slots(layer, x, uses, indices(), out);
        let mut slots = self.layers.get_mut(layer).and_then(Option::as_mut);
        if let Some(slots) = &mut slots {
            slots.read(indices(), self.device.moment());
        }
        let is_passing = |expert: &&LoadedExpert| {
            slots.as_ref().is_none_or(|slots| slots.place(expert.index).is_none())
        };
        let mut passing: Vec<_> = experts.iter().filter(is_passing).collect();
        self.experts_in_place(x, &mut passing, uses, out);
        self.passing_experts(x, &passing, uses, out);
        // The device begins while the host computes, or waits for the next ones.
        self.device.submit();
        if let (Some(host), false) = (&mut self.host, of_host.is_empty()) {
            self.moved.host_uses += host.compute(&self.device, &of_host, uses, out);
        }
        self.let_go();
    }

    /// Takes those of the experts into slots of their layer that should stay there.
    fn hold(&mut self, layer: usize, experts: &[LoadedExpert]) {
        let Self { device, layers, moved, .. } = self;
        let Some(slots) = layers.get_mut(layer).and_then(Option::as_mut) else { return };
        let begin = Instant::now();
        let mut last = Upload::default();
        for expert in experts {
            let is_new = slots.place(expert.index).is_none();
            if let Some(upload) = slots.hold(device, expert.index, &expert.weights) {
                last = last.max(upload);
                moved.expert_bytes += if is_new { slots.layout.bytes } else { 0 };
            }
        }
        moved.expert_time += begin.elapsed();
        device.after_upload(last);
    }

    /// Computes the uses of those experts that can be read in the host's memory, and takes them out.
    fn experts_in_place(
        &mut self,
        x: &Activations,
        experts: &mut Vec<&LoadedExpert>,
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let Self { device, products, expert_kernels, in_place, moved, .. } = self;
        let Some(in_place) = in_place else { return };
        let begin = Instant::now();
        let groups = in_place.find(device, experts, self.slot_buffer_bytes);
        moved.expert_time += begin.elapsed();
        for Group { layout, parts, bytes } in groups {
            let held = parts
                .iter()
                .map(|(window, experts)| (in_place.window(*window), experts.iter().copied()));
            expert_kernels.apply((device, products), &layout, held, uses, x, out);
            moved.in_place_bytes += bytes;
        }
        in_place.read(device.moment());
    }

    /// Computes the uses of experts that are moved to the device for that alone.
    fn passing_experts(
        &mut self,
        x: &Activations,
        experts: &[&LoadedExpert],
        uses: &ExpertUses,
        out: &Activations,
    ) {
        let Self { device, products, expert_kernels, transit, moved, .. } = self;
        // Experts of a layer that has no slots may be stored each in its own way.
        let alike = experts.chunk_by(|a, b| shapes(&a.weights) == shapes(&b.weights));
        for experts in alike.flat_map(|experts| experts.chunks(TRANSIT_SLOTS / 2)) {
            let layout = match ExpertLayout::new(shapes(&experts[0].weights)) {
                Ok(layout) => layout,
                Err(error) => return device.fail(error),
            };
            let begin = Instant::now();
            let (buffer, slots, last) = transit.take(device, &layout, experts);
            moved.expert_bytes += layout.bytes * experts.len() as u64;
            moved.expert_time += begin.elapsed();
            device.after_upload(last);
            let indices = experts.iter().map(|expert| expert.index);
            let held = [(buffer, indices.zip(slots.iter().copied()))];
            expert_kernels.apply((device, products), &layout, held, uses, x, out);
            transit.read(&slots, device.moment());
        }
    }

    /// Lets go of experts in the host's memory that were copied or read, and waits until few are kept.
    pub(crate) fn let_go(&mut self) {
        self.device.let_go(self.most_kept);
        if let Some(in_place) = &mut self.in_place {
            in_place.let_go(&self.device, self.most_read);
        }
    }

    /// Splits experts in the host's memory into those that are moved to the device and those that the CPU
    /// computes, of which the device would keep none.
    fn split<'a>(
        &self,
        layer: usize,
        experts: &'a [LoadedExpert],
    ) -> (Cow<'a, [LoadedExpert]>, Vec<LoadedExpert>) {
        let Some(host) = &self.host else { return (Cow::Borrowed(experts), Vec::new()) };
        let slots = slots_of(&self.layers, layer);
        let passes = |expert: &&LoadedExpert| slots.is_none_or(|slots| !slots.wants(expert.index));
        let (passing, mut moved): (Vec<_>, Vec<_>) = experts.iter().partition(passes);
        let n_moved = passing.len() - host.share(layer, passing.len());
        moved.extend(&passing[..n_moved]);
        let owned = |experts: &[&LoadedExpert]| experts.iter().copied().cloned().collect();
        (Cow::Owned(owned(&moved)), owned(&passing[n_moved..]))
    }
}

pub(super) fn slots_of(layers: &[Option<LayerSlots>], layer: usize) -> Option<&LayerSlots> {
    layers.get(layer)?.as_ref()
}
