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

/// How experts are chosen.
pub(crate) const CHOICE: &str = include_str!("kernels/choice.wgsl");

/// Compiled kernels of this topic, made when they are first needed.
#[derive(Debug)]
pub(crate) struct Rowwise {
    sums: HashMap<Form, Kernel>,
    gather: Kernel,
    routers: HashMap<(usize, bool), Kernel>,
    /// Bound where a kernel has no use for a binding.
    nothing: Buffer,
}

/// What is added to rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Addend<'a> {
    /// Nothing.
    Nothing,
    /// As many rows.
    Rows(&'a Activations),
    /// Outputs of experts.
    Experts {
        /// (rows, top_k) experts and as many weights.
        choices: &'a Buffer,
        top_k: usize,
        routed: &'a Activations,
        /// The shared expert's output and its gate.
        shared: Option<[&'a Activations; 2]>,
    },
}

/// The norm of a sum: its weight, its epsilon, where it goes.
pub(crate) type Norm<'a> = (&'a Constant, f32, &'a mut Activations);

/// What the text of the kernel of sums depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    sum: Sum,
    norm: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sum {
    Nothing,
    Rows,
    Experts { shared: bool },
}

/// The router's choices on the device.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// (rows, top_k) experts, and as many weights.
    pub(crate) choices: Buffer,
    /// The same as a table of items, one use each.
    pub(crate) items: Buffer,
}

/// Applies a function to the kernel of sums and norms.
fn with_sum<T>(Form { sum, norm }: Form, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "norm",
        parts: &[include_str!("kernels/norm.wgsl")],
        constants: &[],
        flags: &[
            ("ADD", sum == Sum::Rows),
            ("COMBINE", matches!(sum, Sum::Experts { .. })),
            ("SHARED", sum == Sum::Experts { shared: true }),
            ("NORM", norm),
        ],
        writes: &[false, false, false, false, false, true, true],
        teams: Some(256),
    })
}

/// Applies a function to the kernel that gathers rows.
fn with_gather<T>(apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "rows",
        parts: &[include_str!("kernels/rows.wgsl")],
        constants: &[],
        flags: &[],
        writes: &[false, false, true],
        teams: None,
    })
}

/// Applies a function to the router.
fn with_router<T>(spec: RouterSpec, apply: impl FnOnce(&KernelSource<'_>) -> T) -> T {
    apply(&KernelSource {
        name: "router",
        parts: &[CHOICE, include_str!("kernels/router.wgsl")],
        constants: &[("TOP_K", spec.top_k as u32), ("WORKGROUP", 128)],
        flags: &[("NORMALISE", spec.normalise)],
        writes: &[false, true, true],
        teams: None,
    })
}

impl Rowwise {
    pub(crate) fn new(device: &Device) -> Self {
        let gather = with_gather(|source| device.kernel(source));
        let nothing = device.buffer(16);
        Self { sums: HashMap::new(), gather, routers: HashMap::new(), nothing }
    }

    /// Adds to the rows of `x`, and norms the sums if that is wanted.
    pub(crate) fn sum(
        &mut self,
        device: &Device,
        x: &Activations,
        addend: Addend<'_>,
        norm: Option<Norm<'_>>,
    ) {
        let (rows, width) = (x.rows(), x.width());
        assert!(width.is_multiple_of(4), "kernels add whole quads");
        let nothing = &self.nothing;
        let mut words = [(width / 4) as u32, 0, 0, 0, 0];
        let mut buffers = [nothing; 7];
        // Without a norm nothing goes to the last one.
        (buffers[5], buffers[6]) = (&x.buffer, &x.buffer);
        let sum = match addend {
            Addend::Nothing => Sum::Nothing,
            Addend::Rows(y) => {
                assert_eq!((y.rows(), y.width()), (rows, width), "shapes agree");
                buffers[0] = &y.buffer;
                Sum::Rows
            }
            Addend::Experts { choices, top_k, routed, shared } => {
                assert_eq!((routed.rows(), routed.width()), (rows * top_k, width), "shapes agree");
                (buffers[0], buffers[1]) = (&routed.buffer, choices);
                (words[2], words[3]) = ((rows * top_k) as u32, top_k as u32);
                if let Some([out, gate]) = shared {
                    assert_eq!((out.rows(), out.width()), (rows, width), "shapes agree");
                    assert_eq!((gate.rows(), gate.width()), (rows, 1), "shapes agree");
                    (buffers[2], buffers[3]) = (&out.buffer, &gate.buffer);
                }
                Sum::Experts { shared: shared.is_some() }
            }
        };
        let form = Form { sum, norm: norm.is_some() };
        if let Some((weight, eps, out)) = norm {
            assert_eq!(out.width(), width, "shapes agree");
            out.set_rows(rows);
            words[1] = eps.to_bits();
            (buffers[4], buffers[6]) = (&weight.buffer, &out.buffer);
        }
        let kernel =
            self.sums.entry(form).or_insert_with(|| with_sum(form, |source| device.kernel(source)));
        device.dispatch(kernel, &buffers, &words, [rows as u32, 1, 1]);
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
        device.dispatch(&self.gather, &buffers, &[x.width() as u32, len], [groups, 1, 1]);
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
}

#[cfg(test)]
mod tests {
    use checkpoint::{FloatType, Format};
    use compute::{Backend, MoeOutputs, NextNorm, Reference, Routing};

    use super::*;
    use crate::gpu::Gpu;
    use crate::product::{Operand, Products, Tuning};
    use crate::testing::{
        Random, assert_close, devices, download, host, matrix, name, translate, upload,
    };

    #[test]
    fn kernels_translate_to_every_language() {
        with_gather(translate);
        for sum in [Sum::Nothing, Sum::Rows, Sum::Experts { shared: false }]
            .into_iter()
            .chain([Sum::Experts { shared: true }])
        {
            for norm in [false, true] {
                with_sum(Form { sum, norm }, translate);
            }
        }
        for normalise in [false, true] {
            with_router(RouterSpec { top_k: 10, normalise }, translate);
        }
    }

    /// The kernel that chooses once, and the product whose workgroups choose for themselves, whatever their size.
    #[test]
    fn choices_are_the_same_bits_wherever_they_are_made() {
        let (rows, top_k, n_experts) = (16, 10, 300);
        let mut random = Random::new(15);
        let logits = random.numbers(rows * n_experts);
        let stored = matrix(&mut random, Format::Float(FloatType::F32), 20, 36);
        let x = random.numbers(rows * 36);
        for (device, normalise) in
            devices().into_iter().flat_map(|device| [(device.clone(), false), (device, true)])
        {
            let spec = RouterSpec { top_k, normalise };
            let gpu = Gpu::new(device.clone());
            let weights = gpu.put(&stored).expect("the format is known");
            // All experts lie in the same place, gate and up as well.
            let operand = Operand { up: Some(weights.parts), ..Operand::of(&weights) };
            let [x, logits] = [(&x, 36), (&logits, n_experts)].map(|(v, w)| upload(&device, v, w));
            let uses = rows * top_k;
            let [choice_bytes, item_bytes] = [8, 12].map(|bytes| bytes * uses as u64);
            let new = || Chosen {
                choices: device.buffer(choice_bytes),
                items: device.buffer(item_bytes),
            };
            let bytes_of = |chosen: Chosen| {
                let (mut choices, mut items) = (Vec::new(), Vec::new());
                device.read(&chosen.choices, 0, choice_bytes, &mut choices);
                device.read(&chosen.items, 0, item_bytes, &mut items);
                (choices, items)
            };
            let apart = new();
            Rowwise::new(&device).route(&device, &logits, spec, &apart);
            let apart = bytes_of(apart);
            for workgroup in [64, 128, 256] {
                let tuning = Tuning { workgroup, ..Tuning::of(&device) };
                let chosen = new();
                let mut y = Activations::new(&device, uses, 20);
                y.set_rows(uses);
                let choice = (&logits, spec, &chosen);
                Products::new(tuning).multiply_chosen(&device, &operand, choice, &x, &y);
                assert!(bytes_of(chosen) == apart, "{workgroup} lanes, {}", name(&device));
            }
        }
    }

    #[test]
    fn norms_and_sums_of_rows_agree() {
        // More than the lanes of a workgroup take at once.
        let (rows, width) = (3, 1540);
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

            // A norm of a sum is that of the sum's rows, computed together or not.
            let mut sum = upload(&device, &download(&device, &x), width);
            gpu.add(&mut x, &y);
            gpu.rms_norm(&x, &on_device, 1e-6, &mut out);
            let mut together = gpu.buffer(rows, width);
            let norm = NextNorm { weight: &on_device, eps: 1e-6, out: &mut together };
            gpu.add_norm(&mut sum, &y, norm);
            for (together, apart) in [(&sum, &x), (&together, &out)] {
                let what = name(&device);
                assert_eq!(download(&device, together), download(&device, apart), "{what}");
            }
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
                let [mut sum, mut again] = [0; 2].map(|_| upload(&device, &x, width));
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
                // With the norm of the sum at once: the same bits.
                let weight = gpu.vector(&x[..width]);
                let [mut apart, mut together] = [0; 2].map(|_| gpu.buffer(5, width));
                gpu.rms_norm(&sum, &weight, 1e-6, &mut apart);
                let norm = NextNorm { weight: &weight, eps: 1e-6, out: &mut together };
                let both = Some([shared_out, shared_gate]);
                let outputs = MoeOutputs { routing: &routing, routed: &outputs, shared: both };
                gpu.combine_norm(&mut again, outputs, norm);
                for (together, apart) in [(&again, &sum), (&together, &apart)] {
                    assert_eq!(download(&device, together), download(&device, apart));
                }

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
