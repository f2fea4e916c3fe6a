//! The demo model with its routed experts at two bits: quantised from what its files hold, rounded to
//! nearest, in groups of 64, into a directory that goes away with the test.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{Affine, FloatType, Format, QuantizedRow, dequantize_row, quantize_affine};
use serde_json::{Map, Value, json};

const EXPERTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const FOUR: Affine = Affine { bits: 4, group: 64, scales: FloatType::Bf16 };
const TWO: Affine = Affine { bits: 2, group: 64, scales: FloatType::Bf16 };

/// A directory that is removed when it is dropped.
pub struct Directory(pub PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing more can be done about a directory that stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the model; `name` makes its directory unique within this run of the tests.
pub fn write(demo: &Path, name: &str) -> Directory {
    let directory = std::env::temp_dir().join(format!("flash-moe-{}-{name}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let directory = Directory(directory);
    for file in
        ["chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        fs::copy(demo.join(file), directory.0.join(file)).expect("it can be copied");
    }
    let bytes = fs::read(demo.join("model.safetensors")).expect("the weights are there");
    let (header, data) = split(&bytes);
    let mut config: Value = serde_json::from_slice(
        &fs::read(demo.join("config.json")).expect("the configuration is there"),
    )
    .expect("it is JSON");

    let (mut new_header, mut new_data) = (Map::new(), Vec::new());
    let mut put = |name: &str, dtype: &Value, shape: Value, bytes: &[u8]| {
        let begin = new_data.len();
        new_data.extend_from_slice(bytes);
        let offsets = [begin, new_data.len()];
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        new_header.insert(name.to_owned(), entry);
    };
    let part = |name: &str| -> &[u8] {
        let offset = |index: usize| header[name]["data_offsets"][index].as_u64().expect("a number");
        &data[offset(0) as usize..offset(1) as usize]
    };
    for (name, entry) in &header {
        let module = name.rsplit_once('.').map_or("", |(module, _)| module);
        let routed = EXPERTS.iter().any(|part| module.ends_with(&format!("switch_mlp.{part}")));
        if !routed {
            put(name, &entry["dtype"], entry["shape"].clone(), part(name));
            continue;
        }
        if !name.ends_with(".weight") {
            continue;
        }
        let side = |what: &str| format!("{module}.{what}");
        let shape: Vec<usize> = serde_json::from_value(entry["shape"].clone()).expect("a shape");
        let (n_rows, n_columns) = (shape[0] * shape[1], shape[2] * 8);
        let rows = part(name).chunks_exact(n_columns / 2);
        let groups = n_columns / 64 * 2;
        let scales = part(&side("scales")).chunks_exact(groups);
        let biases = part(&side("biases")).chunks_exact(groups);
        let mut row = QuantizedRow::default();
        let mut values = vec![0.0; n_columns];
        for ((codes, scales), biases) in rows.zip(scales).zip(biases) {
            dequantize_row(Format::Affine(FOUR), codes, scales, biases, &mut values);
            quantize_affine(TWO, &values, &mut row);
        }
        assert_eq!(row.data.len(), n_rows * n_columns / 4, "every row was quantised");
        put(name, &entry["dtype"], json!([shape[0], shape[1], shape[2] / 2]), &row.data);
        let of = |what: &str| (side(what), &header[&side(what)]);
        for ((name, entry), bytes) in [(of("scales"), &row.scales), (of("biases"), &row.biases)] {
            put(&name, &entry["dtype"], entry["shape"].clone(), bytes);
        }
        for section in ["quantization", "quantization_config"] {
            config[section][module] = json!({ "bits": 2, "group_size": 64 });
        }
    }
    let mut header = Value::Object(new_header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &new_data].concat();
    fs::write(directory.0.join("model.safetensors"), file).expect("it can be written");
    fs::write(directory.0.join("config.json"), config.to_string()).expect("it can be written");
    directory
}

/// The header of a safetensors file, and its data.
fn split(bytes: &[u8]) -> (Map<String, Value>, &[u8]) {
    let len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let mut header: Map<String, Value> =
        serde_json::from_slice(&bytes[8..8 + len]).expect("it is JSON");
    header.remove("__metadata__");
    (header, &bytes[8 + len..])
}
