//! The login against a target that is played by the test, and against our own target's side of it.

use super::*;
use crate::iscsi::chap::{Account, Secret, response_to};

const ISID: [u8; 6] = [0x80, 1, 2, 3, 4, 5];

fn account(user: &str, secret: &str) -> Account {
    Account { user: user.into(), secret: Secret::new(secret.into()).unwrap() }
}

fn options(chap: Option<Credentials>) -> Options {
    let url = "iscsi://array/iqn.2026-11.io.umbra:disk0/0".parse().unwrap();
    Options { url, initiator: "iqn.2026-11.io.umbra:gateway".into(), isid: ISID, chap }
}

fn credentials(mutual: bool) -> Option<Credentials> {
    let theirs = mutual.then(|| account("array", "secret-of-array"));
    Some(Credentials { ours: account("umbra", "secret-of-umbra"), theirs })
}

const STAYS: u8 = SECURITY << 2;
const TO_OPERATIONAL: u8 = TRANSIT | SECURITY << 2 | OPERATIONAL;
const TO_FULL_FEATURE: u8 = TRANSIT | OPERATIONAL << 2 | FULL_FEATURE;

fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    pairs.iter().for_each(|(key, value)| text::put(&mut text, key, value));
    text
}

fn response(flags: u8) -> LoginResponse {
    LoginResponse { flags, isid: ISID, task: 1, tsih: 1, ..LoginResponse::default() }
}

fn said(request: &Request, key: &str) -> Option<String> {
    text::pairs(&request.text).map(Result::unwrap).find(|(found, _)| *found == key).map(|(_, value)| value.to_owned())
}

fn asks_again(next: Next) -> Request {
    match next {
        Next::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

/// Up to the target's challenge, which is [`CHALLENGE`].
fn challenged(options: &Options) -> (Login<'_>, Request) {
    let (mut login, first) = Login::new(options);
    assert_eq!(said(&first, "AuthMethod").as_deref(), Some("CHAP"));
    assert_eq!(first.head.flags, STAYS);
    let request = asks_again(login.take(&response(STAYS), &text(&[("AuthMethod", "CHAP")])).unwrap());
    assert_eq!((said(&request, "CHAP_A").as_deref(), request.head.flags), (Some("5"), STAYS));
    let answer = login.take(&response(STAYS), &text(&[("CHAP_A", "5"), ("CHAP_I", "7"), ("CHAP_C", CHALLENGE)]));
    let request = asks_again(answer.unwrap());
    (login, request)
}

const CHALLENGE: &str = "0x0102030405060708090a0b0c0d0e0f10";

/// What `account` answers to the challenge of a request.
fn proof(request: &Request, account: &Account) -> String {
    let identifier = said(request, "CHAP_I").unwrap().parse().unwrap();
    let asked = text::bytes(&said(request, "CHAP_C").unwrap(), 1024).unwrap();
    text::hexadecimal(&response_to(identifier, &account.secret, &asked))
}

#[test]
fn without_credentials_the_operational_keys_follow_at_once() {
    let options = options(None);
    let (mut login, first) = Login::new(&options);
    assert_eq!(first.head.flags, TO_OPERATIONAL);
    assert_eq!((first.head.tsih, first.head.isid), (0, ISID));
    for (key, value) in [
        ("InitiatorName", "iqn.2026-11.io.umbra:gateway"),
        ("TargetName", "iqn.2026-11.io.umbra:disk0"),
        ("SessionType", "Normal"),
        ("AuthMethod", "None"),
    ] {
        assert_eq!(said(&first, key).as_deref(), Some(value));
    }
    let said_first = text(&[("AuthMethod", "None"), ("TargetPortalGroupTag", "1")]);
    let request = asks_again(login.take(&response(TO_OPERATIONAL), &said_first).unwrap());
    assert_eq!(request.head.flags, TO_FULL_FEATURE);
    assert_eq!(said(&request, "HeaderDigest").as_deref(), Some("CRC32C,None"));
    assert_eq!(said(&request, "ErrorRecoveryLevel").as_deref(), Some("0"));
    let answers = text(&[("InitialR2T", "No"), ("MaxRecvDataSegmentLength", "65536"), ("MaxBurstLength", "262144")]);
    match login.take(&response(TO_FULL_FEATURE), &answers).unwrap() {
        Next::Session(parameters) => {
            let expected =
                Parameters { initial_r2t: false, sent_max: 65536, burst_max: 262_144, ..Parameters::default() };
            assert_eq!(parameters, expected);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn we_prove_who_we_are_and_so_does_the_target() {
    for mutual in [false, true] {
        let options = options(credentials(mutual));
        let (mut login, request) = challenged(&options);
        assert_eq!(request.head.flags, TO_OPERATIONAL);
        assert_eq!(said(&request, "CHAP_N").as_deref(), Some("umbra"));
        let asked = text::bytes(CHALLENGE, 1024).unwrap();
        let ours = text::hexadecimal(&response_to(7, &account("umbra", "secret-of-umbra").secret, &asked));
        assert_eq!(said(&request, "CHAP_R"), Some(ours));
        assert_eq!(said(&request, "CHAP_C").is_some(), mutual);
        let answer = if mutual {
            text(&[("CHAP_N", "array"), ("CHAP_R", &proof(&request, &account("array", "secret-of-array")))])
        } else {
            Vec::new()
        };
        let request = asks_again(login.take(&response(TO_OPERATIONAL), &answer).unwrap());
        assert_eq!(request.head.flags, TO_FULL_FEATURE);
        assert!(matches!(login.take(&response(TO_FULL_FEATURE), &[]), Ok(Next::Session(_))));
    }
}

#[test]
fn a_target_that_has_not_proven_who_it_is_is_not_used() {
    let wrong = |request: &Request| proof(request, &account("array", "another-secret"));
    let right = |request: &Request| proof(request, &account("array", "secret-of-array"));
    type Answer<'a> = &'a dyn Fn(&Request) -> Vec<u8>;
    let answers: [Answer<'_>; 6] = [
        &|_| Vec::new(),
        &|request| text(&[("CHAP_N", "array"), ("CHAP_R", &wrong(request))]),
        &|request| text(&[("CHAP_N", "stranger"), ("CHAP_R", &right(request))]),
        &|request| text(&[("CHAP_R", &right(request))]),
        &|_| text(&[("CHAP_N", "array")]),
        // Our own response comes back.
        &|request| text(&[("CHAP_N", "array"), ("CHAP_R", &said(request, "CHAP_R").unwrap())]),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        let options = options(credentials(true));
        let (mut login, request) = challenged(&options);
        let outcome = login.take(&response(TO_OPERATIONAL), &answer(&request));
        assert!(matches!(outcome, Err(LoginError::Unproven(_))), "answer {number}: {outcome:?}");
    }
}

#[test]
fn a_challenge_of_ours_that_comes_back_is_not_answered() {
    let options = options(credentials(true));
    let (_, request) = challenged(&options);
    let (identifier, bytes) = (said(&request, "CHAP_I").unwrap(), said(&request, "CHAP_C").unwrap());
    // In the same login there is nothing that it would be told.
    let (mut login, _) = challenged(&options);
    let again = text(&[("CHAP_A", "5"), ("CHAP_I", &identifier), ("CHAP_C", &bytes)]);
    let outcome = login.take(&response(TO_OPERATIONAL), &again);
    assert!(matches!(outcome, Err(LoginError::Unproven(_))), "{outcome:?}");
    let (mut login, _) = challenged(&options);
    for _ in 0..RESPONSES_MAX {
        match login.take(&response(STAYS), &again) {
            Ok(Next::Request(request)) => assert_eq!(said(&request, "CHAP_R"), None, "a second answer"),
            Err(LoginError::TooMany) => return,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nobody_passes_security_by_a_shorter_way() {
    for (flags, answer) in [
        (TO_OPERATIONAL, text(&[("AuthMethod", "CHAP")])),
        (TO_OPERATIONAL, Vec::new()),
        (TO_OPERATIONAL, text(&[("AuthMethod", "None")])),
        (STAYS, text(&[("AuthMethod", "None")])),
        (STAYS, text(&[("AuthMethod", "Reject")])),
        (TRANSIT | FULL_FEATURE, Vec::new()),
    ] {
        for mutual in [false, true] {
            let options = options(credentials(mutual));
            let outcome = Login::new(&options).0.take(&response(flags), &answer);
            assert!(matches!(outcome, Err(LoginError::NoChap)), "{outcome:?}");
        }
    }
    let options = options(credentials(true));
    let mut login = Login::new(&options).0;
    let outcome = login.take(&response(TO_FULL_FEATURE), &[]);
    assert!(matches!(outcome, Err(LoginError::Broken(_))), "{outcome:?}");
    let chap_wanted = super::Options { chap: None, ..options.clone() };
    let outcome = Login::new(&chap_wanted).0.take(&response(STAYS), &text(&[("AuthMethod", "CHAP")]));
    assert!(matches!(outcome, Err(LoginError::ChapWanted)), "{outcome:?}");
}

#[test]
fn statuses_are_told_as_what_they_mean() {
    let options = options(None);
    let of = |status| Login::new(&options).0.take(&LoginResponse { status, ..response(0) }, &[]).unwrap_err();
    assert!(matches!(of(0x0201), LoginError::Authentication(_)));
    assert!(matches!(of(0x0202), LoginError::Forbidden(_)));
    assert!(matches!(of(0x0203), LoginError::NotFound(_)));
    assert!(matches!(of(0x0204), LoginError::Removed(_)));
    assert!(matches!(of(0x0206), LoginError::Unavailable(_)));
    assert!(matches!(of(0x0301), LoginError::Unavailable(_)));
    assert!(matches!(of(0x0200), LoginError::Refused(_)));
    assert!(matches!(of(0x7777), LoginError::Refused(_)));
}

#[test]
fn another_portal_is_where_the_target_says() {
    let options = options(None);
    let moved = LoginResponse { status: 0x0101, ..response(0) };
    let next = Login::new(&options).0.take(&moved, &text(&[("TargetAddress", "10.0.0.2:3261,1")])).unwrap();
    assert!(matches!(next, Next::Elsewhere(address) if address == "10.0.0.2:3261"));
    assert!(matches!(Login::new(&options).0.take(&moved, &[]), Err(LoginError::Broken(_))));
}

#[test]
fn text_may_come_in_pieces_but_not_without_end() {
    let options = options(None);
    let (mut login, _) = Login::new(&options);
    let whole = text(&[("AuthMethod", "None"), ("TargetAlias", "a disk")]);
    let (first, second) = whole.split_at(13);
    let request = asks_again(login.take(&response(CONTINUE | STAYS), first).unwrap());
    assert_eq!((request.head.flags, request.text.len()), (STAYS, 0));
    let request = asks_again(login.take(&response(TO_OPERATIONAL), second).unwrap());
    assert_eq!(request.head.flags, TO_FULL_FEATURE);

    let (mut login, _) = Login::new(&options);
    let outcome = (0..100).find_map(|_| login.take(&response(CONTINUE | STAYS), &[b'x'; 8192]).err());
    assert!(matches!(outcome, Some(LoginError::Text(TextError::TooLong))), "{outcome:?}");
    let (mut login, _) = Login::new(&options);
    let outcome = (0..100).find_map(|_| login.take(&response(STAYS), &[]).err());
    assert!(matches!(outcome, Some(LoginError::TooMany)), "{outcome:?}");
}

#[test]
fn what_breaks_the_rules_is_refused() {
    let options = options(None);
    let of = |response: LoginResponse, text: &[u8]| Login::new(&options).0.take(&response, text).unwrap_err();
    assert!(matches!(of(LoginResponse { isid: [0; 6], ..response(TO_OPERATIONAL) }, &[]), LoginError::Broken(_)));
    assert!(matches!(of(LoginResponse { task: 2, ..response(TO_OPERATIONAL) }, &[]), LoginError::Broken(_)));
    assert!(matches!(of(LoginResponse { version_active: 1, ..response(TO_OPERATIONAL) }, &[]), LoginError::Broken(_)));
    assert!(matches!(of(response(TO_FULL_FEATURE), &[]), LoginError::Broken(_)));
    assert!(matches!(of(response(TRANSIT | FULL_FEATURE), &[]), LoginError::Broken(_)));
    assert!(matches!(of(response(TO_OPERATIONAL | CONTINUE), &[]), LoginError::Broken(_)));
    assert!(matches!(of(response(TO_OPERATIONAL), b"no pair\0"), LoginError::Text(_)));
    assert!(matches!(of(response(TO_OPERATIONAL), b"MaxConnections=9\0"), LoginError::Value(_)));
}

#[test]
fn keys_that_nobody_knows_are_answered_as_such() {
    let options = options(None);
    let (mut login, _) = Login::new(&options);
    asks_again(login.take(&response(TO_OPERATIONAL), &[]).unwrap());
    let more = text(&[("X-com.example.key", "1"), ("X-other", "NotUnderstood")]);
    let request = asks_again(login.take(&response(OPERATIONAL << 2), &more).unwrap());
    assert_eq!(said(&request, "X-com.example.key").as_deref(), Some(NOT_UNDERSTOOD));
    assert_eq!(said(&request, "X-other"), None);
    assert_eq!(request.head.flags, TO_FULL_FEATURE);
}
