use proptest::prelude::*;

use super::*;
use crate::disk::MemoryDisk;
use crate::iscsi::chap::{Account, Secret, response_to};
use crate::random::SplitMix64;
use crate::scsi::{Unit, UnitSettings};

const TARGET: &str = "iqn.2026-11.io.umbra:disk0";

fn target() -> Arc<Target> {
    Target::new(TARGET.into(), Unit::new(Arc::new(MemoryDisk::new(1 << 20)), UnitSettings::example(TARGET)).unwrap())
}

fn find(target: &Arc<Target>) -> impl Fn(&str) -> Option<Arc<Target>> + Sync {
    let target = target.clone();
    move |name| (name == TARGET).then(|| target.clone())
}

fn account(user: &str, secret: &str) -> Account {
    Account { user: user.into(), secret: Secret::new(secret.into()).unwrap() }
}

fn chap() -> Chap {
    Chap { initiator: account("alice", "secret-of-alice"), target: Some(account("umbra", "secret-of-umbra")) }
}

fn request(flags: u8) -> LoginRequest {
    LoginRequest { flags, isid: [0x80, 1, 2, 3, 4, 5], task: 9, ..LoginRequest::default() }
}

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    pairs.iter().for_each(|(key, value)| text::put(&mut text, key, value));
    text
}

const WHO: [(&str, &str); 3] = [("InitiatorName", "iqn.host"), ("SessionType", "Normal"), ("TargetName", TARGET)];
const FROM_SECURITY: u8 = TRANSIT | SECURITY << 2 | OPERATIONAL;
const FROM_OPERATIONAL: u8 = TRANSIT | OPERATIONAL << 2 | FULL_FEATURE;
const STAYS: u8 = SECURITY << 2 | OPERATIONAL;

fn with(more: &[(&str, &str)]) -> Vec<u8> {
    text(&[&WHO, more].concat())
}

fn said<'a>(step: &'a Step, key: &str) -> Option<&'a str> {
    text::pairs(&step.text).map(Result::unwrap).find(|(found, _)| *found == key).map(|(_, value)| value)
}

fn is_let_in(step: &Step) -> bool {
    matches!(step.next, Next::Session(_))
}

#[test]
fn without_chap_whoever_names_a_target_is_let_in_from_either_stage() {
    let target = target();
    let find = find(&target);
    let mut login = Login::new(&find, None);
    let first = login.step(&request(FROM_SECURITY), &with(&[("AuthMethod", "CHAP,None")]));
    assert_eq!((said(&first, "AuthMethod"), first.response.flags), (Some("None"), FROM_SECURITY));
    assert_eq!(said(&first, "TargetPortalGroupTag"), Some("1"));
    let second = login.step(&request(FROM_OPERATIONAL), &text(&[("InitialR2T", "No")]));
    assert_eq!((said(&second, "InitialR2T"), said(&second, "MaxRecvDataSegmentLength")), (Some("No"), Some("262144")));
    let Next::Session(agreed) = second.next else { panic!("not let in") };
    assert_eq!((agreed.initiator.as_str(), agreed.target.is_some()), ("iqn.host", true));
    assert!(is_let_in(&Login::new(&find, None).step(&request(FROM_OPERATIONAL), &with(&[]))));
    let straight = TRANSIT | SECURITY << 2 | FULL_FEATURE;
    assert!(is_let_in(&Login::new(&find, None).step(&request(straight), &with(&[]))));
}

/// Asks for a challenge; its identifier and bytes.
fn challenged(login: &mut Login<'_>) -> (u8, Vec<u8>) {
    let chosen = login.step(&request(FROM_SECURITY), &with(&[("AuthMethod", "CHAP,None")]));
    assert_eq!((said(&chosen, "AuthMethod"), chosen.response.flags & TRANSIT), (Some("CHAP"), 0));
    let asked = login.step(&request(STAYS), &text(&[("CHAP_A", "7,5")]));
    assert_eq!(said(&asked, "CHAP_A"), Some("5"));
    let identifier = said(&asked, "CHAP_I").unwrap().parse().unwrap();
    (identifier, text::bytes(said(&asked, "CHAP_C").unwrap(), 1024).unwrap())
}

fn right_response(identifier: u8, challenge: &[u8]) -> String {
    text::hexadecimal(&response_to(identifier, &chap().initiator.secret, challenge))
}

#[test]
fn with_chap_the_right_answer_is_let_in_and_gets_ours() {
    let (target, chap) = (target(), chap());
    let find = find(&target);
    let mut login = Login::new(&find, Some(&chap));
    let (identifier, challenge) = challenged(&mut login);
    let response = right_response(identifier, &challenge);
    let answer = text(&[("CHAP_N", "alice"), ("CHAP_R", &response), ("CHAP_I", "3"), ("CHAP_C", "0x0102030405060708")]);
    let proven = login.step(&request(FROM_SECURITY), &answer);
    assert_eq!(proven.response.flags, FROM_SECURITY);
    assert_eq!(said(&proven, "CHAP_N"), Some("umbra"));
    let ours = response_to(3, &chap.target.as_ref().unwrap().secret, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(said(&proven, "CHAP_R"), Some(text::hexadecimal(&ours).as_str()));
    assert!(is_let_in(&login.step(&request(FROM_OPERATIONAL), &[])));
}

/// What an initiator answers to a challenge.
type Answer = fn(u8, &[u8]) -> Vec<u8>;

/// Fault test 43: a wrong secret, a wrong name, and our own challenge sent back.
#[test]
fn with_chap_nobody_else_is_let_in() {
    let (target, chap) = (target(), chap());
    let find = find(&target);
    let refused = |step: Step| {
        assert_eq!(step.response.status, login::AUTHENTICATION_FAILURE);
        assert!(matches!(step.next, Next::Refused(_)) && step.text.is_empty());
    };
    refused(Login::new(&find, Some(&chap)).step(&request(FROM_OPERATIONAL), &with(&[])));
    refused(Login::new(&find, Some(&chap)).step(&request(FROM_SECURITY), &with(&[])));
    refused(Login::new(&find, Some(&chap)).step(&request(FROM_SECURITY), &with(&[("AuthMethod", "None")])));
    let answers: [Answer; 6] = [
        |_, _| text(&[("CHAP_N", "alice"), ("CHAP_R", "0x00")]),
        |identifier, challenge| text(&[("CHAP_N", "bob"), ("CHAP_R", &right_response(identifier, challenge))]),
        |identifier, challenge| {
            text(&[("CHAP_N", "alice"), ("CHAP_R", &right_response(identifier.wrapping_add(1), challenge))])
        },
        |identifier, challenge| text(&[("CHAP_R", &right_response(identifier, challenge))]),
        // Our own challenge comes back.
        |identifier, challenge| {
            let (response, asked) = (right_response(identifier, challenge), text::hexadecimal(challenge));
            text(&[("CHAP_N", "alice"), ("CHAP_R", &response), ("CHAP_I", "1"), ("CHAP_C", &asked)])
        },
        |identifier, challenge| {
            text(&[("CHAP_N", "alice"), ("CHAP_R", &right_response(identifier, challenge)), ("CHAP_I", "1")])
        },
    ];
    for answer in answers {
        let mut login = Login::new(&find, Some(&chap));
        let (identifier, challenge) = challenged(&mut login);
        refused(login.step(&request(FROM_SECURITY), &answer(identifier, &challenge)));
    }
}

#[test]
fn what_is_said_wrongly_is_refused_by_its_status() {
    let target = target();
    let find = find(&target);
    let status = |request: LoginRequest, text: &[u8]| Login::new(&find, None).step(&request, text).response.status;
    let first = request(FROM_OPERATIONAL);
    assert_eq!(status(LoginRequest { version_min: 1, ..first }, &with(&[])), login::UNSUPPORTED_VERSION);
    assert_eq!(status(LoginRequest { tsih: 1, ..first }, &with(&[])), login::SESSION_DOES_NOT_EXIST);
    assert_eq!(status(first, &text(&WHO[1..])), login::MISSING_PARAMETER);
    assert_eq!(status(first, &text(&WHO[..2])), login::MISSING_PARAMETER);
    assert_eq!(status(first, &text(&[WHO[0], WHO[1], ("TargetName", "iqn.other")])), login::NOT_FOUND);
    assert_eq!(status(first, &text(&[WHO[0], ("SessionType", "Odd")])), login::SESSION_TYPE_NOT_SUPPORTED);
    assert_eq!(status(first, &with(&[("MaxBurstLength", "1")])), login::INITIATOR_ERROR);
    assert_eq!(status(first, b"no pair"), login::INITIATOR_ERROR);
    assert_eq!(status(request(TRANSIT | 2 << 2 | 3), &with(&[])), login::INITIATOR_ERROR);
    assert_eq!(status(request(FROM_OPERATIONAL | CONTINUE), &with(&[])), login::INITIATOR_ERROR);
    assert_eq!(status(first, &text(&[WHO[0], ("SessionType", "Discovery")])), login::SUCCESS);
}

#[test]
fn a_text_may_come_in_parts_and_not_without_end() {
    let target = target();
    let find = find(&target);
    let mut login = Login::new(&find, None);
    let all = with(&[("InitialR2T", "Yes")]);
    for part in all.chunks(10) {
        let step = login.step(&request(OPERATIONAL << 2 | CONTINUE), part);
        assert_eq!((step.response.flags, step.response.status), (OPERATIONAL << 2, login::SUCCESS));
        assert!(step.text.is_empty());
    }
    let whole = login.step(&request(FROM_OPERATIONAL), &[]);
    assert!(is_let_in(&whole));
    assert_eq!(said(&whole, "TargetPortalGroupTag"), Some("1"), "13.9: behind the first text that is whole");
    let mut login = Login::new(&find, None);
    let refused = (0..10).find_map(|_| {
        let step = login.step(&request(OPERATIONAL << 2 | CONTINUE), &[b'a'; 8192]);
        matches!(step.next, Next::Refused(_)).then_some(step.response.status)
    });
    assert_eq!(refused, Some(login::INITIATOR_ERROR));
}

/// RFC 7143, 6.3.
#[test]
fn a_key_that_is_said_twice_is_refused() {
    let target = target();
    let find = find(&target);
    let (digest, alias) = (("HeaderDigest", "None"), ("InitiatorAlias", "host"));
    let both = |first: &[(&str, &str)], second: &[(&str, &str)]| {
        let one = Login::new(&find, None).step(&request(FROM_OPERATIONAL), &with(&[first, second].concat()));
        let mut login = Login::new(&find, None);
        let stays = request(OPERATIONAL << 2 | FULL_FEATURE);
        assert_eq!(login.step(&stays, &with(first)).response.status, login::SUCCESS);
        let two = login.step(&request(FROM_OPERATIONAL), &text(second));
        assert_eq!(is_let_in(&one), is_let_in(&two), "in one PDU and in two");
        (one.response.status, two.response.status)
    };
    let refused = (login::INITIATOR_ERROR, login::INITIATOR_ERROR);
    for key in [digest, ("InitialR2T", "No"), ("MaxRecvDataSegmentLength", "8192"), ("X-com.example.key", "1")] {
        assert_eq!(both(&[key], &[key]), refused, "{key:?}");
    }
    assert_eq!(both(&[("InitialR2T", "No")], &[("InitialR2T", "Yes")]), refused);
    for other in [("InitiatorName", "iqn.other"), ("TargetName", "iqn.other"), ("SessionType", "Discovery")] {
        assert_eq!(both(&[], &[other]), refused, "{other:?}");
    }
    assert_eq!(both(&[alias], &[("InitiatorAlias", "other")]), refused);
    // As libiscsi has it behind CHAP, and an answer to what we declared is no key of its own.
    let again = [("InitiatorName", "IQN.Host"), ("TargetName", TARGET), ("SessionType", "Normal"), alias];
    assert_eq!(both(&[alias], &again), (login::SUCCESS, login::SUCCESS));
    let answered = ("MaxRecvDataSegmentLength", "Reject");
    assert_eq!(both(&[("MaxRecvDataSegmentLength", "8192")], &[answered]), (login::SUCCESS, login::SUCCESS));
}

#[test]
fn a_first_burst_is_within_a_burst_in_whatever_order_they_are_said() {
    let target = target();
    let find = find(&target);
    let offers = [("FirstBurstLength", "65536"), ("MaxBurstLength", "4096")];
    let step = Login::new(&find, None).step(&request(FROM_OPERATIONAL), &with(&offers));
    assert_eq!((said(&step, "FirstBurstLength"), said(&step, "MaxBurstLength")), (Some("4096"), Some("4096")));
}

#[test]
fn keys_without_end_are_not_remembered() {
    let target = target();
    let find = find(&target);
    let mut login = Login::new(&find, None);
    login.step(&request(OPERATIONAL << 2 | FULL_FEATURE), &with(&[]));
    let refused = (0..1000).find(|number| {
        let key = format!("CHAP_{number}");
        let step = login.step(&request(OPERATIONAL << 2 | FULL_FEATURE), &text(&[(&key, "1")]));
        step.response.status == login::INITIATOR_ERROR
    });
    assert_eq!(refused, Some(KEYS_MAX - WHO.len()));
}

/// RFC 7143, 13.12: an initiator takes no more in the login.
#[test]
fn a_login_whose_answer_is_longer_than_a_pdu_may_be_is_refused() {
    let target = target();
    let find = find(&target);
    let unknown = |length: usize| {
        let keys: Vec<_> = (0..200).map(|number| format!("X-{number:0length$}")).collect();
        let pairs: Vec<_> = keys.iter().map(|key| (key.as_str(), "1")).collect();
        Login::new(&find, None).step(&request(FROM_OPERATIONAL), &with(&pairs))
    };
    assert!(is_let_in(&unknown(20)));
    let step = unknown(30);
    assert_eq!((step.response.status, step.text.len()), (login::INITIATOR_ERROR, 0));
    assert!(matches!(step.next, Next::Refused(_)));
}

proptest! {
    /// Whatever is said in whatever order, without the secret nobody is let in.
    #[test]
    fn no_exchange_without_the_secret_is_let_in(seed in any::<u64>()) {
        let mut random = SplitMix64(seed);
        let (target, chap) = (target(), chap());
        let find = find(&target);
        let mut login = Login::new(&find, Some(&chap));
        let mut heard = "0x00".to_owned();
        for _ in 0..12 {
            let choices = [
                ("InitiatorName", "iqn.host"), ("SessionType", "Normal"), ("TargetName", TARGET),
                ("SessionType", "Discovery"), ("AuthMethod", "CHAP"), ("AuthMethod", "None"),
                ("AuthMethod", "CHAP,None"), ("CHAP_A", "5"), ("CHAP_A", "5"), ("CHAP_N", "alice"), ("CHAP_R", &heard),
                ("CHAP_R", "0x"), ("CHAP_I", "1"), ("CHAP_C", &heard), ("InitialR2T", "No"),
            ];
            let count = random.below(8) as usize;
            let mut pairs: Vec<_> = (0..count).map(|_| choices[random.below(choices.len() as u64) as usize]).collect();
            if random.below(3) > 0 {
                pairs.splice(0..0, WHO);
            }
            let flags = [FROM_SECURITY, FROM_OPERATIONAL, STAYS, TRANSIT | 3, TRANSIT | OPERATIONAL << 2 | 3, CONTINUE]
                [random.below(6) as usize];
            let step = login.step(&request(flags), &text(&pairs));
            prop_assert!(!is_let_in(&step), "seed {}", seed);
            if let Some(challenge) = said(&step, "CHAP_C") {
                heard = challenge.to_owned();
            }
        }
    }
}
