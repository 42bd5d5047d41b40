//! The local side: walking a folder, and names that come from keys.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::cli::data::replace;

/// Something found in a folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// A file, by its path within the folder, with its size.
    File(PathBuf, u64),
    /// A link or a special file.
    Skipped(PathBuf, &'static str),
    /// A folder or a file that cannot be looked at.
    Unreadable(PathBuf, String),
}

/// Goes through a folder in order of names, without following links.
#[derive(Debug)]
pub(crate) struct Walk {
    root: PathBuf,
    /// Still to be looked at, the next one last.
    left: Vec<PathBuf>,
}

impl Walk {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), left: vec![PathBuf::new()] }
    }
}

impl Iterator for Walk {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        loop {
            let path = self.left.pop()?;
            let is_root = path.as_os_str().is_empty();
            // Joined to nothing, the path would end in a slash, and no file's does.
            let full = if is_root { self.root.clone() } else { self.root.join(&path) };
            let unreadable = |e: io::Error| Some(Found::Unreadable(full.clone(), e.to_string()));
            // The root itself may be a link to a folder.
            let metadata = match if is_root { fs::metadata(&full) } else { fs::symlink_metadata(&full) } {
                Ok(metadata) => metadata,
                Err(error) => return unreadable(error),
            };
            if metadata.is_file() {
                return Some(Found::File(path, metadata.len()));
            }
            if !metadata.is_dir() {
                let what = if metadata.is_symlink() { "a symbolic link" } else { "a special file" };
                return Some(Found::Skipped(full, what));
            }
            let names = fs::read_dir(&full)
                .and_then(|entries| entries.map(|e| e.map(|e| e.file_name())).collect::<Result<Vec<_>, _>>());
            match names {
                Ok(mut names) => {
                    names.sort_unstable();
                    self.left.extend(names.into_iter().rev().map(|name| path.join(name)));
                }
                Err(error) => return unreadable(error),
            }
        }
    }
}

/// The path that a key's end names below a folder; none where it would be no file's name, or leave the folder.
pub(crate) fn safe_path(rest: &[u8]) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in rest.split(|b| *b == b'/') {
        if part.is_empty() || part == b"." || part == b".." || part.contains(&0) {
            return None;
        }
        path.push(OsStr::from_bytes(part));
    }
    Some(path)
}

/// Writes files below a folder, and nowhere else.
#[derive(Debug)]
pub(crate) struct Target {
    root: PathBuf,
    /// Folders below the root that were made, or found to be no links.
    known: BTreeSet<PathBuf>,
}

impl Target {
    pub(crate) fn new(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        Ok(Self { root: root.to_owned(), known: BTreeSet::new() })
    }

    /// Makes the folders above a file; where one of them is a link, it could lead out of the target.
    pub(crate) fn make_room(&mut self, path: &Path) -> io::Result<PathBuf> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !self.known.contains(parent) {
            let mut folder = PathBuf::new();
            for part in parent {
                folder.push(part);
                if self.known.contains(&folder) {
                    continue;
                }
                let full = self.root.join(&folder);
                match fs::symlink_metadata(&full) {
                    Ok(found) if found.is_dir() => {}
                    Ok(_) => return Err(io::Error::other(format!("{} is in the way, and no folder", full.display()))),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(&full)?,
                    Err(error) => return Err(error),
                }
                self.known.insert(folder.clone());
            }
        }
        Ok(self.root.join(path))
    }
}

/// Writes a file as a whole.
pub(crate) fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // A rename would replace an empty folder's name or follow nothing: a folder there stays.
    if fs::symlink_metadata(file).is_ok_and(|found| found.is_dir()) {
        return Err(io::Error::other("a folder is in the way"));
    }
    replace(file, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_finds_files_in_order_and_follows_no_links() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("b/deep")).expect("made");
        fs::create_dir(root.join("empty")).expect("made");
        fs::write(root.join("b/deep/x"), "12345").expect("written");
        fs::write(root.join("a"), "").expect("written");
        fs::write(root.join(OsStr::from_bytes(b"b/\xff\n")), "1").expect("written");
        std::os::unix::fs::symlink(root, root.join("loop")).expect("linked");
        std::os::unix::net::UnixListener::bind(root.join("socket")).expect("bound");
        let found: Vec<_> = Walk::new(root).collect();
        assert_eq!(
            found,
            [
                Found::File("a".into(), 0),
                Found::File("b/deep/x".into(), 5),
                Found::File(Path::new("b").join(OsStr::from_bytes(b"\xff\n")), 1),
                Found::Skipped(root.join("loop"), "a symbolic link"),
                Found::Skipped(root.join("socket"), "a special file"),
            ]
        );
        let file = root.join("b/deep/x");
        assert_eq!(Walk::new(&file).collect::<Vec<_>>(), [Found::File(PathBuf::new(), 5)], "a file by itself");
        let missing = root.join("missing");
        assert!(
            matches!(&Walk::new(&missing).collect::<Vec<_>>()[..], [Found::Unreadable(path, _)] if *path == missing)
        );
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for (rest, expected) in [
            (&b"a"[..], Some("a")),
            (b"a/b/..c", Some("a/b/..c")),
            (b"", None),
            (b"/etc/passwd", None),
            (b"../x", None),
            (b"a/../../x", None),
            (b"a//b", None),
            (b"a/", None),
            (b"./a", None),
            (b"a\0b", None),
        ] {
            assert_eq!(safe_path(rest), expected.map(PathBuf::from), "{}", rest.escape_ascii());
        }
        assert_eq!(safe_path(b"\xff/\n"), Some(Path::new(OsStr::from_bytes(b"\xff")).join("\n")));
    }

    #[test]
    fn files_are_written_below_the_target_and_not_through_links() {
        let (folder, elsewhere) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let root = folder.path().join("out");
        let mut target = Target::new(&root).expect("made");
        for _ in 0..2 {
            let file = target.make_room(Path::new("a/b/c")).expect("made");
            write(&file, b"text").expect("written");
            assert_eq!(fs::read(root.join("a/b/c")).expect("there"), b"text");
        }
        assert_eq!(fs::read_dir(root.join("a/b")).expect("there").count(), 1, "nothing temporary is left");
        std::os::unix::fs::symlink(elsewhere.path(), root.join("link")).expect("linked");
        assert!(target.make_room(Path::new("link/x")).is_err());
        assert!(target.make_room(Path::new("a/b/c/d")).is_err(), "a file is in the way");
        assert!(write(&root.join("a"), b"").is_err(), "a folder is in the way");
        // A link in a file's place is replaced, not followed.
        std::os::unix::fs::symlink(elsewhere.path().join("x"), root.join("file")).expect("linked");
        let file = target.make_room(Path::new("file")).expect("made");
        write(&file, b"text").expect("written");
        assert!(!elsewhere.path().join("x").exists());
    }
}
