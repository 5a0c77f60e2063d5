//! A store that fails on purpose, around one that does not: for tests of everything above.
//!
//! Faults are scripted ([`FaultyStore::once`], [`FaultyStore::every`]) or drawn from a seed
//! ([`FaultyStore::seeded`]); the same script over the same operations gives the same faults. Calls are counted, and
//! kinds of calls can be refused, to show what is done without.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::random::SplitMix64;

/// What is asked of the store; finer than [`super::Operation`], since some of it must never be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    Head,
    /// With create-if-absent.
    Create,
    Overwrite,
    List,
    Delete,
    Copy,
}

/// What happens instead of the right thing.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answers with this HTTP status (403, 404 and 409 as object_store maps them) and does nothing.
    Status(u16),
    /// The connection breaks; nothing was done.
    Reset,
    /// A put is done, then the connection breaks.
    LostAnswer,
    /// The connection breaks now, and the put is done after that time.
    LateWrite(Duration),
    /// Only so many bytes of a get arrive, though more were promised.
    Truncate(usize),
    /// One bit of a get is wrong.
    FlipBit,
    /// A get is answered with the bytes that follow those that were asked for, and says so.
    WrongRange,
    /// The right thing, later.
    Delay(Duration),
    /// The right bytes of a get, one at a time with this time between them.
    Drip(Duration),
    /// No answer, ever; nothing is done.
    BlackHole,
}

struct Rule {
    call: Call,
    /// Keys that contain this.
    key: String,
    /// How many more calls; none is all of them.
    left: Option<u32>,
    fault: Fault,
}

#[derive(Default)]
struct State {
    rules: Vec<Rule>,
    calls: Vec<(Call, String)>,
    /// What is not there is denied.
    hide_absent: bool,
    /// Draws, and one fault in so many calls.
    seeded: Option<(SplitMix64, u64)>,
}

/// The wrapper; clones share script and counts.
#[derive(Clone)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

impl FaultyStore {
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// The next such call on a key that contains `key` meets the fault. Several wait for their turn in order.
    pub fn once(&self, call: Call, key: &str, fault: Fault) {
        self.rule(call, key, Some(1), fault);
    }

    /// Every such call from now on.
    pub fn every(&self, call: Call, key: &str, fault: Fault) {
        self.rule(call, key, None, fault);
    }

    /// One of `one_in` gets and creates meets a fault that passes, drawn from `seed`.
    pub fn seeded(&self, seed: u64, one_in: u64) {
        self.with(|state| state.seeded = Some((SplitMix64(seed), one_in.max(1))));
    }

    /// From now on, a get of what is not there is denied, as S3 does for those who may not list.
    pub fn hide_absent(&self) {
        self.with(|state| state.hide_absent = true);
    }

    /// Faults no more.
    pub fn heal(&self) {
        self.with(|state| {
            state.rules.clear();
            state.seeded = None;
        });
    }

    /// The keys of all such calls so far.
    pub fn calls(&self, call: Call) -> Vec<String> {
        self.with(|state| state.calls.iter().filter(|(c, _)| *c == call).map(|(_, key)| key.clone()).collect())
    }

    fn rule(&self, call: Call, key: &str, left: Option<u32>, fault: Fault) {
        self.with(|state| state.rules.push(Rule { call, key: key.to_owned(), left, fault }));
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts the call and says what goes wrong with it.
    fn meet(&self, call: Call, key: &Path) -> Option<Fault> {
        self.with(|state| {
            state.calls.push((call, key.to_string()));
            let scripted = state.rules.iter().position(|r| r.call == call && key.as_ref().contains(&r.key));
            if let Some(at) = scripted {
                let rule = &mut state.rules[at];
                let fault = rule.fault.clone();
                if let Some(left) = &mut rule.left {
                    *left -= 1;
                    if *left == 0 {
                        state.rules.remove(at);
                    }
                }
                return Some(fault);
            }
            let (random, one_in) = state.seeded.as_mut()?;
            if !matches!(call, Call::Get | Call::Create) || !random.next().is_multiple_of(*one_in) {
                return None;
            }
            Some(match (call, random.below(6)) {
                (_, 0) => Fault::Status(503),
                (_, 1) => Fault::Reset,
                (Call::Create, 2 | 3) => Fault::LostAnswer,
                (Call::Create, 4) => Fault::LateWrite(Duration::from_millis(random.below(20))),
                (Call::Create, _) => Fault::Status(409),
                (_, 2) => Fault::Truncate(random.below(64) as usize),
                (_, 3) => Fault::WrongRange,
                _ => Fault::Delay(Duration::from_millis(random.below(10))),
            })
        })
    }

    async fn create(&self, key: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let call = if options.mode == PutMode::Overwrite { Call::Overwrite } else { Call::Create };
        match self.meet(call, key) {
            None => {}
            Some(Fault::LostAnswer) => {
                // What the answer was makes no difference to whoever did not get it.
                let _ = self.inner.put_opts(key, payload, options).await;
                return Err(reset());
            }
            Some(Fault::LateWrite(after)) => {
                let (inner, key) = (self.inner.clone(), key.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    let _ = inner.put_opts(&key, payload, options).await;
                });
                return Err(reset());
            }
            Some(fault) => plain(fault, key).await?,
        }
        self.inner.put_opts(key, payload, options).await
    }

    async fn read(&self, key: &Path, mut options: GetOptions) -> Result<GetResult> {
        let call = if options.head { Call::Head } else { Call::Get };
        let fault = self.meet(call, key);
        if let (Some(Fault::WrongRange), Some(GetRange::Bounded(range))) = (&fault, &mut options.range) {
            *range = range.end..range.end + (range.end - range.start);
        }
        match fault {
            Some(fault @ (Fault::Truncate(_) | Fault::FlipBit | Fault::Drip(_))) => {
                let GetResult { meta, range, attributes, extensions, payload } =
                    self.inner.get_opts(key, options).await?;
                let whole = GetResult {
                    meta: meta.clone(),
                    range: range.clone(),
                    attributes: attributes.clone(),
                    extensions: extensions.clone(),
                    payload,
                };
                let payload = GetResultPayload::Stream(spoiled(fault, whole.bytes().await?));
                Ok(GetResult { meta, range, attributes, extensions, payload })
            }
            Some(Fault::WrongRange) | None => self.inner.get_opts(key, options).await,
            Some(fault) => {
                plain(fault, key).await?;
                self.inner.get_opts(key, options).await
            }
        }
        .map_err(|error| match error {
            Error::NotFound { .. } if self.with(|state| state.hide_absent) => answer(403, key),
            error => error,
        })
    }
}

/// The faults that need no knowledge of the call: an error instead of it, or nothing but a delay before it.
async fn plain(fault: Fault, key: &Path) -> Result<()> {
    match fault {
        Fault::Status(status) => Err(answer(status, key)),
        Fault::Delay(time) => {
            tokio::time::sleep(time).await;
            Ok(())
        }
        Fault::BlackHole => std::future::pending().await,
        _ => Err(reset()),
    }
}

fn spoiled(fault: Fault, body: Bytes) -> BoxStream<'static, Result<Bytes>> {
    let whole = |body: Bytes| stream::iter([Ok(body)]).boxed();
    match fault {
        Fault::Truncate(length) => whole(body.slice(..length.min(body.len()))),
        Fault::FlipBit => {
            let mut bytes = body.to_vec();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
            whole(bytes.into())
        }
        Fault::Drip(between) => {
            let bytes: Range<usize> = 0..body.len();
            stream::iter(bytes)
                .then(move |at| {
                    let byte = body.slice(at..=at);
                    async move {
                        tokio::time::sleep(between).await;
                        Ok(byte)
                    }
                })
                .boxed()
        }
        _ => whole(body),
    }
}

fn reset() -> Error {
    Error::Generic { store: "Faulty", source: io::Error::from(io::ErrorKind::ConnectionReset).into() }
}

/// As object_store words and sorts a status.
fn answer(status: u16, key: &Path) -> Error {
    let (path, text) = (key.to_string(), format!("Server returned non-2xx status code: {status} Faulty: "));
    let source = text.into();
    match status {
        401 => Error::Unauthenticated { path, source },
        403 => Error::PermissionDenied { path, source },
        404 => Error::NotFound { path, source },
        409 => Error::AlreadyExists { path, source },
        412 => Error::Precondition { path, source },
        _ => Error::Generic { store: "Faulty", source },
    }
}

// The signatures are what `#[async_trait]` makes of those of object_store.
impl ObjectStore for FaultyStore {
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
        Box::pin(self.create(key, payload, options))
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
        Box::pin(async move {
            if let Some(fault) = self.meet(Call::Overwrite, key) {
                plain(fault, key).await?;
            }
            self.inner.put_multipart_opts(key, options).await
        })
    }

    fn get_opts<'s, 'k, 'f>(&'s self, key: &'k Path, options: GetOptions) -> BoxFuture<'f, Result<GetResult>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        Box::pin(self.read(key, options))
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let checked = keys.then(move |key| {
            let this = this.clone();
            async move {
                let key = key?;
                if let Some(fault) = this.meet(Call::Delete, &key) {
                    plain(fault, &key).await?;
                }
                Ok(key)
            }
        });
        self.inner.delete_stream(checked.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        match self.meet(Call::List, &prefix) {
            Some(fault) => {
                let inner = self.inner.clone();
                stream::once(async move {
                    plain(fault, &prefix).await?;
                    Ok(inner.list(Some(&prefix)))
                })
                .flat_map(|listed| match listed {
                    Ok(listed) => listed,
                    Err(error) => stream::iter([Err(error)]).boxed(),
                })
                .boxed()
            }
            None => self.inner.list(Some(&prefix)),
        }
    }

    fn list_with_delimiter<'s, 'k, 'f>(&'s self, prefix: Option<&'k Path>) -> BoxFuture<'f, Result<ListResult>>
    where
        's: 'f,
        'k: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let whole = prefix.cloned().unwrap_or_default();
            if let Some(fault) = self.meet(Call::List, &whole) {
                plain(fault, &whole).await?;
            }
            self.inner.list_with_delimiter(prefix).await
        })
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
        Box::pin(async move {
            if let Some(fault) = self.meet(Call::Copy, to) {
                plain(fault, to).await?;
            }
            self.inner.copy_opts(from, to, options).await
        })
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Faulty({})", self.inner)
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
