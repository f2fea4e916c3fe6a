//! The 4-bit product in the form of this program's ancestor, on the shapes for which `kernels` measures
//! ours: to be run in the same session. The first adapter is used.

use gpu::baseline::{Case, fma_rate};
use gpu::measure::scaled;
use gpu::{Device, DeviceOptions};

fn main() {
    let adapters = gpu::adapters();
    let adapter = adapters.first().expect("a GPU");
    let options = DeviceOptions { subgroups: true, checked: false };
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
}
