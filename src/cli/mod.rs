//! The command line: what may be asked for, and what a person is told.
//!
//! Owns: names and forms of commands and options, exit codes, messages, progress bars. Does not own: anything that a
//! command does.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage.

pub mod check;
pub mod demo;
pub mod failure;
pub mod initiator;
mod online;
pub mod output;
pub mod place;
pub mod points;
pub mod restore;
pub mod serve;
pub mod source;
pub mod status;
pub mod stops;
pub mod verify;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use self::failure::Failure;
use self::initiator::InitiatorArgs;
use self::output::LogFormat;
use self::place::Place;
use self::source::{PointArgs, SourceArgs, VerifySource};
use crate::format::names::VolumeName;

/// Shadow a volume to object storage, and get it back.
#[derive(Debug, Parser)]
#[command(name = "umbra", version, arg_required_else_help = true)]
struct Cli {
    /// How the log on standard error looks; without it, text on a terminal and json elsewhere.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    log: Option<LogFormat>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway until SIGINT or SIGTERM.
    Serve(ServeArgs),
    /// Say what is wrong with a configuration, its stores and its remote; changes nothing.
    Check(CheckArgs),
    /// Show how the volumes of a running gateway are.
    Status(StatusArgs),
    /// List the recovery points in a bucket.
    Points(PointsArgs),
    /// Rebuild a volume from a recovery point.
    Restore(RestoreArgs),
    /// Read and check all objects of a recovery point, and compare it with a store.
    Verify(VerifyArgs),
    /// Shadow, lose and restore a small volume in a folder, in front of your eyes.
    Demo(DemoArgs),
}

#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The configuration file (TOML).
    pub config: PathBuf,
    /// Compare every store with its newest point in full, even after a clean stop.
    #[arg(long)]
    pub compare: bool,
    /// Shadow stores other than those that the chains were made from, under the names that exist.
    #[arg(long)]
    pub adopt: bool,
    /// Become the writer although another gateway was seen alive a short while ago; it is fenced.
    #[arg(long)]
    pub take_over: bool,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// The configuration file (TOML).
    pub config: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// The configuration file of the gateway (TOML).
    pub config: PathBuf,
    /// One JSON object instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Prometheus' text format instead of a table.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub metrics: bool,
    /// Refresh until interrupted.
    #[arg(long)]
    pub watch: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PointsArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    /// Only this volume; without it, all of them.
    #[arg(long, value_name = "NAME", value_parser = source::parse_volume)]
    pub volume: Option<VolumeName>,
    /// Show entries that cannot be restored as well (opens, drafts, checkpoints …).
    #[arg(long)]
    pub all: bool,
    /// JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub point: PointArgs,
    /// Where to: a file (made if absent), a block device, nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or
    /// iscsi://HOST:PORT/TARGET/LUN.
    #[arg(long, value_name = "TARGET", value_parser = Place::parse)]
    pub to: Place,
    #[command(flatten)]
    pub initiator: InitiatorArgs,
    /// Replace what the target holds.
    #[arg(long)]
    pub overwrite: bool,
    /// Print a summary as one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub source: VerifySource,
    #[command(flatten)]
    pub point: PointArgs,
    /// Compare the point with a store as well: a file, a block device, an NBD URI or iscsi://HOST:PORT/TARGET/LUN; with
    /// --config also without STORE, for the volume's own. While a gateway serves the store, give its configuration with --config: then the gateway
    /// compares the store with the newest point, passes over what clients change meanwhile, and uploads again what
    /// differs.
    #[arg(long, value_name = "STORE", value_parser = Place::parse)]
    pub against: Option<Option<Place>>,
    #[command(flatten)]
    pub initiator: InitiatorArgs,
    /// Only report what the gateway finds; upload nothing.
    #[arg(long, requires = "against", conflicts_with = "remote")]
    pub no_repair: bool,
    /// Print the result as one JSON object.
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Size of the volume.
    #[arg(long, default_value = "1GiB", value_parser = parse_size)]
    pub size: u64,
    /// Where to work; without it, in a new folder of the system's place for temporary files.
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<u64, String> {
    text.parse::<bytesize::ByteSize>().map(|size| size.as_u64())
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    share_arenas();
    // Wrong usage ends here, with clap's own message and exit code 2.
    let cli = Cli::parse();
    let level = match cli.command {
        Command::Serve(_) => LevelFilter::INFO,
        _ => LevelFilter::WARN,
    };
    output::start_log(cli.log, level);
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::announce(&failure.to_string());
            failure.exit_code()
        }
    }
}

/// With an arena for each thread, which is glibc's default, what one thread allocates and another frees stays with the
/// process: more than twice what it needs.
#[cfg(target_env = "gnu")]
fn share_arenas() {
    // SAFETY: it takes numbers only, and there is no other thread yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

#[cfg(not(target_env = "gnu"))]
fn share_arenas() {}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Points(args) => block_on(points::run(args)),
        Command::Restore(args) => block_on(restore::run(args)),
        Command::Verify(args) => block_on(verify::run(args)),
        Command::Serve(args) => block_on(serve::run(args)),
        Command::Check(args) => block_on(check::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
    }
}

/// How long what a command has left behind (connections that take leave of a server) may take.
const LEAVE_MAX: Duration = Duration::from_millis(500);

/// Runs a command to its end.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("start", "the runtime").because(&error))?;
    let outcome = runtime.block_on(async {
        let outcome = command.await;
        let tasks = tokio::runtime::Handle::current().metrics();
        let left = async {
            while tasks.num_alive_tasks() > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        // Whatever is left then was of no use to the command.
        let _ = tokio::time::timeout(LEAVE_MAX, left).await;
        outcome
    });
    // A thread that a disk holds up keeps nobody from hearing how it ended.
    runtime.shutdown_timeout(LEAVE_MAX);
    outcome
}
