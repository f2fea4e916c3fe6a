//! What `config.json` says about quantised tensors (MLX: `quantization`, also saved as
//! `quantization_config`).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Error;

/// Bits and group of quantised tensors: a default, and overrides by module path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Quantization {
    default: Option<Parameters>,
    overrides: HashMap<String, Parameters>,
}

/// How one module is quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Parameters {
    pub(crate) bits: u8,
    pub(crate) group: u16,
}

impl Quantization {
    /// Reads the keys of the top-level object.
    pub(crate) fn from_config(path: &Path, top: &Map<String, Value>) -> Result<Self, Error> {
        let unsupported = |what: String| Error::Unsupported { path: path.to_owned(), what };
        let mlx = top.get("quantization");
        let other = top.get("quantization_config").and_then(|other| other.get("quant_method"));
        if let Some(method) = other.and_then(Value::as_str) {
            return Err(unsupported(format!("quantisation by {method}")));
        }
        let object = match mlx.or_else(|| top.get("quantization_config")) {
            None | Some(Value::Null) => return Ok(Self::default()),
            Some(Value::Object(object)) => object,
            Some(_) => return Err(unsupported("a quantization that is not an object".to_owned())),
        };
        let default = Some(Parameters::read(path, "quantization", object, None)?);
        let mut overrides = HashMap::new();
        for (module, value) in object {
            if let Value::Object(value) = value {
                let field = format!("quantization.{module}");
                let parameters = Parameters::read(path, &field, value, default)?;
                overrides.insert(module.clone(), parameters);
            }
            // `false` says that a module is not quantised; that its scales are absent says the same.
        }
        Ok(Self { default, overrides })
    }

    /// How the module with this path, as spelled in the file, is quantised if it has scales.
    pub(crate) fn of_module(&self, module: &str) -> Option<Parameters> {
        self.overrides.get(module).copied().or(self.default)
    }
}

impl Parameters {
    /// Reads an object with `bits`, `group_size` and `mode`; what is absent is as in `default`.
    fn read(
        path: &Path,
        field: &str,
        object: &Map<String, Value>,
        default: Option<Self>,
    ) -> Result<Self, Error> {
        let wrong = |key: &str, expected: &str| Error::Field {
            path: path.to_owned(),
            field: format!("{field}.{key}"),
            found: object.get(key).map_or_else(|| "absent".to_owned(), Value::to_string),
            expected: expected.to_owned(),
        };
        match object.get("mode") {
            None => {}
            Some(Value::String(mode)) if mode == "affine" => {}
            Some(_) => return Err(wrong("mode", "affine")),
        }
        let bits = match (object.get("bits").and_then(Value::as_u64), default) {
            (Some(bits @ (2 | 3 | 4 | 5 | 6 | 8)), _) => bits as u8,
            (None, Some(default)) if !object.contains_key("bits") => default.bits,
            _ => return Err(wrong("bits", "2, 3, 4, 5, 6 or 8")),
        };
        let group = match (object.get("group_size").and_then(Value::as_u64), default) {
            (Some(group @ (32 | 64 | 128)), _) => group as u16,
            (None, Some(default)) if !object.contains_key("group_size") => default.group,
            _ => return Err(wrong("group_size", "32, 64 or 128")),
        };
        Ok(Self { bits, group })
    }
}
