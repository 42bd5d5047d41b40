//! `Progress`: a bar on a terminal; and notes, which do not tear it.

use std::io::IsTerminal;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use crate::cli::output::say;

/// How far a copy is. Says nothing where stderr is no terminal, notes apart.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    bytes: std::cell::Cell<u64>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let shown = !quiet && std::io::stderr().is_terminal();
        let bar = shown.then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files  {msg}  {per_sec}  {elapsed}");
            bar.set_style(style.expect("a valid template"));
            bar
        });
        Self { bar, bytes: std::cell::Cell::new(0) }
    }

    /// More files were found.
    pub(crate) fn found(&self, files: u64) {
        if let Some(bar) = &self.bar {
            bar.inc_length(files);
        }
    }

    /// A file is done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
        if let Some(bar) = &self.bar {
            bar.inc(1);
            bar.set_message(HumanBytes(self.bytes.get()).to_string());
        }
    }

    /// A line for people.
    pub(crate) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
