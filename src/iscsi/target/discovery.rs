//! Text requests of the full feature phase (section 4.3, 6.4 and 11.10): which targets there are, and where.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::Target;
use super::login::PORTAL_GROUP;
use crate::iscsi::parameters::Parameters;
use crate::iscsi::pdu::login::CONTINUE;
use crate::iscsi::pdu::{FINAL, NO_TAG, TextRequest};
use crate::iscsi::text::{self, NOT_UNDERSTOOD, REJECT, TEXT_MAX};
use crate::net::Address;

/// The targets, and the portals that all of them are behind: first the one that the initiator has come to.
#[derive(Clone)]
pub struct Targets {
    pub all: Arc<[Arc<Target>]>,
    pub portals: Vec<String>,
}

/// The portals as an initiator is told of them which has come to `own`: paths to it are what it makes of them. A wildcard
/// is no address, and a loopback address is another one on another machine.
pub fn portals(own: String, listening: &[Address]) -> Vec<String> {
    let is_here = own.parse::<SocketAddr>().is_ok_and(|own| own.ip().is_loopback());
    let mut portals = vec![own];
    for address in listening {
        if let Address::Tcp(other) = address
            && let Ok(socket) = other.parse::<SocketAddr>()
            && !socket.ip().is_unspecified()
            && (is_here || !socket.ip().is_loopback())
            && *other != portals[0]
        {
            portals.push(other.clone());
        }
    }
    portals
}

impl Targets {
    /// Names that differ in case alone are the same (4.2.7.1).
    pub fn find(&self, name: &str) -> Option<Arc<Target>> {
        self.all.iter().find(|target| target.name.eq_ignore_ascii_case(name)).cloned()
    }
}

/// A question or an answer that is too long for one PDU.
#[derive(Default)]
pub struct Exchange {
    /// What was asked so far.
    question: Vec<u8>,
    /// What is still to be said.
    answer: Bytes,
    /// Tag of the exchange; another for each.
    tag: u32,
}

impl Exchange {
    /// The flags, transfer tag and text of the response; none if the request breaks the rules. `own` is the target of the
    /// session, the only one that it is told of; a discovery session is told of all.
    pub fn take(
        &mut self,
        head: &TextRequest,
        data: &[u8],
        targets: &Targets,
        own: Option<&str>,
        parameters: &mut Parameters,
    ) -> Option<(u8, u32, Bytes)> {
        let goes_on = head.transfer != NO_TAG;
        if goes_on && head.transfer != self.tag {
            return None;
        }
        if !goes_on {
            (self.question, self.answer) = (Vec::new(), Bytes::new());
            self.tag = (self.tag + 1) % NO_TAG;
        }
        if self.answer.is_empty() {
            self.question.extend_from_slice(data);
            if self.question.len() > TEXT_MAX {
                return None;
            }
            // More is to come, either of this text or behind it (11.10.1, 11.10.2).
            if head.flags & (FINAL | CONTINUE) != FINAL {
                return Some((0, self.tag, Bytes::new()));
            }
            let question = std::mem::take(&mut self.question);
            self.answer = answer(&question, targets, own, parameters)?.into();
        }
        let said = self.answer.split_to(self.answer.len().min(parameters.sent_max as usize));
        // Only a final request has a final response (11.11.1).
        match (self.answer.is_empty(), head.flags & FINAL != 0) {
            (true, true) => Some((FINAL, NO_TAG, said)),
            (true, false) => Some((0, self.tag, said)),
            (false, _) => Some((CONTINUE, self.tag, said)),
        }
    }
}

fn answer(question: &[u8], targets: &Targets, own: Option<&str>, parameters: &mut Parameters) -> Option<Vec<u8>> {
    let mut answer = Vec::new();
    for pair in text::pairs(question) {
        match pair.ok()? {
            // 13.3 and appendix C: all only in a discovery session, nothing only in a normal one.
            ("SendTargets", "All") if own.is_none() => {
                targets.all.iter().for_each(|target| targets.put(&mut answer, target))
            }
            ("SendTargets", "") if own.is_some() => {
                own.and_then(|own| targets.find(own)).iter().for_each(|target| targets.put(&mut answer, target));
            }
            ("SendTargets", "All" | "") => text::put(&mut answer, "SendTargets", REJECT),
            ("SendTargets", name) => {
                let visible = own.is_none_or(|own| own.eq_ignore_ascii_case(name));
                targets.find(name).filter(|_| visible).iter().for_each(|target| targets.put(&mut answer, target));
            }
            // The only one that may change now (13.12).
            (key @ "MaxRecvDataSegmentLength", value) => {
                parameters.answer(own.is_none(), key, value).ok()?;
            }
            (key, _) => text::put(&mut answer, key, NOT_UNDERSTOOD),
        }
    }
    Some(answer)
}

impl Targets {
    fn put(&self, answer: &mut Vec<u8>, target: &Target) {
        text::put(answer, "TargetName", &target.name);
        for portal in &self.portals {
            text::put(answer, "TargetAddress", &format!("{portal},{PORTAL_GROUP}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::scsi::{Unit, UnitSettings};

    const NAME: &str = "iqn.t:disk0";

    fn targets(portals: Vec<String>) -> Targets {
        let unit = Unit::new(Arc::new(MemoryDisk::new(1 << 20)), UnitSettings::example(NAME)).unwrap();
        Targets { all: [Target::new(NAME.into(), unit)].into(), portals }
    }

    fn request(flags: u8, transfer: u32) -> TextRequest {
        TextRequest { flags, transfer, ..TextRequest::default() }
    }

    #[test]
    fn an_initiator_is_told_of_each_portal_that_it_can_come_to() {
        let listening = ["0.0.0.0:3260", "10.0.0.7:3261", "[::]:3260", "[2001:db8::7]:3260", "127.0.0.1:3262"];
        let listening = listening.map(|address| Address::Tcp(address.into()));
        let told = |own: &str| portals(own.into(), &listening);
        assert_eq!(told("10.0.0.7:3260"), ["10.0.0.7:3260", "10.0.0.7:3261", "[2001:db8::7]:3260"]);
        assert_eq!(told("10.0.0.7:3261"), ["10.0.0.7:3261", "[2001:db8::7]:3260"]);
        assert_eq!(told("127.0.0.1:3260"), ["127.0.0.1:3260", "10.0.0.7:3261", "[2001:db8::7]:3260", "127.0.0.1:3262"]);

        let targets = targets(told("10.0.0.7:3261"));
        let mut exchange = Exchange::default();
        let asked = request(FINAL, NO_TAG);
        let (_, _, said) =
            exchange.take(&asked, b"SendTargets=All\0", &targets, None, &mut Parameters::default()).unwrap();
        let said: Vec<_> = text::pairs(&said).map(Result::unwrap).collect();
        let addresses = ["10.0.0.7:3261,1", "[2001:db8::7]:3260,1"].map(|address| ("TargetAddress", address));
        assert_eq!(said, [&[("TargetName", NAME)][..], &addresses].concat());
    }

    /// RFC 7143, 11.11.1.
    #[test]
    fn a_request_that_is_not_final_has_no_final_response() {
        let (targets, mut parameters) = (targets(vec!["10.0.0.7:3260".into()]), Parameters::default());
        let mut exchange = Exchange::default();
        let mut take = |head: TextRequest, data: &[u8], sent_max: u32| {
            parameters.sent_max = sent_max;
            exchange.take(&head, data, &targets, None, &mut parameters).unwrap()
        };
        let (flags, transfer, said) = take(request(0, NO_TAG), b"SendTargets=All\0", 8192);
        assert_eq!((flags, said.len()), (0, 0));
        let (flags, none, said) = take(request(FINAL, transfer), b"", 8192);
        assert_eq!((flags, none), (FINAL, NO_TAG));
        assert!(said.starts_with(b"TargetName="));
        // Nor has one that fetches the rest of a long answer.
        let (flags, transfer, first) = take(request(FINAL, NO_TAG), b"SendTargets=All\0", 16);
        assert_eq!((flags, first.len()), (CONTINUE, 16));
        let (flags, transfer, rest) = take(request(0, transfer), b"", 8192);
        assert_eq!((flags, [first, rest].concat()), (0, said.to_vec()));
        assert_eq!(take(request(FINAL, transfer), b"", 8192), (FINAL, NO_TAG, Bytes::new()));
    }
}
