//! Errors as users meet them.
//!
//! Libraries have their own `thiserror` enums; where an error leaves a library for a user or for
//! the wire it becomes an [`Error`]: a [`Code`] (gRPC's numbers), a message, the contexts it passed
//! through, hints that say what to do, and where in a source file it happened.
//!
//! This crate knows nothing of any transport: conversion to a gRPC status is the edge's.

mod location;
mod redact;

use std::fmt;

pub use location::{Excerpts, Position, Range, SourceLocation};
pub use redact::{Secret, redact_url};

/// What kind of failure it is; the numbers are gRPC's status codes.
///
/// Source: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    /// Somebody asked for the work to stop.
    Canceled = 1,
    /// Nothing more is known.
    Unknown = 2,
    /// What the user gave is wrong by itself.
    InvalidArgument = 3,
    /// It took longer than allowed.
    DeadlineExceeded = 4,
    /// A thing that was named does not exist.
    NotFound = 5,
    /// A thing to be made exists already.
    AlreadyExists = 6,
    /// Not allowed, and trying again with the same credentials will not help.
    PermissionDenied = 7,
    /// A limit (disk, memory, size of a message) was reached.
    ResourceExhausted = 8,
    /// Right in itself, but not in the present state.
    FailedPrecondition = 9,
    /// Lost a race with another change.
    Aborted = 10,
    /// Past the end.
    OutOfRange = 11,
    /// Known, and not offered here.
    Unimplemented = 12,
    /// Our own fault.
    Internal = 13,
    /// A peer cannot be reached now.
    Unavailable = 14,
    /// Stored data is damaged.
    DataLoss = 15,
    /// Credentials are missing or wrong.
    Unauthenticated = 16,
}

impl Code {
    /// The code of a gRPC number; numbers out of range are [`Code::Unknown`].
    pub fn from_number(number: i32) -> Self {
        use Code::*;
        [
            Canceled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ]
        .into_iter()
        .find(|code| *code as i32 == number)
        .unwrap_or(Unknown)
    }

    /// The name as Go's gRPC prints it, such as `InvalidArgument`.
    pub fn name(self) -> &'static str {
        match self {
            Code::Canceled => "Canceled",
            Code::Unknown => "Unknown",
            Code::InvalidArgument => "InvalidArgument",
            Code::DeadlineExceeded => "DeadlineExceeded",
            Code::NotFound => "NotFound",
            Code::AlreadyExists => "AlreadyExists",
            Code::PermissionDenied => "PermissionDenied",
            Code::ResourceExhausted => "ResourceExhausted",
            Code::FailedPrecondition => "FailedPrecondition",
            Code::Aborted => "Aborted",
            Code::OutOfRange => "OutOfRange",
            Code::Unimplemented => "Unimplemented",
            Code::Internal => "Internal",
            Code::Unavailable => "Unavailable",
            Code::DataLoss => "DataLoss",
            Code::Unauthenticated => "Unauthenticated",
        }
    }
}

/// Something asked for by name that the one who was asked does not know; clients look for it to go
/// on in another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// Something that a frontend would have to promise, such as `moby.buildkit.frontend.inputs`.
    FrontendCapability(String),
    /// A question to a frontend, such as `frontend.targets`.
    Subrequest(String),
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsupported::FrontendCapability(name) => {
                write!(f, "unsupported frontend capability {name}")
            }
            Unsupported::Subrequest(name) => write!(f, "unsupported request {name}"),
        }
    }
}

/// An error on its way to a user.
///
/// `Display` is the compatible text: contexts, outermost first, then the message, joined by `: `.
/// Hints are data and are printed by whoever prints the error, each after `hint: `.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    code: Code,
    message: String,
    contexts: Vec<String>,
    hints: Vec<String>,
    locations: Vec<SourceLocation>,
    vertex: Option<String>,
    exit_code: Option<i32>,
    unsupported: Option<Unsupported>,
}

/// A result whose error is for users.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of that code with that message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            code,
            message: message.into(),
            contexts: Vec::new(),
            hints: Vec::new(),
            locations: Vec::new(),
            vertex: None,
            exit_code: None,
            unsupported: None,
        }))
    }

    /// The user's input is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Something named does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// Our own fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Known but not offered.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// Asked for by name, and not known. As in stock a question that is not known has no code of its
    /// own: clients would print it.
    pub fn unsupported(what: Unsupported) -> Self {
        let code = match what {
            Unsupported::FrontendCapability(_) => Code::Unimplemented,
            Unsupported::Subrequest(_) => Code::Unknown,
        };
        Self::new(code, what.to_string()).lacking(what)
    }

    /// The work was cancelled; the text is the one Go programs print and scripts match.
    pub fn canceled() -> Self {
        Self::new(Code::Canceled, "context canceled")
    }

    /// Puts `context: ` in front of the text.
    #[must_use]
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.0.contexts.push(context.into());
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hints.push(hint.into());
        self
    }

    /// Says where in a source file it happened.
    #[must_use]
    pub fn at(mut self, location: SourceLocation) -> Self {
        self.0.locations.push(location);
        self
    }

    /// Names the vertex (its LLB digest) whose work failed; the first name given stays.
    #[must_use]
    pub fn vertex(mut self, digest: impl Into<String>) -> Self {
        self.0.vertex.get_or_insert_with(|| digest.into());
        self
    }

    /// Records the exit code of the process whose failure this is.
    #[must_use]
    pub fn exit_code(mut self, code: i32) -> Self {
        self.0.exit_code = Some(code);
        self
    }

    /// Records what is not known that was asked for by name.
    #[must_use]
    pub fn lacking(mut self, what: Unsupported) -> Self {
        self.0.unsupported = Some(what);
        self
    }

    /// Replaces the code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Self {
        self.0.code = code;
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// True when the work was cancelled and did not fail by itself.
    pub fn is_canceled(&self) -> bool {
        self.0.code == Code::Canceled
    }

    /// The message without contexts.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the user can do, in order.
    pub fn hints(&self) -> &[String] {
        &self.0.hints
    }

    /// Where it happened, innermost first.
    pub fn locations(&self) -> &[SourceLocation] {
        &self.0.locations
    }

    /// The vertex whose work failed, if it was one.
    pub fn failed_vertex(&self) -> Option<&str> {
        self.0.vertex.as_deref()
    }

    /// The exit code of the failed process, if it was one.
    pub fn process_exit_code(&self) -> Option<i32> {
        self.0.exit_code
    }

    /// What was asked for by name and is not known, if that is the error.
    pub fn lacks(&self) -> Option<&Unsupported> {
        self.0.unsupported.as_ref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for context in self.0.contexts.iter().rev() {
            write!(f, "{context}: ")?;
        }
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.0.code.name())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let code = match error.kind() {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::PermissionDenied => Code::PermissionDenied,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Code::ResourceExhausted,
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::NotConnected => Code::Unavailable,
            ErrorKind::TimedOut => Code::DeadlineExceeded,
            _ => Code::Unknown,
        };
        Error::new(code, error.to_string())
    }
}

/// Adds a context to whatever becomes an [`Error`].
pub trait Context<T> {
    /// Puts `context: ` in front of the error's text.
    fn context(self, context: impl Into<String>) -> Result<T>;
    /// The same, computed only on failure.
    fn with_context<S: Into<String>>(self, context: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<S: Into<String>>(self, context: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_stand_before_the_message_outermost_first() {
        let error = Error::invalid("bad size")
            .context("--shm-size")
            .context("build");
        assert_eq!(error.to_string(), "build: --shm-size: bad size");
        assert_eq!(error.code(), Code::InvalidArgument);
    }

    #[test]
    fn codes_and_numbers_agree() {
        for number in 1..=16 {
            assert_eq!(Code::from_number(number) as i32, number);
        }
        assert_eq!(Code::from_number(99), Code::Unknown);
    }
}
