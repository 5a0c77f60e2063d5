//! What the tests here need: a disk in memory that can be told to wait or to fail, and a client that says anything.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::export::{Export, Exports};
use super::negotiation::{NegotiationError, negotiate};
use super::session::{self, End, SessionError};
use super::wire::{self, Chunk, InfoQuery, OptionHeader, OptionReply, Request, SimpleReply, option, reply};
use crate::disk::*;

pub const SIZE: u64 = 1 << 20;

pub struct Ram {
    pub geometry: Geometry,
    pub bytes: Mutex<Vec<u8>>,
    /// Every operation waits for a permit of it; none where nothing waits.
    pub gate: Option<Arc<Semaphore>>,
    pub failure: Mutex<Option<DiskError>>,
    pub begun: AtomicUsize,
    pub completed: Arc<AtomicUsize>,
    pub with_fua: AtomicUsize,
    pub incarnation: AtomicU64,
    /// What the next flush tells.
    pub owed: Mutex<Option<DiskError>>,
}

pub fn able() -> Abilities {
    Abilities {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        cache: true,
        extents: true,
        ..Abilities::default()
    }
}

impl Ram {
    pub fn new() -> Self {
        let block = BlockSizes { minimum: 1, preferred: 4096, maximum: 1 << 20 };
        Self {
            geometry: Geometry { size: SIZE, block, abilities: able() },
            bytes: Mutex::new((0..SIZE).map(|i| (i / 512) as u8).collect()),
            gate: None,
            failure: Mutex::new(None),
            begun: AtomicUsize::new(0),
            completed: Arc::default(),
            with_fua: AtomicUsize::new(0),
            incarnation: AtomicU64::new(0),
            owed: Mutex::new(None),
        }
    }

    fn done<T: Send + 'static>(&self, fua: bool, value: T) -> Pending<T> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.with_fua.fetch_add(fua.into(), Ordering::SeqCst);
        let answer = self.failure.lock().unwrap().map_or(Ok(value), Err);
        let completed = self.completed.clone();
        match self.gate.clone() {
            None => {
                completed.fetch_add(1, Ordering::SeqCst);
                Pending::ready(answer)
            }
            Some(gate) => Pending::later(async move {
                gate.acquire().await.unwrap().forget();
                completed.fetch_add(1, Ordering::SeqCst);
                answer
            }),
        }
    }
}

impl Disk for Ram {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn read(&self, offset: u64, length: u32) -> Pending<Bytes> {
        let start = offset as usize;
        let data = self.bytes.lock().unwrap()[start..start + length as usize].to_vec();
        self.done(false, data.into())
    }
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Pending<()> {
        let start = offset as usize;
        self.bytes.lock().unwrap()[start..start + data.len()].copy_from_slice(&data);
        self.done(fua, ())
    }
    fn flush(&self) -> Pending<()> {
        match self.owed.lock().unwrap().take() {
            Some(owed) => Pending::ready(Err(owed)),
            None => self.done(false, ()),
        }
    }
    fn trim(&self, _: u64, _: u64, fua: bool) -> Pending<()> {
        self.done(fua, ())
    }
    fn write_zeroes(&self, offset: u64, length: u64, _: ZeroMode, fua: bool) -> Pending<()> {
        self.bytes.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0);
        self.done(fua, ())
    }
    fn cache(&self, _: u64, _: u64) -> Pending<()> {
        self.done(false, ())
    }
    fn extents(&self, offset: u64, length: u64, limit: usize) -> Pending<Vec<Extent>> {
        // Every other 64 KiB is a hole.
        const UNIT: u64 = 65536;
        let (mut at, end, mut extents) = (offset, offset + length, Vec::new());
        while at < end && extents.len() < limit {
            let next = ((at / UNIT + 1) * UNIT).min(end);
            let hole = at / UNIT % 2 == 1;
            extents.push(Extent { length: next - at, hole, zero: hole });
            at = next;
        }
        self.done(false, extents)
    }
    fn identity(&self) -> Identity {
        Identity { name: "ram".into(), size: self.geometry.size, modified: None }
    }
    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }
    fn owe(&self, error: DiskError) {
        *self.owed.lock().unwrap() = Some(error);
    }
}

pub fn exports(disks: Vec<(&str, Arc<dyn Disk>)>) -> Exports {
    let export = |(name, disk): (&str, _)| Export { name: name.into(), description: format!("all of {name}"), disk };
    Exports::new(disks.into_iter().map(export).collect()).unwrap()
}

#[derive(Debug)]
pub enum Outcome {
    Left,
    Refused(NegotiationError),
    Ended(End),
    Dropped(SessionError),
}

/// The server's side of one connection, as a task.
pub struct Serving {
    pub task: JoinHandle<Outcome>,
    pub stop: watch::Sender<bool>,
}

pub fn serve(exports: Exports) -> (Client, Serving) {
    let (here, mut there) = tokio::io::duplex(1 << 16);
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(async move {
        match negotiate(&mut there, &exports).await {
            Ok(None) => Outcome::Left,
            Err(error) => Outcome::Refused(error),
            Ok(Some(agreed)) => match session::serve(there, agreed, stopped).await {
                Ok(end) => Outcome::Ended(end),
                Err(error) => Outcome::Dropped(error),
            },
        }
    });
    (Client(here), Serving { task, stop })
}

/// Says to a server what a test wants it to hear.
pub struct Client(pub DuplexStream);

impl Client {
    /// Reads the greeting and answers it with these flags.
    pub async fn greet(&mut self, flags: u32) {
        let mut greeting = [0; 18];
        self.0.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting, wire::greeting(3));
        self.0.write_all(&flags.to_be_bytes()).await.unwrap();
    }
    pub async fn ask(&mut self, option: u32, data: &[u8]) {
        self.0.write_all(&OptionHeader { option, length: data.len() as u32 }.encode()).await.unwrap();
        self.0.write_all(data).await.unwrap();
    }
    pub async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let mut head = [0; OptionReply::LENGTH];
        self.0.read_exact(&mut head).await.unwrap();
        let head = OptionReply::decode(&head).unwrap();
        assert_eq!(head.option, option);
        let mut data = vec![0; head.length as usize];
        self.0.read_exact(&mut data).await.unwrap();
        (head.kind, data)
    }
    /// Asks, and reads replies to the last one.
    pub async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.ask(option, data).await;
        let mut replies = Vec::new();
        loop {
            replies.push(self.option_reply(option).await);
            let last = replies.last().unwrap().0;
            if last == reply::ACK || last & reply::ERROR != 0 {
                return replies;
            }
        }
    }
    /// As [`option`](Self::option), the last reply's type only.
    pub async fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).await.last().unwrap().0
    }
    pub async fn go(&mut self, name: &str) {
        let query = InfoQuery { name: name.as_bytes(), kinds: vec![] }.encode();
        assert_eq!(self.verdict(option::GO, &query).await, reply::ACK);
    }
    /// Through the handshake, with what most clients ask for or with nothing of it.
    pub async fn open(&mut self, structured: bool) {
        self.greet(3).await;
        if structured {
            assert_eq!(self.verdict(option::STRUCTURED_REPLY, &[]).await, reply::ACK);
            let query = wire::ContextQuery { name: b"", queries: vec![b"base:allocation"] }.encode();
            assert_eq!(self.option(option::SET_META_CONTEXT, &query).await.len(), 2);
        }
        self.go("").await;
    }
    pub async fn send(&mut self, command: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.0.write_all(&Request { flags, command, cookie, offset, length }.encode()).await.unwrap();
    }
    /// Cookie and error.
    pub async fn simple(&mut self) -> (u64, u32) {
        let mut head = [0; SimpleReply::LENGTH];
        self.0.read_exact(&mut head).await.unwrap();
        let head = SimpleReply::decode(&head).unwrap();
        (head.cookie, head.error)
    }
    pub async fn chunk(&mut self) -> (Chunk, Vec<u8>) {
        let mut head = [0; Chunk::LENGTH];
        self.0.read_exact(&mut head).await.unwrap();
        let head = Chunk::decode(&head).unwrap();
        let mut payload = vec![0; head.length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        (head, payload)
    }
    /// Whatever comes up to the end of the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
        rest
    }
}

/// Waits for what other tasks do; a test that waits in vain fails.
pub async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(30), waiting).await.expect("waited in vain");
}
