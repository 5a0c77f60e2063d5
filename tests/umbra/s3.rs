//! An S3 server inside the test: the requests that publishing and restoring need, over real HTTP on loopback, and every
//! way in which a network and a service let their clients down. Signatures are not checked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_NONE_MATCH, LAST_MODIFIED, RANGE, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

/// One in `n` requests meets the fault; 0 is never. A request meets at most one.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// 500 before anything was done.
    pub internal: u32,
    /// 503 SlowDown before anything was done.
    pub slow_down: u32,
    /// The request is carried out, then the connection closes without an answer.
    pub lost_answer: u32,
    /// Nothing comes for `STALL`, then the connection closes.
    pub stall: u32,
    /// A GET's body ends half-way; a PUT's connection closes after half of it has come.
    pub torn: u32,
}

impl Faults {
    pub const NONE: Self = Self { internal: 0, slow_down: 0, lost_answer: 0, stall: 0, torn: 0 };
    pub const OFTEN: Self = Self { internal: 12, slow_down: 12, lost_answer: 8, stall: 40, torn: 10 };
}

/// What a bucket policy allows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Everything,
    /// GET, HEAD, and PUT of what does not exist yet.
    CreateOnly,
    /// Answers 403 to all.
    Nothing,
}

/// Longer than a client can wait without noticing, short enough for a test.
const STALL: Duration = Duration::from_secs(8);
const DATE: &str = "Sun, 22 Nov 2026 17:00:00 GMT";

/// How many faults of each kind were met, and how many requests were refused by the policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub requests: u32,
    pub internal: u32,
    pub slow_down: u32,
    pub lost_answers: u32,
    pub stalls: u32,
    pub torn: u32,
    pub refused: u32,
    /// Requests that came, or were about to be answered, while the server was dark.
    pub unanswered: u32,
}

/// An object, and when it came into being: nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub put: u64,
    pub data: Bytes,
}

pub type Objects = BTreeMap<String, Object>;

struct State {
    objects: Objects,
    faults: Faults,
    policy: Policy,
    seed: u64,
    counts: Counts,
}

/// The server runs until this is dropped.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Connections are accepted, requests taken, and nothing is answered.
    dark: watch::Sender<bool>,
    _runtime: tokio::runtime::Runtime,
}

enum Fault {
    Internal,
    SlowDown,
    LostAnswer,
    Stall,
    Torn,
}

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
struct Hangup;

type Answer = Response<BoxBody<Bytes, Hangup>>;

impl Server {
    pub fn start(seed: u64) -> Self {
        Self::start_with(seed, Objects::new())
    }

    /// One that holds these objects already.
    pub fn start_with(seed: u64, objects: Objects) -> Self {
        let state = Arc::new(Mutex::new(State {
            objects,
            faults: Faults::NONE,
            policy: Policy::Everything,
            seed,
            counts: Counts::default(),
        }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = state.clone();
        let (dark, darkness) = watch::channel(false);
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (shared, darkness) = (shared.clone(), darkness.clone());
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        serve_unless_dark(shared.clone(), darkness.clone(), request)
                    });
                    // An error here is one that the faults have made, or a client that left.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        println!("in-test S3 server: seed {seed}");
        Self { address, state, dark, _runtime: runtime }
    }

    /// As in `http://127.0.0.1:4711`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().unwrap().faults = faults;
    }

    pub fn set_policy(&self, policy: Policy) {
        self.state.lock().unwrap().policy = policy;
    }

    /// Answers nothing from now on, also to what has come already; or lives again, and closes what waited for it.
    pub fn set_dark(&self, dark: bool) {
        self.dark.send_replace(dark);
    }

    pub fn counts(&self) -> Counts {
        self.state.lock().unwrap().counts
    }

    pub fn objects(&self) -> Objects {
        self.state.lock().unwrap().objects.clone()
    }
}

impl State {
    /// A number below `n`; the same for the same seed.
    fn draw(&mut self, n: u32) -> u32 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as u32 % n
    }

    fn fault(&mut self) -> Option<Fault> {
        let Faults { internal, slow_down, lost_answer, stall, torn } = self.faults;
        let mut met = |one_in: u32| one_in != 0 && self.draw(one_in) == 0;
        if met(internal) {
            self.counts.internal += 1;
            Some(Fault::Internal)
        } else if met(slow_down) {
            self.counts.slow_down += 1;
            Some(Fault::SlowDown)
        } else if met(lost_answer) {
            self.counts.lost_answers += 1;
            Some(Fault::LostAnswer)
        } else if met(stall) {
            self.counts.stalls += 1;
            Some(Fault::Stall)
        } else if met(torn) {
            self.counts.torn += 1;
            Some(Fault::Torn)
        } else {
            None
        }
    }

    fn allows(&self, method: &Method, headers: &HeaderMap, query: &str) -> bool {
        match self.policy {
            Policy::Everything => true,
            Policy::Nothing => false,
            Policy::CreateOnly => match *method {
                Method::GET => !query.contains("list-type"),
                Method::HEAD => true,
                Method::PUT => headers.get(IF_NONE_MATCH).is_some_and(|value| value == "*"),
                _ => false,
            },
        }
    }
}

async fn serve_unless_dark(
    state: Arc<Mutex<State>>,
    mut darkness: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Result<Answer, Hangup> {
    let answer = if *darkness.borrow() { Err(Hangup) } else { serve(state.clone(), request).await };
    if *darkness.borrow() {
        state.lock().unwrap().counts.unanswered += 1;
        let _ = darkness.wait_for(|dark| !dark).await;
        return Err(Hangup);
    }
    answer
}

async fn serve(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Answer, Hangup> {
    let (parts, body) = request.into_parts();
    let key = parts.uri.path().trim_start_matches('/').to_owned();
    let query = parts.uri.query().unwrap_or("").to_owned();
    let fault = {
        let mut state = state.lock().unwrap();
        state.counts.requests += 1;
        if !state.allows(&parts.method, &parts.headers, &query) {
            state.counts.refused += 1;
            return Ok(error(StatusCode::FORBIDDEN, "AccessDenied"));
        }
        state.fault()
    };
    match fault {
        Some(Fault::Internal) => return Ok(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
        Some(Fault::SlowDown) => {
            let mut answer = error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown");
            answer.headers_mut().insert(RETRY_AFTER, "1".parse().unwrap());
            return Ok(answer);
        }
        Some(Fault::Stall) => {
            tokio::time::sleep(STALL).await;
            return Err(Hangup);
        }
        Some(Fault::Torn) if parts.method == Method::PUT => {
            read_half(body).await;
            return Err(Hangup);
        }
        Some(Fault::LostAnswer | Fault::Torn) | None => {}
    }
    let body = body.collect().await.map_err(|_| Hangup)?.to_bytes();
    let answer = {
        let mut state = state.lock().unwrap();
        match parts.method {
            Method::PUT => put(&mut state.objects, key, body, &parts.headers),
            Method::GET if query.contains("list-type=2") => list(&state.objects, &key, &query),
            Method::GET => get(&state.objects, &key, &parts.headers, matches!(fault, Some(Fault::Torn))),
            Method::HEAD => head(&state.objects, &key),
            Method::DELETE => {
                state.objects.remove(&key);
                empty(StatusCode::NO_CONTENT)
            }
            _ => error(StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
        }
    };
    match fault {
        Some(Fault::LostAnswer) => Err(Hangup),
        _ => Ok(answer),
    }
}

async fn read_half(mut body: Incoming) {
    let whole = body.size_hint().exact().unwrap_or(0);
    let mut come = 0;
    while come < whole / 2 {
        match body.frame().await {
            Some(Ok(frame)) => come += frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => return,
        }
    }
}

fn put(objects: &mut Objects, key: String, body: Bytes, headers: &HeaderMap) -> Answer {
    if headers.contains_key(IF_NONE_MATCH) && objects.contains_key(&key) {
        return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    let mut answer = empty(StatusCode::OK);
    answer.headers_mut().insert(ETAG, etag(&body).parse().unwrap());
    objects.insert(key, Object { put: now(), data: body });
    answer
}

fn get(objects: &Objects, key: &str, headers: &HeaderMap, torn: bool) -> Answer {
    let Some(Object { data: object, .. }) = objects.get(key) else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
    let whole = object.len();
    let range = match headers.get(RANGE).map(|value| range_of(value.to_str().unwrap_or(""), whole)) {
        None => 0..whole,
        Some(Some(range)) => range,
        Some(None) => return error(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange"),
    };
    let partial = headers.contains_key(RANGE);
    let mut answer = Response::builder()
        .status(if partial { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header(ETAG, etag(object))
        .header(LAST_MODIFIED, DATE)
        .header(CONTENT_LENGTH, range.len());
    if partial {
        answer = answer.header(CONTENT_RANGE, format!("bytes {}-{}/{whole}", range.start, range.end - 1));
    }
    let data = object.slice(range);
    let body = if torn {
        let half = data.slice(..data.len() / 2);
        StreamBody::new(stream::iter([Ok(Frame::data(half)), Err(Hangup)])).boxed()
    } else {
        full(data)
    };
    answer.body(body).unwrap()
}

/// Reads `bytes=a-b`, `bytes=a-` and `bytes=-n`; none if nothing of it is inside.
fn range_of(text: &str, whole: usize) -> Option<Range<usize>> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (from, to) {
        ("", count) => whole.saturating_sub(count.parse().ok()?)..whole,
        (from, "") => from.parse().ok()?..whole,
        (from, to) => from.parse().ok()?..(to.parse::<usize>().ok()? + 1).min(whole),
    };
    (range.start < range.end).then_some(range)
}

fn head(objects: &Objects, key: &str) -> Answer {
    let Some(Object { data: object, .. }) = objects.get(key) else { return empty(StatusCode::NOT_FOUND) };
    Response::builder()
        .header(ETAG, etag(object))
        .header(LAST_MODIFIED, DATE)
        .header(CONTENT_LENGTH, object.len())
        .body(full(Bytes::new()))
        .unwrap()
}

/// ListObjectsV2, all in one page.
fn list(objects: &Objects, bucket: &str, query: &str) -> Answer {
    let bucket = format!("{}/", bucket.trim_end_matches('/'));
    let pairs: BTreeMap<_, _> = url::form_urlencoded::parse(query.as_bytes()).collect();
    let argument = |name: &str| pairs.get(name).map_or("", |value| value);
    let (prefix, delimiter) = (argument("prefix"), argument("delimiter"));
    let mut contents = String::new();
    let mut prefixes = std::collections::BTreeSet::new();
    for (key, Object { data: object, .. }) in objects {
        let Some(name) = key.strip_prefix(&bucket).filter(|name| name.starts_with(prefix)) else { continue };
        if name <= argument("start-after") && pairs.contains_key("start-after") {
            continue;
        }
        match name[prefix.len()..].find(delimiter).filter(|_| !delimiter.is_empty()) {
            Some(at) => {
                prefixes.insert(&name[..prefix.len() + at + delimiter.len()]);
            }
            None => contents.push_str(&format!(
                "<Contents><Key>{name}</Key><LastModified>2026-11-22T17:00:00.000Z</LastModified>\
                 <ETag>{}</ETag><Size>{}</Size></Contents>",
                etag(object).replace('"', "&quot;"),
                object.len()
            )),
        }
    }
    let prefixes: String =
        prefixes.iter().map(|p| format!("<CommonPrefixes><Prefix>{p}</Prefix></CommonPrefixes>")).collect();
    let body = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{prefixes}</ListBucketResult>");
    Response::new(full(Bytes::from(body)))
}

/// Nanoseconds of CLOCK_MONOTONIC, as the traces of the stamper have them.
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn etag(object: &Bytes) -> String {
    format!("\"{:016x}\"", crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, object))
}

fn full(data: Bytes) -> BoxBody<Bytes, Hangup> {
    Full::new(data).map_err(|never: Infallible| match never {}).boxed()
}

fn empty(status: StatusCode) -> Answer {
    Response::builder().status(status).body(full(Bytes::new())).unwrap()
}

fn error(status: StatusCode, code: &str) -> Answer {
    let body = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    Response::builder().status(status).body(full(Bytes::from(body))).unwrap()
}

#[cfg(test)]
mod tests {
    use object_store::aws::AmazonS3Builder;
    use object_store::{ClientOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, path::Path};

    use super::*;

    fn client(server: &Server) -> impl ObjectStore {
        AmazonS3Builder::new()
            .with_endpoint(server.endpoint())
            .with_bucket_name("bucket")
            .with_access_key_id("id")
            .with_secret_access_key("secret")
            .with_region("us-east-1")
            .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(3)))
            .build()
            .unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn one_of_two_creations_wins_and_ranges_are_served() {
        let server = Server::start(1);
        block_on(async {
            let client = client(&server);
            let path = Path::from("a/b");
            client.put_opts(&path, "hello".into(), PutMode::Create.into()).await.unwrap();
            let second = client.put_opts(&path, "other".into(), PutMode::Create.into()).await;
            assert!(matches!(second, Err(object_store::Error::AlreadyExists { .. })), "{second:?}");
            assert_eq!(client.get_range(&path, 1..3).await.unwrap(), "el");
            let tail = object_store::GetOptions { range: Some(GetRange::Suffix(2)), ..Default::default() };
            assert_eq!(client.get_opts(&path, tail).await.unwrap().bytes().await.unwrap(), "lo");
            assert_eq!(client.head(&path).await.unwrap().size, 5);
            assert!(matches!(client.get(&Path::from("c")).await, Err(object_store::Error::NotFound { .. })));
            let listed = client.list_with_delimiter(None).await.unwrap();
            assert_eq!(listed.common_prefixes, [Path::from("a")]);
        });
    }

    #[test]
    fn a_lost_answer_leaves_the_object_there() {
        let server = Server::start(1);
        server.set_faults(Faults { lost_answer: 1, ..Faults::NONE });
        block_on(async {
            let path = Path::from("a");
            let client = client(&server);
            let put = client.put_opts(&path, "hello".into(), PutMode::Create.into());
            let _ = tokio::time::timeout(Duration::from_secs(2), put).await;
            server.set_faults(Faults::NONE);
            assert_eq!(client.get(&path).await.unwrap().bytes().await.unwrap(), "hello");
        });
        assert!(server.counts().lost_answers >= 1);
    }

    #[test]
    fn a_policy_of_creating_only_refuses_to_overwrite_to_list_and_to_delete() {
        let server = Server::start(1);
        server.set_policy(Policy::CreateOnly);
        block_on(async {
            let client = client(&server);
            let path = Path::from("a");
            assert!(client.put(&path, "x".into()).await.is_err());
            client.put_opts(&path, "x".into(), PutMode::Create.into()).await.unwrap();
            assert!(client.delete(&path).await.is_err());
            assert!(client.list_with_delimiter(None).await.is_err());
        });
        assert_eq!(server.counts().refused, 3);
    }
}
