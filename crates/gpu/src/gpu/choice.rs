//! The choice of experts: on the device, and from there to the host where that has to know it.

use compute::{RouterSpec, Routing};

use crate::buffers::Activations;
use crate::device::{Buffer, Device, Reading};
use crate::gpu::Gpu;
use crate::rowwise::{Chosen, Rowwise};

impl Gpu {
    /// Chooses experts; the choices stay on the device, and come to the host in `routing` if it is there.
    pub(crate) fn choose(
        &mut self,
        logits: &Activations,
        spec: RouterSpec,
        routing: Option<&mut Routing>,
    ) {
        choose(&self.device, &mut self.rowwise, (logits, spec), &mut self.chosen);
        self.forget_routed();
        if let Some(routing) = routing {
            let part = choices_of(&self.chosen, logits.rows() * spec.top_k);
            let reading = self.device.begin_read(&[part]);
            self.finish_choice(reading, (logits.rows(), spec.top_k, routing), None, None);
        }
    }

    /// Nothing is known of what is in `chosen`.
    pub(super) fn forget_routed(&mut self) {
        self.routed.experts.clear();
        self.routed.weights.clear();
    }

    /// Begins to choose experts, and to predict the choices of a layer to come. A CPU that may compute some of
    /// them gets `x`, which they are applied to.
    pub(crate) fn begin_choice(
        &mut self,
        here: (&Activations, RouterSpec),
        next: Option<(&Activations, RouterSpec)>,
        x: Option<&Activations>,
    ) -> Reading {
        let Self { device, rowwise, chosen, predicted, host, .. } = self;
        let part = |(logits, spec): (&Activations, RouterSpec), chosen| {
            choices_of(chosen, logits.rows() * spec.top_k)
        };
        choose(device, rowwise, here, chosen);
        let mut parts = vec![part(here, chosen)];
        if let Some(next) = next {
            choose(device, rowwise, next, predicted);
            parts.push(part(next, predicted));
        }
        let x = x.filter(|_| host.is_some());
        parts.extend(x.map(|x| (&x.buffer, 0, x.bytes())));
        device.begin_read(&parts)
    }

    /// Waits for choices, given with their rows and experts of a row, and for what the experts of a layer are
    /// applied to if that was asked for.
    pub(crate) fn finish_choice(
        &mut self,
        reading: Reading,
        here: (usize, usize, &mut Routing),
        next: Option<(usize, usize, &mut Routing)>,
        input_of: Option<usize>,
    ) {
        self.device.finish_read(reading, &mut self.bytes);
        let (words, _) = self.bytes.as_chunks();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut take = |(rows, top_k, routing): (usize, usize, &mut Routing)| {
            routing.top_k = top_k;
            routing.experts.clear();
            routing.experts.extend(words.by_ref().take(rows * top_k));
            routing.weights.clear();
            routing.weights.extend(words.by_ref().take(rows * top_k).map(f32::from_bits));
        };
        let (rows, top_k, routing) = here;
        take((rows, top_k, &mut *routing));
        self.routed.clone_from(routing);
        next.map(&mut take);
        if let (Some(layer), Some(host)) = (input_of, &mut self.host) {
            let x: Vec<f32> = words.map(f32::from_bits).collect();
            host.set_input(layer, rows, &x);
        }
    }
}

/// Chooses experts, in buffers that are made anew when they are too small.
fn choose(
    device: &Device,
    rowwise: &mut Rowwise,
    (logits, spec): (&Activations, RouterSpec),
    chosen: &mut Option<(Chosen, usize)>,
) {
    let chosen = room_for_choices(device, chosen, logits.rows() * spec.top_k);
    rowwise.route(device, logits, spec, chosen);
}

/// Buffers for the choices of so many uses.
pub(super) fn room_for_choices<'a>(
    device: &Device,
    chosen: &'a mut Option<(Chosen, usize)>,
    uses: usize,
) -> &'a Chosen {
    if chosen.as_ref().is_none_or(|(_, held)| *held < uses) {
        let held = uses.next_power_of_two();
        let choices = device.buffer(8 * held as u64);
        let items = device.buffer(12 * held as u64);
        *chosen = Some((Chosen { choices, items }, held));
    }
    let (chosen, _) = chosen.as_ref().expect("it was just made");
    chosen
}

/// Where the experts and the weights of so many uses are.
fn choices_of(chosen: &Option<(Chosen, usize)>, uses: usize) -> (&Buffer, u64, u64) {
    let (chosen, _) = chosen.as_ref().expect("experts were chosen before");
    (&chosen.choices, 0, 8 * uses as u64)
}
