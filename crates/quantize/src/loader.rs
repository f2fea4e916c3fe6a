//! The weights of the source, and the bytes that are made of them.

use checkpoint::{
    Format, MatrixLocation, VectorTransform, decode_vector, dequantize_row, encode_floats,
};
use engine::Inventory;

use crate::affine::Codes;
use crate::arrange::in_order;
use crate::calibrate::Calibration;
use crate::error::Error;
use crate::expert::{Expert, Method};
use crate::layout::{Stored, float_name};
use crate::plan::Work;
use crate::rows::LayerRows;
use crate::source::Source;

/// Gives weights, and what is made of them.
pub(crate) struct Loader<'a> {
    pub(crate) source: &'a Source,
    pub(crate) inventory: &'a Inventory,
    pub(crate) calibration: Option<&'a Calibration>,
}

impl Loader<'_> {
    /// The bytes of a unit. `given` has what the layer's experts are given behind layers that are quantised.
    pub(crate) fn make(
        &self,
        name: &str,
        work: &Work,
        method: Method,
        given: Option<&LayerRows>,
    ) -> Result<Vec<u8>, Error> {
        match work {
            Work::Copy(extents) => {
                let parts = extents.iter().map(|&extent| self.source.read(extent));
                Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
            }
            Work::Vector(vector, order) => {
                let stored = self.source.read(vector.extent)?;
                if vector.transform == VectorTransform::Identity && order.is_empty() {
                    return Ok(stored);
                }
                let mut values = decode_vector(vector, &stored);
                if !order.is_empty() {
                    values = in_order(&values, order);
                }
                let mut bytes = Vec::with_capacity(stored.len());
                encode_floats(vector.dtype, &values, &mut bytes);
                Ok(bytes)
            }
            Work::Rows(matrix, rows, stored) => {
                let values = self.source.arranged(matrix, rows.clone())?;
                let cols = matrix.stored().cols;
                let mut bytes = Vec::new();
                match *stored {
                    Stored::Float(float) => encode_floats(float, &values, &mut bytes),
                    Stored::Affine(affine) => {
                        if values.iter().any(|value| !value.is_finite()) {
                            return Err(Error::NotFinite { tensor: name.to_owned() });
                        }
                        let codes = match method {
                            Method::Round => Codes::round(affine, cols, &values),
                            _ => Codes::search(affine, cols, &values, &vec![1.0; cols]),
                        };
                        bytes = store(name, &codes)?;
                    }
                }
                Ok(bytes)
            }
            Work::Expert { layer, expert, affine } => {
                let weights = self.expert(*layer, *expert)?;
                let inputs = match self.calibration {
                    Some(calibration) if method != Method::Round => {
                        let unchanged = calibration.layer(*layer)?;
                        Some(match given {
                            Some(given) => given.inputs(*expert, Some(&unchanged)),
                            None => unchanged.inputs(*expert, None),
                        })
                    }
                    _ => None,
                };
                let codes = weights.quantise(*affine, method, inputs.as_ref());
                let parts = codes.iter().map(|codes| store(name, codes));
                Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
            }
            Work::ExpertRows(matrices) => {
                let mut bytes = Vec::new();
                for matrix in matrices.iter() {
                    let values = self.source.rows(matrix, 0..matrix.rows)?;
                    let Stored::Float(float) = Stored::of_kept(matrix.format) else {
                        panic!("blocks are kept as floats, and floats are");
                    };
                    encode_floats(float, &values, &mut bytes);
                }
                Ok(bytes)
            }
        }
    }

    /// A routed expert of which the bytes were written.
    pub(crate) fn written(&self, work: &Work, bytes: &[u8]) -> Result<Expert, Error> {
        let (location, format) = match work {
            Work::Expert { layer, expert, affine } => {
                (self.inventory.experts[*layer].get(*expert), Format::Affine(*affine))
            }
            _ => panic!("experts are walked through where they are quantised"),
        };
        let mut rest = bytes;
        let mut parts = location.matrices().into_iter().map(|matrix| {
            let (data, scales) =
                (format.row_bytes(matrix.cols), format.scale_row_bytes(matrix.cols));
            let [data_part, scale_part, bias_part] = [data, scales, scales].map(|row| {
                let (part, left) = rest.split_at(row * matrix.rows);
                rest = left;
                part
            });
            let mut values = vec![0.0; matrix.rows * matrix.cols];
            for (row, out) in values.chunks_exact_mut(matrix.cols).enumerate() {
                let of = |len: usize| row * len..(row + 1) * len;
                dequantize_row(
                    format,
                    &data_part[of(data)],
                    &scale_part[of(scales)],
                    &bias_part[of(scales)],
                    out,
                );
            }
            values
        });
        let mut next = || parts.next().expect("an expert has three matrices");
        let (gate, up, down) = (next(), next(), next());
        let (hidden, intermediate) = (location.gate.cols, location.gate.rows);
        Ok(Expert { hidden, intermediate, gate, up, down })
    }

    /// The weights of a routed expert.
    pub(crate) fn expert(&self, layer: usize, expert: usize) -> Result<Expert, Error> {
        let location = self.inventory.experts[layer].get(expert);
        let values = |matrix: &MatrixLocation| self.source.rows(matrix, 0..matrix.rows);
        let weights = Expert {
            hidden: location.gate.cols,
            intermediate: location.gate.rows,
            gate: values(&location.gate)?,
            up: values(&location.up)?,
            down: values(&location.down)?,
        };
        if !weights.is_finite() {
            let tensor = format!("expert {expert} of layer {layer}");
            return Err(Error::NotFinite { tensor });
        }
        Ok(weights)
    }
}

/// The bytes of codes: data, scales, biases. They are decoded once as every reader does, and must be what
/// was meant. Weights near the end of what floats can hold may have a range that is beyond it.
fn store(name: &str, codes: &Codes) -> Result<Vec<u8>, Error> {
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    codes.store(&mut parts);
    let format = Format::Affine(codes.affine);
    let (data, scales) = (format.row_bytes(codes.cols), format.scale_row_bytes(codes.cols));
    let mut row = vec![0.0; codes.cols];
    let rows = parts[0].chunks_exact(data).zip(parts[1].chunks_exact(scales));
    let rows = rows.zip(parts[2].chunks_exact(scales)).zip(codes.row_values());
    for (((data, scales), biases), meant) in rows {
        dequantize_row(format, data, scales, biases, &mut row);
        if row.iter().any(|value| !value.is_finite()) {
            let (bits, scales) = (codes.affine.bits, float_name(codes.affine.scales));
            return Err(Error::Range { tensor: name.to_owned(), bits, scales });
        }
        assert!(row == meant, "codes decode to what they stand for");
    }
    Ok(parts.concat())
}
