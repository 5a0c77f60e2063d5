use std::sync::atomic::Ordering::Relaxed;

use object_store::memory::InMemory;

use super::faulty::{Call, Fault, FaultyStore};
use super::probe::{ConditionalPuts, conditional_puts};
use super::*;

/// Short enough that a test of time-outs does not wait for them.
fn impatient() -> Limits {
    Limits {
        answer: Duration::from_millis(50),
        patience: Duration::from_secs(2),
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(4),
        ..Limits::default()
    }
}

fn faulty() -> (FaultyStore, Remote) {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let remote = Remote::with_store(Arc::new(store.clone()), Path::from("deep/prefix"), impatient());
    (store, remote)
}

async fn holds(remote: &Remote) {
    let body = Bytes::from_static(b"0123456789");
    assert!(!remote.exists("a/b").await.unwrap());
    assert!(remote.get("a/b").await.unwrap_err().is_not_found());
    assert_eq!(remote.put_new("a/b", body.clone()).await.unwrap(), PutOutcome::Created);
    assert_eq!(remote.put_new("a/b", Bytes::from_static(b"other")).await.unwrap(), PutOutcome::Exists);
    assert!(remote.exists("a/b").await.unwrap());
    assert_eq!(remote.get("a/b").await.unwrap(), body);
    assert_eq!(remote.get_range("a/b", 3..7).await.unwrap(), body.slice(3..7));
    assert!(remote.get_range("a/b", 3..3).await.unwrap().is_empty());
    assert!(matches!(remote.get_range("a/b", 8..12).await.unwrap_err(), RemoteError::Corrupt { .. }));
    assert!(remote.get_range("a/b", 20..22).await.is_err());
    assert_eq!(remote.put_new("a/a", Bytes::new()).await.unwrap(), PutOutcome::Created);
    assert!(remote.get("a/a").await.unwrap().is_empty());
    assert_eq!(remote.list("a").await.unwrap(), ["a/a", "a/b"]);
    assert!(remote.list("nothing").await.unwrap().is_empty());
    assert_eq!(conditional_puts(remote).await.unwrap(), ConditionalPuts::Kept);
}

#[tokio::test]
async fn a_remote_in_memory_holds_what_was_put_first() {
    let remote = Remote::open("memory:", &BTreeMap::new(), impatient()).unwrap();
    holds(&remote).await;
    assert_eq!(remote.stats().bytes_down.load(Relaxed), 10 + 4 + 2 * 512);
}

#[tokio::test]
async fn a_remote_in_a_folder_holds_what_was_put_first() {
    let temp = tempfile::tempdir().unwrap();
    let url = format!("file:{}", temp.path().join("remote").display());
    let limits = Limits { answer: Duration::from_secs(30), ..impatient() };
    assert!(Remote::open(&url, &BTreeMap::new(), limits.clone()).is_err());
    holds(&Remote::create(&url, &BTreeMap::new(), limits.clone()).unwrap()).await;
    let again = Remote::open(&url, &BTreeMap::new(), limits).unwrap();
    assert_eq!(again.get_range("a/b", 0..1).await.unwrap(), "0");
}

#[tokio::test]
async fn another_folder_in_place_of_the_one_that_was_opened_is_a_remote_that_is_away() {
    let temp = tempfile::tempdir().unwrap();
    let (there, gone) = (temp.path().join("remote"), temp.path().join("gone"));
    let limits = Limits { answer: Duration::from_secs(30), patience: Duration::from_millis(100), ..impatient() };
    let remote = Remote::create(&format!("file:{}", there.display()), &BTreeMap::new(), limits).unwrap();
    let body = Bytes::from_static(b"x");
    assert_eq!(remote.put_new("a/b", body.clone()).await.unwrap(), PutOutcome::Created);
    std::fs::rename(&there, &gone).unwrap();
    for exists in [false, true] {
        if exists {
            std::fs::create_dir(&there).unwrap();
        }
        let errors = [
            remote.put_new("a/c", body.clone()).await.unwrap_err(),
            remote.get("a/b").await.unwrap_err(),
            remote.exists("a/c").await.unwrap_err(),
        ];
        let away =
            |error: &RemoteError| matches!(error, RemoteError::Replaced { path, .. } if path.ends_with("remote"));
        assert!(errors.iter().all(away), "{errors:?}");
    }
    assert_eq!(std::fs::read_dir(&there).unwrap().count(), 0);
    std::fs::remove_dir(&there).unwrap();
    std::fs::rename(&gone, &there).unwrap();
    assert_eq!(remote.put_new("a/c", body).await.unwrap(), PutOutcome::Created);
    assert_eq!(remote.get("a/b").await.unwrap(), "x");
}

#[tokio::test]
async fn errors_that_pass_are_not_seen() {
    let (store, remote) = faulty();
    for fault in [Fault::Status(503), Fault::Status(429), Fault::Reset, Fault::BlackHole] {
        store.once(Call::Create, "k", fault.clone());
        store.once(Call::Get, "k", fault);
    }
    assert_eq!(remote.put_new("k", Bytes::from_static(b"x")).await.unwrap(), PutOutcome::Created);
    assert_eq!(remote.get("k").await.unwrap(), "x");
    assert_eq!(remote.stats().retries.load(Relaxed), 8);
    assert!(remote.stats().last_error().unwrap().message.contains("not done after"));
}

/// Fault test 31.
#[tokio::test]
async fn bytes_that_are_too_few_or_of_another_range_are_never_returned() {
    let (store, remote) = faulty();
    let body = Bytes::from_iter(0..100);
    remote.put_new("k", body.clone()).await.unwrap();
    for fault in [Fault::Truncate(3), Fault::WrongRange, Fault::Truncate(0)] {
        store.once(Call::Get, "k", fault);
    }
    assert_eq!(remote.get_range("k", 10..20).await.unwrap(), body.slice(10..20));
    store.every(Call::Get, "k", Fault::Truncate(5));
    let error = remote.get_range("k", 10..20).await.unwrap_err();
    assert!(matches!(error, RemoteError::Corrupt { expected: 10, got: 5, .. }), "{error:?}");
}

/// Fault test 27.
#[tokio::test]
async fn a_put_whose_answer_was_lost_is_found_to_exist() {
    let (store, remote) = faulty();
    store.once(Call::Create, "k", Fault::LostAnswer);
    assert_eq!(remote.put_new("k", Bytes::from_static(b"x")).await.unwrap(), PutOutcome::Exists);
    assert_eq!(remote.get("k").await.unwrap(), "x");
}

/// Fault test 33.
#[tokio::test]
async fn a_black_hole_or_a_drip_costs_only_its_own_operation() {
    let (store, remote) = faulty();
    remote.put_new("slow", Bytes::from(vec![0; 4096])).await.unwrap();
    remote.put_new("other", Bytes::from_static(b"x")).await.unwrap();
    store.every(Call::Create, "hole", Fault::BlackHole);
    store.every(Call::Get, "slow", Fault::Drip(Duration::from_millis(20)));
    let (hole, drip, other) =
        tokio::join!(remote.put_new("hole", Bytes::from_static(b"x")), remote.get("slow"), remote.get("other"),);
    assert!(matches!(hole, Err(RemoteError::TimedOut { operation: Operation::Put, .. })), "{hole:?}");
    assert!(matches!(drip, Err(RemoteError::TimedOut { operation: Operation::Get, .. })), "{drip:?}");
    assert_eq!(other.unwrap(), "x");
}

#[tokio::test]
async fn what_is_denied_is_not_tried_again() {
    let (store, remote) = faulty();
    store.every(Call::Create, "k", Fault::Status(403));
    let error = remote.put_new("k", Bytes::new()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Denied { .. }), "{error:?}");
    assert_eq!(store.calls(Call::Create), ["deep/prefix/k"]);
}

#[tokio::test]
async fn large_uploads_share_the_slots_and_small_ones_pass_them() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    let limits = Limits { parallel: 1, answer: Duration::from_secs(30), ..impatient() };
    let remote = Remote::with_store(Arc::new(store.clone()), Path::ROOT, limits);
    store.every(Call::Create, "large", Fault::BlackHole);
    let stuck = tokio::spawn({
        let remote = remote.clone();
        async move { remote.put_new("large/1", Bytes::from(vec![0; 1 << 17])).await }
    });
    while store.calls(Call::Create).is_empty() {
        tokio::task::yield_now().await;
    }
    let second = remote.put_new("large/2", Bytes::from(vec![0; 1 << 17]));
    assert!(timeout(Duration::from_millis(20), second).await.is_err());
    assert_eq!(remote.put_new("small", Bytes::from_static(b"entry")).await.unwrap(), PutOutcome::Created);
    assert_eq!(store.calls(Call::Create), ["large/1", "small"]);
    stuck.abort();
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_noticed() {
    let lax = Arc::new(InMemory::new());
    let remote = Remote::with_store(Arc::new(Lax(lax)), Path::ROOT, impatient());
    assert_eq!(conditional_puts(&remote).await.unwrap(), ConditionalPuts::Ignored);
}

#[tokio::test]
async fn the_probe_sees_through_faults() {
    for seed in 0..30 {
        let (store, remote) = faulty();
        store.seeded(seed, 3);
        assert_eq!(conditional_puts(&remote).await.unwrap(), ConditionalPuts::Kept, "seed {seed}");
    }
}

/// A store that takes create-if-absent for a plain put.
#[derive(Debug)]
struct Lax(Arc<InMemory>);

impl fmt::Display for Lax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lax")
    }
}

type Answer<'f, T> = futures_util::future::BoxFuture<'f, object_store::Result<T>>;
type Stream<T> = futures_util::stream::BoxStream<'static, object_store::Result<T>>;

impl ObjectStore for Lax {
    fn put_opts<'s, 'k, 'f>(
        &'s self,
        key: &'k Path,
        payload: PutPayload,
        _: PutOptions,
    ) -> Answer<'f, object_store::PutResult>
    where
        's: 'f,
        'k: 'f,
    {
        self.0.put_opts(key, payload, PutOptions::default())
    }
    fn put_multipart_opts<'s, 'k, 'f>(
        &'s self,
        key: &'k Path,
        options: object_store::PutMultipartOptions,
    ) -> Answer<'f, Box<dyn object_store::MultipartUpload>>
    where
        's: 'f,
        'k: 'f,
    {
        self.0.put_multipart_opts(key, options)
    }
    fn get_opts<'s, 'k, 'f>(&'s self, key: &'k Path, options: GetOptions) -> Answer<'f, GetResult>
    where
        's: 'f,
        'k: 'f,
    {
        self.0.get_opts(key, options)
    }
    fn delete_stream(&self, keys: Stream<Path>) -> Stream<Path> {
        self.0.delete_stream(keys)
    }
    fn list(&self, prefix: Option<&Path>) -> Stream<object_store::ObjectMeta> {
        self.0.list(prefix)
    }
    fn list_with_delimiter<'s, 'k, 'f>(&'s self, prefix: Option<&'k Path>) -> Answer<'f, object_store::ListResult>
    where
        's: 'f,
        'k: 'f,
    {
        self.0.list_with_delimiter(prefix)
    }
    fn copy_opts<'s, 'a, 'b, 'f>(
        &'s self,
        from: &'a Path,
        to: &'b Path,
        options: object_store::CopyOptions,
    ) -> Answer<'f, ()>
    where
        's: 'f,
        'a: 'f,
        'b: 'f,
    {
        self.0.copy_opts(from, to, options)
    }
}
