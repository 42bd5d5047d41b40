//! `Failure`: how a command ends when it does not end well.

use std::fmt;
use std::io;

use dunlin_client::{ConnectError, Error};
use dunlin_protocol::Status;
use serde_json::{Map, Value};

/// A stable code, a sentence, and the facts for machines.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    pub(crate) message: String,
    pub(crate) facts: Map<String, Value>,
    broken_pipe: bool,
    told: bool,
    is_help: bool,
}

impl Failure {
    pub(crate) fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), facts: Map::new(), broken_pipe: false, told: false, is_help: false }
    }

    /// Something on this machine.
    pub(crate) fn local(message: impl Into<String>) -> Self {
        Self::new(Status::Local, message)
    }

    /// Something in the arguments.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// Nothing was asked for: the message is the help.
    pub(crate) fn help(text: impl Into<String>) -> Self {
        Self { is_help: true, ..Self::usage(text) }
    }

    pub(crate) fn fact(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// Nobody reads the output any more: no error.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.broken_pipe
    }

    /// The message is to be shown as it is.
    pub(crate) fn is_help(&self) -> bool {
        self.is_help
    }

    /// The object on stdout has it already.
    pub(crate) fn told(self) -> Self {
        Self { told: true, ..self }
    }

    pub(crate) fn is_told(&self) -> bool {
        self.told
    }

    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        object.insert("code".to_owned(), self.status.code().into());
        object.insert("message".to_owned(), self.message.clone().into());
        object.extend(self.facts.clone());
        object
    }
}

/// An error with its causes, as far as its own words do not name them.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !message.contains(&words) {
            message = format!("{message}: {words}");
        }
        cause = error.source();
    }
    message
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Of writing to stdout.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let broken_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { broken_pipe, ..Self::local(format!("cannot write the output: {error}")) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::new(error.status(), error.to_string());
        match error {
            Error::Precondition { current } if current.is_zero() => failure,
            Error::Precondition { current } => failure.fact("version", current.to_string()),
            Error::Refused { counts, .. } => with_counts(failure, counts),
            Error::Indefinite { op_id, counts, .. } if op_id.is_zero() => with_counts(failure, counts),
            Error::Indefinite { op_id, counts, .. } => {
                let failure = Self { message: format!("{} Operation id: {op_id}", failure.message), ..failure };
                with_counts(failure, counts).fact("op_id", op_id.to_string())
            }
        }
    }
}

fn with_counts(failure: Failure, counts: dunlin_protocol::Counts) -> Failure {
    if counts.need == 0 {
        return failure;
    }
    failure.fact("need", counts.need).fact("got", counts.got).fact("alive", counts.alive)
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let status = error.status();
        let message = match error {
            ConnectError::Untrusted { .. } | ConnectError::OtherNode { .. } | ConnectError::Unreachable { .. } => {
                format!("{error}. {}", status.sentence())
            }
            // The others say what to do, or name the argument.
            _ => error.to_string(),
        };
        Self::new(status, message)
    }
}
