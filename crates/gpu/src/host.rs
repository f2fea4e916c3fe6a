//! Experts that the CPU computes for the device, where that is sooner than moving them: a lossy choice that has to
//! be asked for.
//!
//! Both multiply by the same rule, but add in other orders and have another `exp`. Which of them computes an expert
//! depends on what is held where, so the output does, too. How long both take is measured when memory for experts is
//! reserved, and the CPU's share is measured on.

use std::sync::Arc;
use std::time::Instant;

use compute::memory::Arena;
use compute::{
    Backend, Cpu, ExpertShape, ExpertUses, ExpertWeights, HostBuffer, LoadedExpert, Matrix,
    MatrixShape, Routing,
};

use crate::buffers::Activations;
use crate::device::{Device, Moment, Upload};
use crate::experts::ExpertLayout;

/// Experts of a measurement.
const MEASURED: u32 = 8;
/// Times that a measurement is taken; the best counts.
const ROUNDS: usize = 4;
/// Weight of what was measured before against the next measurement.
const INERTIA: f64 = 15.0;

/// How long it takes to have an expert computed, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Costs {
    /// Handing an expert over for the device.
    pub(crate) take: f64,
    /// Until it is there, one after the other.
    pub(crate) travel: f64,
    /// The CPU's arithmetic of an expert.
    pub(crate) compute: f64,
    /// What a call of the CPU takes besides.
    pub(crate) begin: f64,
}

impl Costs {
    /// How many of `n` experts the CPU should compute so that all are done soonest; of equals the fewest. The
    /// same thread hands over and computes, while what was handed over travels.
    pub(crate) fn share(&self, n: usize) -> usize {
        let time = |on_cpu: usize| {
            let moved = (n - on_cpu) as f64;
            let begin = if on_cpu > 0 { self.begin } else { 0.0 };
            let thread = moved * self.take + begin + on_cpu as f64 * self.compute;
            thread.max(moved * self.travel)
        };
        (0..=n).min_by(|a, b| time(*a).total_cmp(&time(*b))).unwrap_or(0)
    }
}

/// The CPU beside a device.
pub(crate) struct Host {
    cpu: Cpu,
    pub(crate) costs: Option<Costs>,
    /// The rows of a layer that experts are applied to, if they are few.
    x: Option<(usize, HostBuffer)>,
    out: Option<HostBuffer>,
    bytes: Vec<u8>,
}

impl Host {
    pub(crate) fn new(cpu: Cpu) -> Self {
        Self { cpu, costs: None, x: None, out: None, bytes: Vec::new() }
    }

    /// The CPU's part of what results depend on.
    pub(crate) fn numerics(&self) -> String {
        self.cpu.numerics()
    }

    /// What was measured, in a line.
    pub(crate) fn report(&self) -> Option<String> {
        let Costs { take, travel, compute, begin } = self.costs?;
        let us = |seconds: f64| 1e6 * seconds;
        Some(format!(
            "an expert in memory is computed by the CPU in {:.0} us, {:.0} more a call, or handed over in {:.0} us \
             and on the device after {:.0} us",
            us(compute),
            us(begin),
            us(take),
            us(travel),
        ))
    }

    /// Measures both ways for experts of a shape.
    pub(crate) fn measure(
        &mut self,
        device: &Device,
        shape: &ExpertShape,
    ) -> Result<(), std::io::Error> {
        let Ok(layout) = ExpertLayout::new(shape.matrices) else { return Ok(()) };
        let experts = made_up_experts(shape.matrices)?;
        let slots = device.buffer(layout.bytes * u64::from(MEASURED));
        let n = f64::from(MEASURED);
        let mut costs = [f64::INFINITY; 4];
        let mut least = |index: usize, seconds: f64| costs[index] = seconds.min(costs[index]);
        let hidden = shape.matrices[0].cols;
        let mut x = self.cpu.buffer(1, hidden);
        x.fill(1, &vec![0.5; hidden]);
        let mut out = self.cpu.buffer(MEASURED as usize, shape.matrices[2].rows);
        self.cpu.set_rows(&mut out, MEASURED as usize);
        let top_k = MEASURED as usize;
        let routing =
            Routing { top_k, experts: (0..MEASURED).collect(), weights: vec![1.0; top_k] };
        let mut uses = ExpertUses::new(top_k);
        uses.group(&routing);
        device.wait();
        for _ in 0..ROUNDS {
            let begin = Instant::now();
            let mut last = Upload::default();
            for (expert, slot) in experts.iter().zip(0..) {
                let to = (&slots, layout.bytes * slot);
                last = layout.upload(device, &expert.weights, to, Moment::default()).max(last);
            }
            least(0, begin.elapsed().as_secs_f64() / n);
            device.after_upload(last);
            device.wait();
            least(1, begin.elapsed().as_secs_f64() / n);
            let begin = Instant::now();
            self.cpu.experts(0, &x, &experts[..1], &uses, &mut out);
            least(2, begin.elapsed().as_secs_f64());
            let begin = Instant::now();
            self.cpu.experts(0, &x, &experts, &uses, &mut out);
            least(3, begin.elapsed().as_secs_f64());
        }
        let [take, travel, one, all] = costs;
        let compute = (all - one).max(0.0) / (n - 1.0);
        self.costs = Some(Costs { take, travel, compute, begin: (one - compute).max(0.0) });
        Ok(())
    }

    /// Takes the rows of a layer that its experts are applied to.
    pub(crate) fn set_input(&mut self, layer: usize, rows: usize, values: &[f32]) {
        let width = values.len() / rows.max(1);
        let fits = |(_, x): &(usize, HostBuffer)| x.width() == width && x.max_rows() >= rows;
        let x = match self.x.take().filter(fits) {
            Some((_, x)) => x,
            None => self.cpu.buffer(rows.next_power_of_two(), width),
        };
        let (_, x) = self.x.insert((layer, x));
        x.fill(rows, values);
    }

    /// How many of `n` experts of a layer the CPU should compute.
    pub(crate) fn share(&self, layer: usize, n: usize) -> usize {
        let has_input = self.x.as_ref().is_some_and(|(of, _)| *of == layer);
        self.costs.filter(|_| has_input).map_or(0, |costs| costs.share(n))
    }

    /// Computes experts of the layer of the input, and writes their outputs to the device; gives the number of
    /// uses.
    pub(crate) fn compute(
        &mut self,
        device: &Device,
        experts: &[LoadedExpert],
        uses: &ExpertUses,
        to: &Activations,
    ) -> u64 {
        let Some((layer, x)) = &self.x else { return 0 };
        let fits = |out: &HostBuffer| out.width() == to.width() && out.max_rows() >= to.rows();
        let mut out = match self.out.take().filter(fits) {
            Some(out) => out,
            None => self.cpu.buffer(to.rows().next_power_of_two(), to.width()),
        };
        self.cpu.set_rows(&mut out, to.rows());
        let begin = Instant::now();
        self.cpu.experts(*layer, x, experts, uses, &mut out);
        let seconds = begin.elapsed().as_secs_f64();
        if let Some(costs) = &mut self.costs {
            let each = (seconds - costs.begin).max(0.0) / experts.len().max(1) as f64;
            costs.compute += (each - costs.compute) / (INERTIA + 1.0);
        }
        let mut n_uses = 0;
        for use_ in experts.iter().flat_map(|expert| uses.of(expert.index)) {
            let row = use_.row as usize * uses.top_k() + use_.rank as usize;
            self.bytes.clear();
            self.bytes.extend(out.row(row).iter().flat_map(|value| value.to_le_bytes()));
            device.write(&to.buffer, (row * self.bytes.len()) as u64, &self.bytes);
            n_uses += 1;
        }
        self.out = Some(out);
        n_uses
    }
}

/// Experts of which nothing but their size matters.
fn made_up_experts(shapes: [MatrixShape; 3]) -> Result<Vec<LoadedExpert>, std::io::Error> {
    let sizes = shapes.map(|MatrixShape { format, rows, cols }| {
        let scales = rows * format.scale_row_bytes(cols);
        (rows * format.row_bytes(cols), scales)
    });
    let bytes: usize = sizes.iter().map(|(codes, scales)| codes + 2 * scales).sum();
    let whole = bytes.next_multiple_of(compute::memory::BLOCK_ALIGNMENT);
    let mut arena = Arena::new(whole * MEASURED as usize)?;
    let experts = (0..MEASURED).map(|index| {
        let mut block = arena.take(bytes).expect("the arena was made for all of them");
        // Memory that was never written to is not there.
        block.bytes_mut().fill(1);
        let block = Arc::new(block);
        let mut end = 0;
        let [gate, up, down] = [0, 1, 2].map(|matrix| {
            let (MatrixShape { format, rows, cols }, (codes, scales)) =
                (shapes[matrix], sizes[matrix]);
            let parts = [end, end + codes, end + codes + scales];
            end += codes + 2 * scales;
            Matrix::new(format, (rows, cols), Arc::clone(&block), parts)
        });
        LoadedExpert { index, weights: ExpertWeights { gate, up, down } }
    });
    Ok(experts.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_computed_where_all_are_done_soonest() {
        let costs = |take, travel, compute, begin| Costs { take, travel, compute, begin };
        // The CPU takes longer than handing over and travelling do.
        assert_eq!(costs(10.0, 40.0, 200.0, 5.0).share(6), 0);
        // A slow way to the device.
        assert_eq!(costs(10.0, 900.0, 20.0, 5.0).share(6), 6);
        // Handing over takes the thread's time, too.
        assert_eq!(costs(30.0, 30.0, 20.0, 5.0).share(1), 1);
        assert_eq!(costs(30.0, 30.0, 20.0, 15.0).share(1), 0);
        // Both: what travels is hidden behind the CPU's arithmetic.
        let both = costs(5.0, 40.0, 30.0, 0.0);
        assert_eq!(both.share(6), 3);
        assert_eq!(both.share(0), 0);
    }
}
