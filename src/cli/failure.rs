//! Why a command did not do what it was asked: what failed, on what, why, and what to do about it.
//!
//! This is where errors end: they are turned into sentences here and nowhere below.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// What a user is told when a command fails, as the last thing on standard error:
///
/// ```text
/// umbra: restore disk0 to /dev/sdb: the target holds data (at byte 512)
///   what to do: choose another target, or replace what it holds with --overwrite
/// ```
#[derive(Debug)]
pub struct Failure {
    what: String,
    on: String,
    why: Vec<String>,
    remedy: Option<String>,
    usage: bool,
}

impl Failure {
    /// `what` is a verb and `on` is what it was done to; either may be empty.
    pub fn new(what: impl Into<String>, on: impl Into<String>) -> Self {
        Self { what: what.into(), on: on.into(), why: Vec::new(), remedy: None, usage: false }
    }

    /// The error and all of its sources; one that only repeats what the one before says is left out.
    #[must_use]
    pub fn because(mut self, error: &dyn Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self = self.why(error.to_string());
            next = error.source();
        }
        self
    }

    /// A reason that is not an error of anything.
    #[must_use]
    pub fn why(mut self, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        if !self.why.last().is_some_and(|last| last.contains(&reason)) {
            self.why.push(reason);
        }
        self
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The command was not used as it is meant to be: exit code 2.
    #[must_use]
    pub fn wrong_usage(mut self) -> Self {
        self.usage = true;
        self
    }

    /// 1 for what failed, 2 for what was not asked for rightly.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = [self.what.as_str(), self.on.as_str()].into_iter().filter(|part| !part.is_empty());
        write!(f, "umbra: {}", subject.collect::<Vec<_>>().join(" "))?;
        for reason in &self.why {
            write!(f, ": {reason}")?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n  what to do: {remedy}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("put object: {source}")]
    struct Outer {
        source: std::io::Error,
    }

    #[test]
    fn a_message_says_what_on_what_why_and_what_to_do_and_nothing_twice() {
        let error = Outer { source: std::io::Error::other("connection reset") };
        let failure = Failure::new("publish", "point 812").because(&error).remedy("wait");
        assert_eq!(failure.to_string(), "umbra: publish point 812: put object: connection reset\n  what to do: wait");
    }
}
