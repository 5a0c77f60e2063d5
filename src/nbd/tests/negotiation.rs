//! From the greeting to transmission, or to its refusal.

use super::*;

#[tokio::test]
async fn go_tells_size_flags_and_block_sizes_and_the_only_export_needs_no_name() {
    let (mut client, _serving) = one(shared(|_| ()));
    client.greet(3).await;
    let query = InfoQuery { name: b"", kinds: vec![info::NAME, info::DESCRIPTION] }.encode();
    let replies = client.option(option::GO, &query).await;
    let info = |kind: u16| {
        let found = replies.iter().find(|(reply, data)| *reply == reply::INFO && data[..2] == kind.to_be_bytes());
        found.map(|(_, data)| data[2..].to_vec()).unwrap()
    };
    let flags = ExportFlags::of(able(), false);
    assert_eq!(info(info::EXPORT), [&SIZE.to_be_bytes()[..], &flags.0.to_be_bytes()].concat());
    assert_eq!(info(info::NAME), b"disk0");
    assert_eq!(info(info::DESCRIPTION), b"all of disk0");
    assert_eq!(info(info::BLOCK_SIZE), [1u32, 4096, 1 << 20].map(u32::to_be_bytes).concat());
    client.send(FLUSH, 0, 1, 0, 0).await;
    assert_eq!(client.simple().await, (1, 0));
}

#[tokio::test]
async fn an_old_client_opens_by_name_and_gets_its_zeroes() {
    for (flags, length) in [(1, 134), (3, 10)] {
        let (mut client, serving) = one(shared(|_| ()));
        client.greet(flags).await;
        client.ask(option::EXPORT_NAME, b"disk0").await;
        client.send(DISC, 0, 0, 0, 0).await;
        assert_eq!(client.rest().await.len(), length);
        assert!(matches!(serving.task.await.unwrap(), Outcome::Ended(End::Disconnected)));
    }
}

#[tokio::test]
async fn of_two_exports_none_is_the_default_and_both_are_listed() {
    let (mut client, serving) = serve(exports(vec![("a", shared(|_| ())), ("b", shared(|_| ()))]));
    client.greet(3).await;
    let query = |name: &[u8]| InfoQuery { name, kinds: vec![] }.encode();
    assert_eq!(client.verdict(option::INFO, &query(b"")).await, reply::ERR_UNKNOWN);
    assert_eq!(client.verdict(option::INFO, &query(b"b")).await, reply::ACK);
    let list = client.option(option::LIST, &[]).await;
    assert_eq!(list[0], (reply::SERVER, b"\0\0\0\x01aall of a".to_vec()));
    assert_eq!(list.len(), 3);
    assert_eq!(client.verdict(option::ABORT, &[]).await, reply::ACK);
    assert!(matches!(serving.task.await.unwrap(), Outcome::Left));
}

#[tokio::test]
async fn an_export_can_go_while_the_server_runs() {
    let all = exports(vec![("a", shared(|_| ()))]);
    let (mut client, _serving) = serve(all.clone());
    client.greet(3).await;
    let query = InfoQuery { name: b"a", kinds: vec![] }.encode();
    assert_eq!(client.verdict(option::INFO, &query).await, reply::ACK);
    assert!(all.remove("a").is_some() && all.remove("a").is_none());
    assert_eq!(client.verdict(option::GO, &query).await, reply::ERR_UNKNOWN);
}

#[tokio::test]
async fn options_that_are_wrong_get_the_error_that_the_protocol_has_for_them() {
    let (mut client, _serving) = one(shared(|_| ()));
    client.greet(3).await;
    let long = vec![b'x'; wire::STRING_MAX + 1];
    let contexts = ContextQuery { name: b"", queries: vec![b"base:allocation"] }.encode();
    for (option, data, expected) in [
        (option::STARTTLS, vec![], reply::ERR_UNSUP),
        (4711, vec![1, 2, 3], reply::ERR_UNSUP),
        (option::LIST, vec![0], reply::ERR_INVALID),
        (option::STRUCTURED_REPLY, vec![0], reply::ERR_INVALID),
        (option::GO, vec![], reply::ERR_INVALID),
        (option::GO, InfoQuery { name: b"nobody", kinds: vec![] }.encode(), reply::ERR_UNKNOWN),
        (option::GO, InfoQuery { name: &long, kinds: vec![] }.encode(), reply::ERR_TOO_BIG),
        (option::SET_META_CONTEXT, contexts, reply::ERR_INVALID),
        (option::GO, vec![0; 200_000], reply::ERR_TOO_BIG),
    ] {
        assert_eq!(client.verdict(option, &data).await, expected, "option {option}");
    }
    client.go("disk0").await;
}

#[tokio::test]
async fn contexts_are_listed_by_namespace_and_chosen_by_name() {
    let (mut client, _serving) = one(shared(|_| ()));
    client.greet(3).await;
    assert_eq!(client.verdict(option::STRUCTURED_REPLY, &[]).await, reply::ACK);
    for (option, queries, found) in [
        (option::LIST_META_CONTEXT, vec![], true),
        (option::LIST_META_CONTEXT, vec![&b"base:"[..]], true),
        (option::LIST_META_CONTEXT, vec![&b"qemu:"[..]], false),
        (option::SET_META_CONTEXT, vec![&b"base:"[..]], false),
        (option::SET_META_CONTEXT, vec![&b"x:y"[..], b"base:allocation"], true),
        (option::SET_META_CONTEXT, vec![], false),
    ] {
        let replies = client.option(option, &ContextQuery { name: b"disk0", queries }.encode()).await;
        assert_eq!(replies[0].0 == reply::META_CONTEXT, found);
        assert_eq!(replies.last().unwrap().0, reply::ACK);
    }
    // The last choice was none.
    client.go("").await;
    client.send(BLOCK_STATUS, 0, 1, 0, 512).await;
    assert_eq!(wire::decode_error(&client.chunk().await.1), Some(NbdError::EINVAL));
}

#[tokio::test]
async fn a_handshake_that_cannot_go_on_is_dropped() {
    type Expected = fn(&NegotiationError) -> bool;
    let cases: [(u32, Vec<u8>, Expected); 5] = [
        (4, vec![], |e| matches!(e, NegotiationError::UnknownFlags(4))),
        (3, b"GET / HTTP/1.1\r\n\r\n".to_vec(), |e| matches!(e, NegotiationError::BadMagic)),
        (3, wire::OptionHeader { option: 1, length: u32::MAX }.encode().to_vec(), |e| {
            matches!(e, NegotiationError::TooLong { .. })
        }),
        (3, wire::OptionHeader { option: 1, length: 0 }.encode()[..9].to_vec(), |e| {
            matches!(e, NegotiationError::Io(_))
        }),
        (3, [&wire::OptionHeader { option: 1, length: 1 }.encode()[..], b"x"].concat(), |e| {
            matches!(e, NegotiationError::NoSuchExport(_))
        }),
    ];
    for (flags, bytes, expected) in cases {
        let (mut client, serving) = one(shared(|_| ()));
        client.greet(flags).await;
        client.0.write_all(&bytes).await.unwrap();
        client.0.shutdown().await.unwrap();
        client.rest().await;
        let outcome = serving.task.await.unwrap();
        assert!(matches!(&outcome, Outcome::Refused(error) if expected(error)), "{outcome:?}");
    }
}

/// Fault test 39.
#[tokio::test]
async fn a_flood_of_options_ends_the_connection() {
    let (mut client, serving) = one(shared(|_| ()));
    client.greet(3).await;
    for _ in 0..1024 {
        assert_eq!(client.verdict(option::STARTTLS, &[]).await, reply::ERR_UNSUP);
    }
    assert!(matches!(serving.task.await.unwrap(), Outcome::Refused(NegotiationError::TooMany)));
}
