//! Affine codecs against tables made by MLX itself.

use checkpoint::safetensors_file::SafetensorsFile;
use checkpoint::{
    Affine, BlockType, FloatType, Format, QuantizedRow, decode_floats, dequantize_row,
    encode_floats, quantize_affine,
};

use crate::support::fixture;

const ROWS: usize = 6;
const COLS: usize = 256;

#[test]
fn every_affine_format_decodes_and_encodes_as_mlx_does() {
    let golden = SafetensorsFile::open(&fixture("quants/mlx.safetensors")).expect("the goldens");
    let input = golden.read_f32("input.f32").expect("the input");
    let mut formats = 0;
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let name = |part: &str| format!("affine.b{bits}.g{group}.{part}");
            let data = golden.read(&name("weight")).expect("codes");
            let expected = golden.read_f32(&name("f32")).expect("values");
            let (scales, biases) =
                (golden.read_f32(&name("scales")), golden.read_f32(&name("biases")));
            let (scales, biases) = (scales.expect("scales"), biases.expect("biases"));
            for float in [FloatType::F32, FloatType::Bf16] {
                let affine = Affine { bits, group, scales: float };
                let format = Format::Affine(affine);
                let mut stored = [Vec::new(), Vec::new()];
                encode_floats(float, &scales, &mut stored[0]);
                encode_floats(float, &biases, &mut stored[1]);
                let (row, scale_row) = (format.row_bytes(COLS), format.scale_row_bytes(COLS));
                for index in 0..ROWS {
                    let mut values = [0.0; COLS];
                    let part = |bytes: &[u8], len: usize| bytes[index * len..][..len].to_vec();
                    dequantize_row(
                        format,
                        &part(&data, row),
                        &part(&stored[0], scale_row),
                        &part(&stored[1], scale_row),
                        &mut values,
                    );
                    let expected = &expected[index * COLS..][..COLS];
                    assert_eq!(values, expected, "{format} row {index}");

                    if float == FloatType::Bf16 {
                        let mut ours = QuantizedRow::default();
                        quantize_affine(affine, &input[index * COLS..][..COLS], &mut ours);
                        assert_eq!(ours.data, part(&data, row), "codes of {format} row {index}");
                        assert_eq!(ours.scales, part(&stored[0], scale_row), "scales of {format}");
                        assert_eq!(ours.biases, part(&stored[1], scale_row), "biases of {format}");
                    }
                }
                formats += 1;
            }
        }
    }
    assert_eq!(formats, 36);
}

#[test]
fn floats_survive_their_own_type() {
    for (dtype, values) in [
        (FloatType::F32, vec![0.0, -1.5, f32::MAX, 1e-40]),
        (FloatType::F16, vec![0.0, -1.5, 65_504.0, 6e-8]),
        (FloatType::Bf16, vec![0.0, -1.5, 3.389_531_4e38, 1e-38]),
    ] {
        let mut bytes = Vec::new();
        encode_floats(dtype, &values, &mut bytes);
        let mut once = vec![0.0; values.len()];
        decode_floats(dtype, &bytes, &mut once);
        for (stored, value) in once.iter().zip(&values) {
            assert!((stored - value).abs() <= value.abs() * 0.01, "{dtype:?}: {stored} {value}");
        }
        let mut again = Vec::new();
        encode_floats(dtype, &once, &mut again);
        assert_eq!(again, bytes, "{dtype:?}");
    }
}

#[test]
fn every_block_format_decodes_as_recorded() {
    let golden = SafetensorsFile::open(&fixture("quants/gguf.safetensors")).expect("the goldens");
    for number in 0..64 {
        let Some(block) = BlockType::from_number(number) else { continue };
        let data = golden.read(&format!("{}.bytes", block.name())).expect("bytes");
        let expected = golden.read_f32(&format!("{}.f32", block.name())).expect("values");
        assert_eq!(data.len() / block.bytes() * block.values(), expected.len());
        let mut values = vec![0.0; expected.len()];
        dequantize_row(Format::Block(block), &data, &[], &[], &mut values);
        let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
        let wrong = values.iter().zip(&expected).position(|pair| !same(pair));
        assert_eq!(wrong.map(|at| (at, values[at], expected[at])), None, "{}", block.name());
    }
}
