//! What a command shows: results on standard output, progress and logs on standard error.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::failure::Failure;
use crate::restore::progress::Progress;
use crate::units::human_bytes;

/// Often enough to look alive, seldom enough to cost nothing.
const REDRAW: Duration = Duration::from_millis(100);
/// Between two plain lines, where there is no terminal.
const PLAIN_LINE: Duration = Duration::from_secs(5);
/// The rate that is shown is that of the last ten seconds or so.
const RATE_MEMORY: Duration = Duration::from_secs(10);

/// How log lines on standard error look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Sends the log to standard error. `UMBRA_LOG` chooses what is logged, as in `UMBRA_LOG=umbra=debug`.
pub fn start_log(format: Option<LogFormat>, default_level: LevelFilter) {
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let filter =
        EnvFilter::builder().with_default_directive(default_level.into()).with_env_var("UMBRA_LOG").from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails only where a log was started before, as in tests: that one stays.
    let _ = match format {
        LogFormat::Text => log.with_target(false).with_ansi(terminal).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// Prints a result. A reader that went away (`umbra points … | head`) is not a failure.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new("write to", "standard output").because(&error))
        }
        _ => Ok(()),
    }
}

/// Prints a result as one JSON value.
pub fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::new("write to", "standard output").because(&error))?;
    print(&(text + "\n"))
}

/// Says on standard error what a command is about to do.
pub fn announce(text: &str) {
    // Where standard error is closed, nobody asked to be told.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Columns under their headings, numbers to the right; ends with a line feed.
pub fn table(headings: &[&str], numbers: &[bool], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
    for row in std::iter::once(&headings).chain(rows) {
        let cells = row.iter().zip(&widths).zip(numbers).map(|((cell, &width), &number)| {
            if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A duration for people, at the precision that they care about: `2m 5s`, `3days 4h`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = match duration.as_secs() {
        s if s < 3600 => s,
        s if s < 86_400 => s / 60 * 60,
        s => s / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds)).to_string()
}

/// Draws a [`Progress`] on standard error until it is dropped: a bar on a terminal, a line every few seconds
/// elsewhere.
pub struct Meter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    pub fn start(verb: &'static str, progress: Arc<Progress>) -> Self {
        let (stop, stopped) = channel();
        let terminal = io::stderr().is_terminal();
        let pause = if terminal { REDRAW } else { PLAIN_LINE };
        let draw = move || {
            let bar = terminal.then(bar);
            let mut pace = Pace::new(Instant::now());
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pace.sample(Instant::now(), progress.done(), progress.moved());
                let line = pace.describe(&progress);
                match &bar {
                    Some(bar) => {
                        bar.set_length(progress.total());
                        bar.set_position(progress.done());
                        bar.set_message(line);
                    }
                    None => announce(&format!("{verb}: {}% · {line}", percent(&progress))),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        };
        // Without a thread to draw there is no picture, which is no reason to fail.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(draw).ok();
        Self { stop: Some(stop), thread }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:32} {percent:>3}% {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
}

fn percent(progress: &Progress) -> u64 {
    let total = u128::from(progress.total().max(1));
    (u128::from(progress.done()) * 100 / total).min(100) as u64
}

/// Rates over the last seconds: of what is moved, to be shown, and of what is done, to tell the time left.
struct Pace {
    at: Instant,
    done: u64,
    moved: u64,
    /// Bytes per second; none before the first sample.
    rates: Option<(f64, f64)>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { at: now, done: 0, moved: 0, rates: None }
    }

    fn sample(&mut self, now: Instant, done: u64, moved: u64) {
        let seconds = now.duration_since(self.at).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let current = ((done - self.done) as f64 / seconds, (moved - self.moved) as f64 / seconds);
        let weight = 1.0 - (-seconds / RATE_MEMORY.as_secs_f64()).exp();
        let mix = |old: f64, new: f64| old + (new - old) * weight;
        self.rates = Some(match self.rates {
            Some(old) => (mix(old.0, current.0), mix(old.1, current.1)),
            None => current,
        });
        (self.at, self.done, self.moved) = (now, done, moved);
    }

    fn describe(&self, progress: &Progress) -> String {
        let size = format!("{} of {}", human_bytes(progress.done()), human_bytes(progress.total()));
        let Some((done_rate, moved_rate)) = self.rates else { return size };
        let rate = human_bytes(moved_rate as u64);
        let left = progress.total().saturating_sub(progress.done()) as f64 / done_rate;
        /// Longer than that is not a forecast.
        const FORECAST_MAX: f64 = 30.0 * 86_400.0;
        if left.is_finite() && left < FORECAST_MAX {
            let left = human_duration(Duration::from_secs_f64(left.ceil()));
            format!("{size} · {rate}/s · {left} left")
        } else {
            format!("{size} · {rate}/s")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_its_widest_cell() {
        let rows = [vec!["1".to_owned(), "point".to_owned()], vec!["100".to_owned(), "open".to_owned()]];
        assert_eq!(table(&["no", "kind"], &[true, false], &rows), " no  kind\n  1  point\n100  open\n");
    }

    #[test]
    fn a_forecast_follows_what_is_done_and_a_rate_what_is_moved() {
        let start = Instant::now();
        let progress = Progress::new(1000 << 20);
        progress.pass(500 << 20);
        progress.transfer(20 << 20);
        let mut pace = Pace::new(start);
        pace.sample(start + Duration::from_secs(10), progress.done(), progress.moved());
        assert_eq!(pace.describe(&progress), "500.0 MiB of 1000.0 MiB · 2.0 MiB/s · 10s left");
    }

    #[test]
    fn a_job_that_stands_still_has_no_forecast() {
        let start = Instant::now();
        let progress = Progress::new(1 << 20);
        let mut pace = Pace::new(start);
        pace.sample(start + Duration::from_secs(10), 0, 0);
        assert_eq!(pace.describe(&progress), "0 B of 1.0 MiB · 0 B/s");
    }
}
