//! Products in other forms than ours, on the shapes for which `kernels` measures ours: to be run in the same session. The
//! 4-bit one of this program's ancestor, and cooperative matrices, if the adapter has them. The first adapter is used.

use gpu::baseline::{Case, Cut, fma_rate, matrix_rate};
use gpu::measure::scaled;
use gpu::{Device, DeviceOptions};

/// As large as 48 KiB of memory of a workgroup allow: 16 rows of activations, subgroups down and across.
const CUTS: [[u32; 3]; 6] = [[1, 2, 2], [2, 2, 2], [4, 1, 2], [4, 2, 2], [4, 4, 1], [4, 1, 4]];

fn main() {
    let adapters = gpu::adapters();
    let adapter = adapters.first().expect("a GPU");
    let options = DeviceOptions { checked: false, ..DeviceOptions::default() };
    let device = Device::open(adapter, options).expect("the adapter opens");
    println!("{}", device.name());
    for (name, rows, cols, experts, pool) in [
        ("397B gate+up of 10", 2048, 4096, 10, 120),
        ("397B down of 10", 4096, 1024, 10, 240),
        ("head 4096 x 248320", 248_320, 4096, 1, 1),
        ("35B gate+up of 8", 1024, 2048, 8, 480),
    ] {
        let (rows, pool) = scaled(&device, rows, pool, experts);
        let case = Case { rows, cols, experts, pool };
        let (bytes, seconds) = fma_rate(&device, case).expect("the device works");
        println!(
            "{name:34} FMA form: {:8.1} us, {:7.1} GB/s",
            1e6 * seconds,
            bytes as f64 / seconds / 1e9
        );
    }
    let options = DeviceOptions { matrices: true, ..options };
    let device = match Device::open(adapter, options) {
        Ok(device) => device,
        Err(error) => return println!("{error}"),
    };
    let scale = if device.is_software() { 8 } else { 1 };
    let shape = [2048, 8192, 2048].map(|n| n / scale);
    let [x_rows, w_rows, columns] = shape;
    for [sixteens, down, across] in CUTS {
        let cut = Cut { sixteens, down, across };
        let (seconds, worst) = matrix_rate(&device, shape, cut).expect("the device works");
        println!(
            "{x_rows} x {columns} x {w_rows}, cooperative matrices, {:3} x {:3} by {:3} lanes: {:6.2} ms, {:6.1} TFLOP/s, error {worst:e}",
            16 * sixteens * down,
            32 * across,
            32 * down * across,
            1e3 * seconds,
            2.0 * shape.map(|n| n as f64).iter().product::<f64>() / seconds / 1e12
        );
    }
}
