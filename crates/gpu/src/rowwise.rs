//! Norms, sums and choices of rows.

use std::collections::HashMap;

use compute::RouterSpec;

use crate::buffers::{Activations, Constant};
use crate::device::{Buffer, Device};
use crate::kernel::{Kernel, KernelSource};

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

impl Rowwise {
    pub(crate) fn new(device: &Device) -> Self {
        let kernel = |name, text, flag, writes: &[bool]| {
            [false, true].map(|value| {
                device.kernel(&KernelSource {
                    name,
                    parts: &[text],
                    constants: &[],
                    flags: &[(flag, value)],
                    writes,
                    teams: None,
                })
            })
        };
        let norm = include_str!("kernels/norm.wgsl");
        let combine = include_str!("kernels/combine.wgsl");
        Self {
            norm: kernel("norm", norm, "ADD", &[false, false, true, true]),
            rows: kernel("rows", include_str!("kernels/rows.wgsl"), "ADD", &[false, false, true]),
            combine: kernel("combine", combine, "SHARED", &[false, false, false, false, true]),
            routers: HashMap::new(),
            nothing: device.buffer(16),
        }
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
        let kernel = self.routers.entry((top_k, normalise)).or_insert_with(|| {
            device.kernel(&KernelSource {
                name: "router",
                parts: &[include_str!("kernels/router.wgsl")],
                constants: &[("TOP_K", top_k as u32)],
                flags: &[("NORMALISE", normalise)],
                writes: &[false, true, true],
                teams: None,
            })
        });
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
