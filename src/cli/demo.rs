//! `umbra demo`: a small volume is shadowed, lost and restored, with the real parts, in front of one's eyes.
//!
//! Owns: the story and its figures. Everything in it is done by what does it elsewhere: the gateway, an NBD
//! connection, the chain and the restore.
//! Crash: a folder in the system's place for temporary files remains.

mod workload;

use std::fmt::Display;
use std::fs::{self, DirBuilder, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::DemoArgs;
use super::failure::Failure;
use super::initiator::InitiatorArgs;
use super::output::{self, Meter};
use super::place::Place;
use super::stops::Stops;
use crate::chain::resolve::Resolver;
use crate::chain::{At, ChainError, ChainReader};
use crate::config::{self, Config};
use crate::daemon::{Gateway, Offer, Options};
use crate::format::names::VolumeName;
use crate::nbd::NbdDisk;
use crate::remote::{Limits, Remote};
use crate::restore::progress::Progress;
use crate::restore::whole::restore;
use crate::status;
use crate::units::{EntryNumber, KIB, MIB, Timestamp, human_bytes};
use crate::volume::{Lag, Volume};
use workload::{Done, Workload, fill_file};

/// The configuration that a person would begin with as well.
const QUICKSTART: &str = include_str!("../../proxy-configs/quickstart.toml");
/// What is changed in it: a port that is free, the size, a smaller log, and points that come soon.
const PORT: (&str, &str) = ("\"127.0.0.1:10809\"", "\"127.0.0.1:0\"");
const CREATE: &str = "create = \"1GiB\"";
const LOG: (&str, &str) = ("[log]\nsize = \"1GiB\"", "[log]\nsize = \"256MiB\"\n\n[snapshot]\nepoch = \"1s\"");
const LOG_SIZE: u64 = 256 * MIB;

const SIZE_MIN: u64 = 16 * MIB;
/// One seed replays the whole demo's requests, though not their timing.
const SEED: u64 = 20_261_122;
/// The workload goes on for at least so long before each of the two points.
const PHASE: Duration = Duration::from_secs(5);
/// Longer than that a part of the demo takes only where something is broken, with the time that [`SLOWEST`] allows
/// for the volume's size.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes per second.
const SLOWEST: u64 = 8 * MIB;
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(1);

pub async fn run(args: DemoArgs) -> Result<(), Failure> {
    let size = args.size / (64 * KIB) * (64 * KIB);
    if size < SIZE_MIN {
        return Err(Failure::new("show the demo on", human_bytes(args.size))
            .why("it is too small to show anything")
            .remedy(format!("name {} or more with --size", human_bytes(SIZE_MIN)))
            .wrong_usage());
    }
    let mut stops = Stops::new().map_err(|error| failed("start", "the demo", &error))?;
    let folder = Folder::prepare(args.dir.as_deref())?;
    folder.require_space(size)?;
    let figures = tokio::select! {
        figures = show(&folder, size) => figures?,
        () = stops.next() => return Err(Failure::new("finish", "the demo").why("interrupted")),
    };
    output::print(&figures.table())?;
    output::print(&by_hand(&folder, &figures))?;
    if figures.identical() { Ok(()) } else { Err(Failure::new("restore", "disk0").why("a point is not what it was")) }
}

fn failed(what: &str, on: impl Display, error: &dyn std::error::Error) -> Failure {
    Failure::new(what, on.to_string()).because(error)
}

/// Where the demo works; removed at the end unless a person named it.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn prepare(named: Option<&Path>) -> Result<Self, Failure> {
        let (path, keep) = match named {
            Some(path) => (std::path::absolute(path), true),
            None => (temporary(), false),
        };
        let path = path.map_err(|error| failed("make", "a folder for the demo", &error))?;
        let made = DirBuilder::new().recursive(keep).mode(0o700).create(&path);
        let mut entries =
            made.and_then(|()| fs::read_dir(&path)).map_err(|error| failed("make", path.display(), &error))?;
        if entries.next().is_some() {
            return Err(Failure::new("work in", path.display().to_string())
                .why("the folder is not empty")
                .remedy("name an empty or a new folder with --dir"));
        }
        Ok(Self { path, keep })
    }

    /// The original and two copies, half of each a hole but for what is written meanwhile; what is uploaded; the log.
    fn require_space(&self, size: u64) -> Result<(), Failure> {
        let space = rustix::fs::statvfs(&self.path)
            .map_err(|error| failed("look at", self.path.display(), &io::Error::from(error)))?;
        let (needed, free) = (size / 2 * 5 + LOG_SIZE, space.f_bavail.saturating_mul(space.f_frsize));
        if needed <= free {
            return Ok(());
        }
        Err(Failure::new("work in", self.path.display().to_string())
            .why(format!("about {} are needed, and {} are free", human_bytes(needed), human_bytes(free)))
            .remedy("name a smaller volume with --size, or another folder with --dir"))
    }

    fn of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

fn temporary() -> io::Result<PathBuf> {
    let mut name = [0; 8];
    getrandom::fill(&mut name).map_err(io::Error::other)?;
    std::path::absolute(std::env::temp_dir().join(format!("umbra-demo-{:016x}", u64::from_le_bytes(name))))
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // What cannot be removed is in the place where such things are cleared away.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// The quickstart, as a person would write it, with what the demo needs.
fn configuration(size: u64) -> String {
    QUICKSTART.replace(PORT.0, PORT.1).replace(CREATE, &format!("create = {size}")).replace(LOG.0, LOG.1)
}

/// What is told at the end.
struct Figures {
    size: u64,
    done: Arc<Done>,
    uploaded: u64,
    points: u64,
    first_copy: Duration,
    worst: Lag,
    restored: Vec<Copy>,
}

/// A point, and what became of it.
struct Copy {
    number: EntryNumber,
    time: Timestamp,
    took: Duration,
    identical: bool,
}

async fn show(folder: &Folder, size: u64) -> Result<Figures, Failure> {
    output::announce(&format!("working in {}", folder.path.display()));
    let config_file = folder.of("umbra.toml");
    fs::write(&config_file, configuration(size)).map_err(|error| failed("write", config_file.display(), &error))?;
    let config = config::load(&config_file).map_err(|error| failed("read", config_file.display(), &error))?;
    let image = folder.of("disk0.img");
    output::announce(&format!("making a volume of {}, about half of it data: {}", human_bytes(size), image.display()));
    let path = image.clone();
    blocking(move || fill_file(&path, size, SEED)).await.map_err(|error| failed("fill", image.display(), &error))?;

    let begun = Instant::now();
    let gateway =
        Gateway::start(&config, Options::default()).await.map_err(|error| failed("start", "the gateway", &error))?;
    let no_volume = || Failure::new("find", "disk0").why("the quickstart's volume has another name");
    let volume = gateway.volume("disk0").ok_or_else(no_volume)?.clone();
    let Offer { uri, .. } = gateway.exports().first().ok_or_else(no_volume)?;
    output::announce(&format!("serving {uri}; the first copy begins while a client reads and writes there"));
    let disk = NbdDisk::open(uri).await.map_err(|error| failed("connect to", uri, &error))?;
    let mut play = Play { config, disk: Arc::new(disk), volume, live: Live::new(), done: Arc::default(), size };

    let load = Workload::start(&play.disk, SEED, &play.done);
    let first_copy = play.first_copy(begun).await?;
    output::announce(&format!(
        "the first copy is complete after {:.1} s; the client goes on",
        first_copy.as_secs_f64()
    ));
    play.let_run().await;
    let first = play.point(load, &image).await?;
    let load = Workload::start(&play.disk, SEED + 1, &play.done);
    play.let_run().await;
    let second = play.point(load, &image).await?;

    let ended = play.status().await?;
    let Play { config, disk, live, done, .. } = play;
    drop(disk);
    gateway.stop().await.map_err(|error| failed("stop", "the gateway", &error))?;
    output::announce(&format!("losing the volume: removing {}", image.display()));
    fs::remove_file(&image).map_err(|error| failed("remove", image.display(), &error))?;
    let mut restored = Vec::new();
    for (moment, name) in [(first, "restored-a.img"), (second, "restored-b.img")] {
        restored.push(bring_back(&config, &moment, &folder.of(name), size).await?);
    }
    Ok(Figures { size, done, uploaded: ended.uploaded, points: ended.points, first_copy, worst: live.worst, restored })
}

/// What the volume held when a recovery point was published.
struct Moment {
    number: EntryNumber,
    hash: blake3::Hash,
}

/// The gateway, its client, and who watches them.
struct Play {
    config: Config,
    disk: Arc<NbdDisk>,
    volume: Volume,
    live: Live,
    done: Arc<Done>,
    size: u64,
}

impl Play {
    fn deadline(&self) -> Instant {
        Instant::now() + PATIENCE + Duration::from_secs(self.size / SLOWEST)
    }

    async fn status(&self) -> Result<status::VolumeStatus, Failure> {
        let status = status::ask(&self.config.state).await;
        let status = status.map_err(|error| failed("ask", "the gateway how it is", &error))?;
        status.volumes.into_iter().next().ok_or_else(|| Failure::new("ask", "the gateway").why("it has no volume"))
    }

    /// Until there is a recovery point. The time since `begun`.
    async fn first_copy(&mut self, begun: Instant) -> Result<Duration, Failure> {
        let deadline = self.deadline();
        loop {
            let status = self.status().await?;
            if status.newest_point.is_some() {
                self.live.end();
                return Ok(begun.elapsed());
            }
            in_time(deadline, "make the first copy", status.last_error)?;
            self.look("first copy").await;
        }
    }

    async fn let_run(&mut self) {
        let end = Instant::now() + PHASE;
        while Instant::now() < end {
            self.look("shadowing").await;
        }
        self.live.end();
    }

    async fn look(&mut self, what: &str) {
        self.live.show(what, &self.volume, &self.done);
        sleep(LOOK_EVERY).await;
    }

    /// Brings the client to rest, waits until a recovery point covers all that it did, and remembers what the volume
    /// then holds.
    async fn point(&mut self, load: Workload, image: &Path) -> Result<Moment, Failure> {
        load.quiesce(&self.disk).await.map_err(|error| failed("use", "disk0", &error))?;
        let deadline = self.deadline();
        let number = loop {
            if self.volume.is_quiet()
                && let Some(number) = self.covering().await?
            {
                break number;
            }
            in_time(deadline, "publish the last writes", self.status().await?.last_error)?;
            self.look("catching up").await;
        };
        self.live.end();
        let path = image.to_owned();
        let hash = blocking(move || hash(&path)).await.map_err(|error| failed("read", image.display(), &error))?;
        output::announce(&format!("the client rests: point {number} is the volume {}", short(&hash)));
        Ok(Moment { number, hash })
    }

    /// The newest point, if it has all that was written: as the remote says, whatever the gateway believes.
    async fn covering(&self) -> Result<Option<EntryNumber>, Failure> {
        let cut = self.volume.cut();
        if self.volume.published() != cut {
            return Ok(None);
        }
        match chain(&self.config).await?.1.find(At::Latest).await {
            Ok(newest) => Ok((newest.entry.sequence >= cut.sequence).then_some(newest.entry.number)),
            Err(ChainError::NoPoint { .. }) => Ok(None),
            Err(error) => Err(failed("find", "the newest point", &error)),
        }
    }
}

fn in_time(deadline: Instant, what: &str, error: Option<String>) -> Result<(), Failure> {
    if Instant::now() < deadline {
        return Ok(());
    }
    let why = error.unwrap_or_else(|| "this machine or its disk is too slow for the demo".to_owned());
    Err(Failure::new(what, "in time").why(why).remedy("try a smaller volume with --size"))
}

async fn chain(config: &Config) -> Result<(Remote, ChainReader), Failure> {
    let url = config.remote.place.to_string();
    let remote = Remote::open(&url, config.remote.options.expose(), Limits::default())
        .map_err(|error| failed("open", &url, &error))?;
    let name: &VolumeName = &config.volumes[0].name;
    let chain = ChainReader::open(&remote, name).await.map_err(|error| failed("read", &url, &error))?;
    Ok((remote, chain))
}

/// Restores the point into a new file, and compares what that holds with what the volume held.
async fn bring_back(config: &Config, moment: &Moment, to: &Path, size: u64) -> Result<Copy, Failure> {
    let number = moment.number;
    let on = format!("point {number} to {}", to.display());
    output::announce(&format!("restoring {on}"));
    let (remote, chain) = chain(config).await?;
    let begun = Instant::now();
    let chosen = chain.find(At::Number(number)).await.map_err(|error| failed("find", &on, &error))?;
    let resolver = Resolver::new(remote, chain.volume(), &chosen.entry, chosen.slice)
        .map_err(|error| failed("restore", &on, &error))?;
    let progress = Arc::new(Progress::new(size));
    let target = Place::File(to.to_owned())
        .open_target(&InitiatorArgs::default().login(), size, false, progress.clone())
        .await?;
    let meter = Meter::start("restore", progress.clone());
    let outcome = restore(&resolver, number, target, &progress).await;
    drop(meter);
    outcome.map_err(|error| failed("restore", &on, &error))?;
    let took = begun.elapsed();
    let path = to.to_owned();
    let hash = blocking(move || hash(&path)).await.map_err(|error| failed("read", to.display(), &error))?;
    let identical = hash == moment.hash;
    output::announce(&format!("restored {}: {}", short(&hash), if identical { "identical" } else { "DIFFERENT" }));
    Ok(Copy { number, time: chosen.time, took, identical })
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; MIB as usize];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            length => hasher.update(&buffer[..length]),
        };
    }
}

fn short(hash: &blake3::Hash) -> String {
    hash.to_hex().chars().take(16).collect()
}

/// Shows the lag, and remembers the worst: one line that changes on a terminal, a line a second elsewhere.
struct Live {
    terminal: bool,
    last_line: Option<Instant>,
    worst: Lag,
}

impl Live {
    fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), last_line: None, worst: Lag::default() }
    }

    fn show(&mut self, what: &str, volume: &Volume, done: &Done) {
        let lag = volume.lag();
        self.worst.bytes = self.worst.bytes.max(lag.bytes);
        self.worst.writes = self.worst.writes.max(lag.writes);
        // Until the first copy is complete nothing can be restored, and no age tells how far that is.
        if volume.scan_left() == 0 {
            self.worst.age = self.worst.age.max(lag.age);
        }
        if !self.terminal && self.last_line.is_some_and(|last| last.elapsed() < LINE_EVERY) {
            return;
        }
        self.last_line = Some(Instant::now());
        let copied = match volume.scan_left() {
            0 => String::new(),
            left => format!(" · {}% copied", 100 - (u128::from(left) * 100).div_ceil(u128::from(volume.size().max(1)))),
        };
        let line = format!(
            "  {what}{copied} · {} written · lag {} in {} writes, {:.1} s",
            human_bytes(done.bytes_written.load(Relaxed)),
            human_bytes(lag.bytes),
            lag.writes,
            lag.age.as_secs_f64(),
        );
        if self.terminal {
            // Where standard error is closed, nobody watches.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        } else {
            output::announce(&line);
        }
    }

    /// Whatever comes next begins on a line of its own.
    fn end(&mut self) {
        if self.terminal && self.last_line.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        self.last_line = None;
    }
}

impl Figures {
    fn identical(&self) -> bool {
        self.restored.len() == 2 && self.restored.iter().all(|copy| copy.identical)
    }

    fn table(&self) -> String {
        let Self { done, worst, .. } = self;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        let mut rows = vec![
            ("volume".to_owned(), human_bytes(self.size)),
            (
                "client".to_owned(),
                format!(
                    "{} reads, {} writes, {} trims and zeroes",
                    count(&done.reads),
                    count(&done.writes),
                    count(&done.erased)
                ),
            ),
            ("written".to_owned(), human_bytes(count(&done.bytes_written))),
            ("uploaded".to_owned(), format!("{}, first copy included", human_bytes(self.uploaded))),
            ("recovery points".to_owned(), self.points.to_string()),
            ("first copy".to_owned(), format!("{:.1} s", self.first_copy.as_secs_f64())),
            ("lag at most".to_owned(), format!("{}, {:.1} s", human_bytes(worst.bytes), worst.age.as_secs_f64())),
        ];
        for copy in &self.restored {
            let rate = self.size as f64 / copy.took.as_secs_f64().max(0.001) / 1e6;
            rows.push((
                format!("restore of {}", copy.number),
                format!("{:.1} s, {rate:.0} MB/s", copy.took.as_secs_f64()),
            ));
            rows.push((format!("{} identical", copy.number), if copy.identical { "yes" } else { "NO" }.to_owned()));
        }
        rows.iter().fold("\n".to_owned(), |text, (name, figure)| text + &format!("{name:<18} {figure}\n"))
    }
}

/// The same, for whoever wants to do it; with the folder of this demo if it is still there.
fn by_hand(folder: &Folder, figures: &Figures) -> String {
    let mut text = String::from(
        "\nThe same by hand, in a folder with quickstart.toml (it is in proxy-configs):\n\
         \x20 umbra serve quickstart.toml &\n\
         \x20 nbdcopy --flush some.img nbd://127.0.0.1:10809/disk0    # or qemu, nbd-client, fio …\n\
         \x20 umbra status quickstart.toml --watch\n\
         \x20 umbra points --remote file:umbra-remote\n\
         \x20 kill %1; rm disk0.img                                   # lose it\n\
         \x20 umbra restore --remote file:umbra-remote --volume disk0 --to disk0.img\n",
    );
    if let (true, Some(copy)) = (folder.keep, figures.restored.first()) {
        let path = folder.path.display();
        text += &format!(
            "\nWhat this demo made is still there, and any second of it can be restored:\n\
             \x20 umbra points --remote file:{path}/umbra-remote\n\
             \x20 umbra restore --remote file:{path}/umbra-remote --volume disk0 --at {} --to {path}/again.img\n",
            copy.time
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickstart_has_everything_that_the_demo_replaces() {
        for replaced in [PORT.0, CREATE, LOG.0] {
            assert_eq!(QUICKSTART.matches(replaced).count(), 1, "{replaced}");
        }
        let config = config::parse(&configuration(96 * MIB), Path::new("/tmp")).unwrap();
        assert_eq!(config.log.size, LOG_SIZE);
        assert_eq!(config.volumes[0].name.as_str(), "disk0");
        let store = config::Store::File { path: "/tmp/disk0.img".into(), create: Some(96 * MIB), direct: false };
        assert_eq!(config.volumes[0].store, store);
        assert!(matches!(config.listen[..], [config::Listen::Tcp { port: 0, .. }]));
    }

    #[test]
    fn a_folder_that_holds_something_is_refused_and_left() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("mine"), "x").unwrap();
        assert!(Folder::prepare(Some(temp.path())).is_err());
        assert!(temp.path().join("mine").exists());
        let new = temp.path().join("a/b");
        drop(Folder::prepare(Some(&new)).unwrap());
        assert!(new.is_dir(), "a folder that was named stays");
        let own = Folder::prepare(None).unwrap().path.clone();
        assert!(!own.exists(), "a folder of our own goes");
    }

    #[test]
    fn one_point_that_differs_is_no_success() {
        let copy =
            |identical| Copy { number: EntryNumber(3), time: Timestamp(0), took: Duration::from_secs(1), identical };
        let mut figures = Figures {
            size: 100_000_000,
            done: Arc::default(),
            uploaded: 0,
            points: 2,
            first_copy: Duration::ZERO,
            worst: Lag::default(),
            restored: vec![copy(true), copy(true)],
        };
        assert!(figures.identical());
        assert!(figures.table().contains("1.0 s, 100 MB/s") && !figures.table().contains("NO"));
        figures.restored[1].identical = false;
        assert!(!figures.identical() && figures.table().contains("NO"));
        figures.restored.pop();
        assert!(!figures.identical());
    }
}
