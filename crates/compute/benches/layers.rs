//! How long attention and the gated delta net take between their projections, at the shape of
//! Qwen3.5-35B-A3B: `cargo bench -p flash-moe-compute --bench layers`. Medians of repeats, microseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use checkpoint::{FloatType, Format};
use compute::memory::Arena;
use compute::{
    AttentionInputs, AttentionSpec, Backend, Cpu, CpuOptions, DeltaNetInputs, DeltaNetSpec, Matrix,
    Span,
};

const REPEATS: usize = 96;

fn main() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for n_threads in [1, threads] {
        let options = CpuOptions { threads: Some(n_threads), ..CpuOptions::default() };
        let mut cpu = Cpu::new(options).expect("threads");
        for rows in [1, 32, 512] {
            let time = delta_net(&mut cpu, rows);
            println!("{n_threads} threads  delta net  {rows:>4} rows  {:>9.0} us", micros(time));
        }
        for (context, rows) in [(0, 1), (4096, 1), (32_768, 1), (0, 512), (4096, 512)] {
            let time = attention(&mut cpu, context, rows);
            println!(
                "{n_threads} threads  attention  {rows:>4} rows after {context:>5}  {:>9.0} us",
                micros(time)
            );
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|index| ((index * 37 % 101) as f32 - 50.0) * 0.02).collect()
}

/// A buffer of some rows.
fn buffer(cpu: &mut Cpu, rows: usize, width: usize) -> <Cpu as Backend>::Buffer {
    let mut block = Arena::new(4 * width).expect("memory").take(4 * width).expect("it fits");
    for (value, bytes) in numbers(width).iter().zip(block.bytes_mut().as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
    let table = Matrix::new(Format::Float(FloatType::F32), (1, width), Arc::new(block), [0; 3]);
    let mut out = cpu.buffer(rows, width);
    cpu.embed(&table, &vec![0; rows], &mut out);
    out
}

fn delta_net(cpu: &mut Cpu, rows: usize) -> Duration {
    let spec = DeltaNetSpec {
        n_key_heads: 16,
        n_value_heads: 32,
        tiled_values: false,
        key_dim: 128,
        value_dim: 128,
        conv_kernel: 4,
        eps: 1e-6,
    };
    let qkv = buffer(cpu, rows, spec.channels());
    let z = buffer(cpu, rows, 32 * 128);
    let [b, a] = [buffer(cpu, rows, 32), buffer(cpu, rows, 32)];
    let conv = numbers(spec.channels() * 4);
    let [a_log, dt_bias] = [numbers(32), numbers(32)];
    let norm = numbers(128);
    // Several states, as of several layers, so that none stays in a cache.
    let mut states: Vec<_> = (0..24).map(|_| cpu.delta_state(&spec)).collect();
    let mut out = cpu.buffer(rows, 32 * 128);
    let mut times = Vec::new();
    for repeat in 0..REPEATS.min(REPEATS * 64 / rows) {
        let place = repeat % states.len();
        let position = repeat / states.len() * rows;
        let inputs = DeltaNetInputs {
            qkv: &qkv,
            z: &z,
            b: &b,
            a: &a,
            conv: &conv,
            a_log: &a_log,
            dt_bias: &dt_bias,
            norm: &norm,
        };
        let spans = [Span { row: 0, len: rows, position }];
        let begin = Instant::now();
        cpu.gated_delta_net(&spec, inputs, &spans, &mut [&mut states[place]], &mut out);
        times.push(begin.elapsed());
    }
    median(times)
}

fn attention(cpu: &mut Cpu, context: usize, rows: usize) -> Duration {
    let spec = AttentionSpec {
        n_heads: 16,
        n_kv_heads: 2,
        head_dim: 256,
        rotary_dim: 64,
        rope_theta: 1e7,
        eps: 1e-6,
        gated: true,
    };
    let query = |cpu: &mut Cpu, rows| buffer(cpu, rows, 16 * 512);
    let [query_norm, key_norm] = [numbers(256), numbers(256)];
    let call = |cpu: &mut Cpu, cache: &mut _, position: usize, rows: usize| {
        let (query, key, value) =
            (query(cpu, rows), buffer(cpu, rows, 512), buffer(cpu, rows, 512));
        let mut out = cpu.buffer(rows, 16 * 256);
        let inputs = AttentionInputs {
            query: &query,
            key: &key,
            value: &value,
            query_norm: &query_norm,
            key_norm: &key_norm,
        };
        let spans = [Span { row: 0, len: rows, position }];
        let begin = Instant::now();
        cpu.attention(&spec, inputs, &spans, &mut [cache], &mut out);
        begin.elapsed()
    };
    let repeats = if rows == 1 { 30 } else { 2 };
    let mut cache = cpu.kv_cache(&spec, context + rows * repeats + 64);
    let mut position = 0;
    while position < context {
        call(cpu, &mut cache, position, 64);
        position += 64;
    }
    let mut times = Vec::new();
    for _ in 0..repeats {
        times.push(call(cpu, &mut cache, position, rows));
        position += rows;
    }
    median(times)
}
