//! The login phase (RFC 7143, section 6), the initiator's side: who both are, and what both agree on. Pure: a response in,
//! the next request out.
//!
//! ```text
//!        ┌──────────┐  AuthMethod, CHAP   ┌─────────────┐  operational keys   ┌──────────────┐
//! ─────► │ security ├────────────────────►│ operational ├────────────────────►│ full feature │
//!        └──────────┘                     └─────────────┘                     └──────────────┘
//! ```
//! Invariants: with credentials nobody's commands flow before we have proven who we are; with those of the target, not
//! before it has met our challenge. What it asks is never answered twice, and never with what it could use against us.

use super::{Credentials, Options};
use crate::iscsi::chap::{self, Challenge};
use crate::iscsi::parameters::{BadValue, Parameters};
use crate::iscsi::pdu::login::{self, CONTINUE, FULL_FEATURE, OPERATIONAL, SECURITY, TRANSIT};
use crate::iscsi::pdu::{LoginRequest, LoginResponse};
use crate::iscsi::text::{self, NONE, NOT_UNDERSTOOD, TEXT_MAX, TextError};

/// RFC 7143 has version 0.
const VERSION: u8 = 0;
/// Responses of one login: more than any exchange of keys needs.
const RESPONSES_MAX: usize = 64;
/// Keys of the target's that we do not know, of one step: each is answered.
const UNKNOWN_MAX: usize = 16;

/// Why a target is not used.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(
        "the target does not let this initiator in: wrong name, user or secret, or none is known there (status {0:#06x})"
    )]
    Authentication(u16),
    #[error("the target does not allow this initiator; allow its name there (status {0:#06x})")]
    Forbidden(u16),
    #[error("there is no such target (status {0:#06x})")]
    NotFound(u16),
    #[error("the target was removed (status {0:#06x})")]
    Removed(u16),
    #[error("the target is not ready for sessions now, or has too many (status {0:#06x})")]
    Unavailable(u16),
    #[error("the target refuses the login (status {0:#06x})")]
    Refused(u16),
    #[error("the target breaks the rules of the login: {0}")]
    Broken(&'static str),
    #[error("the target's text cannot be read")]
    Text(#[from] TextError),
    #[error("the target answers what cannot be")]
    Value(#[from] BadValue),
    #[error(
        "the target does not ask for a proof by CHAP, which is configured; leave the credentials out, or demand it there"
    )]
    NoChap,
    #[error("the target asks for a proof by CHAP; write the credentials into the configuration")]
    ChapWanted,
    #[error("the target has not proven who it is: {0}")]
    Unproven(&'static str),
    #[error("the target points to {0:?}, which is not an address")]
    Redirect(String),
    #[error("the target has more than {RESPONSES_MAX} responses")]
    TooMany,
    #[error("no randomness for a challenge")]
    Randomness(#[from] getrandom::Error),
}

/// What comes after a response.
#[derive(Debug)]
pub enum Next {
    Request(Request),
    Session(Parameters),
    /// Another portal: `host[:port]`, as the target writes it.
    Elsewhere(String),
}

/// Without serial numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub head: LoginRequest,
    pub text: Vec<u8>,
}

/// How far the proofs are.
enum Proof {
    /// None is configured.
    Unneeded,
    /// `AuthMethod` was sent.
    Offered,
    /// `CHAP_A` was sent.
    Algorithm,
    /// Our response was sent; with it, and with our challenge to the target where it has to prove itself.
    Answered {
        response: String,
        challenge: Option<Challenge>,
    },
    Given,
}

/// One login to one portal.
pub struct Login<'a> {
    options: &'a Options,
    stage: u8,
    proof: Proof,
    /// The operational keys were sent.
    offered: bool,
    /// Of responses that go on.
    text: Vec<u8>,
    responses: usize,
    parameters: Parameters,
}

impl<'a> Login<'a> {
    /// With the first request.
    pub fn new(options: &'a Options) -> (Self, Request) {
        let proof = if options.chap.is_some() { Proof::Offered } else { Proof::Unneeded };
        let parameters = Parameters::default();
        let login =
            Self { options, stage: SECURITY, proof, offered: false, text: Vec::new(), responses: 0, parameters };
        let mut text = Vec::new();
        text::put(&mut text, "InitiatorName", &options.initiator);
        text::put(&mut text, "SessionType", "Normal");
        text::put(&mut text, "TargetName", &options.url.target);
        text::put(&mut text, "AuthMethod", if options.chap.is_some() { "CHAP" } else { NONE });
        let request = login.request(options.chap.is_none(), text);
        (login, request)
    }

    fn request(&self, transit: bool, text: Vec<u8>) -> Request {
        let next = if self.stage == SECURITY { OPERATIONAL } else { FULL_FEATURE };
        let flags = self.stage << 2 | if transit { TRANSIT | next } else { 0 };
        // TSIH 0: a session of ours that the target still knows ends first (6.3.5).
        let head = LoginRequest { flags, isid: self.options.isid, task: 1, ..LoginRequest::default() };
        Request { head, text }
    }

    pub fn take(&mut self, response: &LoginResponse, text: &[u8]) -> Result<Next, LoginError> {
        self.responses += 1;
        if self.responses > RESPONSES_MAX {
            return Err(LoginError::TooMany);
        }
        if response.status >> 8 == REDIRECTION {
            return elsewhere(text);
        }
        if response.status != login::SUCCESS {
            return Err(refusal(response.status));
        }
        if response.version_active != VERSION {
            return Err(LoginError::Broken("another version"));
        }
        if response.isid != self.options.isid || response.task != 1 {
            return Err(LoginError::Broken("a response to another login"));
        }
        let (current, next) = login::stages(response.flags);
        if current != self.stage {
            return Err(LoginError::Broken("a stage in which it is not"));
        }
        self.text.extend_from_slice(text);
        if self.text.len() > TEXT_MAX {
            return Err(TextError::TooLong.into());
        }
        let transit = response.flags & TRANSIT != 0;
        if response.flags & CONTINUE != 0 {
            return match transit {
                true => Err(LoginError::Broken("the end of a stage inside of a text")),
                false => Ok(Next::Request(self.request(false, Vec::new()))),
            };
        }
        let text = std::mem::take(&mut self.text);
        let pairs = text::pairs(&text).collect::<Result<Vec<_>, _>>()?;
        let mut answer = Vec::new();
        self.negotiate(&pairs, &mut answer)?;
        if self.stage == SECURITY {
            self.secure(&pairs, transit, next, answer)
        } else {
            self.operate(transit, next, answer)
        }
    }

    /// Takes the operational keys, and answers those that nobody knows.
    fn negotiate(&mut self, pairs: &[(&str, &str)], answer: &mut Vec<u8>) -> Result<(), LoginError> {
        let mut unknown = 0;
        for &(key, value) in pairs {
            if is_declaration(key) || self.parameters.accept(key, value)? || value == NOT_UNDERSTOOD {
                continue;
            }
            unknown += 1;
            if unknown > UNKNOWN_MAX {
                return Err(LoginError::Broken("too many keys that are not known"));
            }
            text::put(answer, key, NOT_UNDERSTOOD);
        }
        Ok(())
    }

    fn secure(
        &mut self,
        pairs: &[(&str, &str)],
        transit: bool,
        next: u8,
        mut answer: Vec<u8>,
    ) -> Result<Next, LoginError> {
        let value = |key: &str| pairs.iter().find(|(found, _)| *found == key).map(|(_, value)| *value);
        if let Some(method) = value("AuthMethod") {
            match (&self.proof, method) {
                (Proof::Unneeded, NONE) | (Proof::Offered, "CHAP") => {}
                (Proof::Unneeded, _) => return Err(LoginError::ChapWanted),
                (Proof::Offered, _) => return Err(LoginError::NoChap),
                _ => return Err(LoginError::Broken("AuthMethod twice")),
            }
        }
        let answers_now = match &self.options.chap {
            Some(credentials) => self.prove(credentials, value, &mut answer)?,
            None => false,
        };
        let proven = matches!(self.proof, Proof::Unneeded | Proof::Given);
        if !transit {
            // It wants to say more; we do not.
            let done = proven || matches!(self.proof, Proof::Answered { .. });
            return Ok(Next::Request(self.request(done, answer)));
        }
        if !proven || answers_now {
            return Err(match &self.proof {
                Proof::Offered | Proof::Algorithm => LoginError::NoChap,
                _ => LoginError::Unproven("it lets us in without an answer to our challenge"),
            });
        }
        match next {
            OPERATIONAL => {
                self.stage = OPERATIONAL;
                Ok(Next::Request(self.offer(answer)))
            }
            _ => Err(LoginError::Broken("a stage that does not come next")),
        }
    }

    /// Takes what is about the proofs (12.1.3), and answers it. Whether the target is to answer that.
    fn prove<'v>(
        &mut self,
        credentials: &Credentials,
        value: impl Fn(&str) -> Option<&'v str>,
        answer: &mut Vec<u8>,
    ) -> Result<bool, LoginError> {
        match std::mem::replace(&mut self.proof, Proof::Given) {
            Proof::Offered if value("AuthMethod").is_none() => {
                self.proof = Proof::Offered;
                Ok(false)
            }
            Proof::Offered => {
                text::put(answer, "CHAP_A", chap::MD5);
                self.proof = Proof::Algorithm;
                Ok(true)
            }
            Proof::Algorithm => {
                if value("CHAP_A") != Some(chap::MD5) {
                    return Err(LoginError::Broken("an algorithm of CHAP that was not offered"));
                }
                let unreadable = || LoginError::Broken("a challenge that cannot be read");
                let identifier = value("CHAP_I").and_then(text::number).and_then(|number| u8::try_from(number).ok());
                let asked = value("CHAP_C").and_then(|asked| text::bytes(asked, chap::CHALLENGE_MAX));
                let (identifier, asked) =
                    identifier.zip(asked.filter(|asked| !asked.is_empty())).ok_or_else(unreadable)?;
                let response = text::hexadecimal(&chap::response_to(identifier, &credentials.ours.secret, &asked));
                text::put(answer, "CHAP_N", &credentials.ours.user);
                text::put(answer, "CHAP_R", &response);
                let challenge = credentials.theirs.as_ref().map(|_| Challenge::new()).transpose()?;
                if let Some(challenge) = &challenge {
                    if challenge.is_reflected_by(&asked) {
                        return Err(LoginError::Unproven("its challenge is ours"));
                    }
                    let (identifier, bytes) = challenge.written();
                    text::put(answer, "CHAP_I", &identifier);
                    text::put(answer, "CHAP_C", &bytes);
                }
                self.proof = Proof::Answered { response, challenge };
                Ok(true)
            }
            Proof::Answered { response, challenge } => {
                let Some((challenge, theirs)) = challenge.zip(credentials.theirs.as_ref()) else { return Ok(false) };
                match (value("CHAP_N"), value("CHAP_R")) {
                    (Some(_), Some(said)) if said.eq_ignore_ascii_case(&response) => {
                        Err(LoginError::Unproven("it sent our own response back"))
                    }
                    (Some(name), Some(said)) if challenge.is_met(theirs, name, said) => Ok(false),
                    (Some(_), Some(_)) => Err(LoginError::Unproven("a wrong name or secret")),
                    (None, None) => {
                        self.proof = Proof::Answered { response, challenge: Some(challenge) };
                        Ok(false)
                    }
                    _ => Err(LoginError::Unproven("half of an answer")),
                }
            }
            proof @ (Proof::Unneeded | Proof::Given) => {
                self.proof = proof;
                if value("CHAP_C").is_some() {
                    return Err(LoginError::Broken("another challenge"));
                }
                Ok(false)
            }
        }
    }

    fn offer(&mut self, mut text: Vec<u8>) -> Request {
        self.offered = true;
        Parameters::offers().iter().for_each(|(key, value)| text::put(&mut text, key, value));
        self.request(true, text)
    }

    fn operate(&mut self, transit: bool, next: u8, answer: Vec<u8>) -> Result<Next, LoginError> {
        match (transit, next) {
            (false, _) => Ok(Next::Request(self.request(true, answer))),
            (true, FULL_FEATURE) if self.offered => Ok(Next::Session(self.parameters)),
            _ => Err(LoginError::Broken("a stage that does not come next")),
        }
    }
}

/// Of statuses: the class.
const REDIRECTION: u16 = 0x01;

fn elsewhere(text: &[u8]) -> Result<Next, LoginError> {
    let pairs = text::pairs(text).collect::<Result<Vec<_>, _>>()?;
    let address = pairs.iter().find(|(key, _)| *key == "TargetAddress").map(|(_, value)| *value);
    // What follows the comma is the portal group (13.8).
    let address = address.map(|address| address.split(',').next().unwrap_or_default().to_owned());
    address.map(Next::Elsewhere).ok_or(LoginError::Broken("it points elsewhere, and does not say where"))
}

/// 11.13.5.
fn refusal(status: u16) -> LoginError {
    match status {
        login::AUTHENTICATION_FAILURE => LoginError::Authentication(status),
        0x0202 => LoginError::Forbidden(status),
        login::NOT_FOUND => LoginError::NotFound(status),
        0x0204 => LoginError::Removed(status),
        0x0206 | 0x0300..=0x03ff => LoginError::Unavailable(status),
        _ => LoginError::Refused(status),
    }
}

/// Keys that ask for no answer, and those that [`Login::prove`] takes.
fn is_declaration(key: &str) -> bool {
    matches!(key, "TargetAlias" | "TargetAddress" | "TargetPortalGroupTag" | "AuthMethod") || key.starts_with("CHAP_")
}

#[cfg(test)]
mod tests;
