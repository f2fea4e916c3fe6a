//! Kernels on a GPU: the costs of meetings and dispatches, and rates of products beside what the device
//! can read. The first adapter is used. Words choose what is measured: `meeting`, `upload`, `products`, `prompts`,
//! `attention`; `--all` tries every way of cutting the products, and tiles of several sizes; `--ahead` how many quads
//! of weights a lane reads at once, how much of a row of activations a workgroup holds, and fewer workgroups that go on
//! with further rows.

use std::time::Duration;

use checkpoint::{Affine, BlockType, FloatType, Format};
use compute::AttentionSpec;
use gpu::measure::{
    GemmCase, ProductCase, attention_rate, dispatch_cost, gemm_rate, meeting_seconds, product_rate,
    scaled, upload_rates,
};
use gpu::{Device, DeviceOptions, Tile, Tuning};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let is_wanted = |what: &str| words.is_empty() || words.contains(&what);
    let adapters = gpu::adapters();
    let adapter = adapters.first().expect("a GPU");
    let options = DeviceOptions { checked: false, ..DeviceOptions::default() };
    let device = Device::open(adapter, options).expect("the adapter opens");
    println!("{}", device.name());
    if is_wanted("meeting") {
        meetings(&device);
    }
    if is_wanted("upload") {
        uploads(&device);
    }
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let is_all = has("--all");
    if is_wanted("products") {
        let tried = match (is_all, has("--ahead")) {
            (true, _) => Tried::Cuts,
            (_, true) => Tried::Ahead,
            _ => Tried::Nothing,
        };
        products(&device, &tried);
    }
    if is_wanted("prompts") {
        prompts(&device, is_all);
    }
    if is_wanted("attention") {
        attention(&device);
    }
}

fn meetings(device: &Device) {
    let meet = |spin| 1e6 * meeting_seconds(device, spin).expect("the device works");
    let (sleeping, spinning) = (meet(Duration::ZERO), meet(Duration::from_millis(1)));
    println!("a meeting takes {spinning:.1} us, {sleeping:.1} us with sleep");
    for (name, is_chain) in [("in a chain", true), ("independent", false)] {
        let cost = dispatch_cost(device, is_chain).expect("the device works");
        println!(
            "a small dispatch, {name}: {:.2} us of the recording thread, {:.2} us in all",
            1e6 * cost.recording,
            1e6 * cost.wall
        );
    }
}

fn uploads(device: &Device) {
    let affine = Format::Affine(Affine { bits: 4, group: 64, scales: FloatType::Bf16 });
    let scale = if device.is_software() { 64 } else { 1 };
    let case = ProductCase {
        format: affine,
        rows: 1024 / scale,
        cols: 4096,
        experts: 10,
        pool: 120,
        is_fused: true,
        n_x: 1,
    };
    // An expert of the 397B shape at 4 bits.
    let block = 7_077_888 / scale;
    for from_place in [false, true] {
        upload(device, block, from_place, case);
    }
}

fn upload(device: &Device, block: usize, from_place: bool, case: ProductCase) {
    let rates = upload_rates(device, (block, 128), from_place, case).expect("the device works");
    let speed = |seconds: f64| rates.bytes as f64 / seconds / 1e9;
    println!(
        "{} MB of uploads {}, {}: {:.1} GB/s alone, {:.1} beside products",
        rates.bytes / 1_000_000,
        if from_place { "from where they lie" } else { "through pinned memory" },
        if device.uploads_beside() { "by the copy queue" } else { "in line" },
        speed(rates.alone),
        speed(rates.uploads_together)
    );
    println!(
        "products alone {:.2} ms, with the uploads {:.2} ms, uploads alone {:.2} ms; contents {}",
        1e3 * rates.products,
        1e3 * rates.together,
        1e3 * rates.alone,
        if rates.is_right { "right" } else { "WRONG" }
    );
}

/// How much is read at once, each way apart from the others.
fn reading(usual: Tuning) -> Vec<Tuning> {
    let ahead = [3, 6, 12, 24].map(|ahead| Tuning { ahead, ..usual });
    let held = Tuning { held: 64, ..usual };
    let most = [528, 1056, 2112].map(|most_workgroups| Tuning { most_workgroups, ..usual });
    ahead.into_iter().chain([held]).chain(most).collect()
}

/// What is tried of the products.
enum Tried {
    Nothing,
    Cuts,
    Ahead,
}

fn products(device: &Device, tried: &Tried) {
    let affine = |bits| Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
    let q4k = Format::Block(BlockType::Q4K);
    let q8 = Format::Block(BlockType::Q8_0);
    let case = |format, rows, cols, experts, pool, is_fused, n_x| {
        let (rows, pool) = scaled(device, rows, pool, experts);
        ProductCase { format, rows, cols, experts, pool, is_fused, n_x }
    };
    let cases = [
        ("397B gate+up of 10, 4 bit", case(affine(4), 1024, 4096, 10, 120, true, 1)),
        ("397B down of 10, 4 bit", case(affine(4), 4096, 1024, 10, 240, false, 1)),
        ("397B gate+up of 10, 2 bit", case(affine(2), 1024, 4096, 10, 220, true, 1)),
        ("397B gate+up of 10, Q4_K", case(q4k, 1024, 4096, 10, 120, true, 1)),
        ("head 4096 x 248320, 4 bit", case(affine(4), 248_320, 4096, 1, 1, false, 1)),
        ("35B gate+up of 8, 4 bit", case(affine(4), 512, 2048, 8, 480, true, 1)),
        ("35B gate+up of 8, Q4_K", case(q4k, 512, 2048, 8, 480, true, 1)),
        ("35B down of 8, Q4_K", case(q4k, 2048, 512, 8, 960, false, 1)),
        ("35B qkv 2048 x 8192, Q8_0", case(q8, 8192, 2048, 1, 32, false, 1)),
        ("35B out 4096 x 2048, Q8_0", case(q8, 2048, 4096, 1, 64, false, 1)),
        ("35B head, Q8_0", case(q8, 248_320, 2048, 1, 1, false, 1)),
        ("35B gate+up of 8 x 8 rows, Q4_K", case(q4k, 512, 2048, 8, 480, true, 8)),
        ("8192 x 2048 x 8 rows, Q8_0", case(q8, 8192, 2048, 1, 32, false, 8)),
    ];
    let usual = Tuning::of(device);
    let tunings: Vec<Tuning> = match tried {
        Tried::Cuts => [64, 128, 256]
            .into_iter()
            .flat_map(|workgroup| {
                // Every cut is what it says, however few its workgroups are.
                let all = Tuning { workgroup, few_workgroups: 0, ..usual };
                [1, 2, 4].map(|rows| Tuning { rows, fused_rows: rows, ..all })
            })
            .collect(),
        Tried::Ahead => reading(usual),
        Tried::Nothing => vec![usual],
    };
    for (name, case) in cases {
        for tuning in &tunings {
            let rate = product_rate(device, case, *tuning).expect("the device works");
            println!(
                "{name:34} {}: {:8.1} us, {:7.1} GB/s",
                tuning,
                1e6 * rate.seconds,
                rate.bytes as f64 / rate.seconds / 1e9
            );
        }
    }
}

/// Products of 2,048 rows of the 35B shape, on a software device of fewer.
fn prompts(device: &Device, is_all: bool) {
    let q4k = Format::Block(BlockType::Q4K);
    let q8 = Format::Block(BlockType::Q8_0);
    let scale = if device.is_software() { 64 } else { 1 };
    let case = |format, rows, cols, experts: usize, is_fused, uses| {
        let experts = experts.div_ceil(scale);
        GemmCase { format, rows, cols, experts, is_fused, uses: uses / scale }
    };
    let cases = [
        ("35B qkv 2048 x 8192, Q8_0", case(q8, 8192, 2048, 1, false, 2048)),
        ("35B out 4096 x 2048, Q8_0", case(q8, 2048, 4096, 1, false, 2048)),
        ("35B gate+up, Q4_K", case(q4k, 512, 2048, 256, true, 8 * 2048)),
        ("35B down, Q4_K", case(q4k, 2048, 512, 256, false, 8 * 2048)),
    ];
    let tile = |workgroup, rows, columns| Some(Tile { workgroup, rows, columns });
    let mut tiles = vec![None, Tile::of(device)];
    if is_all {
        tiles.extend([tile(256, 4, 16), tile(128, 2, 16), tile(256, 2, 16), tile(128, 2, 24)]);
        tiles.extend([tile(128, 4, 24), tile(64, 4, 16), tile(128, 6, 16)]);
    }
    for (name, case) in cases {
        for &tile in &tiles {
            let (seconds, operations) = gemm_rate(device, case, tile).expect("the device works");
            let what = tile.map_or("products of 8 rows".to_owned(), |tile| {
                let Tile { workgroup, rows, columns } = tile;
                format!("{workgroup} lanes, {rows} x {columns}")
            });
            println!(
                "{name:28} {what:20}: {:8.2} ms, {:6.2} TFLOP/s",
                1e3 * seconds,
                operations / seconds / 1e12
            );
        }
    }
}

/// Attention of 2,048 rows of the 35B shape, on a software device of fewer.
fn attention(device: &Device) {
    let spec = AttentionSpec {
        n_heads: 16,
        n_kv_heads: 2,
        head_dim: 256,
        rotary_dim: 64,
        rope_theta: 1e7,
        eps: 1e-6,
        gated: true,
    };
    let rows = if device.is_software() { 32 } else { 2048 };
    for position in [0, 3 * rows] {
        let (seconds, operations) =
            attention_rate(device, &spec, rows, position).expect("the device works");
        println!(
            "attention of {rows} rows after {position:5}: {:8.2} ms, {:6.2} TFLOP/s",
            1e3 * seconds,
            operations / seconds / 1e12
        );
    }
}
