//! The remote: what was put is there for ever, but a put may come to be long after whoever asked has gone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

use super::ground::{Ground, below, lock, note, once_in};

#[derive(Clone)]
pub struct Bucket {
    ground: Ground,
    pub inner: Arc<InMemory>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next: u64,
    /// By when they come to be.
    in_flight: BTreeMap<(u64, u64), (Path, PutPayload, PutOptions)>,
    done: BTreeMap<u64, Result<PutResult>>,
    /// Milliseconds that an answer takes at most.
    latency: u64,
    dead_until: u64,
}

impl Bucket {
    pub fn new(ground: Ground, latency: u64) -> Self {
        let state = State { latency, ..State::default() };
        Self { ground, inner: Arc::new(InMemory::new()), state: Arc::new(Mutex::new(state)) }
    }

    /// Nothing is answered for so long.
    pub fn be_dead(&self, millis: u64) {
        lock(&self.state).dead_until = self.ground.now() + millis;
    }

    pub fn heal(&self) {
        lock(&self.state).dead_until = 0;
    }

    /// Whoever asked is gone: what is on its way comes to be soon, late or never.
    pub fn abandoned(&self) {
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        let on_the_way: Vec<_> = std::mem::take(&mut state.in_flight).into_iter().collect();
        for ((due, id), put) in on_the_way {
            let due = match below(3) {
                0 => continue,
                1 => due,
                _ => now + below(20_000),
            };
            state.in_flight.insert((due, id), put);
        }
        state.done.clear();
    }

    /// What is due comes to be.
    pub fn settle(&self) {
        let now = self.ground.now();
        let state = &mut *lock(&self.state);
        while let Some(entry) = state.in_flight.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, id), (key, payload, options)) = entry.remove_entry();
            let length = payload.content_length();
            let result = self.inner.put_opts(&key, payload, options).now_or_never().expect("memory answers at once");
            note!(self.ground, "remote: {key} of {length} {}", if result.is_ok() { "is there" } else { "was there" });
            state.done.insert(id, result);
        }
    }

    /// How long a way takes.
    fn way(&self) -> Duration {
        let now = self.ground.now();
        let state = lock(&self.state);
        let dead = state.dead_until.saturating_sub(now);
        Duration::from_millis(dead + below(state.latency + 1) + if once_in(50) { below(400) } else { 0 })
    }

    async fn put(&self, key: Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let (there, back) = (self.way(), self.way());
        let id = {
            let due = self.ground.now() + there.as_millis() as u64;
            note!(self.ground, "remote: put {key}");
            let state = &mut *lock(&self.state);
            state.next += 1;
            state.in_flight.insert((due, state.next), (key, payload, options));
            state.next
        };
        tokio::time::sleep(there).await;
        self.settle();
        let result = lock(&self.state).done.remove(&id);
        tokio::time::sleep(back).await;
        result.expect("a put that is due is done")
    }
}

impl ObjectStore for Bucket {
    fn put_opts<'s, 'k, 'f>(
        &'s self,
        key: &'k Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'f, Result<PutResult>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        Box::pin(self.put(key.clone(), payload, options))
    }

    fn put_multipart_opts<'s, 'k, 'f>(
        &'s self,
        key: &'k Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'f, Result<Box<dyn MultipartUpload>>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        self.inner.put_multipart_opts(key, options)
    }

    fn get_opts<'s, 'k, 'f>(&'s self, key: &'k Path, options: GetOptions) -> BoxFuture<'f, Result<GetResult>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let (there, back) = (self.way(), self.way());
            tokio::time::sleep(there).await;
            self.settle();
            let found = self.inner.get_opts(key, options).await;
            note!(self.ground, "remote: get {key} {}", found.is_ok());
            tokio::time::sleep(back).await;
            found
        })
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'s, 'k, 'f>(&'s self, prefix: Option<&'k Path>) -> BoxFuture<'f, Result<ListResult>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'s, 'a, 'b, 'f>(
        &'s self,
        from: &'a Path,
        to: &'b Path,
        options: CopyOptions,
    ) -> BoxFuture<'f, Result<()>>
    where
        's: 'f,
        'a: 'f,
        'b: 'f,
        Self: 'f,
    {
        self.inner.copy_opts(from, to, options)
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Simulated")
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
