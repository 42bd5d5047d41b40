//! `Job`: writing new tables of what flows together, slice by slice.

use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{ReadError, WriteError, is_disk_full};
use crate::indexed::is_mark;
use crate::table::{Merging, Table, TableId, TableWriter};

/// Writes tables, a slice at a time. Until they are installed they are nobody's.
pub(crate) struct Job {
    merging: Merging,
    /// What lies above is left.
    upto: Option<Vec<u8>>,
    writer: Option<TableWriter>,
    /// A table that could not be finished.
    unfinished: Option<TableId>,
    pub(crate) outputs: Vec<Arc<Table>>,
    /// Nothing older lies below: marks of forgotten keys have nothing to hide.
    drop_marks: bool,
    /// The log position that the tables cover.
    pub(crate) position: u64,
    table_bytes: u64,
}

/// Why a job cannot go on.
#[derive(Debug)]
pub(crate) enum JobError {
    Read(ReadError),
    Write(WriteError),
}

impl Job {
    pub(crate) fn new(merging: Merging, drop_marks: bool, position: u64, table_bytes: u64) -> Self {
        let (writer, unfinished, outputs) = (None, None, Vec::new());
        Self { merging, upto: None, writer, unfinished, outputs, drop_marks, position, table_bytes }
    }

    /// Ends at this key.
    pub(crate) fn upto(mut self, last: Option<Vec<u8>>) -> Self {
        self.upto = last;
        self
    }

    /// Moves about so many bytes; whether all is written.
    pub(crate) fn run(
        &mut self,
        disk: &dyn Disk,
        slice_bytes: u64,
        mut new_id: impl FnMut() -> TableId,
    ) -> Result<bool, JobError> {
        let mut moved = 0;
        while let Some(key) = self.merging.key() {
            if self.upto.as_ref().is_some_and(|last| key > last.as_slice()) {
                break;
            }
            if moved >= slice_bytes {
                return Ok(false);
            }
            let body = self.merging.body();
            moved += (key.len() + body.len()) as u64 + 8;
            if !(self.drop_marks && is_mark(body)) {
                let writer = match &mut self.writer {
                    Some(writer) => writer,
                    None => {
                        let id = new_id();
                        let created = TableWriter::create(disk, id);
                        self.writer.insert(created.map_err(failed(id))?)
                    }
                };
                writer.add(key, body).map_err(failed(writer.id()))?;
                if writer.len() >= self.table_bytes {
                    self.finish_table()?;
                }
            }
            self.merging.advance().map_err(JobError::Read)?;
        }
        self.finish_table()?;
        Ok(true)
    }

    fn finish_table(&mut self) -> Result<(), JobError> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let id = writer.id();
        let table = writer.finish(self.position);
        match table {
            Ok(table) => self.outputs.push(Arc::new(table)),
            Err(error) => {
                self.unfinished = Some(id);
                return Err(failed(id)(error));
            }
        }
        Ok(())
    }

    /// The files that were made, also those that are not whole.
    pub(crate) fn files(&self) -> Vec<TableId> {
        let begun = self.writer.iter().map(TableWriter::id).chain(self.unfinished);
        self.outputs.iter().map(|table| table.id()).chain(begun).collect()
    }
}

fn failed(id: TableId) -> impl FnOnce(std::io::Error) -> JobError {
    move |source| match is_disk_full(&source) {
        true => JobError::Write(WriteError::DiskFull),
        false => JobError::Write(WriteError::Io { file: id.file_name(), source }),
    }
}
