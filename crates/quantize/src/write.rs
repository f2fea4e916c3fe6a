//! Units of work done on threads and written by one, and read back at the end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

use crate::error::Error;
use crate::options::{Progress, Report, Stage};
use crate::output::{Output, Partial};
use crate::plan::{Plan, Unit};

/// The result while it is being written.
pub(crate) struct Writer<'a> {
    plan: &'a Plan,
    output: Output,
    /// Bytes that are written.
    done: u64,
    threads: usize,
}

impl<'a> Writer<'a> {
    /// Goes on where an earlier run has ended.
    pub(crate) fn open(
        partial: &Partial,
        plan: &'a Plan,
        threads: usize,
        report: &mut Report,
    ) -> Result<Self, Error> {
        let output = Output::open(partial, &plan.layout)?;
        let units = plan.units.iter().enumerate();
        let done = units.filter(|(index, _)| output.has(*index)).map(|(_, unit)| unit.bytes());
        let done = done.sum();
        report.resumed_bytes = done;
        report.bytes = plan.bytes();
        report.expert_bytes = plan.expert_bytes;
        report.files = plan.layout.names().len();
        Ok(Self { plan, output, done, threads: threads.max(1) })
    }

    /// Does those of the units that are not done yet.
    pub(crate) fn write(
        &mut self,
        units: impl Iterator<Item = usize>,
        make: &(dyn Fn(&Unit) -> Result<Vec<u8>, Error> + Sync),
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Error> {
        let plan = self.plan;
        let Self { output, done, threads, .. } = self;
        let total = plan.bytes();
        let left: Vec<usize> = units.filter(|&unit| !output.has(unit)).collect();
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, receiver) = sync_channel(*threads);
        let mut result = Ok(());
        std::thread::scope(|scope| {
            for _ in 0..*threads {
                let (sender, left, next, stop) = (sender.clone(), &left, &next, &stop);
                scope.spawn(move || {
                    while let Some(&unit) = left.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let made = make(&plan.units[unit]);
                        if stop.load(Ordering::Relaxed) || sender.send((unit, made)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            // Ends when all workers have ended. After an error what still comes is dropped.
            for (unit, made) in receiver {
                if result.is_err() {
                    continue;
                }
                result = made.and_then(|bytes| {
                    output.write(unit, &plan.units[unit].pieces, &bytes)?;
                    *done += bytes.len() as u64;
                    progress(Progress { stage: Stage::Write, done: *done, total });
                    Ok(())
                });
                stop.store(result.is_err(), Ordering::Relaxed);
            }
        });
        // What was made before an error need not be made again.
        output.flush()?;
        result
    }

    /// The bytes of a unit that is written.
    pub(crate) fn read(&self, unit: usize) -> Result<Vec<u8>, Error> {
        self.output.read(&self.plan.units[unit].pieces)
    }

    /// Reads everything back.
    pub(crate) fn verify(mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), Error> {
        self.output.forget_pages();
        let (mut done, total) = (0, self.plan.bytes());
        for (index, unit) in self.plan.units.iter().enumerate() {
            self.output.verify(index, &unit.name, &unit.pieces)?;
            done += unit.bytes();
            progress(Progress { stage: Stage::Verify, done, total });
        }
        Ok(())
    }
}
