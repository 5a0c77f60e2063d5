//! Clients that speak nonsense end their own connection and nothing else.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::harness::{Fio, MIB, Scene, assert_same_image};

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REQUEST_MAGIC: u32 = 0x2560_9513;
const OPT_EXPORT_NAME: u32 = 1;
const OPT_LIST: u32 = 3;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

/// A connection that has read the greeting and not answered it.
fn connect(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [OPTION_MAGIC, &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn go(name: &[u8]) -> Vec<u8> {
    option(OPT_GO, &[&(name.len() as u32).to_be_bytes(), name, &[0, 0]].concat())
}

fn request(magic: u32, flags: u16, kind: u16, offset: u64, length: u32) -> Vec<u8> {
    let cookie = 0x0123_4567_89ab_cdef_u64;
    [
        &magic.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// Flags of the client: fixed newstyle, no zeroes.
const CLIENT_FLAGS: [u8; 4] = [0, 0, 0, 3];

/// Brings a connection to the point where requests are read.
fn negotiated(address: &str) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(&[&CLIENT_FLAGS[..], &go(b"disk0")].concat()).unwrap();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        let mut data = vec![0; word(16) as usize];
        stream.read_exact(&mut data).unwrap();
        if word(12) == REP_ACK {
            return stream;
        }
    }
}

/// Says all that the client has to say; then the server has to end the connection.
pub fn assert_it_ends(name: &str, mut stream: TcpStream, bytes: &[u8]) {
    // A server that has heard enough may close before all was said.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    match stream.take(64 << 20).read_to_end(&mut answers) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        Err(e) => panic!("after {name} the connection did not end: {e}"),
    }
}

/// Fault test 39.
#[test]
fn malformed_input_hurts_nobody_else() {
    let scene = Scene::new(64 * MIB);
    let mut gateway = scene.serve();
    let address = gateway.address();
    let mut fio = Fio::start(gateway.uri(), 64, 2, 16);

    let mut noise = vec![0; 1 << 16];
    let mut state = 1_u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let flags = CLIENT_FLAGS.to_vec();
    let after_flags = |bytes: Vec<u8>| [flags.clone(), bytes].concat();
    let long_name = vec![b'x'; 5000];
    let before_go = [
        ("nothing", vec![]),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: disk0\r\n\r\n".to_vec()),
        ("noise", noise.clone()),
        ("unknown client flags", [vec![0xff; 4], go(b"disk0")].concat()),
        ("an option with a wrong magic", after_flags(b"IHAVEOPS\0\0\0\x07\0\0\0\0".to_vec())),
        ("an option of 4 GiB", after_flags([OPTION_MAGIC, &[0, 0, 0, 7, 255, 255, 255, 255][..], &noise].concat())),
        ("an unknown option", after_flags(option(0x7777, b"what?"))),
        ("a name longer than the option", after_flags(option(OPT_GO, &[0, 0, 255, 255, b'd', 0, 0]))),
        ("a name of 5000 bytes", after_flags(go(&long_name))),
        ("EXPORT_NAME of 5000 bytes", after_flags(option(OPT_EXPORT_NAME, &long_name))),
        ("EXPORT_NAME of no export", after_flags(option(OPT_EXPORT_NAME, b"disk7"))),
        ("a name that is no UTF-8", after_flags(go(&[0xff, 0xfe, 0xfd]))),
        ("LIST with data", after_flags(option(OPT_LIST, b"data"))),
        ("LIST a thousand times", after_flags(option(OPT_LIST, b"").repeat(1000))),
        ("structured replies twice", after_flags(option(OPT_STRUCTURED_REPLY, b"").repeat(2))),
        (
            "2³² meta contexts",
            after_flags(
                [
                    option(OPT_STRUCTURED_REPLY, b""),
                    option(OPT_SET_META_CONTEXT, &[&[0, 0, 0, 5][..], b"disk0", &[255, 255, 255, 255]].concat()),
                ]
                .concat(),
            ),
        ),
        ("half an option", after_flags(OPTION_MAGIC[..5].to_vec())),
    ];
    for (name, bytes) in &before_go {
        assert_it_ends(name, connect(&address), bytes);
    }
    let after_go = [
        ("a request with a wrong magic", request(0x1234_5678, 0, CMD_READ, 0, 512)),
        ("noise as requests", noise.clone()),
        ("an unknown command", request(REQUEST_MAGIC, 0, 0x77, 0, 512)),
        ("a write of 4 GiB", [request(REQUEST_MAGIC, 0, CMD_WRITE, 0, u32::MAX), noise.clone()].concat()),
        ("a read of 4 GiB", request(REQUEST_MAGIC, 0, CMD_READ, 0, u32::MAX)),
        ("a read at the end of all offsets", request(REQUEST_MAGIC, 0, CMD_READ, u64::MAX - 10, 100)),
        (
            "a write at the end of all offsets",
            [request(REQUEST_MAGIC, 0, CMD_WRITE, u64::MAX - 10, 100), noise[..100].to_vec()].concat(),
        ),
        ("zeroes that wrap around", request(REQUEST_MAGIC, 0, CMD_WRITE_ZEROES, u64::MAX, u32::MAX)),
        ("a trim that wraps around", request(REQUEST_MAGIC, 0, CMD_TRIM, u64::MAX, u32::MAX)),
        ("a map that was not negotiated", request(REQUEST_MAGIC, 0, CMD_BLOCK_STATUS, 0, 512)),
        ("unknown flags", request(REQUEST_MAGIC, 0xffff, CMD_READ, 0, 512)),
        ("half a request", request(REQUEST_MAGIC, 0, CMD_READ, 0, 512)[..20].to_vec()),
        ("half a payload", [request(REQUEST_MAGIC, 0, CMD_WRITE, 32 * MIB, 4096), noise[..100].to_vec()].concat()),
        (
            "a request after the last",
            [request(REQUEST_MAGIC, 0, CMD_DISC, 0, 0), request(REQUEST_MAGIC, 0, CMD_READ, 0, 512)].concat(),
        ),
        ("a thousand reads and no ear", request(REQUEST_MAGIC, 0, CMD_READ, 0, 1 << 16).repeat(1000)),
    ];
    // Some reached the store; fio writes every block again in its second round, and these ranges read the same.
    for (name, bytes) in &after_go {
        assert_it_ends(name, negotiated(&address), bytes);
    }
    // Many who say nothing, and many who promise a lot.
    let silent: Vec<_> = (0..50).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let promising: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = negotiated(&address);
            stream.write_all(&request(REQUEST_MAGIC, 0, CMD_WRITE, 0, 32 * MIB as u32)).unwrap();
            stream
        })
        .collect();
    assert!(fio.is_running(), "fio had ended before all nonsense was said");
    fio.finish();
    let memory = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let peak: u64 =
        memory.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap();
    assert!(peak < 1 << 20, "it took {} MiB of memory", peak >> 10);
    drop((silent, promising));
    gateway.settle();
    gateway.stop();
    assert_same_image(&scene.restored("latest").0, &fs::read(scene.store()).unwrap());
}
