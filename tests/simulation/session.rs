//! The way to the volume through iSCSI: our target in front of it, our initiator in front of the clients, and connections
//! in memory between them, which break.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::ground::{Ground, below, lock, note, once_in};
use crate::disk::Disk;
use crate::iscsi::initiator::{Dial, IscsiDisk, Options};
use crate::iscsi::target::Target;
use crate::scsi::{Unit, UnitSettings};
use crate::units::KIB;
use crate::volume::Volume;

/// Of what the initiator sends: a login and its look at the unit are some fifteen.
const BREAKS_ONCE_IN: u64 = 60;

const TARGET: &str = "iqn.2026-11.example:disk0";

/// Between one initiator and the target of a volume. Clones are the same.
#[derive(Clone)]
pub struct Network {
    ground: Ground,
    target: Arc<Target>,
    /// Of the newest connection.
    cut: Arc<Mutex<Arc<Cut>>>,
}

impl Network {
    pub fn new(ground: Ground, volume: Volume) -> Self {
        let unit = Unit::new(Arc::new(volume), UnitSettings::example(TARGET)).expect("there is nothing to load");
        Self { ground, target: Target::new(TARGET.into(), unit), cut: Arc::default() }
    }

    /// Logs in, as often as it takes: the store may be away.
    pub async fn open(&self) -> Arc<dyn Disk> {
        loop {
            let options = Options {
                url: format!("iscsi://10.0.0.1/{TARGET}/0").parse().expect("a URL"),
                initiator: "iqn.2026-11.example:client".into(),
                isid: [0x80, 0, 0, 0, 0, 1],
                chap: None,
            };
            match IscsiDisk::open_over(self.clone(), options).await {
                Ok(disk) => return Arc::new(disk),
                Err(error) => note!(self.ground, "session: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Breaks the connection now and then, for ever, whatever is under way on it.
    pub async fn breaks(self) {
        loop {
            tokio::time::sleep(Duration::from_millis(50 + below(10_000))).await;
            note!(self.ground, "session: cut");
            lock(&self.cut).cut();
        }
    }
}

impl Dial for Network {
    type Stream = Line;

    async fn dial(&self, _host: &str, _port: u16) -> io::Result<Line> {
        note!(self.ground, "session: connects");
        let (stream, there) = tokio::io::duplex((100 + below(64 * KIB)) as usize);
        tokio::spawn(self.target.clone().serve(there));
        let cut = Arc::<Cut>::default();
        *lock(&self.cut) = cut.clone();
        Ok(Line { stream, cut })
    }
}

/// Whether a connection is cut, and who is to be told.
#[derive(Default)]
struct Cut(Mutex<(bool, Option<Waker>)>);

impl Cut {
    fn cut(&self) {
        let (is_cut, waker) = &mut *lock(&self.0);
        *is_cut = true;
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }

    fn check(&self, cx: &Context<'_>) -> io::Result<()> {
        let (is_cut, waker) = &mut *lock(&self.0);
        if *is_cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        *waker = Some(cx.waker().clone());
        Ok(())
    }
}

/// The initiator's end of a connection.
pub struct Line {
    stream: DuplexStream,
    cut: Arc<Cut>,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.cut.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.cut.check(cx)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        // What was written arrives; its answer does not.
        if once_in(BREAKS_ONCE_IN) {
            self.cut.cut();
        }
        Poll::Ready(written)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
