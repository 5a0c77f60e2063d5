//! An NBD server on a file that keeps every write and flush, in order and with its times, and builds from them what a
//! disk may hold after a power cut.
//!
//! Requests are carried out one at a time, so that a flush covers exactly what stands before it. It speaks as much of
//! the protocol (NetworkBlockDevice/nbd, doc/proto.md) as nbdfuse asks for: no structured replies, trims or zeroes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use umbra::random::SplitMix64;

use super::{COMMAND_LIMIT, run};
use crate::s3::now;

const SECTOR: usize = 512;
/// Of one request; what nbdfuse sends is smaller.
const REQUEST_MAX: usize = 32 << 20;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES.
const HANDSHAKE_FLAGS: u16 = 3;
/// NBD_FLAG_HAS_FLAGS, SEND_FLUSH and SEND_FUA.
const EXPORT_FLAGS: u16 = 1 | 4 | 8;
const FUA: u16 = 1;

pub enum Change {
    /// With whether it had to be durable before it was answered.
    Write {
        offset: u64,
        data: Vec<u8>,
        durable: bool,
    },
    Flush,
}

pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC: before it was carried out, and before it was answered.
    pub start: u64,
    pub end: u64,
    pub change: Change,
}

/// Everything that came, in order.
#[derive(Default)]
pub struct Recording {
    pub events: Vec<Event>,
}

/// What a power cut leaves of the sectors that were written and not flushed.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    Nothing,
    /// So many of a hundred, each sector by itself.
    Some(u64),
    Everything,
}

impl Recording {
    /// Of all writes.
    pub fn bytes(&self) -> usize {
        let length = |event: &Event| match &event.change {
            Change::Write { data, .. } => data.len(),
            Change::Flush => 0,
        };
        self.events.iter().map(length).sum()
    }

    /// Makes `image` what the disk that began as `base` may hold after a power cut at `time`: all that was flushed by
    /// then, and of the rest what `keep` says. Returns how many writes were not flushed.
    #[track_caller]
    pub fn cut(&self, base: &Path, time: u64, keep: Keep, random: &mut SplitMix64, image: &Path) -> usize {
        copy_sparse(base, image);
        let file = OpenOptions::new().write(true).open(image).unwrap();
        let flushed = |event: &Event| matches!(event.change, Change::Flush) && event.end <= time;
        let durable_through = self.events.iter().rposition(flushed).unwrap_or(0);
        let mut pending = 0;
        for (at, event) in self.events.iter().enumerate().take_while(|(_, event)| event.start <= time) {
            let Change::Write { offset, data, durable } = &event.change else { continue };
            if at < durable_through || (*durable && event.end <= time) {
                file.write_all_at(data, *offset).unwrap();
                continue;
            }
            pending += 1;
            for (sector, bytes) in data.chunks(SECTOR).enumerate() {
                let kept = match keep {
                    Keep::Nothing => false,
                    Keep::Some(share) => random.below(100) < share,
                    Keep::Everything => true,
                };
                if kept {
                    file.write_all_at(bytes, offset + (sector * SECTOR) as u64).unwrap();
                }
            }
        }
        pending
    }
}

/// Copies a file; what is zero takes no space.
#[track_caller]
pub fn copy_sparse(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--sparse=always").args([from, to]), COMMAND_LIMIT).ok();
}

/// A recorder at work on a file.
pub struct Recorder {
    socket: PathBuf,
    recording: Arc<Mutex<Recording>>,
    stopping: Arc<AtomicBool>,
}

impl Recorder {
    #[track_caller]
    pub fn start(file: &Path, socket: &Path) -> Self {
        let file = Arc::new(OpenOptions::new().read(true).write(true).open(file).unwrap());
        let listener = UnixListener::bind(socket).unwrap();
        let recording: Arc<Mutex<Recording>> = Arc::default();
        let stopping = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (recording.clone(), stopping.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (file, recording) = (file.clone(), shared.clone());
                // A client that breaks off is nbdfuse at its end.
                thread::spawn(move || stream.and_then(|stream| serve(stream, &file, &recording)));
            }
        });
        Self { socket: socket.to_owned(), recording, stopping }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Takes what was recorded.
    pub fn finish(self) -> Recording {
        std::mem::take(&mut *self.recording.lock().unwrap())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn serve(mut stream: UnixStream, file: &File, recording: &Mutex<Recording>) -> io::Result<()> {
    if negotiate(&mut stream, file.metadata()?.len())? {
        while transmit(&mut stream, file, recording)? {}
    }
    Ok(())
}

/// Returns whether an export was chosen.
fn negotiate(stream: &mut UnixStream, size: u64) -> io::Result<bool> {
    const ABORT: u32 = 2;
    const INFO: u32 = 6;
    const GO: u32 = 7;
    const ACK: u32 = 1;
    const INFO_REPLY: u32 = 3;
    const UNSUPPORTED: u32 = 0x8000_0001;
    stream.write_all(&[b"NBDMAGIC", &OPTION_MAGIC[..], &HANDSHAKE_FLAGS.to_be_bytes()].concat())?;
    take::<4>(stream)?;
    loop {
        assert_eq!(&take::<8>(stream)?, OPTION_MAGIC);
        let option = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?) as usize;
        assert!(length <= REQUEST_MAX);
        stream.read_exact(&mut vec![0; length])?;
        let mut reply = |kind: u32, data: &[u8]| {
            let head = [&OPTION_REPLY.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
            stream.write_all(&[&head, &(data.len() as u32).to_be_bytes()[..], data].concat())
        };
        match option {
            INFO | GO => {
                reply(INFO_REPLY, &[&[0, 0], &size.to_be_bytes()[..], &EXPORT_FLAGS.to_be_bytes()].concat())?;
                reply(ACK, &[])?;
                if option == GO {
                    return Ok(true);
                }
            }
            ABORT => {
                reply(ACK, &[])?;
                return Ok(false);
            }
            _ => reply(UNSUPPORTED, &[])?,
        }
    }
}

/// Carries out one request; false when there are no more.
fn transmit(stream: &mut UnixStream, file: &File, recording: &Mutex<Recording>) -> io::Result<bool> {
    const READ: u16 = 0;
    const WRITE: u16 = 1;
    const DISCONNECT: u16 = 2;
    const FLUSH: u16 = 3;
    assert_eq!(u32::from_be_bytes(take(stream)?), REQUEST_MAGIC);
    let flags = u16::from_be_bytes(take(stream)?);
    let kind = u16::from_be_bytes(take(stream)?);
    let cookie: [u8; 8] = take(stream)?;
    let offset = u64::from_be_bytes(take(stream)?);
    let length = u32::from_be_bytes(take(stream)?) as usize;
    assert!(length <= REQUEST_MAX);
    let mut data = vec![0; if matches!(kind, READ | WRITE) { length } else { 0 }];
    if kind == WRITE {
        stream.read_exact(&mut data)?;
    }
    // Held until the end is known: one at a time.
    let mut recording = recording.lock().unwrap();
    let start = now();
    let change = match kind {
        READ => {
            file.read_exact_at(&mut data, offset)?;
            drop(recording);
            return reply(stream, cookie, 0, &data).map(|()| true);
        }
        WRITE => {
            file.write_all_at(&data, offset)?;
            Change::Write { offset, data, durable: flags & FUA != 0 }
        }
        FLUSH => Change::Flush,
        DISCONNECT => return Ok(false),
        _ => {
            drop(recording);
            return reply(stream, cookie, libc::ENOTSUP as u32, &[]).map(|()| true);
        }
    };
    recording.events.push(Event { start, end: now(), change });
    drop(recording);
    reply(stream, cookie, 0, &[]).map(|()| true)
}

fn reply(stream: &mut UnixStream, cookie: [u8; 8], error: u32, data: &[u8]) -> io::Result<()> {
    stream.write_all(&[&REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &cookie, data].concat())
}
