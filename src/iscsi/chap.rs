//! The challenge handshake (CHAP; RFC 1994, and RFC 7143, section 12.1.3): whoever knows a secret proves it without
//! saying it.
//!
//! MD5 is what every initiator has. It is not broken here in the way that it is as a hash of documents, but whoever
//! listens can try secrets offline, so that they have to be long ([`SECRET_MIN`]).

use std::fmt;

use constant_time_eq::constant_time_eq;
use md5::{Digest, Md5};

use super::text;

/// `CHAP_A` of MD5.
pub const MD5: &str = "5";
/// RFC 7143, 9.2.1: shorter secrets need a protected network.
pub const SECRET_MIN: usize = 12;
/// The longest challenge that RFC 7143, 12.1.3 allows.
pub const CHALLENGE_MAX: usize = 1024;
/// What we ask, bytes: as long as the answer.
const CHALLENGE: usize = 16;

/// Known to both sides; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// None unless it has 12 bytes or more.
    pub fn new(secret: Vec<u8>) -> Option<Self> {
        (secret.len() >= SECRET_MIN).then_some(Self(secret))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Who proves to be whom: a name and its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub user: String,
    pub secret: Secret,
}

/// What initiators have to prove, and what the target proves to those who ask.
#[derive(Clone, Debug)]
pub struct Chap {
    pub initiator: Account,
    pub target: Option<Account>,
}

/// A challenge of ours that waits for its answer.
pub struct Challenge {
    identifier: u8,
    bytes: [u8; CHALLENGE],
}

impl Challenge {
    /// Fails if the kernel has no randomness.
    pub fn new() -> Result<Self, getrandom::Error> {
        let (mut identifier, mut bytes) = ([0], [0; CHALLENGE]);
        crate::random::fill(&mut identifier)?;
        crate::random::fill(&mut bytes)?;
        Ok(Self { identifier: identifier[0], bytes })
    }

    /// `CHAP_I` and `CHAP_C`.
    pub fn written(&self) -> (String, String) {
        (self.identifier.to_string(), text::hexadecimal(&self.bytes))
    }

    /// Whether `name` and `response`, as the other side wrote them, are the account's. Takes as long for a wrong one.
    pub fn is_met(&self, account: &Account, name: &str, response: &str) -> bool {
        let expected = response_to(self.identifier, &account.secret, &self.bytes);
        let response = text::bytes(response, expected.len()).unwrap_or_default();
        let right_name = constant_time_eq(name.as_bytes(), account.user.as_bytes());
        let right_response = constant_time_eq(&response, &expected);
        right_name & right_response
    }

    /// Whether it is the challenge that the other side asks us: it wants to be told what it is to say.
    pub fn is_reflected_by(&self, challenge: &[u8]) -> bool {
        self.bytes == challenge
    }
}

/// `CHAP_R` to a challenge (RFC 1994, 4.1).
pub fn response_to(identifier: u8, secret: &Secret, challenge: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update([identifier]);
    hash.update(&secret.0);
    hash.update(challenge);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(user: &str, secret: &str) -> Account {
        Account { user: user.into(), secret: Secret::new(secret.into()).unwrap() }
    }

    /// Reckoned with `printf '\x07secretsecret1\x01\x02\x03' | md5sum`.
    #[test]
    fn a_response_is_the_hash_of_identifier_secret_and_challenge() {
        let response = response_to(7, &account("u", "secretsecret1").secret, &[1, 2, 3]);
        assert_eq!(text::hexadecimal(&response), "0xada3a99046ae12d51ecaabeb7abd5f98");
    }

    #[test]
    fn only_the_right_name_and_response_meet_a_challenge() {
        let challenge = Challenge { identifier: 7, bytes: [9; CHALLENGE] };
        let account = account("alice", "secretsecret1");
        let right = text::hexadecimal(&response_to(7, &account.secret, &[9; CHALLENGE]));
        assert!(challenge.is_met(&account, "alice", &right));
        assert!(!challenge.is_met(&account, "bob", &right));
        let wrong = text::hexadecimal(&response_to(8, &account.secret, &[9; CHALLENGE]));
        for wrong in [wrong.as_str(), "", "0x", "0x00", &right[..32], &format!("{right}00"), "no hexadecimal"] {
            assert!(!challenge.is_met(&account, "alice", wrong), "{wrong}");
        }
        assert!(challenge.is_reflected_by(&[9; CHALLENGE]) && !challenge.is_reflected_by(&[8; CHALLENGE]));
    }

    #[test]
    fn a_secret_is_long_and_is_not_shown() {
        assert!(Secret::new(b"elevenbytes".to_vec()).is_none());
        assert!(!format!("{:?}", account("u", "secretsecret1")).contains("secret1"));
    }
}
