//! `Output`: stdout, for people or for machines.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};

use serde_json::{Map, Value};

use super::failure::Failure;

/// Everything that a command says on stdout.
pub(crate) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    json: bool,
    terminal: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { out: BufWriter::with_capacity(64 << 10, stdout.lock()), json, terminal }
    }

    /// Whether JSON is asked for.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person reads it.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A line, out at once.
    pub(crate) fn line(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        writeln!(self.out, "{}", line.as_ref())?;
        Ok(self.out.flush()?)
    }

    /// Bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        Ok(self.out.write_all(bytes)?)
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }

    /// A result: a line for people, or an object with the code, the line and the facts.
    pub(crate) fn result<const N: usize>(&mut self, line: &str, facts: [(&str, Value); N]) -> Result<(), Failure> {
        if !self.json {
            return self.line(line);
        }
        let mut object = done(line);
        object.extend(facts.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self.object(object)
    }

    pub(crate) fn object(&mut self, object: Map<String, Value>) -> Result<(), Failure> {
        self.line(Value::Object(object).to_string())
    }

    /// A table with a head, its columns as wide as they must be.
    pub(crate) fn table<const N: usize>(&mut self, head: [&str; N], rows: &[[String; N]]) -> Result<(), Failure> {
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([head[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let head = head.map(str::to_owned);
        for row in [&head].into_iter().chain(rows) {
            let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(self.out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(self.out.flush()?)
    }
}

/// A line on stderr. Nobody may be reading: that is no error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The head of a result's object.
pub(crate) fn done(message: &str) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("code".to_owned(), "OK".into());
    object.insert("message".to_owned(), message.into());
    object
}

/// A name and bytes for JSON: as text where they are text, otherwise in hexadecimal under another name.
pub(crate) fn json_bytes(name: &str, bytes: &[u8]) -> (String, Value) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.into()),
        Err(_) => {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            (format!("{name}_hex"), hex.into())
        }
    }
}
