//! Loading the trunk: every tensor once, by direct reads, in the order of the files.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::{ExpertTable, Extent, Format, VectorKind, VectorLocation};
use compute::memory::{Arena, BLOCK_ALIGNMENT, Block};
use compute::{Backend, Matrix, Memory};
use experts::{DataFiles, IoError, ReadPlan};
use model::WeightSource;

use crate::error::Error;
use crate::inventory::{Inventory, TrunkLocation, TrunkTensor};
use crate::runner::DecoderOn;

/// Bytes that the loaded trunk takes: matrices as stored, in whole pages, and vectors as `f32`.
pub(crate) fn resident_bytes(inventory: &Inventory) -> u64 {
    let bytes = inventory.trunk.iter().map(|tensor| match &tensor.location {
        // Rows in another order are copied out of what was read, part by part in whole blocks.
        TrunkLocation::Matrix(matrix) if tensor.rows.is_some() => {
            tensor.bytes() + (matrix.extents().count() * BLOCK_ALIGNMENT) as u64
        }
        TrunkLocation::Matrix(_) => ReadPlan::new(tensor.extents()).bytes() as u64,
        TrunkLocation::Vector(vector) => (vector.len * size_of::<f32>()) as u64,
    });
    bytes.sum()
}

/// Bytes of each tensor that tell two checkpoints of the same shapes apart.
const SAMPLE_BYTES: usize = 4096;

/// Bytes of the trunk that are read at a time for a device that copies them: enough to keep a drive busy,
/// and small beside what the process needs anyway.
const GROUP_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 256 << 20 };

/// Bytes of the host's memory that hold parts of the trunk on their way to a device that copies them.
pub(crate) fn upload_bytes(inventory: &Inventory) -> u64 {
    let read = |tensor: &TrunkTensor| ReadPlan::new(tensor.extents()).bytes() as u64;
    let largest = inventory.trunk.iter().map(read).max().unwrap_or(0);
    GROUP_BYTES.max(largest).min(resident_bytes(inventory))
}

/// Reads the trunk and builds the model from it; gives also a hash of samples of its tensors.
pub(crate) fn load_trunk<B: Backend>(
    inventory: &Inventory,
    files: &DataFiles,
    backend: &B,
    io_threads: usize,
) -> Result<(DecoderOn<B>, blake3::Hash), Error> {
    let group_bytes = match backend.memory() {
        Memory::Host => u64::MAX,
        Memory::Own(_) | Memory::Shared(_) => GROUP_BYTES,
    };
    let mut source = LoadedSource {
        backend,
        files,
        io_threads,
        group_bytes,
        unread: &inventory.trunk,
        reads: VecDeque::new(),
        samples: blake3::Hasher::new(),
    };
    let decoder = model::load(inventory.checkpoint.config(), &mut source)?;
    Ok((decoder, source.samples.finalize()))
}

/// A hash of samples of routed experts: the beginning of one of each layer.
pub(crate) fn sample_experts(
    experts: &[ExpertTable],
    files: &DataFiles,
) -> Result<blake3::Hash, Error> {
    let mut hasher = blake3::Hasher::new();
    for table in experts.iter().filter(|table| !table.is_empty()) {
        let data = table.get(0).gate.data;
        let sample = Extent { len: data.len.min(SAMPLE_BYTES as u64), ..data };
        let read = read_one(files, vec![sample])?;
        hasher.update(&read.block.bytes()[read.plan.offset(0)..][..sample.len as usize]);
    }
    Ok(hasher.finalize())
}

/// Reads a vector's effective values.
pub(crate) fn read_vector(files: &DataFiles, location: &VectorLocation) -> Result<Vec<f32>, Error> {
    let Read { plan, block } = read_one(files, vec![location.extent])?;
    let begin = plan.offset(0);
    let stored = &block.bytes()[begin..begin + location.extent.len as usize];
    Ok(checkpoint::decode_vector(location, stored))
}

/// Reads byte ranges into a block of their own.
fn read_one(files: &DataFiles, extents: Vec<Extent>) -> Result<Read, Error> {
    let plan = ReadPlan::new(extents);
    let block = arena(plan.bytes())?.take(plan.bytes());
    let mut block = block.expect("the arena was sized for the plan");
    files.read(&plan, block.bytes_mut())?;
    Ok(Read { plan, block })
}

/// A tensor on its way into memory.
struct Read {
    plan: ReadPlan,
    block: Block,
}

/// Reads the matrices that stay as they are stored, several at a time. The other tensors are small or
/// are copied; they are read one by one when they are asked for, so that they never add up.
fn read_ahead(
    tensors: &[TrunkTensor],
    files: &DataFiles,
    io_threads: usize,
) -> Result<Vec<Option<Read>>, Error> {
    let plan = |tensor: &TrunkTensor| match (&tensor.location, &tensor.rows) {
        (TrunkLocation::Matrix(_), None) => Some(ReadPlan::new(tensor.extents())),
        _ => None,
    };
    let plans: Vec<Option<ReadPlan>> = tensors.iter().map(plan).collect();
    let mut arena = arena(plans.iter().flatten().map(ReadPlan::bytes).sum())?;
    arena.advise_huge_pages();
    let mut take = |plan: ReadPlan| {
        let block = arena.take(plan.bytes()).expect("the arena was sized for all plans");
        Read { plan, block }
    };
    let mut reads: Vec<Option<Read>> = plans.into_iter().map(|plan| plan.map(&mut take)).collect();

    let mut queue: Vec<&mut Read> = reads.iter_mut().flatten().collect();
    queue.sort_by_key(|read| std::cmp::Reverse(read.plan.first_byte()));
    let queue = Mutex::new(queue);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || -> Result<(), IoError> {
        while let Some(Read { plan, block }) = next() {
            files.read(plan, block.bytes_mut())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..io_threads.max(1)).map(|_| scope.spawn(work)).collect();
        let results = readers.into_iter().map(|reader| match reader.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        results.fold(Ok(()), Result::and)
    })?;
    Ok(reads)
}

fn arena(bytes: usize) -> Result<Arena, Error> {
    Arena::new(bytes).map_err(|source| {
        let (bytes, purpose) = (bytes as u64, "the trunk");
        Error::OutOfMemory { bytes, purpose, source }
    })
}

/// Gives the tensors in the order in which the model asked for them when they were listed.
struct LoadedSource<'a, B> {
    backend: &'a B,
    files: &'a DataFiles,
    io_threads: usize,
    /// Bytes that are read at a time: one group's memory is free when the device has copied it.
    group_bytes: u64,
    unread: &'a [TrunkTensor],
    reads: VecDeque<(&'a TrunkTensor, Option<Read>)>,
    samples: blake3::Hasher,
}

impl<'a, B> LoadedSource<'a, B> {
    fn next(&mut self, name: &str) -> Result<(&'a TrunkTensor, Read), Error> {
        if self.reads.is_empty() {
            self.read_group()?;
        }
        let (tensor, read) = self.reads.pop_front().expect("the model asks as it did before");
        assert_eq!(tensor.name, name, "the model asks in the same order");
        let read = match read {
            Some(read) => read,
            None => read_one(self.files, tensor.extents())?,
        };
        for (part, extent) in tensor.extents().iter().enumerate() {
            let stored = &read.block.bytes()[read.plan.offset(part)..];
            self.samples.update(&stored[..SAMPLE_BYTES.min(extent.len as usize)]);
        }
        Ok((tensor, read))
    }

    /// Reads as many of the next tensors as make a group, and one at least.
    fn read_group(&mut self) -> Result<(), Error> {
        let mut left = self.group_bytes;
        let fits = |tensor: &TrunkTensor| {
            let bytes = ReadPlan::new(tensor.extents()).bytes() as u64;
            let fits = bytes <= left;
            left = left.saturating_sub(bytes);
            fits
        };
        let n_fitting = self.unread.iter().map(fits).take_while(|fits| *fits).count();
        let (group, unread) = self.unread.split_at(n_fitting.max(1).min(self.unread.len()));
        self.unread = unread;
        self.reads.extend(group.iter().zip(read_ahead(group, self.files, self.io_threads)?));
        Ok(())
    }
}

impl<B: Backend> WeightSource for LoadedSource<'_, B> {
    type Matrix = B::Matrix;
    type Vector = B::Vector;
    type Error = Error;

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<B::Matrix, Error> {
        let (tensor, Read { plan, block }) = self.next(name)?;
        let TrunkLocation::Matrix(location) = &tensor.location else {
            unreachable!("{name} was listed as a matrix");
        };
        let offset = |part| if part < plan.parts() { plan.offset(part) } else { 0 };
        let offsets = [offset(0), offset(1), offset(2)];
        let stored = (location.rows, cols);
        let matrix = Matrix::new(location.format, stored, Arc::new(block), offsets);
        let matrix = match &tensor.rows {
            Some(order) => rows_of(&matrix, order)?,
            None => matrix,
        };
        assert_eq!(matrix.rows, rows, "the model asks for the same rows");
        if let Format::Affine(affine) = location.format {
            let finite = checkpoint::are_finite(affine.scales, matrix.scales())
                && checkpoint::are_finite(affine.scales, matrix.biases());
            if !finite {
                return Err(Error::NotFinite { tensor: name.to_owned() });
            }
        }
        self.backend
            .matrix(&matrix)
            .map_err(|source| Error::DeviceRefuses { tensor: name.to_owned(), source })
    }

    fn matrix_of_rows(
        &mut self,
        name: &str,
        (_, cols): (usize, usize),
        rows: Vec<Range<usize>>,
    ) -> Result<B::Matrix, Error> {
        self.matrix(name, rows.iter().map(ExactSizeIterator::len).sum(), cols)
    }

    fn vector(&mut self, name: &str, _: usize, _: VectorKind) -> Result<B::Vector, Error> {
        let (tensor, Read { plan, block }) = self.next(name)?;
        let TrunkLocation::Vector(location) = &tensor.location else {
            unreachable!("{name} was listed as a vector");
        };
        let begin = plan.offset(0);
        let stored = &block.bytes()[begin..begin + location.extent.len as usize];
        let values = checkpoint::decode_vector(location, stored);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite { tensor: name.to_owned() });
        }
        Ok(self.backend.vector(&values))
    }
}

/// A matrix of some rows of another, in a block of its own.
fn rows_of(matrix: &Matrix, rows: &[Range<usize>]) -> Result<Matrix, Error> {
    let n_rows: usize = rows.iter().map(ExactSizeIterator::len).sum();
    let parts = [matrix.data(), matrix.scales(), matrix.biases()];
    let row_bytes = parts.map(|part| part.len() / matrix.rows);
    let bytes = row_bytes.iter().sum::<usize>() * n_rows;
    let mut block = arena(bytes)?.take(bytes).expect("the arena was sized for it");
    let mut offsets = [0; 3];
    let mut end = 0;
    for ((part, row_bytes), offset) in parts.iter().zip(row_bytes).zip(&mut offsets) {
        *offset = end;
        for rows in rows {
            let stored = &part[rows.start * row_bytes..rows.end * row_bytes];
            block.bytes_mut()[end..end + stored.len()].copy_from_slice(stored);
            end += stored.len();
        }
    }
    Ok(Matrix::new(matrix.format, (n_rows, matrix.cols), Arc::new(block), offsets))
}
