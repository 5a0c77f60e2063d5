//! What disks behind a connection have in common: requests that wait while the connection is lost, and the attempts to
//! have it back.
//!
//! Invariants: a job that waits, or is refused, was never issued; one that was issued is answered by the connection
//! that it went to, and by no other. Jobs that wait go in the order in which they came.

use std::fmt::Display;
use std::mem;
use std::pin::pin;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

/// How long requests wait for a disk that was lost.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// Pauses between attempts to reconnect: doubled from the first to the last.
pub const PAUSE_FIRST: Duration = Duration::from_millis(50);
pub const PAUSE_LAST: Duration = Duration::from_secs(5);

/// A connection, or several that live and die together.
pub trait Carrier {
    type Job;

    /// Gives the job back, not issued, if the connection has ended.
    fn carry(&mut self, job: Self::Job) -> Result<(), Self::Job>;

    /// Answers that the disk is not there.
    fn refuse(job: Self::Job);
}

/// Where jobs go.
pub struct Jobs<C: Carrier>(Mutex<Phase<C>>);

enum Phase<C: Carrier> {
    Up(C),
    /// Jobs wait for a connection.
    Waiting(Vec<C::Job>),
    /// The disk has been away for too long, is another, or was left: jobs are refused.
    Away,
}

impl<C: Carrier> Phase<C> {
    fn submit(&mut self, job: C::Job) {
        match self {
            // It ended just now.
            Self::Up(carrier) => {
                if let Err(unsent) = carrier.carry(job) {
                    *self = Self::Waiting(vec![unsent]);
                }
            }
            Self::Waiting(jobs) => jobs.push(job),
            Self::Away => C::refuse(job),
        }
    }
}

impl<C: Carrier> Jobs<C> {
    pub fn new(carrier: C) -> Self {
        Self(Mutex::new(Phase::Up(carrier)))
    }

    pub fn submit(&self, job: C::Job) {
        self.0.lock().submit(job);
    }

    /// The connection, while there is one.
    pub fn carrier(&self) -> Option<C>
    where
        C: Clone,
    {
        match &*self.0.lock() {
            Phase::Up(carrier) => Some(carrier.clone()),
            Phase::Waiting(_) | Phase::Away => None,
        }
    }

    /// Jobs wait from here on; those that were given to the connection and not sent come before all others.
    pub fn wait(&self, mut unsent: Vec<C::Job>) {
        let mut phase = self.0.lock();
        if let Phase::Waiting(jobs) = &mut *phase {
            unsent.append(jobs);
        }
        *phase = Phase::Waiting(unsent);
    }

    /// Gives the connection the jobs that wait.
    pub fn go_on(&self, carrier: C) {
        let mut phase = self.0.lock();
        if let Phase::Waiting(jobs) = mem::replace(&mut *phase, Phase::Up(carrier)) {
            jobs.into_iter().for_each(|job| phase.submit(job));
        }
    }

    /// Refuses what waits and what comes; a connection that nobody else has ends when it has answered all. False if jobs
    /// were refused already.
    pub fn refuse(&self) -> bool {
        let before = mem::replace(&mut *self.0.lock(), Phase::Away);
        let is_news = !matches!(before, Phase::Away);
        if let Phase::Waiting(jobs) = before {
            jobs.into_iter().for_each(C::refuse);
        }
        is_news
    }
}

/// Why an attempt to have a disk back failed.
pub struct StillAway {
    pub why: String,
    /// One is there, and it is not the one that was lost.
    pub is_another: bool,
}

/// Tries until it succeeds. Who waits is refused when `patience` ends, or when another disk is there.
pub async fn come_back<T, C: Carrier, F: Future<Output = Result<T, StillAway>>>(
    store: &impl Display,
    jobs: &Jobs<C>,
    patience: Duration,
    mut attempt: impl FnMut() -> F,
) -> T {
    let last = Mutex::new(String::new());
    let attempts = async {
        let mut pause = PAUSE_FIRST;
        loop {
            let StillAway { why, is_another } = match attempt().await {
                Ok(back) => return back,
                Err(away) => away,
            };
            let before = mem::replace(&mut *last.lock(), why.clone());
            let (first, news) = (before.is_empty(), before != why);
            if is_another {
                if news {
                    tracing::error!(%store, why, "another disk came back; requests are refused until it is the same");
                }
                jobs.refuse();
                pause = PAUSE_LAST;
            } else if news && !first {
                tracing::info!(%store, why, "still away");
            } else {
                tracing::debug!(%store, why, "still away");
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_LAST);
        }
    };
    let mut attempts = pin!(attempts);
    match timeout(patience, &mut attempts).await {
        Ok(back) => back,
        Err(_) => {
            if jobs.refuse() {
                let why = last.lock().clone();
                tracing::error!(%store, after = ?patience, why, "the disk is away; requests are refused");
            }
            attempts.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    thread_local! {
        static REFUSED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    /// Takes as many jobs as it says, then is at its end.
    struct Line {
        room: usize,
        carried: Rc<RefCell<Vec<u32>>>,
    }

    impl Carrier for Line {
        type Job = u32;
        fn carry(&mut self, job: u32) -> Result<(), u32> {
            if self.carried.borrow().len() == self.room {
                return Err(job);
            }
            self.carried.borrow_mut().push(job);
            Ok(())
        }
        fn refuse(job: u32) {
            REFUSED.with_borrow_mut(|refused| refused.push(job));
        }
    }

    fn line(room: usize) -> (Line, Rc<RefCell<Vec<u32>>>) {
        let carried = Rc::default();
        (Line { room, carried: Rc::clone(&carried) }, carried)
    }

    #[test]
    fn what_was_not_sent_goes_first_and_in_order_when_there_is_a_connection_again() {
        let (first, carried) = line(2);
        let jobs = Jobs::new(first);
        (1..=4).for_each(|job| jobs.submit(job));
        // The connection took the second, and had not sent it when it ended.
        jobs.wait(vec![carried.borrow_mut().pop().unwrap()]);
        jobs.submit(5);
        let (second, carried_again) = line(9);
        jobs.go_on(second);
        assert_eq!(*carried.borrow(), [1]);
        assert_eq!(*carried_again.borrow(), [2, 3, 4, 5]);
        assert!(REFUSED.take().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_refused_when_patience_ends_and_served_when_the_disk_is_back() {
        let jobs = Jobs::new(line(0).0);
        jobs.submit(1);
        let (mut left, begun) = (20, tokio::time::Instant::now());
        let attempt = || {
            left -= 1;
            let back = left == 0;
            async move { if back { Ok(()) } else { Err(StillAway { why: "down".into(), is_another: false }) } }
        };
        come_back(&"disk", &jobs, Duration::from_secs(30), attempt).await;
        assert_eq!(REFUSED.take(), [1]);
        // 50 ms, doubled seven times, then 5 s each.
        assert_eq!(begun.elapsed().as_millis(), 50 * ((1 << 7) - 1) + 5000 * 12);
        jobs.submit(2);
        assert_eq!(REFUSED.take(), [2]);
        let (back, carried) = line(9);
        jobs.go_on(back);
        jobs.submit(3);
        assert_eq!(*carried.borrow(), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_refused_at_once_where_another_disk_is_there() {
        let jobs = Jobs::new(line(0).0);
        jobs.submit(1);
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            assert!(attempts == 1 || REFUSED.take() == [1], "not refused by the second attempt");
            let back = attempts == 2;
            async move { if back { Ok(()) } else { Err(StillAway { why: "larger".into(), is_another: true }) } }
        };
        come_back(&"disk", &jobs, Duration::from_secs(30), attempt).await;
        assert_eq!(attempts, 2);
    }
}
