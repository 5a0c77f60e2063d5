//! The login phase (section 6), the target's side: who the initiator is, whether it is let in, and what both agree on.
//! Pure: a request in, a response out.
//!
//! ```text
//!        ┌──────────┐  AuthMethod, CHAP   ┌─────────────┐  operational keys   ┌──────────────┐
//! ─────► │ security ├────────────────────►│ operational ├────────────────────►│ full feature │
//!        └────┬─────┘                     └──────▲──────┘                     └──────▲───────┘
//!             └──────────────────────────────────┼───────────────────────────────────┘
//! ─────────────────────────────── without CHAP ──┘
//! ```
//! Invariant: with CHAP configured nobody leaves security, by whatever way, who has not met our challenge.

use std::collections::HashMap;
use std::sync::Arc;

use super::Target;
use crate::iscsi::chap::{self, Challenge, Chap};
use crate::iscsi::parameters::{self, BadValue, Parameters, RECEIVED_DEFAULT, RECEIVED_MAX};
use crate::iscsi::pdu::login::{self, CONTINUE, FULL_FEATURE, OPERATIONAL, SECURITY, TRANSIT};
use crate::iscsi::pdu::{LoginRequest, LoginResponse};
use crate::iscsi::text::{self, NONE, REJECT, TEXT_MAX, TextError};

/// The longest name of an initiator or a target, bytes (4.2.7.1).
pub const NAME_MAX: usize = 223;
/// All our portals belong to one group.
pub const PORTAL_GROUP: u16 = 1;
/// Keys that a login may say, which is many times what there are: they are remembered until its end.
const KEYS_MAX: usize = 256;
/// RFC 7143 has version 0.
const VERSION: u8 = 0;

/// Who has logged in, to what, and how.
#[derive(Clone)]
pub struct Agreed {
    pub initiator: String,
    pub isid: [u8; 6],
    pub connection: u16,
    /// None in a discovery session.
    pub target: Option<Arc<Target>>,
    pub parameters: Parameters,
}

/// Why an initiator is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it wants version {0} at least")]
    Version(u8),
    #[error("a connection more to session {0}, of which there is none")]
    NoSuchSession(u16),
    #[error("it breaks the rules of the login: {0}")]
    Protocol(&'static str),
    #[error("text that cannot be read")]
    Text(#[from] TextError),
    #[error("a value that cannot be")]
    Value(#[from] BadValue),
    #[error("it does not say {0}")]
    Missing(&'static str),
    #[error("sessions of type {0:?} do not exist")]
    SessionType(String),
    #[error("there is no target {0:?}")]
    NoSuchTarget(String),
    #[error("it has not proven who it is: {0}")]
    Authentication(&'static str),
    #[error("no randomness for a challenge")]
    Randomness(#[from] getrandom::Error),
}

impl Refusal {
    fn status(&self) -> u16 {
        match self {
            Self::Version(_) => login::UNSUPPORTED_VERSION,
            Self::NoSuchSession(_) => login::SESSION_DOES_NOT_EXIST,
            Self::Protocol(_) | Self::Text(_) | Self::Value(_) => login::INITIATOR_ERROR,
            Self::Missing(_) => login::MISSING_PARAMETER,
            Self::SessionType(_) => login::SESSION_TYPE_NOT_SUPPORTED,
            Self::NoSuchTarget(_) => login::NOT_FOUND,
            Self::Authentication(_) => login::AUTHENTICATION_FAILURE,
            Self::Randomness(_) => login::TARGET_ERROR,
        }
    }
}

/// What comes after a response.
pub enum Next {
    Request,
    /// The session begins with it, if the server has a place for it.
    Session(Agreed),
    Refused(Refusal),
}

pub struct Step {
    /// Without serial numbers, and without the session's number.
    pub response: LoginResponse,
    pub text: Vec<u8>,
    pub next: Next,
}

/// How far the initiator's proof is.
enum Proof {
    /// `AuthMethod` was not agreed on.
    Unasked,
    /// CHAP was; `CHAP_A` is to come.
    Method,
    Asked(Challenge),
    Given,
}

/// One login, from its first request on.
pub struct Login<'a> {
    find: &'a (dyn Fn(&str) -> Option<Arc<Target>> + Sync),
    chap: Option<&'a Chap>,
    proof: Proof,
    stage: Option<u8>,
    isid: [u8; 6],
    /// Of requests that go on.
    text: Vec<u8>,
    initiator: Option<String>,
    target_name: Option<String>,
    target: Option<Arc<Target>>,
    discovery: bool,
    /// Keys that the initiator has said; those that it may say again, with their values.
    said: HashMap<String, String>,
    /// What we declare was said: our portal group, ...
    group_declared: bool,
    /// ... and what we take.
    declared: bool,
    parameters: Parameters,
}

impl<'a> Login<'a> {
    pub fn new(find: &'a (dyn Fn(&str) -> Option<Arc<Target>> + Sync), chap: Option<&'a Chap>) -> Self {
        Self {
            find,
            chap,
            proof: Proof::Unasked,
            stage: None,
            isid: [0; 6],
            text: Vec::new(),
            initiator: None,
            target_name: None,
            target: None,
            discovery: false,
            said: HashMap::new(),
            group_declared: false,
            declared: false,
            parameters: Parameters::default(),
        }
    }

    pub fn step(&mut self, request: &LoginRequest, text: &[u8]) -> Step {
        let mut answer = Vec::new();
        let (flags, next) = match self.take(request, text, &mut answer) {
            Ok(taken) => taken,
            Err(refusal) => {
                answer.clear();
                (request.flags & 0x0f, Next::Refused(refusal))
            }
        };
        let status = if let Next::Refused(refusal) = &next { refusal.status() } else { login::SUCCESS };
        let response = LoginResponse {
            flags: if status == login::SUCCESS { flags } else { flags & !(TRANSIT | CONTINUE) },
            version_max: VERSION,
            version_active: VERSION,
            isid: request.isid,
            task: request.task,
            status,
            ..LoginResponse::default()
        };
        Step { response, text: answer, next }
    }

    /// The flags of the response, and what comes after it.
    fn take(&mut self, request: &LoginRequest, text: &[u8], answer: &mut Vec<u8>) -> Result<(u8, Next), Refusal> {
        if request.version_min > VERSION {
            return Err(Refusal::Version(request.version_min));
        }
        if request.tsih != 0 {
            return Err(Refusal::NoSuchSession(request.tsih));
        }
        if self.stage.is_none() {
            self.isid = request.isid;
        } else if self.isid != request.isid {
            return Err(Refusal::Protocol("another ISID"));
        }
        let (current, wanted) = login::stages(request.flags);
        let transit = request.flags & TRANSIT != 0;
        self.enter(current)?;
        self.text.extend_from_slice(text);
        if self.text.len() > TEXT_MAX {
            return Err(Refusal::Text(TextError::TooLong));
        }
        if request.flags & CONTINUE != 0 {
            return if transit {
                Err(Refusal::Protocol("the end of a stage inside of a text"))
            } else {
                Ok((current << 2, Next::Request))
            };
        }
        let text = std::mem::take(&mut self.text);
        let mut pairs = text::pairs(&text).collect::<Result<Vec<_>, _>>()?;
        // What it may be depends on MaxBurstLength (13.14), whichever of both is said first.
        pairs.sort_by_key(|(key, _)| *key == "FirstBurstLength");
        self.note(&pairs)?;
        self.identify(&pairs)?;
        self.prove(&pairs, answer)?;
        for (key, value) in &pairs {
            if !is_about_identity(key)
                && let Some(said) = self.parameters.answer(self.discovery, key, value)?
            {
                text::put(answer, key, &said);
            }
        }
        if current == OPERATIONAL && !std::mem::replace(&mut self.declared, true) {
            text::put(answer, "MaxRecvDataSegmentLength", &RECEIVED_MAX.to_string());
        }
        // Behind the first text that is whole (13.9).
        if !self.discovery && !std::mem::replace(&mut self.group_declared, true) {
            text::put(answer, "TargetPortalGroupTag", &PORTAL_GROUP.to_string());
        }
        // One PDU holds what any login needs to be answered, and only answers to keys that nobody knows are longer.
        if answer.len() > RECEIVED_DEFAULT as usize {
            return Err(Refusal::Protocol("more keys than one PDU answers"));
        }
        let proven = self.chap.is_none() || matches!(self.proof, Proof::Given);
        if !transit || (current == SECURITY && !proven && !matches!(self.proof, Proof::Unasked)) {
            return Ok((current << 2, Next::Request));
        }
        if !proven {
            return Err(Refusal::Authentication("it offers no CHAP"));
        }
        if wanted <= current || !matches!(wanted, OPERATIONAL | FULL_FEATURE) {
            return Err(Refusal::Protocol("a stage that does not come next"));
        }
        self.stage = Some(wanted);
        let flags = TRANSIT | current << 2 | wanted;
        if wanted == OPERATIONAL {
            return Ok((flags, Next::Request));
        }
        let agreed = Agreed {
            initiator: self.initiator.clone().ok_or(Refusal::Missing("InitiatorName"))?,
            isid: self.isid,
            connection: request.connection,
            target: self.target.clone(),
            parameters: self.parameters,
        };
        Ok((flags, Next::Session(agreed)))
    }

    /// The first request says where it begins; later ones are where we sent them.
    fn enter(&mut self, current: u8) -> Result<(), Refusal> {
        match self.stage {
            Some(stage) if stage == current => Ok(()),
            None if current == SECURITY || (current == OPERATIONAL && self.chap.is_none()) => {
                self.stage = Some(current);
                Ok(())
            }
            None if current == OPERATIONAL => Err(Refusal::Authentication("it passes over security")),
            _ => Err(Refusal::Protocol("a stage in which it is not")),
        }
    }

    /// No key may be said twice in a login (6.3). Who it is and what it wants some initiators say in each stage, which
    /// changes nothing as long as it stays the same.
    fn note(&mut self, pairs: &[(&str, &str)]) -> Result<(), Refusal> {
        for &(key, value) in pairs.iter().filter(|(key, value)| !parameters::is_answer(key, value)) {
            let again = match key {
                // Names that differ in case alone are the same (4.2.7.1).
                "InitiatorName" | "TargetName" => Some(value.to_ascii_lowercase()),
                "InitiatorAlias" | "SessionType" => Some(value.to_owned()),
                _ => None,
            };
            if let Some(before) = self.said.get(key) {
                if again.as_ref() != Some(before) {
                    return Err(Refusal::Protocol("a key twice"));
                }
            } else if self.said.len() == KEYS_MAX {
                return Err(Refusal::Protocol("more keys than there are"));
            } else {
                self.said.insert(key.to_owned(), again.unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Takes names and the type of session, which the first text must have.
    fn identify(&mut self, pairs: &[(&str, &str)]) -> Result<(), Refusal> {
        let first = self.initiator.is_none();
        for &(key, value) in pairs {
            match key {
                "InitiatorName" if value.is_empty() || value.len() > NAME_MAX => {
                    return Err(Refusal::Protocol("a name that is empty or too long"));
                }
                // In small letters, as names that differ in case alone are the same (4.2.7.1).
                "InitiatorName" if first => self.initiator = Some(value.to_ascii_lowercase()),
                "SessionType" if first => match value {
                    "Normal" => self.discovery = false,
                    "Discovery" => self.discovery = true,
                    _ => return Err(Refusal::SessionType(value.chars().take(80).collect())),
                },
                "TargetName" if first => self.target_name = Some(value.to_owned()),
                _ => {}
            }
        }
        if self.initiator.is_none() {
            return Err(Refusal::Missing("InitiatorName"));
        }
        if first && !self.discovery {
            let name = self.target_name.as_deref().ok_or(Refusal::Missing("TargetName"))?;
            let target = (self.find)(name);
            self.target = Some(target.ok_or_else(|| Refusal::NoSuchTarget(name.chars().take(NAME_MAX).collect()))?);
        }
        Ok(())
    }

    /// Takes what is about the proof of who it is (12.1), and answers it.
    fn prove(&mut self, pairs: &[(&str, &str)], answer: &mut Vec<u8>) -> Result<(), Refusal> {
        let value = |key: &str| pairs.iter().find(|(found, _)| *found == key).map(|(_, value)| *value);
        if let Some(methods) = value("AuthMethod") {
            let wanted = if self.chap.is_some() { "CHAP" } else { NONE };
            if !text::list(methods).any(|method| method == wanted) {
                text::put(answer, "AuthMethod", REJECT);
                return Err(Refusal::Authentication("no method of its list is ours"));
            }
            text::put(answer, "AuthMethod", wanted);
            self.proof = if self.chap.is_some() { Proof::Method } else { Proof::Given };
        }
        let Some(chap) = self.chap else { return Ok(()) };
        if let Some(algorithms) = value("CHAP_A") {
            if !matches!(self.proof, Proof::Method) {
                return Err(Refusal::Protocol("CHAP_A out of order"));
            }
            if !text::list(algorithms).any(|algorithm| algorithm == chap::MD5) {
                return Err(Refusal::Authentication("no algorithm of its list is ours"));
            }
            let challenge = Challenge::new()?;
            let (identifier, bytes) = challenge.written();
            text::put(answer, "CHAP_A", chap::MD5);
            text::put(answer, "CHAP_I", &identifier);
            text::put(answer, "CHAP_C", &bytes);
            self.proof = Proof::Asked(challenge);
        }
        let (Some(name), Some(response)) = (value("CHAP_N"), value("CHAP_R")) else {
            let parts = ["CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"];
            return match parts.iter().any(|key| value(key).is_some()) {
                true => Err(Refusal::Authentication("half of an answer")),
                false => Ok(()),
            };
        };
        // A challenge is answered once, rightly or not.
        let Proof::Asked(challenge) = std::mem::replace(&mut self.proof, Proof::Unasked) else {
            return Err(Refusal::Protocol("an answer to no challenge"));
        };
        if !challenge.is_met(&chap.initiator, name, response) {
            return Err(Refusal::Authentication("a wrong name or secret"));
        }
        match (value("CHAP_I"), value("CHAP_C")) {
            (None, None) => {}
            (Some(identifier), Some(asked)) => {
                let account = chap.target.as_ref();
                let account = account.ok_or(Refusal::Authentication("it asks for our proof, and there is none"))?;
                let identifier = text::number(identifier).and_then(|number| u8::try_from(number).ok());
                let identifier = identifier.ok_or(Refusal::Authentication("a challenge that cannot be read"))?;
                let asked = text::bytes(asked, chap::CHALLENGE_MAX).filter(|asked| !asked.is_empty());
                let asked = asked.ok_or(Refusal::Authentication("a challenge that cannot be read"))?;
                if challenge.is_reflected_by(&asked) {
                    return Err(Refusal::Authentication("our own challenge came back"));
                }
                let response = chap::response_to(identifier, &account.secret, &asked);
                text::put(answer, "CHAP_N", &account.user);
                text::put(answer, "CHAP_R", &text::hexadecimal(&response));
            }
            _ => return Err(Refusal::Authentication("half of a challenge")),
        }
        self.proof = Proof::Given;
        Ok(())
    }
}

/// Whether a key was taken by [`Login::identify`] or [`Login::prove`].
fn is_about_identity(key: &str) -> bool {
    matches!(key, "InitiatorName" | "InitiatorAlias" | "SessionType" | "TargetName" | "AuthMethod")
        || key.starts_with("CHAP_")
}

#[cfg(test)]
mod tests;
