//! Loading the trunk: every tensor once, by direct reads, in the order of the files.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::{Format, VectorKind};
use compute::memory::{Arena, Block};
use compute::{Backend, Matrix};
use experts::{DataFiles, IoError, ReadPlan};
use model::{Decoder, WeightSource};

use crate::error::Error;
use crate::inventory::{Inventory, TrunkLocation, TrunkTensor};

/// Bytes that the loaded trunk takes: matrices as stored, in whole pages, and vectors as `f32`.
pub(crate) fn resident_bytes(inventory: &Inventory) -> u64 {
    let bytes = inventory.trunk.iter().map(|tensor| match &tensor.location {
        TrunkLocation::Matrix(_) => ReadPlan::new(&tensor.extents()).bytes() as u64,
        TrunkLocation::Vector(vector) => (vector.len * size_of::<f32>()) as u64,
    });
    bytes.sum()
}

/// Reads the trunk and builds the model from it.
pub(crate) fn load_trunk<B: Backend>(
    inventory: &Inventory,
    files: &DataFiles,
    backend: &B,
    io_threads: usize,
) -> Result<Decoder<Matrix, B::Vector>, Error> {
    let reads = read_all(&inventory.trunk, files, io_threads)?;
    let mut source = LoadedSource { backend, tensors: inventory.trunk.iter().zip(reads).collect() };
    model::load(inventory.checkpoint.config(), &mut source)
}

/// A tensor on its way into memory.
struct Read {
    plan: ReadPlan,
    block: Block,
}

/// Reads all tensors, several at a time.
fn read_all(
    tensors: &[TrunkTensor],
    files: &DataFiles,
    io_threads: usize,
) -> Result<Vec<Read>, Error> {
    let plans: Vec<ReadPlan> =
        tensors.iter().map(|tensor| ReadPlan::new(&tensor.extents())).collect();
    let is_matrix = |tensor: &TrunkTensor| matches!(tensor.location, TrunkLocation::Matrix(_));
    // Vectors are decoded and forgotten: what they are read into must not stay with the matrices.
    let mut matrices = arena(tensors.iter().zip(&plans).filter(|(t, _)| is_matrix(t)))?;
    let mut vectors = arena(tensors.iter().zip(&plans).filter(|(t, _)| !is_matrix(t)))?;
    matrices.advise_huge_pages();
    let mut reads: Vec<Read> = tensors
        .iter()
        .zip(plans)
        .map(|(tensor, plan)| {
            let arena = if is_matrix(tensor) { &mut matrices } else { &mut vectors };
            let block = arena.take(plan.bytes()).expect("the arena was sized for all plans");
            Read { plan, block }
        })
        .collect();

    let mut queue: Vec<&mut Read> = reads.iter_mut().collect();
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

fn arena<'a>(
    tensors: impl Iterator<Item = (&'a TrunkTensor, &'a ReadPlan)>,
) -> Result<Arena, Error> {
    let bytes: usize = tensors.map(|(_, plan)| plan.bytes()).sum();
    Arena::new(bytes).map_err(|source| {
        let (bytes, purpose) = (bytes as u64, "the trunk");
        Error::OutOfMemory { bytes, purpose, source }
    })
}

/// Gives the tensors in the order in which the model asked for them when they were listed.
struct LoadedSource<'a, B> {
    backend: &'a B,
    tensors: VecDeque<(&'a TrunkTensor, Read)>,
}

impl<'a, B> LoadedSource<'a, B> {
    fn next(&mut self, name: &str) -> (&'a TrunkTensor, Read) {
        let (tensor, read) = self.tensors.pop_front().expect("the model asks as it did before");
        assert_eq!(tensor.name, name, "the model asks in the same order");
        (tensor, read)
    }
}

impl<B: Backend> WeightSource for LoadedSource<'_, B> {
    type Matrix = Matrix;
    type Vector = B::Vector;
    type Error = Error;

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let (tensor, Read { plan, block }) = self.next(name);
        let TrunkLocation::Matrix(location) = &tensor.location else {
            unreachable!("{name} was listed as a matrix");
        };
        let offset = |part| if part < plan.parts() { plan.offset(part) } else { 0 };
        let offsets = [offset(0), offset(1), offset(2)];
        let matrix = Matrix::new(location.format, (rows, cols), Arc::new(block), offsets);
        if let Format::Affine(affine) = location.format {
            let finite = checkpoint::are_finite(affine.scales, matrix.scales())
                && checkpoint::are_finite(affine.scales, matrix.biases());
            if !finite {
                return Err(Error::NotFinite { tensor: name.to_owned() });
            }
        }
        Ok(matrix)
    }

    fn vector(&mut self, name: &str, _: usize, _: VectorKind) -> Result<B::Vector, Error> {
        let (tensor, Read { plan, block }) = self.next(name);
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
