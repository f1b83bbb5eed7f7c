//! The work of the store's thread, done when its owner says so.
//!
//! The same lanes, batches and engine as behind the thread, with the time between the steps in the
//! hands of a simulation: how long a disk takes, and at which moment its machine dies.

use std::time::Instant;

use super::writer::{self, Batch, Writer};
use super::{Committed, Done, StoreError};

/// Moves a store that has no thread.
///
/// A batch is taken, committed and told of, one step after the other. Whatever is dropped in
/// between is lost as it is with a process that dies: what was not committed is not on the disk,
/// and what was not told of nobody has heard.
pub struct Stepper {
    writer: Writer,
    taken: Option<Batch>,
    committed: Option<Told>,
}

/// Whom to tell, and what.
type Told = (Vec<Option<Done>>, Vec<Committed>);

impl Stepper {
    pub(super) fn new(writer: Writer) -> Self {
        Self { writer, taken: None, committed: None }
    }

    /// Takes the writes that wait for the next transaction out of their lanes; how many.
    pub fn take(&mut self) -> usize {
        let batch = self.taken.get_or_insert_with(|| Batch::fill(&self.writer.shared));
        let writes = batch.writes.len();
        if writes == 0 {
            self.taken = None;
        }
        writes
    }

    /// Makes what was taken durable, at that Unix time in milliseconds. After an error, a full
    /// disk among them, the stepper is of no more use.
    pub fn commit(&mut self, now_ms: u64) -> Result<(), StoreError> {
        let Some(Batch { writes, dones }) = self.taken.take() else { return Ok(()) };
        let began = Instant::now();
        let committed = self.writer.engine.commit(writes, now_ms)?;
        self.writer.note(began);
        self.committed = Some((dones, committed));
        Ok(())
    }

    /// Tells of what was committed.
    pub fn tell(&mut self) {
        if let Some((dones, committed)) = self.committed.take() {
            writer::tell(dones, committed);
        }
    }
}
