//! Cuts of the products that are best on a device: found by measuring, and kept for later starts.
//!
//! A product is the same bits however it is cut, so what is found, or what a file says, changes speed alone.

use std::fmt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use checkpoint::{Affine, BlockType, FloatType, Format};

use crate::device::{Device, GpuError, replace_file};
use crate::measure::{DISPATCHES, ProductCase, REPEATS, Stream, median_seconds, scaled};
use crate::product::{Products, Tuning};

/// What a file begins with; the number changes when kernels do so much that old findings mean nothing.
const TITLE: &str = "flash-moe tuning 2";
/// How much faster another cut has to be: less is noise.
const LEAST_GAIN: f64 = 1.02;
/// Rounds of a comparison, in which the cuts take turns.
const ROUNDS: usize = 3;

/// Cuts that were compared, and how much faster the best is than the one that was best before.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The best one.
    pub best: Tuning,
    /// Of how many.
    pub among: usize,
    /// The time of all cases with the former one through that with this one.
    pub gain: f64,
}

/// Finds the best cuts of products of single rows on a device, one property after another; `told` hears of each. Takes
/// some 400 MB of its memory, and some seconds.
pub fn tune(device: &Device, told: &mut dyn FnMut(&Compared)) -> Result<Tuning, GpuError> {
    search(device, &cases(device), told)
}

fn search(
    device: &Device,
    cases: &[ProductCase],
    told: &mut dyn FnMut(&Compared),
) -> Result<Tuning, GpuError> {
    let mut best = Tuning::of(device);
    let mut streams: Vec<Stream> = cases.iter().map(|&case| Stream::new(device, case)).collect();
    device.check()?;
    for (of, others) in properties(device) {
        let mut candidates = vec![best];
        candidates.extend(others(best).into_iter().filter(|other| *other != best));
        let streams =
            streams.iter_mut().filter(|stream| of == Changes::All || stream.case.experts == 1);
        let times = compare(device, streams, &candidates)?;
        let (index, time) = times
            .iter()
            .enumerate()
            .min_by(|a, b| a.1.total_cmp(b.1))
            .expect("the best so far is among them");
        let mut gain = 1.0;
        if times[0] / time >= LEAST_GAIN {
            (best, gain) = (candidates[index], times[0] / time);
        }
        told(&Compared { best, among: candidates.len(), gain });
    }
    Ok(best)
}

/// What decoding takes its time for, in small: experts of the 397B and the 35B shape, a projection, a part of the head.
fn cases(device: &Device) -> [ProductCase; 5] {
    let affine = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let [q4k, q8] = [BlockType::Q4K, BlockType::Q8_0].map(Format::Block);
    let case = |format, rows: usize, cols, experts, pool: usize, is_fused| {
        let (rows, pool) = scaled(device, rows, pool, experts);
        ProductCase { format, rows, cols, experts, pool, is_fused, n_x: 1 }
    };
    [
        case(affine, 1024, 4096, 10, 16, true),
        case(affine, 4096, 1024, 10, 32, false),
        case(q4k, 512, 2048, 8, 64, true),
        case(q8, 8192, 2048, 1, 4, false),
        case(affine, 8192, 4096, 1, 4, false),
    ]
}

/// Which products a property changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    All,
    /// Those with one matrix.
    Single,
}

type Others = fn(Tuning) -> Vec<Tuning>;

/// What is tried, one after another, beside the best so far.
fn properties(device: &Device) -> Vec<(Changes, Others)> {
    use Changes::{All, Single};
    let mut all: Vec<(Changes, Others)> = vec![
        (All, |t| [3, 6, 12, 24].map(|ahead| Tuning { ahead, ..t }).into()),
        (All, |t| [64, 128, 256].map(|workgroup| Tuning { workgroup, ..t }).into()),
        (All, |t| [1, 2, 4].map(|rows| Tuning { rows, ..t }).into()),
        (All, |t| [1, 2].map(|fused_rows| Tuning { fused_rows, ..t }).into()),
        (Single, |t| {
            [264, 528, 1056, 2112, u32::MAX].map(|n| Tuning { most_workgroups: n, ..t }).into()
        }),
    ];
    if Tuning::most_held(device) > 64 {
        all.push((All, |t| [64, 128].map(|held| Tuning { held, ..t }).into()));
    }
    all
}

/// The times of the cases with each candidate; the best round counts, because other work only makes it slower.
///
/// The cases take turns, dispatch by dispatch, because kernels do where a token is decoded: one whose text is long is quick
/// when it runs again and again, and slow on processors that ran another one. Cases do not wait for each other.
fn compare<'a>(
    device: &Device,
    streams: impl Iterator<Item = &'a mut Stream>,
    candidates: &[Tuning],
) -> Result<Vec<f64>, GpuError> {
    let mut streams: Vec<_> = streams.collect();
    // What is compiled once serves all rounds.
    let mut all: Vec<Products> = candidates.iter().map(|tuning| Products::new(*tuning)).collect();
    let mut best = vec![f64::INFINITY; candidates.len()];
    for _ in 0..ROUNDS {
        for (products, best) in all.iter_mut().zip(&mut best) {
            let seconds = median_seconds(device, REPEATS, || {
                for index in 0..DISPATCHES {
                    streams.iter_mut().for_each(|stream| stream.record(device, products, index));
                }
            })?;
            *best = best.min(seconds);
        }
    }
    Ok(best)
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workgroup, rows, fused_rows, ahead, held, most_workgroups, .. } = self;
        write!(f, "{workgroup} lanes, {rows} rows ({fused_rows}), {ahead} ahead, {held} held")?;
        match *most_workgroups {
            u32::MAX => Ok(()),
            most => write!(f, ", {most} workgroups"),
        }
    }
}

/// The names of the numbers in a file, in order.
const NAMES: [&str; 7] =
    ["workgroup", "rows", "fused_rows", "ahead", "held", "few_workgroups", "most_workgroups"];

impl Tuning {
    fn numbers(self) -> [u32; NAMES.len()] {
        let Self { workgroup, rows, fused_rows, ahead, held, few_workgroups, most_workgroups } =
            self;
        [workgroup, rows, fused_rows, ahead, held, few_workgroups, most_workgroups]
    }

    fn to_text(self) -> String {
        let lines = NAMES.iter().zip(self.numbers()).map(|(name, n)| format!("{name} {n}\n"));
        format!("{TITLE}\n{}end\n", lines.collect::<String>())
    }

    /// What a file says, if it is one that could have been written for a device with so much held at most.
    fn from_text(text: &str, most_held: u32) -> Option<Self> {
        let mut lines = text.strip_suffix("\nend\n")?.lines();
        if lines.next() != Some(TITLE) {
            return None;
        }
        let mut numbers = [0_u32; NAMES.len()];
        for (name, number) in NAMES.iter().zip(&mut numbers) {
            *number = lines.next()?.strip_prefix(name)?.trim_start().parse().ok()?;
        }
        let [workgroup, rows, fused_rows, ahead, held, few_workgroups, most_workgroups] = numbers;
        let is_possible = [64, 128, 256].contains(&workgroup)
            && (1..=4).contains(&rows)
            && (1..=4).contains(&fused_rows)
            && (1..=64).contains(&ahead)
            && held.is_power_of_two()
            && (64..=most_held).contains(&held)
            && most_workgroups > 0
            && lines.next().is_none();
        let tuning =
            Self { workgroup, rows, fused_rows, ahead, held, few_workgroups, most_workgroups };
        is_possible.then_some(tuning)
    }
}

/// The file of what was found on a device.
fn file(device: &Device, directory: &Path) -> PathBuf {
    directory.join(format!("gpu-{}.tuning", &device.identity().to_hex()[..16]))
}

impl Tuning {
    /// What was found best on a device before, if that is kept in the directory.
    pub fn kept(device: &Device, directory: &Path) -> Option<Self> {
        let text = fs::read_to_string(file(device, directory)).ok()?;
        Self::from_text(&text, Self::most_held(device))
    }

    /// Keeps what was found best on a device; returns the file.
    pub fn keep(self, device: &Device, directory: &Path) -> io::Result<PathBuf> {
        let path = file(device, directory);
        replace_file(&path, self.to_text().as_bytes())?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use compute::Backend;

    use super::*;
    use crate::gpu::Gpu;
    use crate::testing::devices;

    #[test]
    fn what_is_found_is_what_later_starts_use() {
        let directory = std::env::temp_dir().join(format!("flash-moe-tune-{}", std::process::id()));
        for device in devices() {
            let found = Tuning { rows: 1, ahead: 12, most_workgroups: 7, ..Tuning::of(&device) };
            let gpu = Gpu::new(device.clone()).tuned(&directory);
            assert_eq!(gpu.products.tuning(), Tuning::of(&device), "nothing is kept");
            let file = found.keep(&device, &directory).expect("a writable directory");
            let gpu = Gpu::new(device.clone()).tuned(&directory);
            assert_eq!(gpu.products.tuning(), found);
            assert!(gpu.name().ends_with(", tuned"), "{}", gpu.name());
            fs::remove_file(file).expect("it is there");
        }
        fs::remove_dir(directory).expect("it is empty");
    }

    #[test]
    fn files_that_nobody_wrote_are_not_used() {
        let usual = Tuning::default();
        let text = usual.to_text();
        assert_eq!(Tuning::from_text(&text, 128), Some(usual));
        for (from, to) in [
            ("tuning 2", "tuning 1"),
            ("workgroup 128", "workgroup 96"),
            ("\nrows 2", "\nrows 0"),
            ("fused_rows 1", "fused_rows 99"),
            ("held 128", "held 256"),
            ("held 128", "held 100"),
            ("ahead 6", "ahead -1"),
            ("few_workgroups", "workgroups"),
            ("most_workgroups 4294967295\n", ""),
            ("most_workgroups 4294967295", "most_workgroups 0"),
            ("most_workgroups 4294967295\n", "most_workgroups 4294967295\nmore 1\n"),
            ("end\n", "end"),
        ] {
            assert!(text.contains(from), "{from}");
            assert_eq!(Tuning::from_text(&text.replace(from, to), 128), None, "{from} as {to}");
        }
        for len in 0..text.len() {
            assert_eq!(Tuning::from_text(&text[..len], 128), None, "the first {len} bytes");
        }
    }

    /// Which cut is best is a matter of the device.
    #[test]
    fn tuning_ends_with_one_of_the_cuts() {
        let device = devices().swap_remove(0);
        let mut n_compared = 0;
        let format = Format::Block(BlockType::Q8_0);
        let case = ProductCase {
            format,
            rows: 64,
            cols: 512,
            experts: 1,
            pool: 1,
            is_fused: false,
            n_x: 1,
        };
        let found = search(&device, &[case], &mut |compared| {
            assert!(compared.gain >= 1.0 && compared.among > 1, "{compared:?}");
            n_compared += 1;
        });
        let found = found.expect("the device works");
        assert_eq!(n_compared, properties(&device).len());
        assert_eq!(Tuning::from_text(&found.to_text(), 128), Some(found));
    }
}
