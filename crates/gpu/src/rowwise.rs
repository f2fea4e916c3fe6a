//! Norms, sums and choices of rows.

use std::collections::HashMap;

use compute::RouterSpec;

use crate::buffers::{Activations, Constant};
use crate::device::{Buffer, Device, Kernel};
use crate::kernel::KernelSource;

/// Most workgroups that walk over values; each walks on when there are more.
const MOST_WORKGROUPS: u32 = 4096;
/// Most experts of a layer that the router kernel can order.
pub(crate) const MOST_EXPERTS: usize = 1024;

/// Compiled kernels of this topic.
#[derive(Debug)]
pub(crate) struct Rowwise {
    norm: [Kernel; 2],
    rows: [Kernel; 2],
    combine: [Kernel; 2],
    routers: HashMap<(usize, bool), Kernel>,
    /// Bound where a kernel has no use for a binding.
    nothing: Buffer,
}

/// The router's choices on the device.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// (rows, top_k) experts, and as many weights.
    pub(crate) choices: Buffer,
    /// The same as a table of items, one use each.
    pub(crate) items: Buffer,
}

/// Applies a function to both forms of a kernel: without and with what the flag says.
fn both_forms<T>(
    (name, text, flag, writes): (&str, &str, &str, &[bool]),
    apply: &mut dyn FnMut(&KernelSource<'_>) -> T,
) -> [T; 2] {
    [false, true].map(|value| {
        apply(&KernelSource {
            name,
            parts: &[text],
            constants: &[],
            flags: &[(flag, value)],
            writes,
            teams: None,
        })
    })
}

/// Applies a function to all kernels of this topic but the router: norms, rows, combinations.
fn with_sources<T>(apply: &mut dyn FnMut(&KernelSource<'_>) -> T) -> [[T; 2]; 3] {
    let norm = include_str!("kernels/norm.wgsl");
    let rows = include_str!("kernels/rows.wgsl");
    let combine = include_str!("kernels/combine.wgsl");
    [
        both_forms(("norm", norm, "ADD", &[false, false, true, true]), apply),
        both_forms(("rows", rows, "ADD", &[false, false, true]), apply),
        both_forms(("combine", combine, "SHARED", &[false, false, false, false, true]), apply),
    ]
}

/// Applies a function to the router.
fn with_router<T>(spec: RouterSpec, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "router",
        parts: &[include_str!("kernels/router.wgsl")],
        constants: &[("TOP_K", spec.top_k as u32)],
        flags: &[("NORMALISE", spec.normalise)],
        writes: &[false, true, true],
        teams: None,
    })
}

impl Rowwise {
    pub(crate) fn new(device: &Device) -> Self {
        let [norm, rows, combine] = with_sources(&mut |source| device.kernel(source));
        Self { norm, rows, combine, routers: HashMap::new(), nothing: device.buffer(16) }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`; with `y`, `x += y` before.
    pub(crate) fn norm(
        &self,
        device: &Device,
        x: &Activations,
        y: Option<&Activations>,
        (weight, eps): (&Constant, f32),
        out: &mut Activations,
    ) {
        out.set_rows(x.rows());
        let kernel = &self.norm[usize::from(y.is_some())];
        let y = y.map_or(&self.nothing, |y| &y.buffer);
        let words = [x.width() as u32, eps.to_bits()];
        let buffers = [y, &weight.buffer, &x.buffer, &out.buffer];
        device.dispatch(kernel, &buffers, &words, [x.rows() as u32, 1, 1]);
    }

    /// `x += y`.
    pub(crate) fn add(&self, device: &Device, x: &mut Activations, y: &Activations) {
        let len = (x.rows() * x.width()) as u32;
        let groups = len.div_ceil(256).min(MOST_WORKGROUPS);
        let buffers = [&y.buffer, &self.nothing, &x.buffer];
        device.dispatch(&self.rows[1], &buffers, &[x.width() as u32, len], [groups, 1, 1]);
    }

    /// `out[i] = x[rows[i]]`.
    pub(crate) fn gather(
        &self,
        device: &Device,
        x: &Activations,
        (rows, n_rows): (&Buffer, usize),
        out: &mut Activations,
    ) {
        out.set_rows(n_rows);
        let len = (n_rows * x.width()) as u32;
        let groups = len.div_ceil(256).min(MOST_WORKGROUPS);
        let buffers = [&x.buffer, rows, &out.buffer];
        device.dispatch(&self.rows[0], &buffers, &[x.width() as u32, len], [groups, 1, 1]);
    }

    /// The choices of all rows, on the device.
    pub(crate) fn route(
        &mut self,
        device: &Device,
        logits: &Activations,
        spec: RouterSpec,
        chosen: &Chosen,
    ) {
        assert!(logits.width() <= MOST_EXPERTS, "checked when the model was loaded");
        let RouterSpec { top_k, normalise } = spec;
        let kernel = self
            .routers
            .entry((top_k, normalise))
            .or_insert_with(|| with_router(spec, |source| device.kernel(source)));
        let buffers = [&logits.buffer, &chosen.choices, &chosen.items];
        device.dispatch(kernel, &buffers, &[logits.width() as u32], [logits.rows() as u32, 1, 1]);
    }

    /// Adds weighted outputs of experts to `x`. `choices` is (rows, top_k) experts and as many weights.
    pub(crate) fn combine(
        &self,
        device: &Device,
        x: &mut Activations,
        (choices, top_k): (&Buffer, usize),
        routed: &Activations,
        shared: Option<[&Activations; 2]>,
    ) {
        let (rows, width) = (x.rows(), x.width() as u32);
        let kernel = &self.combine[usize::from(shared.is_some())];
        let [out, gate] = match shared {
            Some([out, gate]) => [&out.buffer, &gate.buffer],
            None => [&self.nothing; 2],
        };
        let words = [width, rows as u32, (rows * top_k) as u32, top_k as u32];
        let buffers = [&routed.buffer, choices, out, gate, &x.buffer];
        device.dispatch(kernel, &buffers, &words, [width.div_ceil(256), rows as u32, 1]);
    }
}

#[cfg(test)]
mod tests {
    use compute::{Backend, MoeOutputs, Reference, Routing};

    use super::*;
    use crate::gpu::Gpu;
    use crate::testing::{Random, assert_close, devices, download, host, name, translate, upload};

    #[test]
    fn kernels_translate_to_every_language() {
        with_sources(&mut |source| translate(source));
        for normalise in [false, true] {
            with_router(RouterSpec { top_k: 10, normalise }, translate);
        }
    }

    #[test]
    fn norms_and_sums_of_rows_agree() {
        let (rows, width) = (3, 300);
        let mut random = Random::new(1);
        let [x, y] = [0; 2].map(|_| random.numbers(rows * width));
        let weight = random.numbers(width);
        let mut reference = Reference::new();
        let other = host(&mut reference, &y, width);
        let mut normed = reference.buffer(rows, width);
        let mut values = Vec::new();
        for device in devices() {
            let mut gpu = Gpu::new(device.clone());
            let (mut x, y) = (upload(&device, &x, width), upload(&device, &y, width));
            let on_device = gpu.vector(&weight);
            let mut out = gpu.buffer(rows, width);
            gpu.rms_norm(&x, &on_device, 1e-6, &mut out);
            let alone = download(&device, &out);
            let mut fresh = host(&mut reference, &download(&device, &x), width);
            reference.rms_norm(&fresh, &weight, 1e-6, &mut normed);
            reference.download(&normed, &mut values);
            assert_close(&alone, &values, 1e-5, &name(&device));

            // A norm of a sum is that of the sum's rows.
            gpu.add(&mut x, &y);
            reference.add(&mut fresh, &other);
            reference.download(&fresh, &mut values);
            assert_eq!(download(&device, &x), values, "sums of {}", name(&device));
            gpu.gather(&x, &[2, 0], &mut out);
            let gathered = download(&device, &out);
            assert_eq!(gathered[..width], values[2 * width..]);
            assert_eq!(gathered[width..], values[..width]);
        }
    }

    #[test]
    fn choices_are_those_of_the_reference() {
        for (n_experts, top_k, normalise) in [(7, 2, true), (300, 10, true), (512, 8, false)] {
            let spec = RouterSpec { top_k, normalise };
            let mut random = Random::new(3);
            let mut logits = random.numbers(5 * n_experts);
            // Equal logits: the lower index comes first.
            logits[n_experts] = 2.0;
            logits[n_experts + 3] = 2.0;
            let mut reference = Reference::new();
            let mut expected = Routing::default();
            let on_host = host(&mut reference, &logits, n_experts);
            reference.route(&on_host, spec, &mut expected);
            for device in devices() {
                let mut gpu = Gpu::new(device.clone());
                let mut routing = Routing::default();
                gpu.route(&upload(&device, &logits, n_experts), spec, &mut routing);
                assert_eq!(routing.experts, expected.experts, "{}", name(&device));
                assert_close(&routing.weights, &expected.weights, 1e-6, &name(&device));

                let width = 40;
                let [x, shared] = [0; 2].map(|_| random.numbers(5 * width));
                let (gate, routed) = (random.numbers(5), random.numbers(5 * top_k * width));
                let mut sum = upload(&device, &x, width);
                let parts = [(&shared, width), (&gate, 1)].map(|(v, w)| upload(&device, v, w));
                let outputs = upload(&device, &routed, width);
                let [shared_out, shared_gate] = &parts;
                gpu.combine(
                    &mut sum,
                    MoeOutputs {
                        routing: &routing,
                        routed: &outputs,
                        shared: Some([shared_out, shared_gate]),
                    },
                );
                let mut expected = host(&mut reference, &x, width);
                let parts = [(&shared, width), (&gate, 1)].map(|(v, w)| host(&mut reference, v, w));
                let outputs = host(&mut reference, &routed, width);
                let [shared_out, shared_gate] = &parts;
                reference.combine(
                    &mut expected,
                    MoeOutputs {
                        routing: &routing,
                        routed: &outputs,
                        shared: Some([shared_out, shared_gate]),
                    },
                );
                let mut values = Vec::new();
                reference.download(&expected, &mut values);
                assert_close(&download(&device, &sum), &values, 1e-5, &name(&device));
            }
        }
    }
}
