//! Threads for what no client waits for: uploads with their hashing and compression, scans, scrubs, the control socket.
//!
//! They yield to the threads that serve clients. A range that a scan holds is held a little longer for it, but never
//! without end: the lowest share that the scheduler gives such a thread is about a tenth of what a client's has.

use std::io;

use rustix::process::setpriority_process;
use tokio::runtime::{Builder, Handle, Runtime};
use tracing::debug;

/// Nice value of these threads: by the kernel's table (`sched_prio_to_weight`) 110 of 1024 parts.
const NICE: i32 = 10;

/// A runtime of its own, which ends with this; what runs on it then is dropped at its next pause.
pub struct Background(Option<Runtime>);

impl Background {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .thread_name("umbra-upload")
            .on_thread_start(|| {
                // Of the calling thread alone (setpriority(2), "C library/kernel differences").
                if let Err(error) = setpriority_process(None, NICE) {
                    debug!(%error, "uploads run at the priority of clients");
                }
            })
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub fn handle(&self) -> &Handle {
        self.0.as_ref().expect("there until it is dropped").handle()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Waiting for its threads would block a runtime's own.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::getpriority_process;

    use super::*;

    #[tokio::test]
    async fn its_threads_alone_are_of_lower_priority() {
        let own = getpriority_process(None).unwrap();
        let background = Background::start().unwrap();
        let there = |what: fn() -> i32| background.handle().spawn_blocking(what);
        assert_eq!(there(|| getpriority_process(None).unwrap()).await.unwrap(), NICE);
        let task = background.handle().spawn(async { getpriority_process(None).unwrap() });
        assert_eq!(task.await.unwrap(), NICE);
        assert_eq!(getpriority_process(None).unwrap(), own);
    }
}
