//! The client against our own server, and against servers that break every rule.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::disk::{Abilities, MemoryDisk, conformance};
use crate::nbd::testing::{Ram, SIZE, able, until};
use crate::nbd::wire::{self, Chunk, ExportFlags, OptionHeader, OptionReply, Request, SimpleReply};
use crate::nbd::wire::{chunk, info, option, reply};
use crate::nbd::{Export, Server};
use crate::net::Address;
use crate::units::MIB;

struct Running {
    task: JoinHandle<()>,
    _stop: watch::Sender<bool>,
}

async fn serve(socket: &Path, disk: Arc<dyn Disk>) -> Running {
    let export = Export { name: "disk0".into(), description: String::new(), disk };
    let server = Server::bind(&[Address::Unix(socket.to_owned())], vec![export]).await.unwrap();
    let (stop, stopped) = watch::channel(false);
    Running { task: tokio::spawn(server.run(stopped)), _stop: stop }
}

impl Running {
    /// As if the server was killed.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn place() -> (TempDir, std::path::PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let uri = format!("nbd+unix:///disk0?socket={}", socket.display());
    (folder, socket, uri)
}

fn shared(change: impl FnOnce(&mut Ram)) -> Arc<Ram> {
    let mut ram = Ram::new();
    change(&mut ram);
    Arc::new(ram)
}

#[tokio::test]
async fn a_remote_disk_does_what_the_disk_behind_it_does() {
    let (_folder, socket, uri) = place();
    let ram = shared(|_| ());
    let _server = serve(&socket, ram.clone()).await;
    let disk = NbdDisk::open(&uri).await.unwrap();
    assert_eq!(disk.geometry(), ram.geometry);
    assert_eq!(disk.identity().name, format!("nbd:{uri}"));

    disk.write(700, Bytes::from(vec![9; 300_000]), true).await.unwrap();
    assert_eq!(ram.with_fua.load(Ordering::SeqCst), 1);
    let read = disk.read(699, 300_002).await.unwrap();
    assert!(read[0] == 1 && read[1..300_001].iter().all(|byte| *byte == 9) && read[300_001] != 9);
    disk.write_zeroes(0, 4096, ZeroMode { no_hole: true, fast_only: false }, false).await.unwrap();
    assert!(disk.read(0, 4096).await.unwrap().iter().all(|byte| *byte == 0));
    disk.trim(0, 4096, true).await.unwrap();
    disk.cache(0, SIZE).await.unwrap();
    disk.flush().await.unwrap();
    let extents = disk.extents(512, 131_072, 10).await.unwrap();
    assert_eq!(
        extents.iter().map(|extent| (extent.length, extent.hole)).collect::<Vec<_>>(),
        [(65024, false), (65536, true), (512, false)]
    );
    assert_eq!(disk.extents(512, 131_072, 1).await.unwrap().len(), 1);
    *ram.failure.lock().unwrap() = Some(DiskError::Io(Errno::ENOSPC));
    assert_eq!(disk.flush().await, Err(DiskError::Io(Errno::ENOSPC)));
    for refused in [disk.trim(SIZE, 1, false).await, disk.write(SIZE - 1, Bytes::from_static(b"ab"), false).await] {
        assert_eq!(refused, Err(DiskError::Refused(Errno::EINVAL)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_disk_is_a_disk_whatever_the_one_behind_it_can_do() {
    let able = MemoryDisk::new(3 * MIB + 700).geometry();
    let poor = Abilities { flush: true, ..Abilities::default() };
    let one_connection = Abilities { multi_conn: false, ..able.abilities };
    for abilities in [able.abilities, one_connection, poor, Abilities { read_only: true, ..poor }] {
        let (_folder, socket, uri) = place();
        let behind = MemoryDisk::with_geometry(Geometry { abilities, ..able });
        let _server = serve(&socket, Arc::new(behind)).await;
        conformance::check(Arc::new(NbdDisk::open(&uri).await.unwrap())).await;
    }
}

#[tokio::test]
async fn many_requests_are_in_flight_and_each_gets_its_own_answer() {
    let (_folder, socket, uri) = place();
    let _server = serve(&socket, shared(|ram| ram.geometry.abilities.multi_conn = true)).await;
    let disk = NbdDisk::open(&uri).await.unwrap();
    let reads: Vec<_> = (0..2000).map(|i| disk.read(i * 512, 512)).collect();
    for (i, read) in reads.into_iter().enumerate() {
        assert!(read.await.unwrap().iter().all(|byte| *byte == i as u8));
    }
}

#[tokio::test]
async fn what_is_too_large_for_the_server_is_split_with_fua_on_every_part() {
    let (_folder, socket, uri) = place();
    let ram = shared(|ram| ram.geometry.block.maximum = 4096);
    let _server = serve(&socket, ram.clone()).await;
    let disk = NbdDisk::open(&uri).await.unwrap();
    let data: Vec<u8> = (0..20_000u32).map(|i| (i % 249) as u8).collect();
    disk.write(100, data.clone().into(), true).await.unwrap();
    assert_eq!(ram.with_fua.load(Ordering::SeqCst), 5);
    assert!(disk.read(100, 20_000).await.unwrap() == data);
    *ram.failure.lock().unwrap() = Some(DiskError::Io(Errno::EIO));
    assert_eq!(disk.write(100, data.into(), false).await, Err(DiskError::Io(Errno::EIO)));
}

/// Counterexample 23.
#[tokio::test]
async fn several_connections_are_made_only_where_a_flush_covers_them_all() {
    for (multi_conn, expected) in [(false, 1), (true, CONNECTIONS)] {
        let (_folder, socket, uri) = place();
        let connected = Arc::new(AtomicUsize::new(0));
        let counter = connected.clone();
        let abilities = disk::Abilities { multi_conn, ..able() };
        script(&socket, abilities, move |mut stream| {
            counter.fetch_add(1, Ordering::SeqCst);
            async move {
                let mut sink = Vec::new();
                let _ = stream.read_to_end(&mut sink).await;
            }
        });
        let _disk = NbdDisk::open(&uri).await.unwrap();
        until(|| connected.load(Ordering::SeqCst) >= expected).await;
        assert_eq!(connected.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn a_disk_that_is_dropped_says_goodbye_after_its_last_answer() {
    let (_folder, socket, uri) = place();
    let (said, mut hears) = mpsc::unbounded_channel();
    script(&socket, able(), move |mut stream| {
        let said = said.clone();
        async move {
            loop {
                let request = next_request(&mut stream).await;
                let _ = said.send(request.command);
                if request.command == command::DISC {
                    return;
                }
                let answer = SimpleReply { error: 0, cookie: request.cookie }.encode();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    let disk = NbdDisk::open(&uri).await.unwrap();
    let flush = disk.flush();
    drop(disk);
    flush.await.unwrap();
    assert_eq!((hears.recv().await, hears.recv().await), (Some(command::FLUSH), Some(command::DISC)));
}

#[tokio::test]
async fn what_was_in_flight_at_a_disconnect_is_lost_and_what_comes_later_waits_for_the_next_incarnation() {
    let (_folder, socket, uri) = place();
    let gate = Arc::new(Semaphore::new(0));
    let ram = shared(|ram| ram.gate = Some(gate.clone()));
    let server = serve(&socket, ram.clone()).await;
    let disk = NbdDisk::open(&uri).await.unwrap();
    let in_flight = disk.write(0, Bytes::from_static(b"x"), false);
    until(|| ram.begun.load(Ordering::SeqCst) == 1).await;
    server.kill().await;
    assert_eq!(in_flight.await, Err(DiskError::Lost));
    assert_eq!(disk.incarnation(), 0);

    let later = disk.flush();
    let other = shared(|_| ());
    let _server = serve(&socket, other.clone()).await;
    later.await.unwrap();
    assert_eq!(disk.incarnation(), 1);
    assert_eq!(other.begun.load(Ordering::SeqCst), 1, "the lost write was sent again");
}

#[tokio::test]
async fn a_server_that_is_away_for_too_long_is_used_again_when_it_is_back() {
    let (_folder, socket, uri) = place();
    let server = serve(&socket, shared(|_| ())).await;
    let disk = NbdDisk::open_with(&uri, Duration::from_millis(20)).await.unwrap();
    server.kill().await;
    // The first may find the old connection not yet closed.
    while disk.flush().await != Err(DiskError::Refused(Errno::ESHUTDOWN)) {}
    let _server = serve(&socket, shared(|_| ())).await;
    while disk.flush().await.is_err() {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(disk.incarnation(), 1);
}

#[tokio::test]
async fn another_disk_that_comes_back_is_refused() {
    let smaller = |ram: &mut Ram| ram.geometry.size -= 512;
    let less_able = |ram: &mut Ram| ram.geometry.abilities.fua = false;
    let coarser = |ram: &mut Ram| ram.geometry.block.minimum = 512;
    for change in [smaller as fn(&mut Ram), less_able, coarser] {
        let (_folder, socket, uri) = place();
        let server = serve(&socket, shared(|_| ())).await;
        let disk = NbdDisk::open(&uri).await.unwrap();
        server.kill().await;
        let other = shared(change);
        let _server = serve(&socket, other.clone()).await;
        // One that finds the old connection not yet closed may be lost with it.
        while disk.flush().await != Err(DiskError::Refused(Errno::ESHUTDOWN)) {}
        assert_eq!(other.begun.load(Ordering::SeqCst), 0);
        assert_eq!(disk.incarnation(), 0);
    }
}

// Servers that follow a script

async fn next_request(stream: &mut UnixStream) -> Request {
    let mut head = [0; Request::LENGTH];
    match stream.read_exact(&mut head).await {
        Ok(_) => Request::decode(&head).unwrap(),
        Err(_) => Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 },
    }
}

/// A server that negotiates well, structured replies and context 5 included, and then follows the script.
fn script<F, S>(socket: &Path, abilities: disk::Abilities, mut follow: F) -> JoinHandle<()>
where
    F: FnMut(UnixStream) -> S + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if negotiate(&mut stream, abilities).await.is_ok() {
                tokio::spawn(follow(stream));
            }
        }
    })
}

async fn negotiate(stream: &mut UnixStream, abilities: disk::Abilities) -> std::io::Result<()> {
    stream.write_all(&wire::greeting(3)).await?;
    stream.read_u32().await?;
    loop {
        let mut head = [0; OptionHeader::LENGTH];
        stream.read_exact(&mut head).await?;
        let OptionHeader { option, length } = OptionHeader::decode(&head).unwrap();
        stream.read_exact(&mut vec![0; length as usize]).await?;
        let mut out = Vec::new();
        let mut say = |kind, data: &[u8]| {
            out.extend(OptionReply { option, kind, length: data.len() as u32 }.encode());
            out.extend(data);
        };
        match option {
            option::SET_META_CONTEXT => say(reply::META_CONTEXT, b"\0\0\0\x05base:allocation"),
            option::GO => {
                let flags = ExportFlags::of(abilities, true).0.to_be_bytes();
                say(reply::INFO, &[&info::EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags].concat());
            }
            _ => {}
        }
        say(reply::ACK, &[]);
        stream.write_all(&out).await?;
        if option == option::GO {
            return Ok(());
        }
    }
}

fn part(cookie: u64, flags: u16, kind: u16, payload: &[&[u8]]) -> Vec<u8> {
    let payload = payload.concat();
    [&Chunk { flags, kind, cookie, length: payload.len() as u32 }.encode()[..], &payload].concat()
}

fn data(cookie: u64, last: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
    part(cookie, last.into(), chunk::OFFSET_DATA, &[&offset.to_be_bytes(), bytes])
}

fn hole(cookie: u64, last: bool, offset: u64, length: u32) -> Vec<u8> {
    part(cookie, last.into(), chunk::OFFSET_HOLE, &[&offset.to_be_bytes(), &length.to_be_bytes()])
}

/// Answers the first request of each connection with what `answer` makes of its cookie; then says nothing more.
fn answering(socket: &Path, answer: impl Fn(u64) -> Vec<u8> + Clone + Send + Sync + 'static) -> JoinHandle<()> {
    script(socket, able(), move |mut stream| {
        let answer = answer.clone();
        async move {
            let request = next_request(&mut stream).await;
            let _ = stream.write_all(&answer(request.cookie)).await;
            let mut sink = Vec::new();
            let _ = stream.read_to_end(&mut sink).await;
        }
    })
}

#[tokio::test]
async fn a_read_is_joined_from_its_pieces_whatever_their_order() {
    let (_folder, socket, uri) = place();
    answering(&socket, |c| {
        [
            data(c, false, 3072, &[3; 1024]),
            hole(c, false, 1024, 2048),
            data(c, false, 0, &[1; 1024]),
            part(c, 1, 0, &[]),
        ]
        .concat()
    });
    let disk = NbdDisk::open(&uri).await.unwrap();
    let expected = [[1; 1024], [0; 1024], [0; 1024], [3; 1024]].concat();
    assert!(disk.read(0, 4096).await.unwrap() == expected);
}

#[tokio::test]
async fn an_error_amid_a_read_is_the_reads_error() {
    let (_folder, socket, uri) = place();
    answering(&socket, |c| {
        let error = part(c, 0, chunk::ERROR | 3, &[&[0, 0, 0, 12, 0, 2, b'n', b'o', 0, 0, 0, 0, 0, 0, 0, 0]]);
        [data(c, false, 0, &[1; 1024]), error, part(c, 1, 0, &[])].concat()
    });
    let disk = NbdDisk::open(&uri).await.unwrap();
    assert_eq!(disk.read(0, 4096).await, Err(DiskError::Io(Errno::ENOMEM)));
}

/// Fault test 41.
#[tokio::test]
async fn a_server_that_breaks_a_rule_loses_the_connection_and_the_read() {
    type Answer = fn(u64) -> Vec<u8>;
    let cases: [(&str, Answer); 19] = [
        ("garbage", |_| vec![0xff; 64]),
        ("end", |_| Vec::new()),
        ("unknown cookie", |c| data(c + 1, true, 0, &[1; 4096])),
        ("unknown cookie, simple", |c| SimpleReply { error: 5, cookie: c + 1 }.encode().to_vec()),
        ("simple reply to a read", |c| [&SimpleReply { error: 0, cookie: c }.encode()[..], &[0; 4096]].concat()),
        ("too long", |c| data(c, true, 0, &[1; 4097])),
        ("gigabytes", |c| Chunk { flags: 1, kind: chunk::OFFSET_DATA, cookie: c, length: u32::MAX }.encode().to_vec()),
        ("no data", |c| part(c, 1, 0, &[])),
        ("not all data", |c| data(c, true, 0, &[1; 4095])),
        ("data twice", |c| [data(c, false, 0, &[1; 4096]), data(c, true, 4095, &[1; 1])].concat()),
        ("hole over data", |c| [data(c, false, 1000, &[1; 10]), hole(c, true, 0, 4096)].concat()),
        ("before the request", |c| data(c, true, u64::MAX, &[1; 4096])),
        ("behind the request", |c| data(c, true, 1, &[1; 4096])),
        ("empty hole", |c| hole(c, true, 0, 0)),
        ("nothing, and more", |c| part(c, 0, 0, &[])),
        ("status of a read", |c| part(c, 1, chunk::BLOCK_STATUS, &[&[0; 12]])),
        ("no error", |c| part(c, 1, chunk::ERROR, &[&[0; 6]])),
        ("message beyond the error", |c| part(c, 1, chunk::ERROR, &[&[0, 0, 0, 5, 1, 0]])),
        ("unknown chunk", |c| part(c, 1, 4711, &[&[0; 6]])),
    ];
    for (name, answer) in cases {
        let (_folder, socket, uri) = place();
        let server = script(&socket, able(), move |mut stream| async move {
            let request = next_request(&mut stream).await;
            let _ = stream.write_all(&answer(request.cookie)).await;
            if name != "end" {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        });
        let disk = NbdDisk::open(&uri).await.unwrap();
        assert_eq!(disk.read(0, 4096).await, Err(DiskError::Lost), "{name}");
        server.abort();
    }
}

#[tokio::test]
async fn a_block_status_that_was_not_asked_for_loses_the_connection() {
    type Answer = fn(u64) -> Vec<u8>;
    let cases: [(&str, Answer); 6] = [
        ("another context", |c| part(c, 1, chunk::BLOCK_STATUS, &[&[0, 0, 0, 6, 0, 0, 2, 0, 0, 0, 0, 0]])),
        ("no run", |c| part(c, 1, chunk::BLOCK_STATUS, &[&[0, 0, 0, 5]])),
        ("an empty run", |c| part(c, 1, chunk::BLOCK_STATUS, &[&[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0]])),
        ("no status", |c| part(c, 1, 0, &[])),
        ("a simple reply", |c| SimpleReply { error: 0, cookie: c }.encode().to_vec()),
        ("runs without end", |c| {
            let head = Chunk { flags: 1, kind: chunk::BLOCK_STATUS, cookie: c, length: 4 + (8 << 21) };
            head.encode().to_vec()
        }),
    ];
    for (name, answer) in cases {
        let (_folder, socket, uri) = place();
        let server = answering(&socket, answer);
        let disk = NbdDisk::open(&uri).await.unwrap();
        assert_eq!(disk.extents(0, 4096, 8).await, Err(DiskError::Lost), "{name}");
        server.abort();
    }
}

#[tokio::test]
async fn a_run_beyond_the_request_is_cut_at_its_end() {
    let (_folder, socket, uri) = place();
    answering(&socket, |c| part(c, 1, chunk::BLOCK_STATUS, &[&[0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 0, 3]]));
    let disk = NbdDisk::open(&uri).await.unwrap();
    let extents = disk.extents(0, 4096, 8).await.unwrap();
    assert_eq!(extents, [Extent { length: 4096, hole: true, zero: true }]);
}

#[tokio::test]
async fn a_handshake_that_fails_says_why() {
    async fn refusing(bytes: Vec<u8>) -> HandshakeError {
        let (_folder, socket, uri) = place();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let Err(OpenError::Handshake { source, .. }) = NbdDisk::open(&uri).await.map(drop) else { panic!() };
        server.abort();
        source
    }
    let after_greeting = |flags, replies: &[(u32, u32, &[u8])]| {
        let mut bytes = wire::greeting(flags).to_vec();
        for (option, kind, data) in replies {
            bytes.extend(OptionReply { option: *option, kind: *kind, length: data.len() as u32 }.encode());
            bytes.extend(*data);
        }
        bytes
    };
    let unstructured = (option::STRUCTURED_REPLY, reply::ERR_UNSUP, &b""[..]);
    let go = |kind, data| after_greeting(3, &[unstructured, (option::GO, kind, data)]);
    let oldstyle = [wire::SERVER_MAGIC.to_be_bytes(), wire::OLDSTYLE_MAGIC.to_be_bytes()].concat();
    let overlong = OptionReply { option: option::STRUCTURED_REPLY, kind: reply::ACK, length: u32::MAX };
    use HandshakeError as E;
    assert!(matches!(refusing(b"HTTP/1.1 400 Bad Request\r\n".to_vec()).await, E::NotNbd));
    assert!(matches!(refusing(oldstyle).await, E::Oldstyle));
    assert!(matches!(refusing(Vec::new()).await, E::Io(_)));
    assert!(matches!(refusing(wire::greeting(0).to_vec()).await, E::NoSuchExport));
    assert!(matches!(refusing(go(reply::ERR_UNKNOWN, b"")).await, E::NoSuchExport));
    assert!(matches!(refusing(go(reply::ERR_TLS_REQD, b"")).await, E::TlsRequired));
    assert!(
        matches!(refusing(go(reply::ERR_POLICY, b"not you")).await, E::Refused { message, .. } if message == "not you")
    );
    assert!(matches!(refusing(go(reply::ACK, b"")).await, E::Broken(_)), "no size");
    assert!(
        matches!(refusing(go(reply::INFO, b"\0\x03\0\0\0\x03\0\0\x10\0\0\x10\0\0")).await, E::Broken(_)),
        "minimum 3"
    );
    assert!(matches!(refusing(go(reply::INFO, b"\0\0\0")).await, E::Broken(_)), "half a size");
    let mut bytes = wire::greeting(3).to_vec();
    bytes.extend(overlong.encode());
    assert!(matches!(refusing(bytes).await, E::Broken(_)));
    assert!(matches!(
        NbdDisk::open("nbd+unix:///x?socket=/nonexistent/socket").await.map(drop),
        Err(OpenError::Handshake { source: E::Unreachable(_), .. })
    ));
}

#[tokio::test]
async fn a_server_that_knows_only_export_name_is_served_without_block_status() {
    let (_folder, socket, uri) = place();
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&wire::greeting(1)).await.unwrap();
        stream.read_u32().await.unwrap();
        loop {
            let mut head = [0; OptionHeader::LENGTH];
            stream.read_exact(&mut head).await.unwrap();
            let OptionHeader { option, length } = OptionHeader::decode(&head).unwrap();
            stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
            if option == option::EXPORT_NAME {
                break;
            }
            let unknown = OptionReply { option, kind: reply::ERR_UNSUP, length: 0 };
            stream.write_all(&unknown.encode()).await.unwrap();
        }
        stream.write_all(&[&SIZE.to_be_bytes()[..], &[0, 1], &[0; 124]].concat()).await.unwrap();
        let request = next_request(&mut stream).await;
        stream.write_all(&SimpleReply { error: 0, cookie: request.cookie }.encode()).await.unwrap();
        stream.write_all(&vec![7; request.length as usize]).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let disk = NbdDisk::open(&uri).await.unwrap();
    assert_eq!(disk.geometry().abilities, disk::Abilities::default());
    assert_eq!(disk.read(0, 1000).await.unwrap(), vec![7; 1000]);
    assert_eq!(disk.flush().await, Err(DiskError::Refused(Errno::EINVAL)));
    assert_eq!(disk.extents(0, SIZE, 1).await.unwrap(), [Extent { length: SIZE, hole: false, zero: false }]);
}
