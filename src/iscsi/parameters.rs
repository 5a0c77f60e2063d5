//! What both sides agree on before commands flow: the operational keys of RFC 7143, section 13, each by its rule.

use super::text::{self, IRRELEVANT, NO, NONE, NOT_UNDERSTOOD, REJECT, YES};
use crate::units::{KIB, MIB};

/// Data of one PDU that we take, bytes (13.12).
pub const RECEIVED_MAX: u32 = 256 * KIB as u32;
/// Data of one sequence of PDUs that we ask for or send, bytes (13.13).
const BURST_MAX: u32 = MIB as u32;
/// Data that an initiator may send unasked with a command, bytes (13.14): the usual writes come in one go.
const FIRST_BURST_MAX: u32 = 256 * KIB as u32;
/// Transfers of one command that are asked for at a time (13.17).
const OUTSTANDING_R2T_MAX: u32 = 8;
/// What the other side takes in one PDU until it says otherwise (13.12).
pub const RECEIVED_DEFAULT: u32 = 8192;
/// Numbers that lengths may be (13.12 to 13.14).
const LENGTHS: std::ops::RangeInclusive<u32> = 512..=0xff_ffff;

/// As they stand: the defaults of section 13 until something else is agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub header_digest: bool,
    pub data_digest: bool,
    /// Data of one PDU that the other side takes, bytes.
    pub sent_max: u32,
    pub initial_r2t: bool,
    pub immediate_data: bool,
    pub burst_max: u32,
    pub first_burst_max: u32,
    pub outstanding_r2t_max: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            header_digest: false,
            data_digest: false,
            sent_max: RECEIVED_DEFAULT,
            initial_r2t: true,
            immediate_data: true,
            burst_max: 256 * KIB as u32,
            first_burst_max: 64 * KIB as u32,
            outstanding_r2t_max: 1,
        }
    }
}

/// A value that no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value}")]
pub struct BadValue {
    pub key: String,
    pub value: String,
}

impl Parameters {
    /// As a target: takes what an initiator says of a key, and answers it; none where a declaration needs no answer.
    /// `discovery` sessions have no commands, and what is about them is irrelevant there.
    pub fn answer(&mut self, discovery: bool, key: &str, value: &str) -> Result<Option<String>, BadValue> {
        let bad = || BadValue { key: key.to_owned(), value: value.chars().take(80).collect() };
        if is_answer(key, value) {
            return Ok(None);
        }
        // No offer may be one of these (6.2).
        if ANSWERS.contains(&value) {
            return Err(bad());
        }
        let boolean = || match value {
            YES => Ok(true),
            NO => Ok(false),
            _ => Err(bad()),
        };
        let length = || text::number(value).filter(|length| LENGTHS.contains(length)).ok_or_else(bad);
        let number = |range: std::ops::RangeInclusive<u32>| {
            text::number(value).filter(|number| range.contains(number)).ok_or_else(bad)
        };
        let yes_or_no = |yes| if yes { YES } else { NO }.to_owned();
        let about_commands = matches!(
            key,
            "InitialR2T"
                | "ImmediateData"
                | "MaxBurstLength"
                | "FirstBurstLength"
                | "MaxOutstandingR2T"
                | "DataPDUInOrder"
                | "DataSequenceInOrder"
                | "MaxConnections"
        );
        if discovery && about_commands {
            return Ok(Some(IRRELEVANT.to_owned()));
        }
        Ok(Some(match key {
            // 13.1: the first of the initiator's list that we have.
            "HeaderDigest" => digest(value, &mut self.header_digest),
            "DataDigest" => digest(value, &mut self.data_digest),
            // 13.2: one.
            "MaxConnections" => number(1..=65_535)?.min(1).to_string(),
            // 13.10: yes if either wants it, and we do not.
            "InitialR2T" => {
                self.initial_r2t = boolean()?;
                yes_or_no(self.initial_r2t)
            }
            // 13.11: yes if both want it, and we do.
            "ImmediateData" => {
                self.immediate_data = boolean()?;
                yes_or_no(self.immediate_data)
            }
            "MaxRecvDataSegmentLength" => {
                self.sent_max = length()?;
                return Ok(None);
            }
            "MaxBurstLength" => {
                self.burst_max = length()?.min(BURST_MAX);
                self.burst_max.to_string()
            }
            "FirstBurstLength" => {
                // 13.14: never more than a burst.
                self.first_burst_max = length()?.min(FIRST_BURST_MAX).min(self.burst_max);
                self.first_burst_max.to_string()
            }
            // 13.15, 13.16: how long to wait before a login anew, and how long tasks are kept for it.
            "DefaultTime2Wait" => number(0..=3600)?.max(2).to_string(),
            // The least of both, and ours is none.
            "DefaultTime2Retain" => number(0..=3600).map(|_| "0".to_owned())?,
            "MaxOutstandingR2T" => {
                self.outstanding_r2t_max = number(1..=65_535)?.min(OUTSTANDING_R2T_MAX);
                self.outstanding_r2t_max.to_string()
            }
            // 13.18, 13.19: yes if either wants it, and we do.
            "DataPDUInOrder" | "DataSequenceInOrder" => boolean().map(|_| YES.to_owned())?,
            // 13.20: the least of both, and ours is 0.
            "ErrorRecoveryLevel" => number(0..=2).map(|_| "0".to_owned())?,
            // 13.23 and RFC 7144: what RFC 7143 has is level 1.
            "iSCSIProtocolLevel" => number(0..=31)?.min(1).to_string(),
            // 13.23: tasks that a reset ends are not reported each.
            "TaskReporting" => match text::list(value).any(|report| report == "RFC3720") {
                true => "RFC3720",
                false => REJECT,
            }
            .to_owned(),
            // Obsolete (13.26).
            "IFMarker" | "OFMarker" => NO.to_owned(),
            "IFMarkInt" | "OFMarkInt" => REJECT.to_owned(),
            _ => NOT_UNDERSTOOD.to_owned(),
        }))
    }

    /// As an initiator: what is asked for, of every key that has a default.
    pub fn offers() -> [(&'static str, String); 14] {
        let digests = format!("{CRC32C},{NONE}");
        [
            ("HeaderDigest", digests.clone()),
            ("DataDigest", digests),
            ("MaxConnections", "1".into()),
            ("InitialR2T", NO.into()),
            ("ImmediateData", YES.into()),
            ("MaxRecvDataSegmentLength", RECEIVED_MAX.to_string()),
            ("MaxBurstLength", BURST_MAX.to_string()),
            ("FirstBurstLength", FIRST_BURST_MAX.to_string()),
            ("DefaultTime2Wait", "0".into()),
            ("DefaultTime2Retain", "0".into()),
            ("MaxOutstandingR2T", OUTSTANDING_R2T_MAX.to_string()),
            ("DataPDUInOrder", YES.into()),
            ("DataSequenceInOrder", YES.into()),
            ("ErrorRecoveryLevel", "0".into()),
        ]
    }

    /// As an initiator: takes what a target says of a key, which is an answer to [`offers`](Self::offers) or a
    /// declaration. False if it is neither. A key that it cannot agree on stays at its default.
    pub fn accept(&mut self, key: &str, value: &str) -> Result<bool, BadValue> {
        if !Self::offers().iter().any(|(offered, _)| *offered == key) {
            return Ok(false);
        }
        if ANSWERS.contains(&value) {
            return Ok(true);
        }
        let bad = || BadValue { key: key.to_owned(), value: value.chars().take(80).collect() };
        let boolean = || match value {
            YES => Ok(true),
            NO => Ok(false),
            _ => Err(bad()),
        };
        let digest = || match value {
            CRC32C => Ok(true),
            NONE => Ok(false),
            _ => Err(bad()),
        };
        let number = |range: std::ops::RangeInclusive<u32>| {
            text::number(value).filter(|number| range.contains(number)).ok_or_else(bad)
        };
        // The least of both sides' is not more than ours.
        let least = |ours: u32| number(*LENGTHS.start()..=ours);
        match key {
            "HeaderDigest" => self.header_digest = digest()?,
            "DataDigest" => self.data_digest = digest()?,
            "MaxConnections" => drop(number(1..=1)?),
            "InitialR2T" => self.initial_r2t = boolean()?,
            "ImmediateData" => self.immediate_data = boolean()?,
            "MaxRecvDataSegmentLength" => self.sent_max = number(LENGTHS)?,
            "MaxBurstLength" => self.burst_max = least(BURST_MAX)?,
            "FirstBurstLength" => self.first_burst_max = least(FIRST_BURST_MAX)?,
            "DefaultTime2Wait" => drop(number(0..=3600)?),
            "DefaultTime2Retain" => drop(number(0..=0)?),
            "MaxOutstandingR2T" => self.outstanding_r2t_max = number(1..=OUTSTANDING_R2T_MAX)?,
            // Yes if either wants it, and we do.
            "DataPDUInOrder" | "DataSequenceInOrder" if !boolean()? => return Err(bad()),
            "ErrorRecoveryLevel" => drop(number(0..=0)?),
            _ => {}
        }
        Ok(true)
    }

    /// Data that may come unasked with a command, in its own PDU and behind it, bytes.
    pub fn unsolicited_max(&self) -> u32 {
        self.first_burst_max.min(self.burst_max)
    }
}

/// What is said of a key that cannot be agreed on.
const ANSWERS: [&str; 3] = [REJECT, IRRELEVANT, NOT_UNDERSTOOD];

/// Whether an initiator only answers what a target of ours has declared, which asks for nothing.
pub fn is_answer(key: &str, value: &str) -> bool {
    ["MaxRecvDataSegmentLength", "TargetPortalGroupTag"].contains(&key) && ANSWERS.contains(&value)
}

fn digest(value: &str, chosen: &mut bool) -> String {
    let first = text::list(value).find(|digest| [NONE, CRC32C].contains(digest));
    *chosen = first == Some(CRC32C);
    first.unwrap_or(REJECT).to_owned()
}

pub const CRC32C: &str = "CRC32C";

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(discovery: bool, offers: &[(&str, &str)]) -> (Parameters, Vec<Option<String>>) {
        let mut parameters = Parameters::default();
        let answers = offers.iter().map(|(key, value)| parameters.answer(discovery, key, value).unwrap()).collect();
        (parameters, answers)
    }

    #[test]
    fn each_key_is_answered_by_its_rule() {
        let offers = [
            ("HeaderDigest", "CRC32C,None", Some("CRC32C")),
            ("DataDigest", "None,CRC32C", Some("None")),
            ("MaxConnections", "8", Some("1")),
            ("InitialR2T", "No", Some("No")),
            ("ImmediateData", "Yes", Some("Yes")),
            ("MaxRecvDataSegmentLength", "262144", None),
            ("MaxBurstLength", "16776192", Some("1048576")),
            ("FirstBurstLength", "131072", Some("131072")),
            ("DefaultTime2Wait", "0", Some("2")),
            ("DefaultTime2Retain", "20", Some("0")),
            ("MaxOutstandingR2T", "3", Some("3")),
            ("DataPDUInOrder", "No", Some("Yes")),
            ("DataSequenceInOrder", "Yes", Some("Yes")),
            ("ErrorRecoveryLevel", "2", Some("0")),
            ("iSCSIProtocolLevel", "2", Some("1")),
            ("TaskReporting", "ResponseFence,RFC3720", Some("RFC3720")),
            ("IFMarker", "Yes", Some("No")),
            ("X-com.example.key", "1", Some("NotUnderstood")),
        ];
        let (parameters, found) = answers(false, &offers.map(|(key, value, _)| (key, value)));
        assert_eq!(found, offers.map(|(.., answer)| answer.map(str::to_owned)));
        let expected = Parameters {
            header_digest: true,
            data_digest: false,
            sent_max: 262_144,
            initial_r2t: false,
            immediate_data: true,
            burst_max: 1_048_576,
            first_burst_max: 131_072,
            outstanding_r2t_max: 3,
        };
        assert_eq!(parameters, expected);
    }

    #[test]
    fn unasked_data_is_never_more_than_a_burst() {
        let offers = [("MaxBurstLength", "4096"), ("FirstBurstLength", "65536")];
        let (parameters, found) = answers(false, &offers);
        assert_eq!(found, [Some("4096".to_owned()), Some("4096".to_owned())]);
        assert_eq!((parameters.burst_max, parameters.first_burst_max), (4096, 4096));
    }

    #[test]
    fn what_only_an_answer_may_be_is_no_offer() {
        for value in ANSWERS {
            for key in ["HeaderDigest", "InitialR2T", "MaxBurstLength", "X-com.example.key"] {
                let error = Parameters::default().answer(false, key, value).unwrap_err();
                assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
            }
            let declared = [("MaxRecvDataSegmentLength", value), ("TargetPortalGroupTag", value)];
            assert_eq!(answers(false, &declared), (Parameters::default(), vec![None, None]));
        }
    }

    #[test]
    fn what_is_about_commands_is_irrelevant_where_there_are_none() {
        let (parameters, found) = answers(true, &[("InitialR2T", "No"), ("HeaderDigest", "None")]);
        assert_eq!(found, [Some("Irrelevant".to_owned()), Some("None".to_owned())]);
        assert!(parameters.initial_r2t);
    }

    #[test]
    fn a_digest_that_we_do_not_have_is_rejected_and_others_are_chosen() {
        assert_eq!(answers(false, &[("HeaderDigest", "SHA256")]).1, [Some("Reject".to_owned())]);
        assert_eq!(answers(false, &[("HeaderDigest", "SHA256,CRC32C")]).1, [Some("CRC32C".to_owned())]);
    }

    #[test]
    fn values_that_no_rule_allows_are_errors() {
        for (key, value) in [
            ("InitialR2T", "yes"),
            ("MaxBurstLength", "511"),
            ("MaxBurstLength", "16777216"),
            ("MaxOutstandingR2T", "0"),
            ("ErrorRecoveryLevel", "3"),
            ("MaxRecvDataSegmentLength", ""),
        ] {
            let error = Parameters::default().answer(false, key, value).unwrap_err();
            assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
        }
    }

    #[test]
    fn what_a_target_answers_to_our_offers_is_what_an_initiator_takes() {
        let (mut ours, mut theirs) = (Parameters::default(), Parameters::default());
        for (key, value) in Parameters::offers() {
            if let Some(answer) = theirs.answer(false, key, &value).unwrap() {
                assert_eq!(ours.accept(key, &answer), Ok(true), "{key}");
            }
        }
        assert_eq!(ours.accept("MaxRecvDataSegmentLength", &RECEIVED_MAX.to_string()), Ok(true));
        assert_eq!(ours, theirs);
        assert_eq!(ours.accept("TargetAlias", "disk"), Ok(false));
    }

    #[test]
    fn an_answer_that_its_rule_does_not_allow_is_an_error() {
        for (key, value) in [
            ("HeaderDigest", "SHA256"),
            ("MaxConnections", "2"),
            ("InitialR2T", "Maybe"),
            ("MaxBurstLength", "1048577"),
            ("MaxBurstLength", "511"),
            ("FirstBurstLength", "262145"),
            ("MaxRecvDataSegmentLength", "16777216"),
            ("DefaultTime2Wait", "3601"),
            ("DefaultTime2Retain", "1"),
            ("MaxOutstandingR2T", "9"),
            ("MaxOutstandingR2T", "0"),
            ("DataPDUInOrder", "No"),
            ("DataSequenceInOrder", "No"),
            ("ErrorRecoveryLevel", "1"),
        ] {
            let error = Parameters::default().accept(key, value).unwrap_err();
            assert_eq!((error.key.as_str(), error.value.as_str()), (key, value));
        }
        let mut parameters = Parameters::default();
        assert_eq!(parameters.accept("InitialR2T", NOT_UNDERSTOOD), Ok(true));
        assert_eq!(parameters, Parameters::default(), "what it does not understand stays as it is");
    }
}
