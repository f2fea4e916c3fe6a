//! Synthetic checkpoints: sound, reproducible, and with sane numbers.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::safetensors_file::SafetensorsFile;
use checkpoint::synth::{Preset, SynthError, SynthOptions, write};
use checkpoint::{Affine, Checkpoint, FloatType, Format, dequantize_row};

/// A directory that does not exist yet.
fn fresh(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    path
}

fn options(bits: u8) -> SynthOptions {
    SynthOptions { preset: Preset::Tiny, bits, seed: 3, ..SynthOptions::default() }
}

#[test]
fn every_width_opens_and_has_sane_numbers() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let out = fresh(&format!("synth-{bits}"));
        let mut last = (0, 0);
        let report = write(&options(bits), &out, &mut |written, total| last = (written, total));
        let report = report.expect("it can be written");
        assert_eq!(last, (report.bytes, report.bytes), "progress ends at the end");
        let checkpoint = Checkpoint::open(&out).expect("it is sound");
        let config = checkpoint.config();
        assert_eq!((config.mixers.len(), config.moe.n_experts), (4, 16));
        let table = checkpoint.resolver().experts("layers.2.mlp", 16, 256, 256);
        let expert = table.expect("there are experts").get(15);
        let expected = 3 * 256 * 256 * (u64::from(bits) * 64 + 32) / 64 / 8;
        assert_eq!(expert.bytes(), expected, "{bits} bits and 32 bits of scale and bias a group");

        let file = SafetensorsFile::open(&checkpoint.files()[0].path).expect("it is sound");
        let module = "language_model.model.layers.2.mlp.switch_mlp.down_proj";
        let part = |name: &str| file.read(&format!("{module}.{name}")).expect("it is there");
        let format = Format::Affine(Affine { bits, group: 64, scales: FloatType::Bf16 });
        let (cols, rows) = (256, 16 * 256);
        let (data, scales, biases) = (part("weight"), part("scales"), part("biases"));
        let mut values = vec![0.0; rows * cols];
        for (row, values) in values.chunks_exact_mut(cols).enumerate() {
            let slice = |all: &[u8], len: usize| all[row * len..][..len].to_vec();
            let scale_bytes = format.scale_row_bytes(cols);
            let (scales, biases) = (slice(&scales, scale_bytes), slice(&biases, scale_bytes));
            dequantize_row(format, &slice(&data, format.row_bytes(cols)), &scales, &biases, values);
        }
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / n).sqrt();
        let expected = 0.6 / (cols as f64).sqrt();
        assert!((deviation / expected - 1.0).abs() < 0.02, "{bits}: {deviation} for {expected}");
        assert!(mean.abs() < 0.01 * expected, "{bits}: mean {mean}");
        fs::remove_dir_all(&out).expect("it can be removed");
    }
}

#[test]
fn a_seed_gives_the_same_bytes() {
    let read = |seed: u64, name: &str| {
        let out = fresh(name);
        write(&SynthOptions { seed, ..options(4) }, &out, &mut |_, _| {}).expect("written");
        let bytes = fs::read(out.join("model-00001-of-00001.safetensors")).expect("it is there");
        fs::remove_dir_all(&out).expect("it can be removed");
        bytes
    };
    let first = read(1, "seed-a");
    assert!(read(1, "seed-b") == first);
    assert!(read(2, "seed-c") != first);
}

#[test]
fn senseless_options_and_existing_directories_are_refused() {
    let out = fresh("refused");
    for (wrong, word) in [
        (SynthOptions { bits: 7, ..options(4) }, "bits"),
        (SynthOptions { experts: Some(1), ..options(4) }, "experts"),
        (SynthOptions { vocab: Some(10), ..options(4) }, "vocab"),
    ] {
        let error = write(&wrong, &out, &mut |_, _| {}).expect_err("it is senseless");
        assert!(error.to_string().contains(word), "{error}");
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let error = write(&options(4), here, &mut |_, _| {}).expect_err("it is not empty");
    assert!(matches!(error, SynthError::Exists { .. }));
}
