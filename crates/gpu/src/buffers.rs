//! Activations and constants on the device.

use crate::device::{Buffer, Device};

/// Activations on the device, (rows, width) in `f32`, row after row.
#[derive(Debug)]
pub struct Activations {
    pub(crate) buffer: Buffer,
    width: usize,
    rows: usize,
    max_rows: usize,
}

impl Activations {
    pub(crate) fn new(device: &Device, max_rows: usize, width: usize) -> Self {
        let buffer = device.buffer((size_of::<f32>() * max_rows * width) as u64);
        Self { buffer, width, rows: 0, max_rows }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }

    pub(crate) fn set_rows(&mut self, rows: usize) {
        assert!(rows <= self.max_rows, "{rows} rows fit the buffer");
        self.rows = rows;
    }

    /// Bytes of the rows that are in use.
    pub(crate) fn bytes(&self) -> u64 {
        (size_of::<f32>() * self.rows * self.width) as u64
    }
}

/// A constant on the device, in `f32`.
#[derive(Debug)]
pub struct Constant {
    pub(crate) buffer: Buffer,
}

impl Constant {
    pub(crate) fn new(device: &Device, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { buffer: device.buffer_with(&bytes) }
    }
}
