//! Reading the weights of a checkpoint, some rows at a time.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use checkpoint::{Checkpoint, Extent, MatrixLocation, dequantize_row};

use crate::arrange::{Arranged, in_order};
use crate::error::{Error, io_at};

/// The data files of a checkpoint, open.
#[derive(Debug)]
pub(crate) struct Source {
    files: Vec<(PathBuf, Mutex<File>)>,
}

impl Source {
    pub(crate) fn open(checkpoint: &Checkpoint) -> Result<Self, Error> {
        let files = checkpoint.files().iter().map(|file| {
            let opened = File::open(&file.path).map_err(io_at(&file.path))?;
            Ok((file.path.clone(), Mutex::new(opened)))
        });
        Ok(Self { files: files.collect::<Result<_, Error>>()? })
    }

    /// The bytes of a range.
    pub(crate) fn read(&self, extent: Extent) -> Result<Vec<u8>, Error> {
        let (path, file) = &self.files[extent.file.0 as usize];
        let mut bytes = vec![0; extent.len as usize];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        let read =
            file.seek(SeekFrom::Start(extent.offset)).and_then(|_| file.read_exact(&mut bytes));
        read.map_err(io_at(path))?;
        Ok(bytes)
    }

    /// Some rows of a matrix, decoded.
    pub(crate) fn rows(
        &self,
        matrix: &MatrixLocation,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, Error> {
        let [data_bytes, scale_bytes] = row_bytes(matrix);
        let part = |extent: Extent, row_bytes: usize| self.read(part(extent, row_bytes, &rows));
        let data = part(matrix.data, data_bytes)?;
        let [scales, biases] = match matrix.scales {
            Some([scales, biases]) => [part(scales, scale_bytes)?, part(biases, scale_bytes)?],
            None => [Vec::new(), Vec::new()],
        };
        let mut values = vec![0.0; rows.len() * matrix.cols];
        for (row, out) in values.chunks_exact_mut(matrix.cols).enumerate() {
            let of = |part: &[u8], bytes: usize| row * bytes..((row + 1) * bytes).min(part.len());
            let data = &data[of(&data, data_bytes)];
            let (scales, biases) =
                (&scales[of(&scales, scale_bytes)], &biases[of(&biases, scale_bytes)]);
            dequantize_row(matrix.format, data, scales, biases, out);
        }
        Ok(values)
    }

    /// Some rows of a matrix of the copy, decoded.
    pub(crate) fn arranged(
        &self,
        arranged: &Arranged,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, Error> {
        let mut values = Vec::new();
        let mut begin = 0;
        for (matrix, run) in &arranged.rows {
            let end = begin + run.len();
            let (from, to) = (rows.start.max(begin), rows.end.min(end));
            if from < to {
                let first = run.start + from - begin;
                values.extend(self.rows(matrix, first..first + to - from)?);
            }
            begin = end;
        }
        if arranged.columns.is_empty() {
            return Ok(values);
        }
        let stored = values.chunks_exact(arranged.stored().cols);
        Ok(stored.flat_map(|row| in_order(row, &arranged.columns)).collect())
    }
}

/// Bytes of a row of codes or values, and of a row of scales.
pub(crate) fn row_bytes(matrix: &MatrixLocation) -> [usize; 2] {
    [matrix.format.row_bytes(matrix.cols), matrix.format.scale_row_bytes(matrix.cols)]
}

/// The bytes of some rows of a part.
pub(crate) fn part(extent: Extent, row_bytes: usize, rows: &Range<usize>) -> Extent {
    let offset = extent.offset + (rows.start * row_bytes) as u64;
    Extent { file: extent.file, offset, len: (rows.len() * row_bytes) as u64 }
}
