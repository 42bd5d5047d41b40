//! Checking everything that lies on the disk, also while an engine writes there.
//!
//! Nothing is locked. What is listed in the manifest was durable before it was listed, sealed files never change, and a file goes only once a
//! manifest that does not have it any more is in place. So whatever looks damaged is looked at again under a newer manifest: a file that is not
//! listed any more is no damage, and what holds its data now is checked in its place. The log is judged as far as its own batches say that it was
//! synced when they were written.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use crate::check::Check;
use crate::clock_file::ClockFile;
use crate::digests::DigestsId;
use crate::disk::{Disk, DiskFile, read_all};
use crate::engine::Engine;
use crate::error::{Affected, Damage, DamageKind, FileError, OpenError};
use crate::identity::Identity;
use crate::manifest::{MANIFEST, Manifest};
use crate::place::{SEGMENTS_DIR, SegmentId};
use crate::replay::{Contents, Findings, highest_synced};
use crate::suspects::Suspects;
use crate::table::{TABLES_DIR, TableId};

/// So many files are open at a time: an open file stays when its name goes.
const OPEN_FILES: usize = 256;

/// What a check of everything found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verification {
    /// Segments, tables, and files of digests that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Frames, and entries of tables, that were checked.
    pub items: u64,
    /// What is damaged or missing; at most 1,000 are listed.
    pub damaged: Vec<Damage>,
    /// How many there were.
    pub damage_count: u64,
}

/// How far a check has got.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyProgress {
    /// Segments, tables, and files of digests that were checked.
    pub files: u64,
    /// How many there are; more may come where the directory is written to.
    pub of_files: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Checks a data directory, also one that an engine has open, in this process or another one: every checksum, and that what tables refer to is there
/// and belongs to its key. Writes nothing. Of the log, what comes behind the last part that is known to have been synced is not judged: that is what
/// opening is for. A directory without any file of an engine's passes, with no files.
///
/// # Errors
/// A file cannot be read, or is of a newer version.
pub fn verify(disk: &dyn Disk) -> Result<Verification, OpenError> {
    verify_with_progress(disk, &mut |_| {})
}

/// As [`verify`], and tells now and then how far it has got.
pub fn verify_with_progress(
    disk: &dyn Disk,
    progress: &mut dyn FnMut(VerifyProgress),
) -> Result<Verification, OpenError> {
    check_all(disk, progress).map(|(found, _)| found)
}

/// What was found, and the partitions that all of it concerns.
fn check_all(disk: &dyn Disk, progress: &mut dyn FnMut(VerifyProgress)) -> Result<(Verification, Suspects), OpenError> {
    let mut findings = Findings::default();
    for damage in damaged_marks(disk)? {
        findings.add(damage);
    }
    let manifest = match load(disk)? {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Ok(result(Verification::default(), findings)),
        Err(damage) => {
            findings.add(damage);
            return Ok(result(Verification::default(), findings));
        }
    };
    let mut verifier = Verifier {
        disk,
        synced_upto: 0,
        manifest,
        done: BTreeSet::new(),
        findings,
        found: Verification::default(),
        progress,
    };
    while verifier.round()? {}
    Ok(result(verifier.found, verifier.findings))
}

fn result(found: Verification, findings: Findings) -> (Verification, Suspects) {
    let found = Verification { damaged: findings.damaged, damage_count: findings.count, ..found };
    (found, findings.suspects)
}

impl Engine {
    /// Checks what is on the disk while the engine is used, as [`verify`] does. What is damaged is suspect afterwards.
    ///
    /// # Errors
    /// As [`verify`].
    pub fn verify(&self) -> Result<Verification, OpenError> {
        let (found, suspects) = check_all(&*self.disk, &mut |_| {})?;
        self.note_suspects(&suspects);
        Ok(found)
    }
}

/// The damage of what the owner must not forget, beside the data. Files that are not there are its owner's affair.
fn damaged_marks(disk: &dyn Disk) -> Result<Vec<Damage>, OpenError> {
    let mut damaged = match Identity::load(disk) {
        Ok(_) => Vec::new(),
        Err(FileError::Damaged(damage)) => vec![damage],
        Err(error) => return Err(error.into()),
    };
    damaged.extend(ClockFile::damaged(disk)?);
    Ok(damaged)
}

/// The manifest, none where there is nothing that it could list; or its damage.
fn load(disk: &dyn Disk) -> Result<Result<Option<Manifest>, Damage>, OpenError> {
    // A directory that is being made has files a moment after it had none.
    for is_last in [false, true] {
        match Manifest::load(disk) {
            Ok(Some(Ok(manifest))) => return Ok(Ok(Some(manifest))),
            Ok(Some(Err(_))) => return Ok(Err(crate::blob::damage(MANIFEST, DamageKind::Malformed, 0, 0))),
            Err(FileError::Damaged(damage)) => return Ok(Err(damage)),
            Err(error) => return Err(error.into()),
            Ok(None) if is_last => {}
            Ok(None) if is_empty(disk)? => return Ok(Ok(None)),
            Ok(None) => {}
        }
    }
    let missing = crate::blob::damage(MANIFEST, DamageKind::MissingFile, 1, 0);
    Ok(Err(Damage { affected: Affected::Everything, ..missing }))
}

fn is_empty(disk: &dyn Disk) -> Result<bool, OpenError> {
    for dir in [SEGMENTS_DIR, TABLES_DIR] {
        match disk.list(dir) {
            Ok(names) if !names.is_empty() => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(OpenError::io(dir)(error)),
        }
    }
    Ok(true)
}

/// A file that the manifest lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Listed {
    Segment(SegmentId),
    Table(TableId),
    Digests(DigestsId),
}

impl Listed {
    fn name(&self) -> String {
        match self {
            Self::Segment(id) => id.file_name(),
            Self::Table(id) => id.file_name(),
            Self::Digests(id) => id.file_name(),
        }
    }

    fn is_in(&self, manifest: &Manifest) -> bool {
        match self {
            Self::Segment(id) => manifest.segments.contains_key(id),
            Self::Table(id) => manifest.tables.iter().any(|(listed, _)| listed == id),
            Self::Digests(id) => manifest.digests == Some(*id),
        }
    }

    /// Whether the file is to be what it was to be under an older manifest. The end of a segment is listed before what lies behind it is cut off.
    fn is_unchanged(&self, older: &Manifest, newer: &Manifest) -> bool {
        let Self::Segment(id) = self else { return true };
        let end = |manifest: &Manifest| manifest.segments.get(id).map_or(0, |listing| listing.end);
        end(older) > 0 || end(newer) == 0
    }
}

struct Verifier<'a> {
    disk: &'a dyn Disk,
    /// The newest one that was read.
    manifest: Manifest,
    /// The log is known to have been synced up to here.
    synced_upto: u64,
    /// Files that need not be looked at any more.
    done: BTreeSet<Listed>,
    findings: Findings,
    found: Verification,
    progress: &'a mut dyn FnMut(VerifyProgress),
}

impl Verifier<'_> {
    /// Checks what the manifest lists and was not checked yet. Whether there may be more: some of it was removed meanwhile, so its data are elsewhere.
    fn round(&mut self) -> Result<bool, OpenError> {
        self.find_synced()?;
        let segments = self.manifest.segments.keys().map(|id| Listed::Segment(*id));
        let tables = self.manifest.tables.iter().map(|(id, _)| Listed::Table(*id));
        let digests = self.manifest.digests.map(Listed::Digests);
        let listed: Vec<_> = segments.chain(tables).chain(digests).filter(|file| !self.done.contains(file)).collect();
        let mut has_gone = false;
        for (number, files) in listed.chunks(OPEN_FILES).enumerate() {
            let open = |file: &Listed| match self.disk.open(&file.name()) {
                Ok(opened) => Ok((*file, Some(opened))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((*file, None)),
                Err(error) => Err(OpenError::io(file.name())(error)),
            };
            let opened = files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            for (place, (file, opened)) in opened.into_iter().enumerate() {
                has_gone |= !self.settle(file, opened.as_ref())?;
                self.done.insert(file);
                let rest = listed.len() - number * OPEN_FILES - place - 1;
                let files = self.found.files;
                let of_files = files + rest as u64;
                (self.progress)(VerifyProgress { files, of_files, bytes: self.found.bytes });
            }
        }
        if has_gone {
            self.reload()?;
        }
        Ok(has_gone)
    }

    /// Checks a file until what is found cannot be the doing of a change meanwhile. False: the file is not listed any more.
    fn settle(&mut self, file: Listed, opened: Option<&Arc<dyn DiskFile>>) -> Result<bool, OpenError> {
        loop {
            let mut check = Check::new(self.disk, &self.manifest, self.synced_upto);
            match (file, opened) {
                (Listed::Segment(id), Some(opened)) => check.segment(id, &**opened)?,
                (Listed::Table(id), Some(opened)) => check.table(id, opened.clone())?,
                // Opened by its name again: one that is gone meanwhile is not listed any more.
                (Listed::Digests(id), _) => check.digests(id)?,
                (_, None) => check.missing(file.name()),
            }
            let Check { findings, bytes, items, .. } = check;
            if findings.count > 0 {
                let older = self.manifest.clone();
                if !self.reload()? {
                    // The manifest's own damage is found, and what it lists now unknown.
                } else if !file.is_in(&self.manifest) {
                    return Ok(false);
                } else if !file.is_unchanged(&older, &self.manifest) {
                    continue;
                }
            }
            self.found.files += u64::from(opened.is_some());
            (self.found.bytes, self.found.items) = (self.found.bytes + bytes, self.found.items + items);
            // More than are listed are counted, and acted upon.
            self.findings.suspects.add_all(&findings.suspects);
            self.findings.count += findings.count - findings.damaged.len() as u64;
            findings.damaged.into_iter().for_each(|damage| self.add(damage));
            return Ok(true);
        }
    }

    /// What is referred to may have been found when its own file was read.
    fn add(&mut self, damage: Damage) {
        let is_same = |other: &Damage| other.file == damage.file && other.offset == damage.offset;
        if !self.findings.damaged.iter().any(is_same) {
            self.findings.add(damage);
        }
    }

    /// Reads the manifest again. False: it is damaged, or gone.
    fn reload(&mut self) -> Result<bool, OpenError> {
        match load(self.disk)? {
            Ok(Some(manifest)) => {
                self.manifest = manifest;
                return Ok(true);
            }
            Ok(None) => self.add(crate::blob::damage(MANIFEST, DamageKind::MissingFile, 1, 0)),
            Err(damage) => self.add(damage),
        }
        Ok(false)
    }

    /// Finds out up to where the log was synced: the last segment that has a batch has the highest mark of all of them.
    fn find_synced(&mut self) -> Result<(), OpenError> {
        let manifest = &self.manifest;
        let listed = manifest.segments.values().map(|listing| listing.synced_upto).max().unwrap_or(0);
        self.synced_upto = self.synced_upto.max(listed).max(manifest.position);
        let position = manifest.position;
        for (&id, listing) in manifest.segments.iter().rev().filter(|(_, listing)| !listing.is_behind(position)) {
            let name = id.file_name();
            let file = match self.disk.open(&name) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(OpenError::io(name)(error)),
            };
            let bytes = read_all(&*file, listing.capacity).map_err(OpenError::io(name))?;
            if let Some(synced_upto) = highest_synced(Contents { id, listing: *listing, bytes: &bytes }) {
                self.synced_upto = self.synced_upto.max(synced_upto);
                break;
            }
        }
        Ok(())
    }
}
